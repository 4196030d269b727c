"""`podsvid api watch` as a process: each change once, through outages, against a fake server and the agent."""

import asyncio
import contextlib
import os
import signal
import sys
from pathlib import Path

import grpc
import pytest
from cryptography import x509

from podsvid.api.address import target
from podsvid.api.following import Backoff, follow_x509
from runtime.clock import SystemClock
from svid.certificates import serial_of
from tests.fake_workload_api import FakeWorkloadApi, Refusal, authority, eventually, x509_answer, x509_svid
from tests.node.api_rig import DEADLINE, environment, podsvid, refuse, watching, with_server


def serial_in(directory: Path) -> str:
    return serial_of(x509.load_pem_x509_certificate((directory / "svid.0.pem").read_bytes()))


def test_watch_prints_each_change_once_survives_the_server_and_ends_cleanly(base: Path) -> None:
    async def run(server: FakeWorkloadApi) -> None:
        out = base / "out"
        async with watching("--socket", str(server.path), "--output", "json", "--write", str(out)) as found:
            await eventually(lambda: len(found.out) == 1)
            server.x509.publish(server.x509.current or b"")
            svid = x509_svid(server.issuer)
            server.rotate(svid)
            await eventually(lambda: len(found.out) == 2)
            assert found.serials[-1] == svid.serial == serial_in(out)
            await server.stop()
            await eventually(lambda: found.said("trying again in"))
            await server.start()
            calls = len(server.calls)
            await eventually(lambda: len(server.calls) > calls)
            # The same state on a new connection is no change.
            svid = x509_svid(server.issuer)
            server.rotate(svid)
            await eventually(lambda: len(found.out) == 3)
            assert found.serials[-1] == svid.serial == serial_in(out)
            await eventually(lambda: len(list(out.glob("..podsvid.*"))) == 1)
            assert await found.end() == 0
            assert len(found.out) == 3

    with_server(base, run)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_watch_ends_cleanly_before_there_is_an_answer(base: Path, number: signal.Signals) -> None:
    async def run() -> None:
        async with watching("--socket", str(base / "none")) as found:
            await eventually(lambda: found.said("trying again in"))
            assert await found.end(number) == 0

    asyncio.run(run())


@pytest.mark.spec("EP-15", "EP-18")
@pytest.mark.parametrize("code", [grpc.StatusCode.INVALID_ARGUMENT, grpc.StatusCode.UNIMPLEMENTED])
def test_what_no_retry_would_mend_ends_the_watch(base: Path, code: grpc.StatusCode) -> None:
    async def run(server: FakeWorkloadApi) -> None:
        server.before["FetchX509SVID"] = refuse(code)
        found = await podsvid("watch", "--socket", str(server.path))
        assert found.code == 1
        assert code.name in found.err
        assert server.calls.count("FetchX509SVID") == 1

    with_server(base, run)


@pytest.mark.spec("EP-16", "EP-17", "C-32")
def test_other_refusals_are_retried_and_unusable_answers_waited_out(base: Path) -> None:
    async def run(server: FakeWorkloadApi) -> None:
        codes = [grpc.StatusCode.PERMISSION_DENIED, grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.INTERNAL]

        def before() -> None:
            if codes:
                raise Refusal(codes.pop())

        server.before["FetchX509SVID"] = before
        server.x509.publish(x509_answer(server.issuer, x509_svid(authority())))
        out = base / "out"
        async with watching("--socket", str(server.path), "--output", "json", "--write", str(out)) as found:
            await eventually(lambda: found.said("waiting for a better one"))
            assert [found.said(code) for code in ("PERMISSION_DENIED", "UNAVAILABLE", "INTERNAL")] == [True] * 3
            assert not out.exists()
            server.rotate()
            await eventually(lambda: len(found.out) == 1)
            assert len(server.calls) == 4
            server.x509.publish(b"\xff")
            await eventually(lambda: sum("waiting for a better one" in line for line in found.err) == 2)
            assert serial_in(out) == found.serials[0]
            assert await found.end() == 0

    with_server(base, run)


class Middle:
    def uniform(self, a: float, b: float) -> float:
        return (a + b) / 2


@pytest.mark.spec("WL-6")
def test_the_wait_before_a_new_connection_grows_and_starts_over_after_a_good_message(base: Path) -> None:
    async def run(server: FakeWorkloadApi) -> None:
        waits: list[float] = []
        down = [grpc.StatusCode.UNAVAILABLE] * 3

        def before() -> None:
            if down:
                raise Refusal(down.pop())

        async def sleep(seconds: float) -> None:
            waits.append(seconds)

        server.before["FetchX509SVID"] = before
        server.after_each = refuse(grpc.StatusCode.OK)
        address = target(str(server.path))
        followed = follow_x509(address, SystemClock(), Backoff(Middle(), first=4, most=12), lambda _: None, sleep)
        async with contextlib.aclosing(followed) as states:
            first = await anext(states)
            assert waits == [3, 6, 9]
            # An OK at the end of a stream is no end either, and a good message has come before it.
            assert (await anext(states)).svids[0].svid.serial == first.svids[0].svid.serial
            assert waits == [3, 6, 9, 3]
            # Messages that cannot be used are no success.
            server.x509.publish(b"\xff")
            server.after_each = lambda: server.rotate() if len(waits) == 7 else refuse(grpc.StatusCode.OK)()
            await anext(states)
            assert waits == [3, 6, 9, 3, 3, 6, 9]

    with_server(base, run)


def test_a_reader_that_goes_away_ends_the_watch_quietly(base: Path) -> None:
    async def run(server: FakeWorkloadApi) -> None:
        reading, writing = os.pipe()
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "podsvid", "api", "watch", "--socket", str(server.path)),
            env=environment(),
            stdout=writing,
            stderr=asyncio.subprocess.PIPE,
        )
        os.close(writing)
        await asyncio.to_thread(os.read, reading, 1)
        os.close(reading)
        server.rotate()
        async with asyncio.timeout(DEADLINE):
            _, err = await process.communicate()
        assert (process.returncode, err) == (141, b"")

    with_server(base, run)
