"""`podsvid uninstall-check`: whether podsvid can be taken away, or who still needs it. Run by the chart's guard."""

import argparse
import asyncio
from pathlib import Path

from runtime.settings import InvalidSetting, absolute
from signer.attestation.pods import read_pod
from signer.cluster.kube import KubeApi
from signer.cluster.kube_client import KubeClient
from signer.errors import NotFound

POLICIES = ("workloadidentities", "clusterworkloadidentities")
# Pods are named up to this many.
MAX_NAMED = 50
PAGE = "500"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Its flags."""
    parser.add_argument("--driver-names", default="csi.podsvid.io", help="CSI drivers, separated by commas")
    parser.add_argument("--namespace", default="podsvid", help="where podsvid is installed")
    parser.add_argument("--kubeconfig", help="kubeconfig file (default: the cluster that this pod is in)")


def run(parsed: argparse.Namespace) -> int:
    """Print what is in the way; the exit code: 0 nothing, 1 pods. Raises SignerError, InvalidSetting."""
    try:
        kubeconfig = absolute(str(Path(parsed.kubeconfig).absolute())) if parsed.kubeconfig else None
    except ValueError as error:
        raise InvalidSetting(f"--kubeconfig: {error}") from None
    drivers = frozenset(filter(None, parsed.driver_names.split(",")))
    return asyncio.run(_run(kubeconfig, drivers, parsed.namespace))


async def _run(kubeconfig: Path | None, drivers: frozenset[str], namespace: str) -> int:
    client = await KubeClient.connect(kubeconfig)
    try:
        pods, policies = await in_use(client, drivers), await policies_left(client)
    finally:
        await client.close()
    for line in report(pods, policies, drivers, namespace):
        print(line)
    return 1 if pods else 0


async def in_use(api: KubeApi, drivers: frozenset[str]) -> list[str]:
    """NAMESPACE/POD of every pod that mounts one of the drivers and is not finished. Raises SignerError."""
    found, token = [], ""
    while True:
        answer = await api.list("/api/v1/pods", {"limit": PAGE, **({"continue": token} if token else {})})
        for each in answer.get("items") or []:
            pod = read_pod(each)
            if pod is not None and not pod.finished and pod.drivers & drivers:
                found.append(f"{pod.namespace}/{pod.name}")
        token = (answer.get("metadata") or {}).get("continue") or ""
        if not token:
            return sorted(found)


async def policies_left(api: KubeApi) -> list[str]:
    """Every policy, as KIND NAMESPACE/NAME: the chart keeps the custom resources and what is in them."""
    found = []
    for resource in POLICIES:
        try:
            answer = await api.list(f"/apis/podsvid.io/v1alpha1/{resource}")
        except NotFound:
            continue
        for each in answer.get("items") or []:
            metadata = each.get("metadata") or {}
            name = "/".join(filter(None, [metadata.get("namespace"), metadata.get("name")]))
            found.append(f"{resource} {name}")
    return sorted(found)


def report(pods: list[str], policies: list[str], drivers: frozenset[str], namespace: str) -> list[str]:
    """The lines for a person."""
    lines = []
    if pods:
        lines.append(f"REFUSED: {len(pods)} pods mount {', '.join(sorted(drivers))}; delete or change them first:")
        lines += [f"  {each}" for each in pods[:MAX_NAMED]]
        if len(pods) > MAX_NAMED:
            lines.append(f"  and {len(pods) - MAX_NAMED} more")
    else:
        lines.append(f"no pod mounts {', '.join(sorted(drivers))}")
    if policies:
        lines.append(f"{len(policies)} policies stay in the cluster, with their custom resource definitions:")
        lines += [f"  {each}" for each in policies[:MAX_NAMED]]
        lines.append("to remove them too: kubectl delete crd " + " ".join(f"{each}.podsvid.io" for each in POLICIES))
    lines.append("the CA and the published trust bundles stay: another installation goes on with them. To remove them:")
    lines.append(f"  kubectl -n {namespace} delete secret podsvid-authority")
    lines.append("  kubectl delete configmap --all-namespaces --field-selector metadata.name=podsvid-bundle")
    return lines
