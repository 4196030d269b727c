"""Signer, API server or leader away: what runs goes on, what is new waits and starts by itself, nothing is torn."""

from __future__ import annotations

import asyncio
import os
import random
import time
import urllib.request
from contextlib import ExitStack
from pathlib import Path

import pytest
from cryptography import x509

from signer.authority.slots import Stage
from signer.authority.state import AuthorityState
from signer.errors import SignerError
from svid.certificates import certificates_from_der, certificates_from_pem
from svid.x509svid import X509Svid, check_x509_svid
from tests.go_tools import Progress

from . import signing
from .api import Object
from .cluster import Cluster
from .fleet import authority_of, fleet, forget, handshake
from .signing import AUDIENCE, NAMESPACE, SECRET, Refusal, SignerClient, SignerProcess, stored_state
from .test_rotation import authority, eventually
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
    listen = f"127.0.0.1:{signing.free_port()}"

    async def run(stack: ExitStack) -> None:
        port = signing.free_port()

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


class Minter:
    """Mints from whichever replica answers, and keeps every chain with the state that was stored before it."""

    def __init__(self, cluster: Cluster, agent_token: str, pod: Object, pod_token: str) -> None:
        self._cluster = cluster
        self._tokens = (agent_token, pod_token)
        self._pod = pod
        self.published: dict[str, int] = {}
        self.phases: set[str] = set()
        self.issued: list[str] = []

    def look(self) -> AuthorityState:
        """The stored state: whole, whatever was killed. Remembers what it publishes."""
        state = stored_state(self._cluster)
        for slot in state.x509:
            self.published.setdefault(slot.id, state.sequence)
            self.phases.add(slot.stage.value)
        return state

    def mint(self, signer: SignerProcess, roots: bytes) -> None:
        client = SignerClient(signer.address, roots)
        try:
            answer = client.mint(self._tokens[0], self._tokens[1], self._pod)
        except Refusal:
            return
        finally:
            client.close()
        state = self.look()
        chain = certificates_from_der(answer.chain)
        check_x509_svid(chain, state.bundle, chain[0].not_valid_before_utc)
        found = chain[0].extensions.get_extension_for_class(x509.AuthorityKeyIdentifier).value
        self.issued.append((found.key_identifier or b"").hex())


def test_kill_the_leader_in_each_phase(cluster: Cluster, progress: Progress, request: pytest.FixtureRequest) -> None:
    """kill -9, again and again: the next leader goes on from what is stored, which is never torn."""
    signing.install(cluster, progress)
    cluster.api.remove(SECRET)
    signing.account(cluster, "killed")
    signing.node(cluster, "kills")
    agent = signing.pod(cluster, "agent-kills", "kills", "podsvid-agent", namespace=NAMESPACE, driver=None)
    # Rotations of later tests would wait for it.
    request.addfinalizer(lambda: forget(cluster, NAMESPACE, "agent-kills"))
    pod = signing.pod(cluster, "killed", "kills", "killed")
    request.addfinalizer(lambda: forget(cluster, "default", "killed"))
    tokens = (
        cluster.api.token("podsvid-agent", NAMESPACE, AUDIENCE, agent),
        cluster.api.token("killed", "default", AUDIENCE, pod),
    )
    minter = Minter(cluster, tokens[0], pod, tokens[1])
    # No agent acknowledges here, so the bound paces the phases: prepared for 2 s, old for about 12 s.
    flags: tuple[str, ...] = ("--x509-ttl", "10s", "--x509-min-ttl", "5s", "--x509-max-ttl", "10s", "--lease", "3s")
    flags += ("--acknowledge-within", "2s", "--outage-limit", "3s", "--retire-after", "0s", "--authority-ttl", "1h")
    flags += ("--forced-reissue-over", "4s")
    rng = random.Random(4)
    with ExitStack() as stack:
        replicas: dict[str, SignerProcess] = {}

        def start(name: str) -> None:
            replicas[name] = stack.enter_context(
                signing.signer_process(cluster, progress, name, *flags, wait=not replicas)
            )

        start("replica-0")
        start("replica-1")
        roots = signing.published_roots(cluster, progress)
        leaders = []
        for number in range(KILLS):
            leader = _leader(cluster, replicas, progress)
            leaders.append(leader)
            other = next(name for name in replicas if name != leader)
            _wait_ready(replicas[other], progress)
            authority(replicas[other], "rotate", "--no-wait", *(["--forced"] if number % 3 == 2 else []))
            until = time.monotonic() + rng.uniform(0.0, 8.0)
            while time.monotonic() < until:
                state = minter.look()
                roots = state.bundle.to_pem()
                minter.mint(replicas[rng.choice([leader, other])], roots)
            replicas[leader].process.kill()
            replicas[leader].process.wait()
            before = minter.look()
            minter.mint(replicas[other], before.bundle.to_pem())
            assert _leader(cluster, replicas, progress) == other
            start(leader)
            if number % 10 == 9:
                progress(f"{number + 1} kills, sequence {before.sequence}, {len(minter.issued)} SVIDs")
        for name in replicas:
            _wait_ready(replicas[name], progress)
        # What was begun is finished by whoever leads now.
        _settled(cluster, progress, minter)
        for name in replicas:
            minter.mint(replicas[name], stored_state(cluster).bundle.to_pem())
    assert len(set(leaders)) == 2
    assert {"prepared", "active", "old"} <= minter.phases
    assert len(minter.issued) > KILLS
    assert set(minter.issued) <= set(minter.published)
    progress(
        f"{KILLS} kills, {len(minter.issued)} SVIDs of {len(set(minter.issued))} authorities, phases {minter.phases}"
    )


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


