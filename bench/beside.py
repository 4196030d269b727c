"""podsvid's side of the comparison with csi-driver-spiffe: what an agent and two signers take while 63 pods are there.

    python -m bench.beside --dir DIR [--pods N] [--seconds N] [--sync N]

Starts a cluster of its own on this host (root, Go), with the name that DIR ends with; installs the chart by Helm, with
two signers; then one pod after the other, each with a volume, by a real kubelet. Measured is the CPU time of all their
processes while nothing is asked of them but kubelet's own calls; SVIDs live an hour, so that next to none is renewed.
Kubelet publishes each volume again when it looks at its pod: every 10 s in the project's test clusters, once a minute
by its default (--sync 60). Records a section of bench/results/beside.md, in place of one of before that is alike.
"""

import argparse
import os
import re
import sys
import time
import urllib.request
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
from tests.cluster.kubelet import SYNC
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
REPUBLISHED = 'podsvid_publish_duration_seconds_count{result="republished"}'


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
    """What a pod of podsvid took: seconds of CPU time by process, in the order in which they were started, and MiB.

    `asked`: of the API server, by all of its kind. `republished`: volumes of an agent, by kubelet's calls.
    """

    name: str
    making: float
    cpu: Sequence[float]
    pss: float
    rss: float
    asked: Mapping[str, int]
    republished: int = 0


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


def republished(cluster: Cluster) -> int:
    """How often kubelet has published what was there, by the agent's metrics."""
    (pod,) = component(cluster, "agent")
    ports = [each for one in pod["spec"]["containers"] for each in one.get("ports", []) if each["name"] == "metrics"]
    where = f"http://{pod['status']['podIP']}:{ports[0]['containerPort']}/metrics"
    with urllib.request.urlopen(where, timeout=30) as answer:
        lines = answer.read().decode().splitlines()
    return sum(int(float(line.rpartition(" ")[2])) for line in lines if line.startswith(REPUBLISHED))


def measure(cluster: Cluster, pods: int, seconds: float) -> list[Taken]:
    """Start the pods, and see what podsvid takes meanwhile, and afterwards."""
    found = parts(cluster)
    empty = {each.name: each.used() for each in found}
    for number in range(pods):
        cluster.pods.create(workload(f"pod-{number}"))
    for number in range(pods):
        wait_for(f"pod-{number}", _runs(cluster, f"pod-{number}"), progress=say)
    time.sleep(SETTLED_SECONDS)
    calls, asked_before = republished(cluster), _asked(cluster)
    begun = {each.name: each.used() for each in found}
    time.sleep(seconds)
    ended = {each.name: each.used() for each in found}
    calls, asked_after = republished(cluster) - calls, _asked(cluster)
    return [
        Taken(
            each.name,
            sum(difference(empty[each.name], begun[each.name])),
            difference(begun[each.name], ended[each.name]),
            memory(family(each.first)).resident,
            each.resident(),
            asked_after[kind] - asked_before[kind],
            calls if kind == "agent" else 0,
        )
        for each in found
        for kind in KINDS
        if f"-{kind}-" in each.name
    ]


def _runs(cluster: Cluster, name: str) -> Callable[[], bool | str]:
    return lambda: running(cluster, name)


def _asked(cluster: Cluster) -> Mapping[str, Counter[str]]:
    return {kind: asked(cluster.audit_log, f"podsvid-{kind}") for kind in KINDS}


def page(before: str, section: str, sync: int) -> str:
    """The page with that section in place of one of the same kubelet; of a page of before all others stay."""
    sections = {_sync_of(each): each for each in re.split(r"^(?=## )", before, flags=re.MULTILINE)[1:]} | {
        sync: section
    }
    return "\n".join([HEAD, *(sections[each].strip() + "\n" for each in sorted(sections))])


HEAD = """# Beside csi-driver-spiffe

`python -m bench.beside`: CPU time of the agent and both signers while 63 pods are there and nothing is asked of them
but kubelet's own calls, from half a minute after the last pod ran. One node with a real kubelet and API server, the
chart with its defaults. SVIDs live an hour. What is theirs was measured elsewhere, of csi-driver-spiffe 0.15 with
cert-manager 1.21 on one real node, and is quoted: no registry that a bench can use serves the driver. How often kubelet
looked there is not known; podsvid's agent took 4.5 s there.
"""


def _sync_of(section: str) -> int:
    found = re.match(r"## Kubelet looks every (\d+) s", section)
    return int(found[1]) if found else 0


def described(found: Sequence[Taken], about: Mapping[str, str], seconds: float, sync: int) -> str:
    """The section of a run, as Markdown."""
    total = sum(sum(each.cpu) for each in found)
    signers = [each for each in found if "-signer-" in each.name]
    nodes = [each for each in found if each not in signers]
    met = "met" if total <= THEIRS_CPU else "missed"
    calls = sum(each.republished for each in nodes)
    lines = [
        f"## Kubelet looks every {sync} s",
        "",
        ", ".join(f"{key} {each}" for key, each in about.items()) + ".",
        "",
        f"**CPU of agent and signers in {seconds:.0f} s: {total:.2f} s; theirs {THEIRS_CPU} s: {met}.**",
        f"Kubelet published a volume that is there {calls:,} times.",
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
    parser.add_argument(
        "--sync", type=int, default=SYNC, metavar="N", help=f"kubelet's syncFrequency (default: {SYNC})"
    )
    given = parser.parse_args()
    about = {key: each for key, each in environment().items() if key not in ("grpcio", "cryptography", "protobuf")}
    image = product_image.build(product_image.ROOT, given.dir.name, say)
    with Cluster(given.dir, progress=say, sync=given.sync) as cluster:
        product_image.load(cluster, [image])
        set_taints(cluster, [])
        flags = settings(cluster, image, TRUST_DOMAIN)
        release(cluster, "install", "podsvid", str(CHART), "--create-namespace", "--wait", "--timeout", "8m", *flags)
        found = measure(cluster, given.pods, given.seconds)
    section = described(found, {**about, "load after": f"{os.getloadavg()[0]:.2f}"}, given.seconds, given.sync)
    print(section)
    if (given.pods, given.seconds) == (PODS, SECONDS):
        file = RESULTS / "beside.md"
        before = file.read_text(encoding="utf-8") if file.exists() else ""
        file.write_text(page(before, section, given.sync), encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
