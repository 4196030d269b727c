"""A FederatedTrustDomain at a real API server: what its schema takes, and the way from an endpoint to agents."""

from __future__ import annotations

import argparse
import asyncio
import random
import shlex
import textwrap
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import AbstractAsyncContextManager, ExitStack, asynccontextmanager, contextmanager, suppress
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
import yaml

from agent.authority.connection import SignerSettings
from agent.authority.signer import SignerAuthority
from podsvid import authority as authority_command
from runtime.clock import SystemClock
from signer.authority.state import AuthorityState
from svid.bundle import TrustBundle
from svid.spiffeid import SpiffeId, TrustDomain
from tests.fake_authority import root
from tests.go_tools import Progress
from tests.interop.rig import podsvid, ran
from tests.ports import free_port
from tests.unit.signer.test_federation_endpoint import served, svid

from .alone import POLICIES, TRUST_DOMAIN, Alone, api_server
from .api import ApiError, Object
from .chart import ROOT
from .crossing import Crossing, Member, Thief, member
from .kubectl import Shell
from .signing import AUDIENCE, NAMESPACE
from .test_alone_life import CTB, PATIENCE, _namespace, _object, _pod, replica, until
from .tutorial import TUTORIALS, steps

pytestmark = pytest.mark.timeout(600)
RELATIONS = f"{POLICIES}/federatedtrustdomains"
PAGE = ROOT / "docs" / "podsvid-federation.md"
TUTORIAL = TUTORIALS / "federate.md"
PARTNER = TrustDomain("partner.test")
SERVER = SpiffeId(PARTNER, "/spire/server")


@pytest.fixture
def alone(built: None, tmp_path: Path, progress: Progress) -> Iterator[Alone]:
    with api_server(tmp_path, progress) as found:
        found.api.apply([_namespace(NAMESPACE)])
        found.install()
        found.api.create("/api/v1/nodes", {"apiVersion": "v1", "kind": "Node", "metadata": {"name": "node-a"}})
        yield found


def relation(name: str = "partner", **change: Any) -> Object:
    spec = {
        "trustDomain": "partner.test",
        "bundleEndpointURL": "https://partner.test/",
        "bundleEndpointProfile": {"type": "https_web"},
        **change,
    }
    return {
        "apiVersion": "podsvid.io/v1alpha1",
        "kind": "FederatedTrustDomain",
        "metadata": {"name": name},
        "spec": {key: value for key, value in spec.items() if value is not None},
    }


def spiffe(endpoint_id: str | None = "spiffe://partner.test/spire/server") -> dict[str, str]:
    return {"type": "https_spiffe"} | ({"endpointSPIFFEID": endpoint_id} if endpoint_id is not None else {})


def test_the_schema_refuses_what_the_signer_would(alone: Alone) -> None:
    for change, why in (
        ({"trustDomain": "Partner"}, "spec.trustDomain"),
        ({"trustDomain": None}, "spec.trustDomain"),
        ({"bundleEndpointURL": "http://partner.test/"}, "spec.bundleEndpointURL"),
        ({"bundleEndpointURL": "https://me@partner.test/"}, "spec.bundleEndpointURL"),
        ({"bundleEndpointProfile": {"type": "http"}}, "spec.bundleEndpointProfile.type"),
        ({"bundleEndpointProfile": spiffe(None)}, "whom https_spiffe wants to meet"),
        ({"bundleEndpointProfile": {**spiffe(), "type": "https_web"}}, "https_web has none"),
        ({"bundleEndpointProfile": spiffe("spiffe://partner.test")}, "endpointSPIFFEID"),
        ({"bundleEndpointProfile": spiffe(), "caBundle": "x"}, "caBundle is for https_web"),
    ):
        with pytest.raises(ApiError) as refused:
            alone.api.create(RELATIONS, relation(**change))
        assert refused.value.status == 422
        assert why in str(refused.value)
    made = alone.api.create(RELATIONS, relation(bundleEndpointProfile=spiffe(), maxStale="72h"))
    with pytest.raises(ApiError, match="another trust domain is another object"):
        alone.api.replace(f"{RELATIONS}/partner", {**made, "spec": {**made["spec"], "trustDomain": "other.test"}})


