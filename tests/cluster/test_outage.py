"""Signer, API server or leader away: what runs goes on, what is new waits and starts by itself, nothing is torn."""

from __future__ import annotations

import asyncio
import os
import random
import threading
import time
import urllib.request
from collections import Counter
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path

import pytest

from signer.authority.slots import KINDS
from signer.errors import SignerError
from svid.certificates import certificates_from_pem
from svid.x509svid import X509Svid
from tests.go_tools import Progress
from tests.ports import free_port

from . import signing
from .cluster import Cluster
from .fleet import authority_of, fleet, handshake
from .signing import NAMESPACE, SECRET, SignerProcess, stored_state
from .test_rotation import authority, eventually
from .thefts import Watch, named
from .waiting import PATIENCE_SECONDS

pytestmark = pytest.mark.timeout(5400)
# PODSVID_LONG=1 takes the figure of the issue.
KILLS = 50 if os.environ.get("PODSVID_LONG") else 3
# A signer is away for more than half of it; what is left then is for a busy machine.
TTL = 40
FLAGS = ("--x509-ttl", f"{TTL}s", "--x509-min-ttl", "10s", "--x509-max-ttl", f"{TTL}s", "--outage-limit", "10m")


def serials(targets: list[Path]) -> list[str]:
    return [X509Svid.from_pem(*_files(target)).serial for target in targets]


def _files(target: Path) -> tuple[bytes, bytes]:
    folder = os.open(target / "..data", os.O_PATH | os.O_DIRECTORY)
    try:
        here = Path(f"/proc/self/fd/{folder}")
        return (here / "tls.crt").read_bytes(), (here / "tls.key").read_bytes()
    finally:
        os.close(folder)


def usable(targets: list[Path]) -> None:
    """Every volume's SVID is valid now, as another implementation sees it."""
    for one, other in zip(targets, [*targets[1:], targets[0]], strict=True):
        handshake(one, other)


async def watched(seconds: float, targets: list[Path]) -> None:
    """Look again and again whether every SVID is valid."""
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        await asyncio.to_thread(usable, targets)
        await asyncio.sleep(0.5)


def readiness(address: str) -> str:
    with urllib.request.urlopen(f"http://{address}/readyz", timeout=60) as answer:
        text: str = answer.read().decode()
        return text


def test_signer_or_api_server_away(cluster: Cluster, progress: Progress) -> None:
    signing.install(cluster, progress)
    cluster.api.remove(SECRET)
    listen = f"127.0.0.1:{free_port()}"

    async def run(stack: ExitStack) -> None:
        port = free_port()

        def start(name: str) -> SignerProcess:
            return stack.enter_context(signing.signer_process(cluster, progress, name, *FLAGS, port=port))

        signer = start("signer-outage-1")
        async with fleet(cluster, progress, [signer], ["outage-0"], 5, "fleet", "--metrics-listen", listen) as found:
            (node,) = found.nodes.values()
            running = list(found.targets)
            assert readiness(listen) == "ok\n"
            # All renewed just now, so that each has more than half of its life to go.
            await renewed(running)
            signer.process.kill()
            starting = asyncio.create_task(found.start_pod(node, "waiting-signer"))
            await watched(TTL * 0.55, running)
            assert not starting.done(), "a pod started without the signer"
            assert "SVIDs are kept and served, new pods wait; the first SVID ends at" in readiness(listen)
            signer = await asyncio.to_thread(start, "signer-outage-2")
            await starting
            await renewed(running)
            await eventually("the page to say ok", "ok\n", lambda: readiness(listen))

            # Renewals go on without the API server; a pod that has no identity yet waits for it.
            pod, volume = await found.prepare(node, "waiting-api")
            with cluster.paused("kube-apiserver"):
                new = asyncio.create_task(node.kubelet.publish_until(pod, volume, timeout=PATIENCE_SECONDS))
                before = serials(running)
                await watched(TTL * 1.5, running)
                assert not set(before) & set(serials(running)), "not renewed while the API server was away"
                assert not new.done()
            node.targets["waiting-api"] = await new
            degraded = [line for line in signer.audit() if line.get("degraded")]
            known = {f"default/outage-0-{n}" for n in range(5)} | {"default/waiting-signer"}
            assert degraded
            assert {line["pod"] for line in degraded} <= known
            refused = {line["reason"] for line in signer.audit() if line["event"] == "mint refused"}
            assert "API_SERVER_UNAVAILABLE" in refused
            progress(f"{len(degraded)} degraded renewals while the API server was away")

    async def renewed(running: list[Path]) -> None:
        before = serials(running)
        await eventually("renewals", True, lambda: not set(before) & set(serials(running)))
        usable(running)

    with ExitStack() as stack:
        asyncio.run(run(stack))


