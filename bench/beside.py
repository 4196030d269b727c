"""podsvid's side of the comparison with csi-driver-spiffe: what an agent and two signers take while 63 pods are there.

    python -m bench.beside --dir DIR [--pods N] [--seconds N]

Starts a cluster of its own on this host (root, Go), with the name that DIR ends with; installs the chart by Helm, with
two signers; then one pod after the other, each with a volume, by a real kubelet. Measured is the CPU time of all their
processes while nothing is asked of them but kubelet's own calls; SVIDs live an hour, so that next to none is renewed.
Records bench/results/beside.md. CPU time hardly depends on what else the machine does; memory does not.
"""

import argparse
import os
import sys
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from bench.peers.machine import family, memory
from bench.report import RESULTS, environment
from bench.signer import cpu_seconds
from tests.cluster import product_image
from tests.cluster.alone import audited
from tests.cluster.chart import CHART
from tests.cluster.cluster import Cluster
from tests.cluster.installation import NAMESPACE, component, release, set_taints, settings
from tests.cluster.traffic import running, workload
from tests.cluster.waiting import say, wait_for
from tests.permissions import Call

PODS, SECONDS = 63, 270.0
# After the last pod runs: what a start leaves to do is done.
SETTLED_SECONDS = 30.0
TRUST_DOMAIN = "cluster.test"
# What others measured of csi-driver-spiffe 0.15 and cert-manager 1.21, as bench.peers quotes it.
THEIRS_CPU, THEIRS_NODE, THEIRS_CLUSTER = 5.5, 42, 180
KINDS = ("agent", "signer")


@dataclass(frozen=True)
class Part:
    """One pod of podsvid: its processes, by the first of them."""

    name: str
    first: int

    def used(self) -> Mapping[int, float]:
        """Seconds of CPU time so far, by process."""
        return {pid: cpu_seconds(pid) for pid in family(self.first)}

    def resident(self) -> float:
        """MiB of all its processes, what they share counted for each."""
        pages = sum(int(Path(f"/proc/{pid}/statm").read_text().split()[1]) for pid in family(self.first))
        return pages * os.sysconf("SC_PAGE_SIZE") / 2**20


@dataclass(frozen=True)
class Taken:
    """What a pod of podsvid took: seconds of CPU time by process, in the order in which they were started, and MiB."""

    name: str
    making: float
    cpu: Sequence[float]
    pss: float
    rss: float
    asked: Mapping[str, int]


def parts(cluster: Cluster) -> list[Part]:
    """Agent and signers, in that order. Raises ClusterError."""
    names = [pod["metadata"]["name"] for kind in KINDS for pod in component(cluster, kind)]
    return [Part(name, cluster.pods.process(name, NAMESPACE)) for name in names]


def difference(before: Mapping[int, float], after: Mapping[int, float]) -> list[float]:
    """By process; one that was started meanwhile counts from its beginning, what one took that has ended is lost."""
    return [seconds - before.get(pid, 0.0) for pid, seconds in after.items()]


def asked(log: Path, account: str) -> Counter[str]:
    """What an account of podsvid asked of the API server so far, by verb and kind of object."""
    return Counter(map(_named, (call for call, _ in audited(log, account))))


def _named(call: Call) -> str:
    return f"{call.verb} {call.resource or call.path}"


def measure(cluster: Cluster, pods: int, seconds: float) -> list[Taken]:
    """Start the pods, and see what podsvid takes meanwhile, and afterwards."""
    found = parts(cluster)
    empty = {each.name: each.used() for each in found}
    for number in range(pods):
        cluster.pods.create(workload(f"pod-{number}"))
    for number in range(pods):
        wait_for(f"pod-{number}", _runs(cluster, f"pod-{number}"), progress=say)
    time.sleep(SETTLED_SECONDS)
    begun, asked_before = {each.name: each.used() for each in found}, _asked(cluster)
    time.sleep(seconds)
    ended, asked_after = {each.name: each.used() for each in found}, _asked(cluster)
    return [
        Taken(
            each.name,
            sum(difference(empty[each.name], begun[each.name])),
            difference(begun[each.name], ended[each.name]),
            memory(family(each.first)).resident,
            each.resident(),
            asked_after[kind] - asked_before[kind],
        )
        for each in found
        for kind in KINDS
        if f"-{kind}-" in each.name
    ]