class Heard:
    """What an agent is told of other trust domains."""

    def __init__(self, authority: SignerAuthority) -> None:
        self._authority = authority

    def sequences(self) -> dict[str, int | None]:
        trust = self._authority.trust.current
        found: tuple[TrustBundle, ...] = trust.federated if trust is not None else ()
        return {each.trust_domain.name: each.sequence for each in found}


def test_a_bundle_goes_from_its_endpoint_to_agents_and_the_cluster_and_away_with_its_object(
    alone: Alone, tmp_path: Path
) -> None:
    theirs = root(datetime.now(UTC), PARTNER)
    published = [replace(theirs.bundle, sequence=2)]

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        body = published[0].to_jwks()
        writer.write(f"HTTP/1.1 200 OK\r\nContent-Length: {len(body)}\r\n\r\n".encode() + body)
        await writer.drain()

    async def run() -> None:
        async with replica(alone, tmp_path) as address, served(tmp_path, *svid(theirs), answer) as port:
            bundle, token = tmp_path / "bundle.json", tmp_path / "token"
            own = f"/api/v1/namespaces/{NAMESPACE}/configmaps/podsvid-bundle"
            agent = _pod(alone, "agent", "podsvid-agent", NAMESPACE)
            token.write_text(alone.api.token("podsvid-agent", NAMESPACE, AUDIENCE, agent))
            trusted = f"{CTB}/podsvid.io:spiffe:{TRUST_DOMAIN}"
            await until(lambda: alone.api.find(own) or alone.api.find(trusted))
            bundle.write_text(alone.api.get(trusted)["spec"]["trustBundle"])
            settings = SignerSettings(
                address, bundle, token, AUDIENCE, TrustDomain(TRUST_DOMAIN), "test", run_dir=tmp_path
            )
            authority = SignerAuthority(settings, SystemClock(), random.Random(3))
            authority.load()
            following = asyncio.create_task(authority.run())
            try:
                await authority.wait_answered()
                await meet(Heard(authority), port)
            finally:
                following.cancel()
                await asyncio.gather(following, return_exceptions=True)

    async def meet(heard: Heard, port: int) -> None:
        given = replace(theirs.bundle, sequence=1).to_jwks().decode()
        made = alone.api.create(
            RELATIONS,
            relation(
                bundleEndpointURL=f"https://127.0.0.1:{port}/",
                bundleEndpointProfile=spiffe(),
                trustDomainBundle=given,
            ),
        )
        await until(lambda: heard.sequences() == {"partner.test": 2})
        assert heard.sequences() == {"partner.test": 2}
        bundle = f"{CTB}/podsvid.io:spiffe:partner.test"
        await until(lambda: alone.api.find(bundle))
        assert alone.api.get(bundle)["spec"]["trustBundle"] == theirs.bundle.to_pem().decode()

        def ready() -> bool:
            conditions = (alone.api.get(f"{RELATIONS}/partner").get("status") or {}).get("conditions") or []
            return [each["status"] for each in conditions] == ["True", "True"]

        await until(ready)
        status = alone.api.get(f"{RELATIONS}/partner")["status"]
        assert (status["sequence"], status["x509Authorities"], status["jwtKeys"]) == (2, 1, [])
        stored = alone.api.get(f"/api/v1/namespaces/{NAMESPACE}/configmaps/podsvid-federated-{made['metadata']['uid']}")
        assert stored["metadata"]["ownerReferences"][0]["uid"] == made["metadata"]["uid"]
        # Its spec changes, so it is asked at once.
        published[0] = replace(theirs.bundle, sequence=3)
        alone.api.patch(f"{RELATIONS}/partner", {"spec": {"maxStale": "72h"}})
        await until(lambda: heard.sequences() == {"partner.test": 3})
        assert heard.sequences() == {"partner.test": 3}
        alone.api.delete(f"{RELATIONS}/partner")
        # tests/unit/signer/test_federation.py has the time that this takes.
        await until(lambda: not heard.sequences())
        assert heard.sequences() == {}
        await until(lambda: not alone.api.find(bundle))
        assert alone.api.find(bundle) is None

    asyncio.run(run())


