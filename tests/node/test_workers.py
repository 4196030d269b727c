"""A signer whose agents are served by workers: what they get, what is counted together, and what a dead one costs."""

import asyncio
import errno
import json
import os
import signal
import subprocess
import sys
import tempfile
from collections import Counter
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import grpc.aio
import pytest

from agent.authority import connection
from agent.authority.protocol import Minted
from agent.errors import AuthorityUnavailable
from signer.attestation.pods import AgentAddresses
from signer.front.admission import Admission
from signer.front.door import Door
from signer.front.server import AgentServer
from signer.metrics import Metrics
from signer.pb import signer_pb2
from signer.workers.chosen import memory
from signer.workers.crew import Crew
from svid.bundle import TrustBundle
from svid.certificates import serial_of
from svid.dnsnames import SIGNER_NAME
from svid.keys import KeyAlgorithm
from tests.node.test_batches import PODS, agent, audited, connected, renewals
from tests.ports import free_port
from tests.signer_process import process
from tests.signer_rig import StepClock
from tests.support import ROOT
from tests.unit.signer.test_lifecycle import TD, done, life
from tests.unit.signer.test_minting import csr

SAYS = "/test.Echo/Say"
MINT = "/podsvid.signer.v1.Signer/MintX509SVID"


def workers(pid: int) -> list[int]:
    """Processes that the signer has begun."""
    return [int(each) for each in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


async def working(pid: int, count: int, without: int = 0) -> list[int]:
    async with asyncio.timeout(30):
        while len(found := workers(pid)) != count or without in found:
            await asyncio.sleep(0.02)
    return found


def status(pid: int) -> dict[str, str]:
    lines = (line.partition(":") for line in Path(f"/proc/{pid}/status").read_text().splitlines())
    return {name: value.strip() for name, _, value in lines}


class Caller:
    """A connection of its own, on which somebody mints."""

    def __init__(self, site: dict[str, Any]) -> None:
        roots = TrustBundle.from_jwks(TD, Path(site["bundle"]).read_bytes()).to_pem()
        options = [("grpc.ssl_target_name_override", SIGNER_NAME), ("grpc.use_local_subchannel_pool", 1)]
        self.channel = grpc.aio.secure_channel(site["address"], grpc.ssl_channel_credentials(roots), options)
        self._mint = self.channel.unary_unary(
            MINT, signer_pb2.MintX509SVIDRequest.SerializeToString, signer_pb2.MintX509SVIDResponse.FromString
        )

    async def mint(self, pod: list[Any], *tokens: str, csr: bytes = csr(KeyAlgorithm.EC_P256.generate())) -> Any:
        namespace, name, uid, token, *_ = pod
        request = signer_pb2.MintX509SVIDRequest(
            pod=signer_pb2.Pod(namespace=namespace, name=name, uid=uid), pod_token=token, csr=csr
        )
        metadata = [("authorization", f"Bearer {each}") for each in tokens]
        try:
            return await self._mint(request, metadata=metadata, timeout=20)
        except grpc.aio.AioRpcError as error:
            return error


def how(found: Any) -> tuple[Any, ...]:
    """What is alike wherever it is answered."""
    if isinstance(found, grpc.aio.AioRpcError):
        trailing = dict(found.trailing_metadata() or ())
        return found.code(), found.details(), trailing.get("grpc-status-details-bin")
    return found.spiffe_id, found.policy, found.notice


def test_answers_and_refusals_are_those_of_one_process_which_begins_no_other(tmp_path: Path) -> None:
    async def ask(folder: Path, count: int) -> list[tuple[Any, ...]]:
        folder.mkdir()
        with process(folder, 4, 2, free_port(), "--workers", str(count)) as (running, site):
            begun = workers(running.pid)
            assert len(begun) == (0 if count == 1 else count)
            for each in begun:
                # The signer is ready by one; the other may have just begun.
                async with asyncio.timeout(30):
                    while (found := status(each))["Seccomp"] == "0":
                        await asyncio.sleep(0.02)
                assert (found["NoNewPrivs"], found["Seccomp"]) == ("1", "2")
                limits = Path(f"/proc/{each}/limits").read_text()
                (data,) = [line for line in limits.splitlines() if line.startswith("Max data size")]
                assert "unlimited" not in data
            caller, good, (first, second, *_) = Caller(site), site["agents"][0], site["pods"]
            other = Caller(site)
            answers = [
                await caller.mint(first, good),
                await caller.mint(first),
                await other.mint(first, good),
                await other.mint(second, good),
                await caller.mint(first, "no.token.atall"),
                await caller.mint(first, good, csr=b"no request"),
                await caller.mint(["default", "other", "uid", first[3], 0, ""], good),
                await caller.mint(first, good, csr=bytes(60_000)),
            ]
            unknown = caller.channel.unary_unary("/podsvid.signer.v1.Signer/Other", bytes, bytes)
            try:
                await unknown(b"", timeout=20)
            except grpc.aio.AioRpcError as error:
                answers.append(error)
            await caller.channel.close()
            await other.channel.close()
        assert not any(Path(f"/proc/{each}").exists() for each in begun)
        return [how(each) for each in answers]

    async def play() -> None:
        one, two = await ask(tmp_path / "one", 1), await ask(tmp_path / "two", 2)
        assert one == two
        assert len({each[0] for each in one}) >= 5

    asyncio.run(play())


def test_what_one_node_may_have_is_not_more_where_two_workers_serve_it(tmp_path: Path) -> None:
    async def play() -> None:
        # A node that may mint less may also bring in less, and takes longer for all of this.
        flags = ("--workers", "2", "--node-rate", "4", "--node-burst", "6")
        with process(tmp_path, 30, 1, free_port(), *flags) as (_, site):
            callers = [Caller(site), Caller(site)]
            for one in callers:
                await one.channel.channel_ready()
            token = site["agents"][0]
            loop = asyncio.get_running_loop()
            begun = loop.time()
            found = await asyncio.gather(
                *(callers[number % 2].mint(pod, token) for number, pod in enumerate(site["pods"]))
            )
            most = 6 + 1 + 4 * (loop.time() - begun)
            minted = [each for each in found if isinstance(each, signer_pb2.MintX509SVIDResponse)]
            assert 6 <= len(minted) <= most
            refused = [each for each in found if isinstance(each, grpc.aio.AioRpcError)]
            assert {each.code() for each in refused} == {grpc.StatusCode.RESOURCE_EXHAUSTED}, refused
            for one in callers:
                await one.channel.close()

    asyncio.run(play())


def test_a_worker_that_is_killed_amid_batches_loses_nothing_and_issues_nothing_twice_that_matters(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each item ends minted, and each SVID that the agent holds is in the audit log once, as that pod's.

    It would matter if one were not in the log, or if a serial, a key or an item that was answered had two. What was
    signed and could not be told any more may be signed again: of the same pod, for the key that never left the agent,
    and once at most.
    """
    monkeypatch.setattr(connection, "YOUNG_SECONDS", 0.0)
    log = tmp_path / "signer.log"

    async def play() -> None:
        with process(tmp_path, PODS, 1, free_port(), "--workers", "2") as (running, site):
            async with agent(tmp_path, site) as authority:
                wanted = renewals(site)
                minting = [asyncio.ensure_future(authority.mint_x509(each)) for each in wanted]
                await asyncio.wait(minting, return_when=asyncio.FIRST_COMPLETED)
                (busy, idle) = _busiest(workers(running.pid))
                answered = {each.pod.uid for each, task in zip(wanted, minting, strict=True) if task.done()}
                assert 0 < len(answered) < PODS
                os.kill(busy, signal.SIGKILL)
                found = await asyncio.gather(*minting, return_exceptions=True)
                assert all(isinstance(each, Minted | AuthorityUnavailable) for each in found)
                held = {each.pod.uid: how for each, how in zip(wanted, found, strict=True) if isinstance(how, Minted)}
                # The port is still there, and who has lost its worker asks by the other one.
                assert held
                await connected(authority)
                left = [each for each in wanted if each.pod.uid not in held]
                rest = await asyncio.gather(*map(authority.mint_x509, left))
                assert all(isinstance(each, Minted) for each in rest)
                held |= {each.pod.uid: how for each, how in zip(left, rest, strict=True)}
                back = await working(running.pid, 2, without=busy)
                assert idle in back
            signed = audited(log)
            serials = Counter(each["serial"] for each in signed)
            assert set(serials.values()) == {1}
            log_says = {each["serial"]: (each["pod_uid"], each["spiffe_id"]) for each in signed}
            assert {serial_of(how.chain[0]): (uid, str(how.spiffe_id)) for uid, how in held.items()}.items() <= (
                log_says.items()
            )
            keys = {each.pod.uid: each.key.public_key() for each in wanted}
            assert all(how.chain[0].public_key() == keys[uid] for uid, how in held.items())
            times = Counter(each["pod_uid"] for each in signed)
            assert set(times) == {each.pod.uid for each in wanted} == set(held)
            assert max(times.values()) <= 2
            assert {uid for uid, number in times.items() if number == 2} <= {each.pod.uid for each in wanted} - answered
            assert running.poll() is None
        text = log.read_text()
        assert text.count("a worker ended; another is started") == 1
        assert '"error": "signal 9"' in text

    asyncio.run(play())


def _busiest(pids: list[int]) -> list[int]:
    def spent(pid: int) -> int:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        return int(fields[11]) + int(fields[12])

    def sockets(pid: int) -> int:
        return len(list(Path(f"/proc/{pid}/fd").iterdir()))

    return sorted(pids, key=lambda pid: (sockets(pid), spent(pid)), reverse=True)


def test_a_new_certificate_reaches_each_worker_and_no_connection_is_cut_off(tmp_path: Path) -> None:
    """And who is there when all workers are gone: nobody, until they are back with the newest."""
    begin = datetime.now(UTC) - timedelta(hours=13)
    clock, state = StepClock(begin), done(life().first(begin))

    begun, may = asyncio.Event(), asyncio.Event()

    async def echo(messages: Any, context: Any) -> bytes:
        found: bytes = await anext(aiter(messages))
        if found == b"slow":
            begun.set()
            await may.wait()
        return found

    methods: dict[str, grpc.RpcMethodHandler[Any, Any]] = {SAYS: grpc.stream_unary_rpc_method_handler(echo, None, None)}

    async def run(folder: Path) -> None:
        door = Door(Admission(1000, lambda _: None, asyncio.get_running_loop().time, expected=AgentAddresses()), 1, 1)
        metrics, port = Metrics(), free_port()
        crew = Crew(2, methods, door.spread, memory(2), ("json", "info"), metrics)
        server = AgentServer(crew, door, ("127.0.0.1", port), folder / "run", clock)
        await server.renew(state)
        await server.open()
        assert server.serving
        roots = state.bundle.to_pem()
        options = (("grpc.default_authority", SIGNER_NAME), ("grpc.use_local_subchannel_pool", 1))

        def channel() -> grpc.aio.Channel:
            return grpc.aio.secure_channel(f"127.0.0.1:{port}", grpc.ssl_channel_credentials(roots), options)

        async def says(one: grpc.aio.Channel, word: bytes, tries: int = 1) -> bytes:
            try:
                return bytes(await one.unary_unary(SAYS, bytes, bytes)(word, timeout=20, wait_for_ready=True))
            except grpc.aio.AioRpcError as error:
                # It may not know yet that its connection has ended.
                if tries == 1 or error.code() is not grpc.StatusCode.UNAVAILABLE:
                    raise
                return await says(one, word, tries - 1)

        async def listen(servers: int) -> None:
            """Until both do, however long a process takes to begin."""
            while [len(paths) for paths in crew._running.values()] != [servers, servers]:
                await asyncio.sleep(0.01)

        await listen(1)
        channels = [channel() for _ in range(4)]
        old, new = channels[:2], channels[2:]
        for each in old:
            assert await says(each, b"1") == b"1"
        before = {door.spread.of(peer) for peer in door._passages}
        clock.pass_by(hours=13)
        await server.renew(state)
        await listen(2)
        for each in (*new, *old):
            assert await says(each, b"2") == b"2"
        after = {door.spread.of(peer) for peer in door._passages}
        assert (len(before), len(after), before < after, door._sweep.came) == (2, 4, True, 4)
        for worker in list(crew._running):
            assert worker.pid
            os.kill(worker.pid, signal.SIGKILL)
        while server.serving:
            await asyncio.sleep(0.01)
        assert door.spread.paths(door.target or Path()) == []
        for each in channels:
            assert await says(each, b"3", tries=3) == b"3"
        assert server.serving
        # With the newest alone: those of the certificate before have no connection any more.
        assert {door.spread.of(peer) for peer in door._passages} <= after - before
        metrics.refresh()
        assert metrics.registry.get_sample_value("podsvid_signer_worker_restarts_total") == 2
        assert metrics.registry.get_sample_value("podsvid_signer_workers") in (1, 2)
        pids = [each.pid for each in crew._running]
        slow = asyncio.ensure_future(says(channels[0], b"slow"))
        await begun.wait()
        closing = asyncio.ensure_future(server.close(20))
        while door._listening:
            await asyncio.sleep(0.01)
        may.set()
        assert await slow == b"slow"
        await closing
        for each in channels:
            await each.close()
        assert crew._running == {}
        assert not any(Path(f"/proc/{pid}").exists() for pid in pids)

    with tempfile.TemporaryDirectory(prefix="pv", dir="/tmp") as name:
        asyncio.run(asyncio.wait_for(run(Path(name)), 60))


# What whoever is in it tries; each line says what came of it.
INSIDE = """
import json, os, signal, socket, sys
from runtime.child import harden
from signer.workers.confinement import confine

told = json.load(sys.stdin)
harden()
lacking = confine(told["folder"], told["memory"])

def tried(act):
    try:
        act()
    except OSError as error:
        return error.errno
    except MemoryError:
        return "memory"
    return 0

def at(path):
    return lambda: socket.socket(socket.AF_UNIX).bind(path)

print(json.dumps({
    "lacking": lacking,
    "serve": tried(at(told["folder"] + "/0a")),
    "elsewhere": tried(at(told["other"] + "/0a")),
    "read": tried(lambda: os.open(told["secret"], os.O_RDONLY)),
    "environment": tried(lambda: os.open(f"/proc/{os.getppid()}/environ", os.O_RDONLY)),
    "write": tried(lambda: os.open(told["folder"] + "/new", os.O_WRONLY | os.O_CREAT)),
    "connect": tried(lambda: socket.socket(socket.AF_UNIX).connect(told["folder"] + "/0a")),
    "network": tried(lambda: socket.socket()),
    "fork": tried(os.fork),
    "run": tried(lambda: os.execv("/bin/true", ["true"])),
    "end": tried(lambda: os.kill(os.getppid(), signal.SIGTERM)),
    "fill": tried(lambda: bytearray(told["memory"])),
}))
"""


def test_whoever_takes_a_worker_over_reads_nothing_connects_nowhere_and_fills_no_memory(tmp_path: Path) -> None:
    secret, folder, other = tmp_path / "token", tmp_path / "door", tmp_path / "other"
    secret.write_text("secret")
    folder.mkdir()
    other.mkdir()
    told = {"folder": str(folder), "other": str(other), "secret": str(secret), "memory": memory(8)}
    found = subprocess.run(
        [sys.executable, "-P", "-c", INSIDE],
        input=json.dumps(told),
        capture_output=True,
        text=True,
        check=True,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )
    assert json.loads(found.stdout) == {
        "lacking": [],
        "serve": 0,
        "elsewhere": errno.EACCES,
        "read": errno.EACCES,
        "environment": errno.EACCES,
        "write": errno.EACCES,
        "connect": errno.EPERM,
        "network": errno.EAFNOSUPPORT,
        "fork": errno.EPERM,
        "run": errno.EPERM,
        "end": errno.EPERM,
        "fill": "memory",
    }
