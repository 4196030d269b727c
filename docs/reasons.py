"""Every reason that podsvid says in capitals, with what it means and what to do: docs/troubleshooting.md has them.

What the signer refuses has its meaning from the signer, and what the agent advises its advice from the agent: nothing
is said twice. A test looks for reasons that have no place here.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from types import MappingProxyType

from agent.admin import ADVICE
from csi.mountable import MAY_MOUNT
from docs.command_reasons import BETWEEN, BUG, OF_CHECK, OF_COMMANDS, OF_DOCTOR, OF_SYSTEM, Row
from signer.errors import HELP, Reason
from signer.front.statuses import STATUS_CODES


@dataclass(frozen=True, slots=True)
class Group:
    """Reasons that are met in the same places, which `where` names."""

    title: str
    where: str
    rows: tuple[Row, ...]


_NOTHING = "nothing: it goes on by itself"
_LOOK_AT_NODE = "an agent asked for a pod that it should not speak for: take the node out of service until you know why"
_GONE = "nothing: kubelet does not go on for a pod that is gone, and asks for the new one anew"

# What to do, where the agent's advice does not end with it.
_SIGNER_TO_DO: Mapping[Reason, str] = MappingProxyType(
    {
        Reason.INVALID_REQUEST: "correct what the text names, mostly one of the pod's "
        "volumeAttributes; the pod has to be made anew",
        Reason.POD_TOKEN_INVALID: "does every API server know every key that signs tokens "
        "(`--service-account-key-file`), and is the pod of this cluster?",
        Reason.POD_TOKEN_AUDIENCE: "give the CSIDriver object's `tokenRequests` the signer's `audience`, as the "
        "chart does; of an Istio proxy it is `istio_audience`",
        Reason.POD_TOKEN_UNBOUND: "upgrade the cluster to Kubernetes 1.30 or newer",
        Reason.POD_TOKEN_REPLAYED: _LOOK_AT_NODE,
        Reason.POD_ON_OTHER_NODE: _LOOK_AT_NODE,
        Reason.POD_NOT_FOUND: f"{_GONE}; of a ztunnel: no live pod of that account is on its node",
        Reason.POD_UID_MISMATCH: _GONE,
        Reason.POD_FINISHED: "nothing: a pod that has ended needs no SVID",
        Reason.POD_IS_MIRROR: "run it by a DaemonSet",
        Reason.POD_OVERSIZED: "take labels or csi volumes away: the text has the limits",
        Reason.POD_WITHOUT_DRIVER: "add a csi volume with the driver `csi.podsvid.io`; with another name, the signer's "
        "`driver_names` and the chart's `drivers` have to list it",
        Reason.POD_WITHOUT_CERTIFICATE_SOURCE: "find out who made that PodCertificateRequest: it was "
        "not the pod's kubelet",
        Reason.SERVICE_ACCOUNT_MISMATCH: "find out who asked",
        Reason.SERVICE_ACCOUNT_REPLACED: "make the pod anew, unless it is well within a quarter of an hour",
        Reason.CSR_INVALID: "is something else than podsvid's agent, or kubelet, asking? "
        "The signer's audit log names the node",
        Reason.PROOF_OF_POSSESSION: "find out who asked: podsvid's agent and kubelet sign with the key",
        Reason.KEY_WEAK: "leave `keyAlgorithm` out: `ec-p256`, the default, suits most programs",
        Reason.KEY_ALGORITHM_DENIED: "set one of those that the text names, or add yours to the "
        "policy's `keyAlgorithms`",
        Reason.POLICY_DENIED: "`podsvid explain NAMESPACE/POD` says which policy denies, or what each wants that the "
        "pod does not have: change that policy, or the pod's labels or service account. Until then its socket "
        "has no SVID, and files keep theirs until it ends; it is tried again by itself",
        Reason.POLICY_UNUSABLE: "`kubectl describe` of that policy names the field or the label; "
        "correct it, and the pod starts",
        Reason.DNS_NAME_DENIED: "ask for a name that the policy gives, or add it to its `dnsNameTemplates`",
        Reason.NOT_ENTITLED: "have the program ask without a SPIFFE ID, or for its own; of an Istio proxy: is Istio's "
        "trust domain podsvid's, and do policies leave IDs in the form `/ns/NAMESPACE/sa/ACCOUNT`?",
        Reason.IMPERSONATION_DENIED: "a ztunnel of another account than `istio-system/ztunnel`: name it in the chart's "
        "`istio.ztunnels`; is it none, find out what that program does",
        Reason.CLUSTER_UNKNOWN: "add the name to `istio_clusters`, where the proxy is one of yours",
        Reason.JWT_DISABLED: "set the signer's `jwt_svids`, if workloads are to have JWT-SVIDs",
        Reason.ISSUANCE_REFUSED: "an authority that has ended: `podsvid authority show` says what its successor waits "
        "for; an ID of another trust domain or a name that is no DNS name: correct the policy or the pod's "
        "volumeAttributes; audiences of a JWT-SVID: have the program ask for fewer or shorter ones, none of them empty",
        Reason.AUTHORITY_KEY_STORE_UNAVAILABLE: "bring the token or KMS back; a restart of the signer is not needed",
        Reason.RECONNECT: _NOTHING,
        Reason.INTERNAL: f"{BUG}; {BETWEEN}",
    }
)


# What the agent says by the same name, and of what: its events lead to the same heading.
SAID_BY_AGENT: Mapping[Reason, str] = MappingProxyType(
    {
        Reason.INVALID_REQUEST: "of volumeAttributes and the csi volume that has them",
        Reason.AGENT_TOKEN_MISSING: "where `agent_token_file` is empty",
        Reason.POD_TOKEN_MISSING: "where kubelet has passed none to it",
        Reason.AUTHORITY_UNAVAILABLE: "of its own authority, or of a signer that gives no other reason",
        Reason.DNS_NAME_DENIED: "where the authority is its own (`embedded`, `file`)",
        Reason.NOT_ENTITLED: "where the authority is its own (`embedded`, `file`)",
        Reason.JWT_DISABLED: "where the authority is its own (`embedded`, `file`)",
        Reason.INTERNAL: "of errors of its own",
    }
)


def _advised(reason: str, means: str) -> Row:
    return Row(reason, means, ADVICE[reason])


def _of_signer() -> Iterator[Row]:
    for each in Reason:
        means = HELP.get(each, "something went wrong that was not foreseen; the log says what")
        too = f"; said by the signer, or by the agent, {SAID_BY_AGENT[each]}" if each in SAID_BY_AGENT else ""
        yield Row(
            each, f"{means} (gRPC status {STATUS_CODES[each].name}){too}", _SIGNER_TO_DO.get(each, ADVICE.get(each, ""))
        )


_OF_NODE = (
    Row(
        "IDENTITY_DENIED",
        "the pod is refused an identity; the reason that follows, which is the signer's, says why",
        "go on with the reason that follows",
    ),
    _advised("IDENTITY_UNAVAILABLE", "no identity could be had now; the reason that follows says why"),
    Row(
        "AUTHORITY_REFUSED",
        "a renewal was refused, and asking again unchanged does not help; the reason that follows says why",
        "go on with the reason that follows; it is tried again by itself, and the SVID is kept until it ends",
    ),
    _advised("SIGNER_UNREACHABLE", "the agent cannot reach a signer, or is not answered in time"),
    Row(
        "SIGNER_NOT_TRUSTED",
        "what answers at `signer_address` has a certificate of an authority that this agent does not trust",
        "an agent that was away for long reads the ConfigMap `podsvid-bundle` by itself after half a minute. "
        "If it stays so: does a signer lead, which keeps that ConfigMap new, and is it this cluster's address?",
    ),
    Row(
        "SIGNER_WRONG_IDENTITY",
        "what answers at `signer_address` proves to be something else than the signer; nothing was sent to it",
        "is `signer_address` the signer's, and `trust_domain` this cluster's? Find out what answers there",
    ),
    _advised("CLOCKS_DIFFER", "the node's clock and the signer's differ by more than is bridged (two minutes)"),
    _advised("TRUST_BEHIND", "an SVID came of an authority whose trust bundle has not come yet"),
    _advised("WRITE_FAILED", "the volume's files could not be written"),
    _advised("POD_FULL", "the pod has as many volumes as one may have"),
    _advised("NODE_FULL", "one more volume does not fit on this node"),
    _advised("NODE_BUSY", "too much of this is under way on the node, for the pod or for all; nothing was begun"),
    _advised(
        "KEYS_BUSY", "no key was made in time: others wait for theirs on this node, or too many of the pod's own do"
    ),
    Row(
        "JWT_BUSY",
        "a JWT-SVID that the pod asked for had no turn",
        "ask for fewer audiences at once (`jwt_queue` bounds what one pod has waiting): a token that was given for the "
        "same ones is given again until it is due. If others wait: is the signer reachable?",
    ),
    _advised(
        "SOCKET_QUARANTINED", "the pod's sockets cost others their service, and are served by a process of their own"
    ),
    _advised("SOCKET_CLOSED", "the pod's sockets cost others their service, and are closed for a while"),
    Row(
        "SOCKET_UNAVAILABLE",
        "the pod's socket cannot be served now: the process that serves it is being started, or the volume is leaving",
        "nothing, unless it stays so: then the agent's log says why that process ends",
    ),
    _advised("VOLUME_FAILED", "the node could not make the volume; what was done was undone"),
    _advised("UNDO_FAILED", "something was left where the volume was to be, and kubelet has to come back for it"),
    _advised(
        "MOUNT_NOT_SHARED", "what the agent mounts would not reach pods: it has mounts of its own. Nothing was begun"
    ),
    Row("MOUNT_DENIED", "the agent may not mount, so it can make no volume. Nothing was begun", MAY_MOUNT),
    _advised("HOST_UNANSWERED", "a look at the node's own file systems was not answered in time. Nothing was begun"),
    Row(
        "OPERATION_PENDING",
        "another call for the same volume is still running",
        "nothing: kubelet tries again by itself",
    ),
    Row(
        "VOLUME_NOT_FOUND",
        "kubelet asks about a volume that is not published there",
        "nothing if the pod is leaving; else delete it, and its controller makes another one",
    ),
    Row(
        "VOLUME_CONFLICT",
        "kubelet publishes a volume that is there again with other arguments, which it does not do by itself",
        "delete the pod; find out who else calls the driver's socket on that node",
    ),
    Row(
        "TARGET_CONFLICT",
        "kubelet publishes a volume that is there at another path, which it does not do by itself",
        "delete the pod; find out who else calls the driver's socket on that node, and whether "
        "kubelet's `--root-dir` changed",
    ),
    Row(
        "ALREADY_RUNNING",
        "another agent of this node has the same `run_dir`; this one ended",
        "stop the other one, or give each a `run_dir`",
    ),
    Row("AGENT_ERROR", "an error that has no reason of its own", BUG),
)
_OF_AUTHORITIES = (
    Row(
        "AUTHORITY_DAMAGED",
        "the authorities' Secret, or the embedded authority's files, cannot be used. They are never replaced silently: "
        "a new CA would be one that nobody trusts",
        "of a signer: restore the Secret `podsvid-authority` from a backup, with all signers stopped first; those that "
        "run sign on for `outage_limit` (1 h). Of an agent: restore the file that the text names, or take from others "
        "the right to read it",
    ),
    Row(
        "TRANSITION_REFUSED",
        "the authorities are in no state from which that step is possible",
        "the text says what it waits for; `podsvid authority show` says where the authorities are",
    ),
    Row(
        "UPSTREAM_UNUSABLE",
        "the CA above cannot certify a new authority, or is not who it should be; the active one "
        "signs on until it ends",
        "the text has the CA's own words: its address, its token or role, and what it may issue",
    ),
    Row(
        "UPSTREAM_AWAY",
        "the CA above cannot be asked now",
        "nothing at first: it is asked again, and `podsvid authority show` in the pod of the signer that leads has "
        "all that was said. If it stays so, look at the CA",
    ),
    Row(
        "UPSTREAM_CERTIFICATE_REFUSED",
        "what the CA above certified cannot be used as an authority; the one that signs stays",
        "the text says what is wrong (its chain, its root, how long it lives, what it may sign): set "
        "that right at the CA; it is "
        "asked again in an hour, at once after `podsvid authority rotate`",
    ),
    Row(
        "UPSTREAM_ROOTS_REFUSED",
        "the roots that the CA above names are not taken; those of before stay trusted",
        "the text says why. After a change to another CA, or to none, `podsvid authority rotate`, once, takes it with "
        "its roots; else set right what the text says, at the CA or in the file of its roots",
    ),
    Row(
        "NOT_INSTALLED",
        "an optional library is not there: that of a cloud's CA or KMS, or of traces",
        "install what the text names, such as `pip install 'podsvid[aws]'`. podsvid's image has no pip: build one on "
        "top of it, as [an image with more libraries](pkcs11.md#an-image-with-more-libraries)",
    ),
    Row(
        "INVALID_POLICY",
        "a WorkloadIdentity or ClusterWorkloadIdentity cannot be used",
        "`kubectl describe` of it has the field in the condition `Ready`",
    ),
    Row(
        "FEDERATION_FETCH_FAILED",
        "there is no bundle now where a FederatedTrustDomain says; the last good one stays",
        "`kubectl describe ftd NAME`: the condition `Fetched` says what the last look met",
    ),
    Row("FEDERATION_NOT_READY", "it cannot be looked for a partner's bundle yet", "nothing: it is looked again soon"),
    Row(
        "FEDERATION_UNUSABLE",
        "a FederatedTrustDomain says something that cannot be followed",
        "`kubectl describe ftd NAME`: the condition `Ready` names the field",
    ),
    Row(
        "TOKEN_REFUSED",
        "a token does not prove what it should: it is of another audience or cluster, or it is old",
        "whose it is says the reason that callers see: `AGENT_TOKEN_…` or `POD_TOKEN_…`",
    ),
    Row(
        "FORBIDDEN",
        "the API server denies a signer's call, by RBAC or by an admission rule; the text is the API server's",
        "compare the ClusterRole and Role `podsvid-signer` with the chart's; which webhook or policy "
        "denied it is in the text",
    ),
    Row("CONFLICT", "another wrote the same object first", _NOTHING),
    Row("GONE", "a watch fell behind what the API server keeps, and begins anew with a list", _NOTHING),
    Row("SIGNER_ERROR", "an error that has no reason of its own", BUG),
    Row(
        "INVALID_TRUST_BUNDLE",
        "what was given as a trust bundle is none",
        "the text says what is wrong; a SPIFFE bundle is a JWKS with `use` of each key, a CA file is PEM",
    ),
    Row("INVALID_KEY", "not a key, or of no kind that is accepted", "give a PEM key of a kind that the text names"),
    Row(
        "INVALID_SPIFFE_ID",
        "not a SPIFFE ID, or not the name of a trust domain",
        "an ID is `spiffe://TRUST-DOMAIN/PATH`: no port, no query, no `.`, `..` or empty part; the name in lower case",
    ),
    Row(
        "INVALID_X509_SVID",
        "a certificate is no SVID of its trust domain at this time",
        "the text says why: it has ended, has no or several URI names, or leads to no authority of the bundle",
    ),
    Row("SVID_ERROR", "an error that has no reason of its own", BUG),
)
_SEEN_OF_SIGNER = (
    "Said by the signer, and some by the agent, too, where it stands so: "
    "in the pod's events (`IdentityRefused`, and after `IDENTITY_DENIED` or "
    "`IDENTITY_UNAVAILABLE` in "
    "`FailedMount`), in `podsvid explain`, in the signer's audit log and in its metrics. Istio's proxies, where the "
    "signer is their CA, hear none of them: look at those places."
)


def groups() -> tuple[Group, ...]:
    """All of them, in the order in which people meet them."""
    return (
        Group(
            "Reasons of a node",
            "Said by the agent: in the pod's event `FailedMount`, in `podsvid node ls` and "
            "`explain`, in its log and metrics.",
            _OF_NODE,
        ),
        Group("Reasons of the signer", _SEEN_OF_SIGNER, tuple(_of_signer())),
        Group(
            "Reasons of authorities and files",
            "Said by the signer's log, `podsvid authority`, `--check` and the conditions of objects; "
            "of an embedded authority "
            "by the agent.",
            _OF_AUTHORITIES,
        ),
        Group(
            "Reasons of `--check`",
            "Said by `podsvid agent --check` and `podsvid signer --check`, before a start.",
            OF_CHECK,
        ),
        Group("Reasons of `podsvid doctor`", "Said by [podsvid doctor](doctor.md), with what it saw.", OF_DOCTOR),
        Group("Reasons of every command", "Said as `podsvid: REASON: text`, by daemons that end as well.", OF_SYSTEM),
        Group(
            "Reasons of single commands",
            "`api`, `node`, `authority`, `oidc probe`, `migrate`, `quickstart`.",
            OF_COMMANDS,
        ),
    )


def page() -> str:
    """A heading for each reason, to which events and runbooks can lead, and its two sentences."""
    parts = []
    for group in groups():
        parts.append(f"## {group.title}\n\n{group.where}\n")
        parts += [f"### `{row.reason}`\n\n{_sentence(row.means)}{_do(row.to_do)}\n" for row in group.rows]
    return "\n" + "\n".join(parts) + "\n"


def _do(text: str) -> str:
    return f" **Do:** {text}{'' if text.endswith('?') else '.'}"


def _sentence(text: str) -> str:
    return f"{text[0].upper()}{text[1:]}."