async def until_async(true: Callable[[], Awaitable[bool]]) -> None:
    """As `until`."""
    with suppress(TimeoutError):
        async with asyncio.timeout(PATIENCE):
            while not await true():
                await asyncio.sleep(0.1)


@dataclass(frozen=True)
class Side:
    """A cluster with a trust domain of its own."""

    alone: Alone
    domain: str
    port: int
    folder: Path

    def running(self) -> AbstractAsyncContextManager[str]:
        flags = ("--trust-domain", self.domain, "--bundle-listen", f"127.0.0.1:{self.port}", "--bundle-hint", "1m")
        hurried = ("--reissue-over", "5s", "--forced-reissue-over", "20s", "--jwt-algorithm", "ES256")
        return replica(self.alone, self.folder, *flags, *hurried)

    @asynccontextmanager
    async def pod(self, address: str) -> AsyncIterator[Member]:
        """One of its pods, on a node with an agent."""
        agent, web = (
            _pod(self.alone, "agent", "podsvid-agent", NAMESPACE),
            _pod(self.alone, "web", "web", "default"),
        )
        roots = self.published(self.domain)
        async with member(self.alone, self.domain, address, roots, agent, web) as found:
            yield found

    async def rotate(self, *, forced: bool) -> None:
        """Of both kinds, as docs/operations.md has it, and waiting for nothing."""
        parser = argparse.ArgumentParser()
        authority_command.add_arguments(parser)
        for kind in ((),) if forced else (("--kind", "x509"), ("--kind", "jwt")):
            line = ["rotate", "--no-wait", "--socket", str(self.folder / "a.sock"), *kind]
            parsed = parser.parse_args([*line, *(["--forced"] if forced else [])])
            assert await asyncio.to_thread(authority_command.run, parsed) == 0

    def signs_anew(self, before: AuthorityState) -> bool:
        """Whether both kinds are signed by others than in that state."""
        now = Thief.of(self.alone, SpiffeId(TrustDomain(self.domain), "/any")).state
        one, other = now.active_jwt, before.active_jwt
        assert one is not None
        assert other is not None
        return now.active_x509_id != before.active_x509_id and one.key_id != other.key_id

    def published(self, domain: str) -> bytes:
        """The PEM of that trust domain's bundle in this cluster; empty while there is none."""
        found = self.alone.api.find(f"{CTB}/podsvid.io:spiffe:{domain}")
        return found["spec"]["trustBundle"].encode() if found else b""

    async def trust(self, other: Side) -> None:
        """As a person has it typed by docs/podsvid-federation.md."""
        first = await ran(*podsvid("bundle", "show", "--socket", str(other.folder / "a.sock")))
        (self.folder / "other.json").write_text(first, encoding="utf-8")
        text = PAGE.read_text(encoding="utf-8")
        begin = text.index("    { cat <<'EOF'; sed")
        typed = textwrap.dedent(text[begin : text.index("\n    EOF\n", begin)]) + "\nEOF\n"
        there = {
            "--context one ": "",
            "https://bundle.other.example/": f"https://127.0.0.1:{other.port}/",
            "other.example": other.domain,
        }
        for documented, actual in there.items():
            assert documented in typed
            typed = typed.replace(documented, actual)
        said = await asyncio.to_thread(Shell(self.folder, self.alone.layout.kubeconfig).done, typed)
        assert "federatedtrustdomain.podsvid.io/partner created" in said

    async def wait_fetched(self) -> None:
        """Wait for it, or for long. A look that a busy machine did not answer in time is made again in minutes, or at
        once where the object changes."""
        for hours in range(72, 78):
            with suppress(TimeoutError):
                async with asyncio.timeout(PATIENCE / 6):
                    while not await asyncio.to_thread(self.fetched):
                        await asyncio.sleep(0.1)
                    return
            # A patch, as the signer may write the status meanwhile.
            self.alone.api.patch(f"{RELATIONS}/partner", {"spec": {"maxStale": f"{hours}h"}})

    def knows(self, other: Side) -> bool:
        """Whether its cluster has what the other's has."""
        return self.published(other.domain) == other.published(other.domain)

    def fetched(self) -> bool:
        status = self.alone.api.get(f"{RELATIONS}/partner").get("status") or {}
        conditions = status.get("conditions") or []
        # Of a first bundle alone there is but one.
        return [each["status"] for each in conditions] == ["True", "True"]


