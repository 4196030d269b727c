"""Workload API clients that others wrote, each in its own process, through three rotations."""

import asyncio
import json
import subprocess
import sys
from collections.abc import Awaitable, Callable, Mapping
from pathlib import Path
from typing import Any

import pytest

from podsvid.quickstart.pods import PodVolume
from tests.support import IS_ROOT, VOLUME, Host, node, pod

pytestmark = pytest.mark.skipif(not IS_ROOT, reason="the agent mounts: run as root")


PY = [sys.executable, str(Path(__file__).with_name("py_spiffe_client.py"))]


async def lines_of(*command: str) -> list[dict[str, Any]]:
    """Run a client to its end; what it said."""
    process = await asyncio.create_subprocess_exec(*command, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    try:
        output, errors = await process.communicate()
    finally:
        if process.returncode is None:
            process.kill()
    assert process.returncode == 0, errors.decode()[-4000:]
    return [json.loads(line) for line in output.splitlines()]


def spiffe_id(account: str) -> str:
    return f"spiffe://example.org/ns/default/sa/{account}"


def with_sockets(
    main: Callable[[Host, dict[str, str]], Awaitable[Any]], *accounts: str, flags: tuple[str, ...] = ("--jwt-ttl", "6s")
) -> None:
    """A pod for each of `accounts`; `main` gets their sockets' addresses."""

    async def run() -> None:
        async with node(*flags, ttl="6s") as (here, kubelet):
            addresses = {}
            for account in accounts:
                target = await kubelet.publish(pod(account, account), VOLUME)
                addresses[account] = f"unix://{here.short(target) / 'socket'}"
            await main(here, addresses)

    asyncio.run(run())


def test_py_spiffe_x509_source() -> None:
    async def main(here: Host, at: dict[str, str]) -> None:
        fetched, context, bundle, watched = await lines_of(*PY, at["web"], "3")
        assert fetched["id"] == context["id"] == spiffe_id("web")
        assert fetched["chain"] == 1
        assert bundle["authorities"] == 1
        assert len(watched["serials"]) == len(set(watched["serials"])) == 4

    with_sockets(main, "web")


def test_go_spiffe_x509_context(go_tools: Mapping[str, Path]) -> None:
    async def main(here: Host, at: dict[str, str]) -> None:
        fetched, bundles, refused, *updates = await lines_of(str(go_tools["go-client"]), "watch", at["web"], "4")
        assert fetched["id"] == spiffe_id("web")
        assert bundles["domains"] == ["example.org"]
        assert set(refused.values()) == {"Unimplemented"}, refused
        assert [update["id"] for update in updates] == [spiffe_id("web")] * 4
        assert len({update["serial"] for update in updates}) == 4

    with_sockets(main, "web")


def test_jwt_sources_of_both_and_each_validates_what_the_other_fetched(go_tools: Mapping[str, Path]) -> None:
    async def main(here: Host, at: dict[str, str]) -> None:
        go = str(go_tools["go-client"])
        fetched, renewed = await lines_of(go, "jwt", at["web"], "db")
        assert fetched["id"] == spiffe_id("web")
        assert sorted(fetched["audience"]) == ["db", "other"]
        assert fetched["authorities"] == 1
        assert fetched["cached"]
        assert renewed == {"renewed": True}
        ours, renewed = await lines_of(*PY, "jwt", at["api"])
        assert ours["id"] == ours["asked"] == spiffe_id("api")
        assert "audience" in ours["wrong"]
        assert ours["cached"]
        assert renewed == {"renewed": True}

    with_sockets(main, "web", "api")


def test_a_token_of_one_pod_is_validated_by_another(go_tools: Mapping[str, Path]) -> None:
    async def main(here: Host, at: dict[str, str]) -> None:
        ours, _ = await lines_of(*PY, "jwt", at["web"])
        (found,) = await lines_of(str(go_tools["go-client"]), "validate", at["api"], ours["token"], "db")
        assert found["id"] == spiffe_id("web")

    with_sockets(main, "web", "api", flags=("--jwt-ttl", "60s"))


def test_spiffetls_between_two_pods_over_rotations(go_tools: Mapping[str, Path]) -> None:
    async def main(here: Host, at: dict[str, str]) -> None:
        go = str(go_tools["go-client"])
        server = await asyncio.create_subprocess_exec(
            go, "tls-server", at["server"], spiffe_id("client"), stdout=subprocess.PIPE
        )
        try:
            assert server.stdout is not None
            listening = json.loads(await server.stdout.readline())["address"]
            (done,) = await lines_of(go, "tls-client", at["client"], listening, spiffe_id("server"), "3")
            assert done["serials"] == 4
            assert done["sent"] > 20
            refused = await asyncio.create_subprocess_exec(
                go, "tls-client", at["stranger"], listening, spiffe_id("server"), "3", stderr=subprocess.PIPE
            )
            _, errors = await refused.communicate()
            assert refused.returncode == 1
            assert "bad certificate" in errors.decode() or "reset" in errors.decode(), errors
        finally:
            server.kill()
            await server.wait()

    with_sockets(main, "client", "server", "stranger")


def test_grpc_with_its_file_watcher_over_rotations(go_tools: Mapping[str, Path]) -> None:
    async def run() -> None:
        async with node(ttl="6s") as (_, kubelet):
            volume = PodVolume(name="spiffe", attributes={"layout": "grpc"})
            targets = [await kubelet.publish(pod(name, name), volume) for name in ("server", "client")]
            (done,) = await lines_of(str(go_tools["go-client"]), "files", *map(str, targets), "3")
            assert done["serials"] == 4
            assert done["domains"] == 1
            assert done["calls"] > 20

    asyncio.run(run())


@pytest.mark.parametrize("how", ["stop", "unpublish", "kill"])
def test_who_watches_is_told_unavailable_however_its_socket_ends(go_tools: Mapping[str, Path], how: str) -> None:
    async def run() -> None:
        async with node() as (here, kubelet):
            it = pod("web", "web")
            address = f"unix://{here.short(await kubelet.publish(it, VOLUME)) / 'socket'}"
            watching = [
                await asyncio.create_subprocess_exec(*command, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
                for command in ([str(go_tools["go-client"]), "watch", address, "1000"], [*PY, "end", address])
            ]
            go, py = watching
            try:
                assert go.stdout is not None
                assert py.stdout is not None
                # Of the first, three lines are of calls before its stream.
                for _ in range(4):
                    assert await go.stdout.readline()
                assert await py.stdout.readline()
                if how == "unpublish":
                    await kubelet.unpublish(it, VOLUME)
                elif how == "stop":
                    assert await asyncio.to_thread(here.stop) == 0
                else:
                    here.kill()
                (_, errors), (said, _) = [await each.communicate() for each in watching]
            finally:
                for each in watching:
                    if each.returncode is None:
                        each.kill()
        assert "code = Unavailable" in errors.decode(), errors
        assert json.loads(said)["ended"].endswith("StatusCode.UNAVAILABLE")

    asyncio.run(run())