def _runs(cluster: Cluster, name: str) -> Callable[[], bool | str]:
    return lambda: running(cluster, name)


def _asked(cluster: Cluster) -> Mapping[str, Counter[str]]:
    return {kind: asked(cluster.audit_log, f"podsvid-{kind}") for kind in KINDS}


def page(found: Sequence[Taken], about: Mapping[str, str], pods: int, seconds: float) -> str:
    """The table, as Markdown."""
    total = sum(sum(each.cpu) for each in found)
    signers = [each for each in found if "-signer-" in each.name]
    nodes = [each for each in found if each not in signers]
    met = "met" if total <= THEIRS_CPU else "missed"
    lines = [
        "# Beside csi-driver-spiffe",
        "",
        "`python -m bench.beside`: " + ", ".join(f"{key} {each}" for key, each in about.items()) + ".",
        "",
        f"One node with a real kubelet and API server, the chart with its defaults, two signers; {pods} pods with a",
        f"volume each. {seconds:.0f} s of CPU time from half a minute after the last pod ran. SVIDs live an hour. What",
        "is theirs was measured elsewhere, of csi-driver-spiffe 0.15 with cert-manager 1.21 on one real node, and is",
        "quoted: no registry that a bench can use serves the driver.",
        "",
        f"**CPU of agent and signers: {total:.2f} s; theirs {THEIRS_CPU} s: {met}.**",
        "",
        "| what | CPU, s | by process | CPU while the pods were started, s | PSS, MiB | RSS, MiB |",
        "|---|---|---|---|---|---|",
    ]
    for title, these in (("agent", nodes), ("signer", signers)):
        for number, each in enumerate(these, 1):
            name = title if len(these) == 1 else f"{title} {number}"
            by_process = ", ".join(f"{one:.2f}" for one in each.cpu)
            lines.append(
                f"| {name} | {sum(each.cpu):.2f} | {by_process} | {each.making:.2f} | {each.pss:.0f} | {each.rss:.0f} |"
            )
    theirs = f"| theirs, quoted: controller, webhook and approver | {THEIRS_CPU} with the driver | - | - | - |"
    asked_for = f"Asked of the API server in the {seconds:.0f} s by the audit log, by both signers: {_words(signers)};"
    lines += [
        f"| theirs, quoted: driver | - | - | - | - | {THEIRS_NODE} |",
        f"{theirs} {THEIRS_CLUSTER} |",
        "",
        f"{asked_for} by the agent: {_words(nodes)}.",
        "",
    ]
    return "\n".join(lines)


def _words(these: Sequence[Taken]) -> str:
    # The audit log has an account, not a pod: what it says of one is of all of its kind.
    counted = Counter(these[0].asked) if these else Counter()
    return ", ".join(f"{what} {count}" for what, count in counted.most_common() if count) or "nothing"


def main() -> int:
    parser = argparse.ArgumentParser(
        prog="python -m bench.beside", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--dir", type=Path, required=True, help="the cluster's files: no other cluster's directory")
    parser.add_argument("--pods", type=int, default=PODS, metavar="N")
    parser.add_argument("--seconds", type=float, default=SECONDS, metavar="N")
    given = parser.parse_args()
    about = {key: each for key, each in environment().items() if key not in ("grpcio", "cryptography", "protobuf")}
    image = product_image.build(product_image.ROOT, given.dir.name, say)
    with Cluster(given.dir, progress=say) as cluster:
        product_image.load(cluster, [image])
        set_taints(cluster, [])
        flags = settings(cluster, image, TRUST_DOMAIN)
        release(cluster, "install", "podsvid", str(CHART), "--create-namespace", "--wait", "--timeout", "8m", *flags)
        found = measure(cluster, given.pods, given.seconds)
    text = page(found, {**about, "load after": f"{os.getloadavg()[0]:.2f}"}, given.pods, given.seconds)
    print(text)
    if (given.pods, given.seconds) == (PODS, SECONDS):
        (RESULTS / "beside.md").write_text(text, encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
