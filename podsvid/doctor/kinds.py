"""What can be wrong, by reason: how bad it is, what it means, what to do. docs/troubleshooting.md has it from here."""

from collections.abc import Mapping
from dataclasses import dataclass
from enum import IntEnum
from types import MappingProxyType
from typing import Final


class Weight(IntEnum):
    """How bad it is, worst first. A NOTE is nothing that is wrong."""

    BROKEN = 0
    WRONG = 1
    UNKNOWN = 2
    NOTE = 3


@dataclass(frozen=True, slots=True)
class Kind:
    """A reason. `means` and `to_do` are sentences without an end, for whoever has read nothing else."""

    reason: str
    weight: Weight
    means: str
    to_do: str


OWN: Final = (
    Kind(
        "AGENTS_MISSING",
        Weight.BROKEN,
        "that namespace has no DaemonSet `podsvid-agent`",
        "say with `--podsvid-namespace` where podsvid is installed, or install it",
    ),
    Kind(
        "SIGNERS_MISSING",
        Weight.BROKEN,
        "that namespace has no Deployment `podsvid-signer`",
        "install it again, by the chart or the manifests; with embedded authorities nothing",
    ),
    Kind(
        "SIGNERS_NOT_READY",
        Weight.BROKEN,
        "no signer is ready: new pods wait",
        "look at the pod that is named, by `kubectl describe` and its log; `podsvid signer --check` in it says all "
        "that is wrong at once",
    ),
    Kind(
        "AGENTS_NOT_READY",
        Weight.BROKEN,
        "on some nodes no agent is ready, or none is to run anywhere: pods there do not start, and renewals wait",
        "look at the pod that is named, by `kubectl describe` and its log; where the text says `hostPath type check "
        "failed`, set the chart's `kubelet.root` to kubelet's `--root-dir`; where there is no pod, look at the "
        "DaemonSet: admission, a quota or its `nodeSelector` keeps it away",
    ),
    Kind(
        "DRIVER_MISSING",
        Weight.BROKEN,
        "there is no CSIDriver object of podsvid's: kubelet refuses its volumes",
        "install the chart's, or apply it again",
    ),
    Kind(
        "DRIVER_WRONG",
        Weight.BROKEN,
        "the CSIDriver object is not as agents need it",
        "apply the chart's again; who has changed it?",
    ),
    Kind(
        "DRIVER_UNREGISTERED",
        Weight.BROKEN,
        "an agent is ready, and kubelet of that node does not know its driver",
        "is the chart's `kubelet.root` kubelet's `--root-dir`, and are its `drivers` those of your pods?",
    ),
    Kind(
        "DEFINITIONS_MISSING",
        Weight.WRONG,
        "custom resource definitions of podsvid's are missing: there can be none of the policies or federations",
        "apply `deploy/manifests/crds.yaml`, or set the chart's `crds.install`",
    ),
    Kind(
        "KUBERNETES_TOO_OLD",
        Weight.BROKEN,
        "the cluster is older than podsvid needs",
        "upgrade the cluster",
    ),
    Kind(
        "AUTHORITY_ENDS",
        Weight.BROKEN,
        "what signs ends soon and has no successor, or the root of the CA above does",
        "`podsvid authority show` says what the next step waits for; a root's successor is the CA's above",
    ),
    Kind(
        "SIGNERS_TOO_FEW",
        Weight.WRONG,
        "some signers are not ready: the others do their work",
        "look at the pod that is named, by `kubectl describe` and its log; `podsvid signer --check` in it says all "
        "that is wrong at once",
    ),
    Kind(
        "UPGRADE_STUCK",
        Weight.WRONG,
        "a new pod of podsvid's does not start, while those before it still serve",
        "look at the pod that is named, by `kubectl describe` and its log; `helm rollback` takes the change back",
    ),
    Kind(
        "BUNDLE_STALE",
        Weight.WRONG,
        "a published trust bundle is missing, or not that of the authorities: who reads it trusts too little, or too "
        "much",
        "wait a minute and look again; else the signer's log says why it cannot write there",
    ),
    Kind(
        "AGENTS_SILENT",
        Weight.WRONG,
        "agents have not acknowledged the newest trust bundle, which a rotation waits for",
        "look at the agents of those nodes and their connection to the signers",
    ),
    Kind(
        "SIGNER_WARNS",
        Weight.WRONG,
        "the signer says that something is to be done",
        "what it says",
    ),
    Kind(
        "TAINT_LEFT",
        Weight.WRONG,
        "a node whose agent is registered, or that gets none, still has the taint `podsvid.io/agent-not-ready`: no pod "
        "is scheduled there",
        "where no agent's pod is, do `nodeSelector` and `tolerations` of the chart's `agent` leave the node out? Else "
        "is `startupTaint.enabled` set, and may the signer write nodes? Then its log says why; by hand "
        "`kubectl taint node NODE podsvid.io/agent-not-ready-`",
    ),
    Kind(
        "VERSIONS_DIFFER",
        Weight.WRONG,
        "pods of podsvid run several images",
        "wait for the upgrade that is going on; without one, agents whose DaemonSet has `updateStrategy` OnDelete have "
        "to be deleted",
    ),
    Kind(
        "COULD_NOT_LOOK",
        Weight.UNKNOWN,
        "a part could not be looked at, so that something may be wrong there",
        "where the text says `forbidden`, give who asks that right (docs/doctor.md has all of them), or ask as "
        "somebody who has it; else look at what did not answer, and ask again",
    ),
    Kind(
        "NODES_AWAY",
        Weight.NOTE,
        "nodes are not ready, and so neither are their agents, which are not counted",
        "nothing of podsvid's: look at the nodes",
    ),
    Kind(
        "UPGRADE_UNFINISHED",
        Weight.NOTE,
        "some agents run an earlier version or other settings than their DaemonSet has",
        "wait for the upgrade that is going on; with `updateStrategy` OnDelete, delete those agents",
    ),
    Kind(
        "VERSION_OTHER",
        Weight.NOTE,
        "this command is of another version than what is installed, and may know other reasons than there are",
        "nothing, where all goes well; else take the command of the installed version",
    ),
    Kind(
        "ADMISSION_MISSING",
        Weight.NOTE,
        "nothing bounds under which names the signer may write, beyond RBAC",
        "set the chart's `admissionPolicy.enabled`, unless you left it out on purpose",
    ),
    Kind(
        "KUBERNETES_UNTRIED",
        Weight.NOTE,
        "podsvid is not tested with that version of Kubernetes",
        "nothing, where all goes well; docs/versions.md has what is tested",
    ),
    Kind(
        "POLICY_MATCHES_NOTHING",
        Weight.NOTE,
        "a policy gives no pod an identity",
        "nothing, where its pods are still to come; else compare its selectors with a pod's labels: "
        "`podsvid explain NAMESPACE/POD`",
    ),
    Kind(
        "NO_POLICY",
        Weight.NOTE,
        "there is no policy, so that pods get what the signer's default gives, or nothing",
        "nothing, where the default is what you want",
    ),
)
# Reasons that others say as well: what they mean stands with theirs.
SHARED: Final = (
    Kind("MOUNT_NOT_SHARED", Weight.BROKEN, "", "set `mountPropagation: Bidirectional`, as the chart does"),
    Kind("CLOCKS_DIFFER", Weight.WRONG, "", "have the clock set of the node that is named, or of the signers' nodes"),
    Kind(
        "UPSTREAM_AWAY",
        Weight.WRONG,
        "",
        "nothing at first: it is asked again, and `podsvid authority show` in the pod of the signer that leads has all "
        "that was said; where it stays so, look at the CA above",
    ),
    Kind(
        "UPSTREAM_ROOTS_REFUSED",
        Weight.WRONG,
        "",
        "where the signers were given another CA on purpose, `podsvid authority rotate`, once; else set right what the "
        "text says, at the CA above or in the file of its roots",
    ),
    Kind("POLICY_UNUSABLE", Weight.WRONG, "", "`kubectl describe` of that policy; correct the field that is named"),
    Kind(
        "FEDERATION_FETCH_FAILED",
        Weight.WRONG,
        "",
        "`kubectl describe federatedtrustdomain` says when it is tried again",
    ),
)
KINDS: Final[Mapping[str, Kind]] = MappingProxyType({each.reason: each for each in (*OWN, *SHARED)})