# `--forced` is of both kinds.
ACTIONS = {
    "rotation": ("rotate", "--no-wait"),
    "theft": ("rotate", "--no-wait", "--forced"),
    "theft of x509": ("rotate", "--no-wait", "--forced", "--kind", "x509"),
    "theft of jwt": ("rotate", "--no-wait", "--forced", "--kind", "jwt"),
}
# What happens before a kill. A run of three has one of each.
FIRST = ("theft", "all stopped, an older Secret restored", "an older Secret restored")


class Fates:
    """Steps and kills of two signers, one seed each time."""

    def __init__(self, cluster: Cluster, progress: Progress, stack: ExitStack) -> None:
        self._cluster = cluster
        self._progress = progress
        self._stack = stack
        self._rng = random.Random(4)
        self._ports: dict[str, int] = {}
        self._backups: list[dict[str, str]] = []
        self.signers: dict[str, SignerProcess] = {}
        self.phases: set[str] = set()
        self.leaders: set[str] = set()
        self.done: Counter[str] = Counter()
        self.kills = 0
        self.longest = 0.0

    def start(self, name: str, *, wait: bool) -> None:
        """The same address each time, as a Service has one."""
        port = self._ports.setdefault(name, free_port())
        flags: tuple[str, ...] = (
            "--x509-ttl",
            "60s",
            "--x509-min-ttl",
            "10s",
            "--x509-max-ttl",
            "60s",
            "--lease",
            "3s",
        )
        flags += ("--acknowledge-within", "60s", "--outage-limit", "10s", "--retire-after", "0s")
        flags += ("--authority-ttl", "1h", "--reissue-over", "5s", "--forced-reissue-over", "20s")
        running = signing.signer_process(self._cluster, self._progress, name, *flags, wait=wait, port=port)
        self.signers[name] = self._stack.enter_context(running)

    def kill(self, name: str) -> None:
        self.phases |= {slot.stage.value for slot in stored_state(self._cluster).x509}
        self.signers[name].process.kill()
        self.signers[name].process.wait()
        self.kills += 1

    def step(self, number: int, watch: Watch) -> None:
        """Something happens, and in the midst of it the leader is killed; both run again afterwards."""
        kinds = [*ACTIONS, *FIRST[1:]]
        what = FIRST[number] if number < len(FIRST) else self._rng.choice(kinds)
        leader = _leader(self._cluster, self.signers, self._progress)
        other = next(name for name in self.signers if name != leader)
        self.leaders.add(leader)
        self.done[what] += 1
        # In any phase of what went before.
        self._backups.append(dict(self._cluster.api.get(SECRET)["data"]))
        # First the one of before all thefts.
        backup = self._backups[0] if number < len(FIRST) else self._rng.choice(self._backups)
        if what in ACTIONS:
            self._asked(leader, other, ACTIONS[what])
        elif what == "an older Secret restored":
            with watch.restoring():
                known = stored_state(self._cluster).sequence
                self._restore(backup)
                _eventually(lambda: stored_state(self._cluster).sequence >= known)
            self.kill(leader)
        else:
            # In the midst of a theft, too, before it is over.
            if number < len(FIRST) or self._rng.random() < 0.5:
                self.over()
            started = time.monotonic()
            with watch.following():
                with watch.restoring():
                    for name in (leader, other):
                        self.kill(name)
                    self._restore(backup)
                    for name in (leader, other):
                        self.start(name, wait=False)
                    for name in (leader, other):
                        _wait_ready(self.signers[name], self._progress)
                watch.settled()
            self.longest = max(self.longest, time.monotonic() - started)
        if self.signers[leader].process.poll() is not None:
            assert _leader(self._cluster, self.signers, self._progress) == other
            self.start(leader, wait=True)
        watch.settled()
        assert watch.broken == []

    def over(self) -> None:
        """Wait for the end of all thefts."""

        def ended() -> bool:
            state = stored_state(self._cluster)
            return not state.goals and all(each.left_at for each in state.abandoned)

        _eventually(ended)

    def _asked(self, leader: str, other: str, arguments: tuple[str, ...]) -> None:
        """By the one or the other, who may be killed while it does so: then a person asks again."""
        asked = self._rng.choice([leader, other])
        killed = threading.Timer(self._rng.uniform(0.5, 8.0), self.kill, [leader])
        killed.start()
        try:
            authority(self.signers[asked], *arguments)
        except AssertionError:
            authority(self.signers[other], *arguments)
        finally:
            killed.join()

    def _restore(self, data: dict[str, str]) -> None:
        signing.restore_secret(self._cluster, data)