def _settled(cluster: Cluster, progress: Progress, minter: Minter) -> None:
    until = time.monotonic() + PATIENCE_SECONDS
    while True:
        state = minter.look()
        if [slot.stage for slot in state.x509] == [Stage.ACTIVE] and not state.goals:
            return
        assert time.monotonic() < until, [slot.stage for slot in state.x509]
        time.sleep(0.5)


def test_a_damaged_secret_stops_a_start_and_says_what_to_do(cluster: Cluster, progress: Progress) -> None:
    signing.install(cluster, progress)
    cluster.api.remove(SECRET)
    with signing.signer_process(cluster, progress, "signer-damaged") as signer:
        roots = signing.published_roots(cluster, progress)
        assert certificates_from_pem(roots)
        secret = cluster.api.get(SECRET)
        good = dict(secret["data"])
        cluster.api.replace(SECRET, {**secret, "data": {"state.json": good["state.json"][:400]}})
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
    damaged = cluster.api.get(SECRET)
    cluster.api.replace(SECRET, {**damaged, "data": good})
    with signing.signer_process(cluster, progress, "signer-damaged-3"):
        assert signing.published_roots(cluster, progress) == roots


def test_an_older_secret_is_restored(cluster: Cluster, progress: Progress) -> None:
    """docs/operations.md, step by step: first while a signer runs, then with all stopped; no node is touched."""
    signing.install(cluster, progress)
    cluster.api.remove(SECRET)

    def restore(data: dict[str, str]) -> None:
        cluster.api.replace(SECRET, {**cluster.api.get(SECRET), "data": data})

    async def mount(file: Path) -> None:
        """What kubelet does with the ConfigMap in the agent's pod."""
        while True:
            found = await asyncio.to_thread(cluster.api.find, signing.BUNDLE)
            text = found["data"]["bundle.json"] if found else file.read_text()
            if file.read_text() != text:
                file.with_suffix(".new").write_text(text)
                file.with_suffix(".new").replace(file)
            await asyncio.sleep(1)

    async def run(stack: ExitStack) -> None:
        port = signing.free_port()
        flags = (*FLAGS, "--reissue-over", "5s", "--forced-reissue-over", "5s")

        def start(name: str) -> SignerProcess:
            return stack.enter_context(signing.signer_process(cluster, progress, name, *flags, port=port))

        signer = start("signer-restore-1")
        async with fleet(cluster, progress, [signer], ["restore-0"], 3) as found:
            (node,) = found.nodes.values()
            mounting = asyncio.create_task(mount(node.host.base / "bundle.json"))
            stack.callback(mounting.cancel)
            running = list(found.targets)
            backup = dict(cluster.api.get(SECRET)["data"])
            before = stored_state(cluster)
            # Two thefts: nothing of the backup's is in the trust that agents hold by now.
            for _ in range(2):
                await asyncio.to_thread(authority, signer, "rotate", "--forced")
            newest = await asyncio.to_thread(stored_state, cluster)
            assert before.active_x509_id not in {slot.id for slot in newest.x509}

            restore(backup)
            await eventually("the newer one to be put back", newest.sequence, lambda: stored_state(cluster).sequence)
            assert {slot.id for slot in stored_state(cluster).x509} == {slot.id for slot in newest.x509}

            signer.process.kill()
            signer.process.wait()
            restore(backup)
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
            await eventually(
                "all to be renewed", {renewed.active_x509_id}, lambda: {authority_of(target) for target in running}
            )
            usable(running)
            await found.start_pod(node, "restore-new")
            assert not mounting.done()
            usable(found.targets)

    with ExitStack() as stack:
        asyncio.run(run(stack))
