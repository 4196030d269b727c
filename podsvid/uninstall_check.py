"""`podsvid uninstall-check`: whether podsvid can be taken away, or who still needs it. Run by the chart's guard."""

import argparse
import asyncio
import json
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from podsvid.awaiting import awaited
from podsvid.interrupts import unwinding
from podsvid.options import add_output, add_timeout, as_yaml
from podsvid.reading import site
from podsvid.waiting import GaveUp
from runtime.settings import InvalidSetting, absolute
from signer.attestation.pods import read_pod
from signer.authority.passed_on import LABEL
from signer.cluster.kube import KubeApi
from signer.cluster.kube_client import KubeClient
from signer.cluster.objects import Named, Pod
from signer.cluster.paging import Paging
from signer.errors import NotFound

POLICIES = ("workloadidentities", "clusterworkloadidentities")
# Where no kubeconfig is given, in this order.
DEFAULT = "$KUBECONFIG, the pod's own cluster, ~/.kube/config"
# And what the cluster federates with.
DEFINED = (*POLICIES, "federatedtrustdomains")
# The label of what signers publish.
MANAGED = "app.kubernetes.io/managed-by=podsvid"
# Pods are named up to this many.
MAX_NAMED = 50


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Its flags."""
    for flags, default, called, text in (
        (("--driver-names",), "csi.podsvid.io", "LIST", "CSI drivers, separated by commas"),
        # The second as other commands have it.
        (("--namespace", "--podsvid-namespace"), "podsvid", "NAMESPACE", "where podsvid is installed"),
        (("--state-secret",), "podsvid-authority", "NAME", "the signer's state_secret"),
        (("--bundle-config-map",), "podsvid-bundle", "NAME", "the signer's bundle_config_map"),
    ):
        parser.add_argument(*flags, default=default, metavar=called, help=f"{text} (default: {default})")
    parser.add_argument("--one-line", action="store_true", help="in one line and short, for Helm: it shows \\n as such")
    parser.add_argument("--kubeconfig", metavar="FILE", help=f"kubeconfig (default: {DEFAULT})")
    parser.add_argument("--context", metavar="NAME", help="context of the kubeconfig (default: the current one)")
    add_output(parser)
    add_timeout(parser, what="for each answer of the API server")


def run(parsed: argparse.Namespace) -> int:
    """Print what is in the way; the exit code: 0 nothing, 1 pods. Raises SignerError, InvalidSetting."""
    try:
        given = absolute(str(Path(parsed.kubeconfig).absolute())) if parsed.kubeconfig else None
    except ValueError as error:
        raise InvalidSetting(f"--kubeconfig: {error}") from None
    kubeconfig = given or customary(os.environ)
    if parsed.context and kubeconfig is None:
        # The pod's own cluster is another one than the person has named.
        raise InvalidSetting("--context names one of a kubeconfig's, and there is none here: give --kubeconfig")
    drivers = frozenset(filter(None, parsed.driver_names.split(",")))
    place = Place(parsed.namespace, parsed.state_secret, parsed.bundle_config_map)
    # The kubernetes package keeps what the kubeconfig holds, keys as well, in temporary files until it ends.
    with unwinding():
        pods, policies = asyncio.run(_ask(kubeconfig, parsed.context, drivers, parsed.timeout))
    found = report(pods, policies, drivers, place)
    if parsed.output == "text":
        print(in_one_line(found[0], len(policies), place) if parsed.one_line else "\n".join(in_lines(found)))
    else:
        document = json.dumps(in_json(pods, policies, found), indent=2) + "\n"
        print(document if parsed.output == "json" else as_yaml(document), end="")
    return 1 if pods else 0


def customary(environment: Mapping[str, str]) -> Path | None:
    """The kubeconfig where none is given; several are joined by colons. None: the pod's cluster.

    $KUBECONFIG comes before the pod's own cluster, as somebody has set it; the file at home may be an image's, and does
    not.
    """
    home = Path(environment.get("HOME") or "/")
    parts = environment.get("KUBECONFIG", "").split(os.pathsep)
    named = [home / each[2:] if each.startswith("~/") else Path(each).absolute() for each in parts if each]
    if named:
        # As kubectl does, of several those that are there; where none is, its name is what has to be said.
        return Path(os.pathsep.join(map(str, [each for each in named if each.exists()] or named[:1])))
    at_home = home / ".kube" / "config"
    return at_home if "KUBERNETES_SERVICE_HOST" not in environment and at_home.exists() else None


@dataclass(frozen=True, slots=True)
class Place:
    """Where podsvid is installed, and what the signer calls its Secret and the published bundle."""

    namespace: str
    secret: str = "podsvid-authority"
    bundle: str = "podsvid-bundle"


@dataclass(frozen=True, slots=True)
class Said:
    """A sentence, and what it introduces: names, or commands."""

    text: str
    items: tuple[str, ...] = ()


async def _ask(
    kubeconfig: Path | None, context: str | None, drivers: frozenset[str], seconds: float
) -> tuple[list[str], list[str]]:
    client = await KubeClient.connect(kubeconfig, context)
    try:
        async with awaited("the API server", seconds) as limit:
            # A large cluster has many pages of pods, and each takes its time.
            def came() -> None:
                limit.reschedule(asyncio.get_running_loop().time() + seconds)

            return await in_use(client, drivers, came), await policies_left(client, came)
    except TimeoutError:
        raise GaveUp(f"no answer from the API server within {seconds:g} s; --timeout gives it longer") from None
    finally:
        await client.close()


def _nothing() -> None:
    pass


async def in_use(api: KubeApi, drivers: frozenset[str], came: Callable[[], None] = _nothing) -> list[str]:
    """NAMESPACE/POD of every pod that mounts one of the drivers and is not finished. Raises SignerError.

    `came`: is called when the next ones have come.
    """
    found = []
    async for page in Paging().pages(api, "/api/v1/pods", Pod, {}):
        came()
        for each in page.items:
            pod = read_pod(each)
            if pod is not None and not pod.finished and (pod.drivers & drivers or pod.oversized):
                found.append(f"{pod.namespace}/{pod.name}")
    return sorted(found)


async def policies_left(api: KubeApi, came: Callable[[], None] = _nothing) -> list[str]:
    """Every policy, as KIND NAMESPACE/NAME: the chart keeps the custom resources and what is in them."""
    found = []
    for resource in POLICIES:
        try:
            async for page in Paging().pages(api, f"/apis/podsvid.io/v1alpha1/{resource}", Named, {}):
                came()
                for each in page.items:
                    name = "/".join(filter(None, [each.metadata.namespace, each.metadata.name]))
                    found.append(f"{resource} {name}")
        except NotFound:
            continue
    return sorted(found)


def report(pods: list[str], policies: list[str], drivers: frozenset[str], place: Place) -> list[Said]:
    """What is in the way, which is the first, what stays in the cluster, and how to remove that."""
    said = []
    names, here = ", ".join(sorted(drivers)), f"kubectl -n {place.namespace} delete"
    if pods:
        said.append(Said(f"REFUSED: {len(pods)} pods mount {names}; delete or change them first", _some(pods)))
    else:
        said.append(Said(f"no pod mounts {names}"))
    if policies:
        what = f"{len(policies)} policies stay in the cluster, with their custom resource definitions"
        said.append(Said(what, _some(policies)))
    definitions = "kubectl delete crd " + " ".join(f"{each}.podsvid.io" for each in DEFINED)
    said += [
        Said("the custom resource definitions stay; to remove them, with every policy and federation", (definitions,)),
        Said(
            f"the CA stays (Secret {place.secret}, ConfigMap {place.secret}-abandoned), and another installation "
            "goes on with it; to remove it, for good",
            (f"{here} secret {place.secret}", f"{here} configmap {place.secret}-abandoned --ignore-not-found"),
        ),
        Said(
            f"the trust bundle stays published as ConfigMap {place.bundle} in every namespace, and as "
            "ClusterTrustBundle where the cluster has them; to remove it",
            (
                f"kubectl delete configmap --all-namespaces --field-selector metadata.name={place.bundle}",
                f"kubectl delete clustertrustbundle -l {MANAGED}",
            ),
        ),
        Said(
            "the signers' Lease and their notes on agents stay, and mean nothing without signers; to remove them",
            (f"{here} lease podsvid-signer", f"{here} configmap -l {LABEL}"),
        ),
        Said(
            "Secrets that you made stay, such as with the key or a token of a CA above (signer.upstreamSecret); to see "
            "them",
            (f"kubectl -n {place.namespace} get secrets",),
        ),
        Said(
            "the namespace stays; to remove it with all that is in it, the CA and your Secrets as well",
            (f"kubectl delete namespace {place.namespace}",),
        ),
    ]
    return said


def in_lines(said: list[Said]) -> list[str]:
    """For a terminal."""
    return [
        line for each in said for line in (each.text + ":" * bool(each.items), *(f"  {item}" for item in each.items))
    ]


def in_one_line(first: Said, policies: int, place: Place) -> str:
    """For Helm, which shows what a hook says as one line of its log: so it is short, and says where to read on."""
    page = f"{site()}/operations.html" if site() else "docs/operations.md"
    if first.items:
        return (
            f"{first.text}: {', '.join(first.items)}. To Helm the release is uninstalling from now on: "
            "uninstall it again when they are gone, or keep it by helm rollback to a revision that helm history has; "
            f"see {page}#uninstall"
        )
    kept = f"{policies} policies, their definitions" if policies else "custom resource definitions"
    return (
        f"{first.text[:1].upper()}{first.text[1:]}. What stays: {kept}, the CA (Secret {place.secret}), the published "
        f"trust bundle (ConfigMaps {place.bundle}), the signers' notes (Lease podsvid-signer), Secrets that you made, "
        f"the namespace. podsvid uninstall-check has the commands that remove them; see {page}#uninstall"
    )


def in_json(pods: list[str], policies: list[str], said: list[Said]) -> dict[str, object]:
    """For programs: every pod and policy, and what a person is told."""
    told = [{"text": each.text, "items": list(each.items)} for each in said]
    return {"pods": pods, "policies": policies, "said": told}


def _some(names: list[str]) -> tuple[str, ...]:
    more = (f"and {len(names) - MAX_NAMED} more",) if len(names) > MAX_NAMED else ()
    return (*names[:MAX_NAMED], *more)