@pytest.fixture
def sooner(monkeypatch: pytest.MonkeyPatch) -> None:
    """Partners look every two seconds and have 20 for it, in a rotation and after a theft; half a minute and more for
    each is what a hint of a minute gives."""
    monkeypatch.setattr("svid.federation.LOOKS_IN_A_HINT", 30)
    monkeypatch.setattr("svid.federation.LEAST_INTERVAL", timedelta(seconds=2))
    monkeypatch.setattr("signer.audience_settings.POLLS", 1 / 3)
    monkeypatch.setattr("signer.audience_settings.LEAST_LOOK", timedelta(seconds=20))


def test_two_clusters_trust_each_other_and_lose_no_request_through_rotations_and_thefts(
    sooner: None, built: None, tmp_path: Path, progress: Progress
) -> None:
    async def meet(sides: list[Side]) -> None:
        one, other = sides
        async with one.running() as at_one, other.running() as at_other:
            for side in sides:
                await until(lambda side=side: side.published(side.domain))  # type: ignore[misc]
            for side, partner in ((one, other), (other, one)):
                await side.trust(partner)
            for side, partner in ((one, other), (other, one)):
                await side.wait_fetched()
                assert side.fetched(), side.alone.api.get(f"{RELATIONS}/partner").get("status")
                await until(lambda side=side, partner=partner: side.published(partner.domain))  # type: ignore[misc]
                assert side.knows(partner)
            async with one.pod(at_one) as here, other.pod(at_other) as there:
                for each, elsewhere in ((here, there), (there, here)):
                    domain = elsewhere.spiffe_id.trust_domain
                    await until(lambda each=each, domain=domain: domain in each.papers[1].trusted)  # type: ignore[misc]
                await live(sides, [here, there])

    async def live(sides: list[Side], members: list[Member]) -> None:
        crossing = Crossing(*members)
        running = asyncio.create_task(crossing.run())
        try:
            for forced in (False, True):
                thieves = [Thief.of(side.alone, each.spiffe_id) for side, each in zip(sides, members, strict=True)]
                for thief, victim in zip(thieves, reversed(members), strict=True):
                    assert await thief.deceives(victim) == (True, True), "the test's own thief is none"
                # Both at the same time: each has to believe the other's endpoint while it changes itself.
                for side in sides:
                    await side.rotate(forced=forced)
                for thief, side in zip(thieves, sides, strict=True):
                    await until(lambda thief=thief, side=side: side.signs_anew(thief.state))  # type: ignore[misc]
                    assert side.signs_anew(thief.state)
                for thief, victim in zip(thieves, reversed(members), strict=True):
                    if forced:
                        await until_async(lambda thief=thief, victim=victim: refused(thief, victim))  # type: ignore[misc]
                        assert await thief.deceives(victim) == (False, False)
                before = crossing.done
                await until(lambda before=before: crossing.done > before + 20 or crossing.failed)  # type: ignore[misc]
                assert crossing.done > before + 20, crossing.failed
            assert not running.done(), "the traffic ended by itself"
        finally:
            running.cancel()
            await asyncio.gather(running, return_exceptions=True)
        assert crossing.failed == []
        assert crossing.done > 100
        for side, partner in (sides, reversed(sides)):
            # It believes the endpoint still: no bundle went by hand.
            assert side.fetched(), side.alone.api.get(f"{RELATIONS}/partner").get("status")
            await until(lambda side=side, partner=partner: side.knows(partner))  # type: ignore[misc]
            assert side.knows(partner)

    async def refused(thief: Thief, victim: Member) -> bool:
        return await thief.deceives(victim) == (False, False)

    with two_sides(tmp_path, progress) as sides:
        asyncio.run(meet(sides))