def test_kill_the_leader_in_each_phase(cluster: Cluster, progress: Progress) -> None:
    """kill -9 among thefts and restored Secrets: nothing abandoned is trusted again, and nobody is cut off."""
    signing.install(cluster, progress)
    cluster.api.remove(SECRET)

    async def run(stack: ExitStack) -> None:
        fates = Fates(cluster, progress, stack)
        for name in ("replica-0", "replica-1"):
            await asyncio.to_thread(fates.start, name, wait=True)
        nodes = ["kills-0", "kills-1"]
        async with fleet(cluster, progress, fates.signers.values(), nodes, 2, "killed") as found:
            watch = Watch(cluster, list(found.targets))
            stack.callback(watch.stop)
            watching = [asyncio.create_task(asyncio.to_thread(watch.run, each)) for each in (watch.look, watch.shake)]
            mounting = [asyncio.create_task(mount(cluster, each.host.base)) for each in found.nodes.values()]
            try:
                for number in range(KILLS):
                    await asyncio.to_thread(fates.step, number, watch)
                    progress(f"step {number + 1}: {fates.kills} kills, {dict(fates.done)}, {len(watch.left)} left")
                await asyncio.to_thread(fates.over)
                await asyncio.to_thread(watch.settled)
                await found.start_pod(found.nodes[nodes[0]], "killed-new")
                usable(found.targets)
                assert not [each for each in (*mounting, *watching) if each.done()], watch.broken
            finally:
                watch.stop()
                for each in mounting:
                    each.cancel()
                await asyncio.gather(*watching)
        assert watch.broken == []
        assert watch.left
        assert len(fates.leaders) == 2
        assert KILLS < 50 or fates.phases == {"prepared", "active", "old", "tainted"}
        progress(
            f"{KILLS} steps {dict(fates.done)}, {fates.kills} kills, {fates.phases}; {len(watch.left)} abandoned "
            f"authorities; {watch.looks} looks at 6 places, {watch.handshakes} handshakes, {watch.excused} of them "
            f"failed while agents followed a restored Secret ({fates.longest:.0f} s at most)"
        )

    with ExitStack() as stack:
        asyncio.run(run(stack))


async def mount(cluster: Cluster, base: Path) -> None:
    """What kubelet does with the ConfigMap in the agent's pod."""
    file = base / "bundle.json"
    while True:
        found = await asyncio.to_thread(cluster.api.find, signing.BUNDLE)
        text = found["data"]["bundle.json"] if found else file.read_text()
        if file.read_text() != text:
            file.with_suffix(".new").write_text(text)
            file.with_suffix(".new").replace(file)
        await asyncio.sleep(1)


def _eventually(true: Callable[[], bool]) -> None:
    until = time.monotonic() + PATIENCE_SECONDS
    while not true():
        assert time.monotonic() < until
        time.sleep(0.2)


def _leader(cluster: Cluster, replicas: dict[str, SignerProcess], progress: Progress) -> str:
    path = f"/apis/coordination.k8s.io/v1/namespaces/{NAMESPACE}/leases/podsvid-signer"
    until = time.monotonic() + PATIENCE_SECONDS
    while time.monotonic() < until:
        found = cluster.api.find(path)
        holder = str(((found or {}).get("spec") or {}).get("holderIdentity") or "")
        if holder in replicas and replicas[holder].process.poll() is None and _says_leading(replicas[holder]):
            return holder
        time.sleep(0.2)
    raise AssertionError("no replica leads")


def _says_leading(signer: SignerProcess) -> bool:
    try:
        with urllib.request.urlopen(f"{signer.url}/metrics", timeout=5) as answer:
            return "podsvid_signer_leader 1.0" in answer.read().decode()
    except OSError:
        return False


