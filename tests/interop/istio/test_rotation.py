"""Istio's client, and pilot-agents with real Envoys between which requests go on, while podsvid's root is replaced."""

import subprocess
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.cluster.api import Object
from tests.cluster.waiting import say
from tests.interop.istio.mesh import Client, Door, Mesh, spiffe_id
from tests.interop.istio.proxies import Sidecar, Traffic, sidecars, until
from tests.ports import free_port
from tests.support import IS_ROOT

pytestmark = [
    pytest.mark.skipif(not IS_ROOT, reason="mounts need root"),
    pytest.mark.timeout(300),
]
# Proxies ask for less than a day here: they renew at half of it.
LIFE = 8
QUICK = (
    *("--x509-min-ttl", "2s", "--x509-ttl", f"{LIFE}s", "--x509-max-ttl", f"{LIFE}s", "--retire-after", "1s"),
    *("--outage-limit", "6s", "--reissue-over", "2s", "--forced-reissue-over", "2s"),
)
LONGER = ("--x509-min-ttl", "2s", "--x509-ttl", "30s", "--x509-max-ttl", "30s")


@pytest.fixture(scope="module")
def door(mesh: Mesh) -> Iterator[Door]:
    mesh.forget_authorities()
    with mesh.serving("signer-rotation", *QUICK) as found:
        yield found


@pytest.fixture
def pods(mesh: Mesh) -> Iterator[dict[str, Object]]:
    """One of each account, on a node each."""
    found = {"web": mesh.pod("web-r", "web", "node-1"), "api": mesh.pod("api-r", "api", "node-2")}
    yield found
    for each in found.values():
        mesh.forget(each)


def renewed(proxies: dict[str, Sidecar], times: int) -> None:
    """Wait until each Envoy has had so many other certificates."""
    seen: dict[str, set[int]] = {name: {each.serial()} for name, each in proxies.items()}

    def so() -> bool:
        for name, each in proxies.items():
            seen[name].add(each.serial())
        return all(len(each) > times for each in seen.values())

    until(f"{times} renewals", so, proxies)


class Told:
    """What the client is told again and again: how many roots there are, and whether the first authority signs."""

    def __init__(self, client: Client, uri: str) -> None:
        self._client, self._uri = client, uri
        self._stop = threading.Event()
        self._first = client.asks(uri, ec=True)
        self.seen = [(len(self._first.roots), True)]
        self.refused: list[str] = []

    @contextmanager
    def running(self) -> Iterator[None]:
        """Until left."""
        thread = threading.Thread(target=self._run)
        thread.start()
        try:
            yield
        finally:
            self._stop.set()
            thread.join()

    def _run(self) -> None:
        # A pod may ask twice a second.
        while not self._stop.wait(0.6):
            found = self._client.asks(self._uri, ec=True)
            if found.error:
                self.refused.append(found.error)
                continue
            state = (len(found.roots), found.issuer == self._first.issuer)
            if state != self.seen[-1]:
                self.seen.append(state)


def test_two_envoys_go_on_through_renewals_and_a_rotation(
    mesh: Mesh, door: Door, pods: dict[str, Object], tmp_path_factory: pytest.TempPathFactory
) -> None:
    """Nobody says that it has a root, as proxies never do: the signer waits until all must have asked again."""
    asking = mesh.pod("asking")
    with (
        sidecars(mesh, door, _short(tmp_path_factory), pods, f"{LIFE}s") as proxies,
        mesh.client(door, mesh.token(asking), tmp_path_factory.mktemp("asking")) as client,
    ):
        traffic, told = Traffic(list(proxies.values())), Told(client, spiffe_id("web"))
        until("both ways", traffic.both_ways, proxies)
        with traffic.running(), told.running():
            renewed(proxies, 2)
            ones = list(proxies.values())
            before = [(each.issuer(), each.trusted()) for each in ones]
            door.authority("rotate", "--no-wait")
            until("both roots", lambda: [len(each.trusted()) for each in ones] == [2, 2], proxies)
            until(
                "the new authority",
                lambda: all(each.issuer() != was for each, (was, _) in zip(ones, before, strict=True)),
                proxies,
            )
            until("the old root to go", lambda: [len(each.trusted()) for each in ones] == [1, 1], proxies)
            assert all(each.trusted() != was for each, (_, was) in zip(ones, before, strict=True))
            renewed(proxies, 1)
        say(f"{traffic.done} requests, {len(traffic.failures)} failed")
        assert traffic.failures == []
        assert traffic.done > 100
        assert told.refused == []
        assert told.seen == [(1, True), (2, True), (2, False), (1, False)]
    mesh.forget(asking)


def test_proxies_without_an_envoy_have_it_in_files(
    mesh: Mesh, door: Door, pods: dict[str, Object], tmp_path_factory: pytest.TempPathFactory
) -> None:
    """By openssl, each time that it was written anew."""
    seen: set[bytes] = set()
    with sidecars(mesh, door, _short(tmp_path_factory), pods, f"{LIFE}s", with_envoy=False) as proxies:
        out = proxies["web"].out

        def another() -> bool:
            if not (out / "root-cert.pem").exists() or (out / "cert-chain.pem").read_bytes() in seen:
                return False
            seen.add((out / "cert-chain.pem").read_bytes())
            chain, roots = str(out / "cert-chain.pem"), str(out / "root-cert.pem")
            command = ["openssl", "verify", "-no-CApath", "-no-CAstore", "-x509_strict", "-CAfile", roots, chain]
            done = subprocess.run(command, capture_output=True, text=True, check=False)
            assert done.stdout == f"{chain}: OK\n", done.stderr
            named = subprocess.run(
                ["openssl", "x509", "-in", chain, "-noout", "-ext", "subjectAltName"],
                capture_output=True,
                text=True,
                check=True,
            )
            assert f"URI:{spiffe_id('web')}" in named.stdout
            return len(seen) == 3

        until("three certificates", another, proxies)


def test_envoys_go_on_through_an_outage_of_the_signer(
    mesh: Mesh, pods: dict[str, Object], tmp_path_factory: pytest.TempPathFactory
) -> None:
    """As long as their certificates are good; pilot-agent asks on by itself."""
    port = free_port()
    with (
        mesh.serving("signer-away", *LONGER, port=port) as door,
        sidecars(mesh, door, _short(tmp_path_factory), pods, "30s") as proxies,
    ):
        traffic = Traffic(list(proxies.values()))
        until("both ways", traffic.both_ways, proxies)
        with traffic.running():
            door.signer.process.kill()
            door.signer.process.wait()
            until(
                "vain attempts",
                lambda: all("code = Unavailable" in each.log for each in proxies.values()),
                proxies,
            )
            with mesh.serving("signer-away", *LONGER, port=port):
                renewed(proxies, 1)
        say(f"{traffic.done} requests, {len(traffic.failures)} failed")
        assert traffic.failures == []
        assert traffic.done > 100


def _short(factory: pytest.TempPathFactory) -> Path:
    """For sockets: their names are short."""
    return factory.mktemp("p")
