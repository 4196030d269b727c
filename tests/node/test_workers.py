"""A signer whose agents are served by workers: what they get, what is counted together, and what a dead one costs."""

import asyncio
import os
import signal
from pathlib import Path
from typing import Any

import grpc.aio
import pytest

from agent.authority import connection
from agent.authority.protocol import Minted
from agent.errors import AuthorityUnavailable
from signer.pb import signer_pb2
from svid.bundle import TrustBundle
from svid.dnsnames import SIGNER_NAME
from svid.keys import KeyAlgorithm
from tests.node.test_batches import PODS, agent, allowed, connected, renewals
from tests.ports import free_port
from tests.signer_process import process
from tests.unit.signer.test_lifecycle import TD
from tests.unit.signer.test_minting import csr

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
                found = status(each)
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
        flags = ("--workers", "2", "--node-rate", "1", "--node-burst", "6")
        with process(tmp_path, 40, 1, free_port(), *flags) as (_, site):
            callers = [Caller(site), Caller(site)]
            for one in callers:
                await one.channel.channel_ready()
            token = site["agents"][0]
            loop = asyncio.get_running_loop()
            begun = loop.time()
            found = await asyncio.gather(
                *(callers[number % 2].mint(pod, token) for number, pod in enumerate(site["pods"]))
            )
            most = 6 + 1 + (loop.time() - begun)
            minted = [each for each in found if isinstance(each, signer_pb2.MintX509SVIDResponse)]
            assert 6 <= len(minted) <= most
            refused = [each for each in found if isinstance(each, grpc.aio.AioRpcError)]
            assert {each.code() for each in refused} == {grpc.StatusCode.RESOURCE_EXHAUSTED}
            for one in callers:
                await one.channel.close()

    asyncio.run(play())


def test_a_worker_that_is_killed_amid_batches_loses_nothing_and_is_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(connection, "YOUNG_SECONDS", 0.0)
    log = tmp_path / "signer.log"

    async def play() -> None:
        with process(tmp_path, PODS, 1, free_port(), "--workers", "2") as (running, site):
            async with agent(tmp_path, site) as authority:
                wanted = renewals(site)
                minting = [asyncio.ensure_future(authority.mint_x509(each)) for each in wanted]
                await asyncio.wait(minting, return_when=asyncio.FIRST_COMPLETED)
                (busy, idle) = _busiest(workers(running.pid))
                os.kill(busy, signal.SIGKILL)
                found = await asyncio.gather(*minting, return_exceptions=True)
                assert all(isinstance(each, Minted | AuthorityUnavailable) for each in found)
                minted = {each.pod.uid for each, how in zip(wanted, found, strict=True) if isinstance(how, Minted)}
                # The port is still there, and who has lost its worker asks by the other one.
                assert minted
                await connected(authority)
                left = [each for each in wanted if each.pod.uid not in minted]
                rest = await asyncio.gather(*map(authority.mint_x509, left))
                assert all(isinstance(each, Minted) for each in rest)
                back = await working(running.pid, 2, without=busy)
                assert idle in back
            # What was under way may have been signed and not told: once more, and no more than that.
            times = allowed(log)
            assert set(times) == {each.pod.uid for each in wanted}
            assert max(times.values()) <= 2
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
