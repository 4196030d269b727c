"""`podsvid uninstall-check`: whether podsvid can be taken away, or who still needs it. Run by the chart's guard."""

import argparse
import asyncio
from pathlib import Path

from runtime.settings import InvalidSetting, absolute
from signer.attestation.pods import read_pod
from signer.cluster.kube import KubeApi
from signer.cluster.kube_client import KubeClient
from signer.cluster.objects import Named, Pod
from signer.cluster.paging import Paging
from signer.errors import NotFound

POLICIES = ("workloadidentities", "clusterworkloadidentities")
# Pods are named up to this many.
MAX_NAMED = 50


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
    found = []
    async for page in Paging().pages(api, "/api/v1/pods", Pod, {}):
        for each in page.items:
            pod = read_pod(each)
            if pod is not None and not pod.finished and (pod.drivers & drivers or pod.oversized):
                found.append(f"{pod.namespace}/{pod.name}")
    return sorted(found)


async def policies_left(api: KubeApi) -> list[str]:
    """Every policy, as KIND NAMESPACE/NAME: the chart keeps the custom resources and what is in them."""
    found = []
    for resource in POLICIES:
        try:
            async for page in Paging().pages(api, f"/apis/podsvid.io/v1alpha1/{resource}", Named, {}):
                for each in page.items:
                    name = "/".join(filter(None, [each.metadata.namespace, each.metadata.name]))
                    found.append(f"{resource} {name}")
        except NotFound:
            continue
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
