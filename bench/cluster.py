"""Publish latency through a signer at a real API server, beside the embedded authority, in one run.

python -m bench.cluster: brings a cluster up on this host (root, Go), prints a table and records it.
"""

import argparse
import asyncio
import sys
import time

from bench.report import Report, environment, record, table
from podsvid.quickstart.kubelet import StandInKubelet
from podsvid.quickstart.pods import Pod, PodVolume
from tests.cluster import signing
from tests.cluster.cluster import Cluster
from tests.cluster.fleet import fleet
from tests.cluster.waiting import say
from tests.support import DRIVER, host, pod

VOLUMES = 200
RESULTS = "cluster"


async def _published(kubelet: StandInKubelet, who: Pod, volume: PodVolume) -> float:
    started = time.perf_counter()
    await kubelet.publish(who, volume)
    return (time.perf_counter() - started) * 1e3


async def measure(cluster: Cluster, signer: signing.SignerProcess, report: Report) -> None:
    """In turn: a volume through the signer, one by the embedded authority."""
    through, embedded = [], []
    with host() as here:
        here.start("--trust-domain", signing.TRUST_DOMAIN)
        other = StandInKubelet(here.kubelet_root)
        await other.start()
        await other.wait_registered(DRIVER)
        async with fleet(cluster, say, [signer], ["bench-0"], 1) as found:
            node = found.nodes["bench-0"]
            prepared = [await found.prepare(node, f"bench-{number}") for number in range(VOLUMES)]
            # The signer has seen the last pods by then, as it usually has when a pod's image is there.
            await asyncio.sleep(1.0)
            for number, (who, volume) in enumerate(prepared):
                embedded.append(await _published(other, pod(f"e{number}"), PodVolume(name="identity")))
                through.append(await _published(node.kubelet, who, volume))
        await other.stop()
    report.add("publish, embedded authority", "ms", embedded)
    report.add("publish through a signer, real TokenReviews", "ms", through, floor=embedded, budget={"p50": 25.0})


def main() -> int:
    argparse.ArgumentParser(prog="python -m bench.cluster", description=__doc__).parse_args()
    report, about = Report(), environment()
    with Cluster(progress=say) as cluster:
        signing.install(cluster, say)
        with signing.signer_process(cluster, say, "signer-bench", "--node-rate", "10000") as signer:
            asyncio.run(measure(cluster, signer, report))
    print(table(report.rows, about))
    record(report.rows, about, RESULTS)
    return 0


if __name__ == "__main__":
    sys.exit(main())