def _wait_ready(signer: SignerProcess, progress: Progress) -> None:
    until = time.monotonic() + PATIENCE_SECONDS
    while signer.ready() is not True:
        signer.check()
        assert time.monotonic() < until, signer.ready()
        time.sleep(0.2)


def test_a_damaged_secret_stops_a_start_and_says_what_to_do(cluster: Cluster, progress: Progress) -> None:
    signing.install(cluster, progress)
    cluster.api.remove(SECRET)
    with signing.signer_process(cluster, progress, "signer-damaged") as signer:
        roots = signing.published_roots(cluster, progress)
        assert certificates_from_pem(roots)
        good = dict(cluster.api.get(SECRET)["data"])
        signing.restore_secret(cluster, {"state.json": good["state.json"][:400]})
        with pytest.raises(SignerError):
            stored_state(cluster)
        # The one that runs knows better and signs on; it says so.
        with signing.signer_process(cluster, progress, "signer-damaged-2", wait=False) as second:
            assert second.process.wait(PATIENCE_SECONDS) == 1
            said = second.log.read_text()
            assert "AUTHORITY_DAMAGED" in said
            assert "restore the Secret from a backup" in said
            assert "PRIVATE KEY" not in said
        assert signer.ready() is True
    signing.restore_secret(cluster, good)
    with signing.signer_process(cluster, progress, "signer-damaged-3"):
        assert signing.published_roots(cluster, progress) == roots


def test_an_older_secret_is_restored(cluster: Cluster, progress: Progress) -> None:
    """docs/operations.md, step by step: first while a signer runs, then with all stopped; no node is touched."""
    signing.install(cluster, progress)
    cluster.api.remove(SECRET)

    async def run(stack: ExitStack) -> None:
        port = free_port()
        flags = (*FLAGS, "--reissue-over", "5s", "--forced-reissue-over", "5s")

        def start(name: str) -> SignerProcess:
            return stack.enter_context(signing.signer_process(cluster, progress, name, *flags, port=port))

        signer = start("signer-restore-1")
        async with fleet(cluster, progress, [signer], ["restore-0"], 3) as found:
            (node,) = found.nodes.values()
            mounting = asyncio.create_task(mount(cluster, node.host.base))
            stack.callback(mounting.cancel)
            running = list(found.targets)
            backup = dict(cluster.api.get(SECRET)["data"])
            before = stored_state(cluster)
            # Two thefts: nothing of the backup's is in the trust that agents hold by now.
            for _ in range(2):
                await asyncio.to_thread(authority, signer, "rotate", "--forced")
            newest = await asyncio.to_thread(stored_state, cluster)
            assert before.active_x509_id not in {slot.id for slot in newest.x509}

            signing.restore_secret(cluster, backup)
            await eventually("the newer one to be put back", newest.sequence, lambda: stored_state(cluster).sequence)
            assert {slot.id for slot in stored_state(cluster).x509} == {slot.id for slot in newest.x509}

            signer.process.kill()
            signer.process.wait()
            signing.restore_secret(cluster, backup)
            signer = await asyncio.to_thread(start, "signer-restore-2")
            started = time.monotonic()
            await eventually("it to be published above", True, lambda: stored_state(cluster).sequence > newest.sequence)
            await eventually(
                "agents to follow",
                "1 of 1 have acknowledged",
                lambda: (
                    "1 of 1 have acknowledged"
                    if "1 of 1 have acknowledged" in (shown := authority(signer, "show"))
                    else shown
                ),
            )
            progress(f"an agent followed a restored Secret after {time.monotonic() - started:.0f} s")
            assert "rollback at " in await asyncio.to_thread(authority, signer, "show")
            renewed = await asyncio.to_thread(stored_state, cluster)
            # The backup's authorities were stolen since: they do not come back, and are told in the new one.
            gone = {slot.id for kind in KINDS for slot in before.slots(kind)}
            assert not gone & {slot.id for kind in KINDS for slot in renewed.slots(kind)}
            assert gone <= {each.authority_id for each in renewed.abandoned}
            assert not gone & named(cluster.api.get(signing.BUNDLE)["data"]["bundle.json"].encode())
            await eventually(
                "all to be renewed", {renewed.active_x509_id}, lambda: {authority_of(target) for target in running}
            )
            usable(running)
            await found.start_pod(node, "restore-new")
            assert not mounting.done()
            usable(found.targets)

    with ExitStack() as stack:
        asyncio.run(run(stack))