@contextmanager
def two_sides(folder: Path, progress: Progress) -> Iterator[list[Side]]:
    """Clusters `one` and `other`, each with a node and the account of its pod; nothing runs there yet."""
    with ExitStack() as both:
        sides = []
        for name in ("one", "other"):
            own = folder / name
            own.mkdir()
            found = both.enter_context(api_server(own, progress))
            found.api.apply([_namespace(NAMESPACE)])
            found.install()
            found.api.create("/api/v1/nodes", {"apiVersion": "v1", "kind": "Node", "metadata": {"name": "node-a"}})
            found.api.apply([_object("ServiceAccount", "web", namespace="default")])
            sides.append(Side(found, f"{name}.test", free_port(), own))
        yield sides


def contexts(sides: list[Side], file: Path) -> Path:
    """One kubeconfig for both clusters, each with a context of its name."""
    whole: Object = {"apiVersion": "v1", "kind": "Config", "clusters": [], "users": [], "contexts": []}
    for side in sides:
        name = side.folder.name
        of_side = yaml.safe_load(side.alone.layout.kubeconfig.read_text())
        for kind in ("clusters", "users"):
            whole[kind].append({**of_side[kind][0], "name": name})
        whole["contexts"].append({"name": name, "context": {"cluster": name, "user": name}})
    file.write_text(yaml.safe_dump(whole))
    return file


def test_the_tutorial_is_typed(built: None, tmp_path: Path, progress: Progress) -> None:
    program = tmp_path / "bin" / "podsvid"
    program.parent.mkdir()
    program.write_text(f'#!/bin/sh\nexport PYTHONPATH={ROOT}\nexec {shlex.join(podsvid())} "$@"\n')
    program.chmod(0o700)

    def here(text: str, pods: dict[str, Member], sides: list[Side]) -> str:
        """With what stands for a signer's pod, a pod and an address."""
        for side in sides:
            name, socket = side.folder.name, shlex.quote(f"unix://{pods[side.folder.name].socket}")
            signer = f"kubectl --context {name} -n podsvid exec deploy/podsvid-signer -- podsvid bundle show"
            text = text.replace(signer, f"podsvid bundle show --socket {side.folder / 'a.sock'}")
            for flag in ("", "-i "):
                pod = f"kubectl --context {name} exec {flag}web -- "
                if pod in text:
                    text = text.replace(pod, f"env SPIFFE_ENDPOINT_SOCKET={socket} ")
                    text = text.replace("/tmp/identity", str(side.folder / "identity"))
            text = text.replace(f"https://bundle.{name}.example/", f"https://127.0.0.1:{side.port}/")
            text = text.replace(f"{name}.example", side.domain)
        return text

    async def run(sides: list[Side]) -> None:
        shell = Shell(tmp_path, contexts(sides, tmp_path / "kubeconfig"), (program.parent,))
        async with sides[0].running() as at_one, sides[1].running() as at_other:
            for side in sides:
                await until(lambda side=side: side.published(side.domain))  # type: ignore[misc]
            async with sides[0].pod(at_one) as one, sides[1].pod(at_other) as other:
                pods = {"one": one, "other": other}
                for step in steps(TUTORIAL):
                    done = await asyncio.to_thread(shell.typed, here(step.typed, pods, sides), 240)
                    assert done.returncode == 0, f"{step.typed}\n{done.stdout}{done.stderr}"
                    printed = here(step.printed, pods, sides)
                    assert not printed or done.stdout == printed, f"{step.typed}\n{done.stdout}{done.stderr}"
                    if " wait " in step.typed:
                        await arrived(sides, pods)
                for side in sides:
                    await until(lambda side=side: len(pods[side.folder.name].papers[1].trusted) == 1)  # type: ignore[misc]
                    assert len(pods[side.folder.name].papers[1].trusted) == 1, "the other's bundle stays"

    async def arrived(sides: list[Side], pods: dict[str, Member]) -> None:
        """The few seconds that a bundle takes from a signer to pods, which a person does not notice."""
        for each in pods.values():
            await until(lambda each=each: len(each.papers[1].trusted) == len(sides))  # type: ignore[misc]

    with two_sides(tmp_path, progress) as sides:
        asyncio.run(run(sides))
