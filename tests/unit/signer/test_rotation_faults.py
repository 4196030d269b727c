"""The stored authorities under two hands: replicas and people that change them at once, and old copies of them."""

import asyncio
import random
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import looptime
import pytest

from signer.authority.acknowledgements import Agents
from signer.authority.lifecycle import Life
from signer.authority.rotation import ATTEMPTS, Rotation
from signer.authority.state import AuthorityState
from signer.authority.store import SecretStore
from signer.cluster.leader import Leader
from signer.errors import StateDamaged, TransitionRefused
from signer.metrics import Metrics
from tests.fake_kube import FakeKube
from tests.racing import before
from tests.signer_rig import Apart, StepClock
from tests.unit.signer.said import abandonments, all_read, sources
from tests.unit.signer.test_lifecycle import TD, life, stages

SECRETS = "/api/v1/namespaces/podsvid/secrets"
SECRET = f"{SECRETS}/authority"
LEASE = "/apis/coordination.k8s.io/v1/namespaces/podsvid/leases/lease"


@dataclass
class Replica:
    """One replica's rotation; `monotonic` is what its lease is measured by."""

    kube: FakeKube
    clock: StepClock
    name: str = "one"
    by: Life | None = None
    monotonic: float = 1000.0
    nodes: frozenset[str] = frozenset()

    def __post_init__(self) -> None:
        lease = timedelta(seconds=15)
        self.leader = Leader(
            self.kube, "podsvid", "lease", self.name, lease, Apart(self.clock, lambda: self.monotonic), random.Random(1)
        )
        self.agents = Agents(self.kube, "podsvid", self.name, self.clock)
        self.metrics = Metrics()
        self.store = SecretStore(self.kube, "podsvid", "authority", TD)
        self.rotation = Rotation(
            self.store,
            abandonments(self.kube, self.clock),
            self.by or life(),
            self.leader,
            self.agents,
            sources(lambda: self.nodes),
            self.metrics,
            self.clock,
            random.Random(1),
        )

    @property
    def state(self) -> AuthorityState:
        assert self.rotation.state is not None
        return self.rotation.state

    async def open(self) -> None:
        await all_read(self.agents)
        await self.rotation.open()

    async def kept(self) -> AuthorityState:
        """What is stored."""
        stored = await self.store.load()
        assert stored is not None
        return stored.state

    async def ask(self, action: str, kind: str = "x509", authority_id: str = "", *, forced: bool = False) -> str:
        return await self.rotation.step(action, kind, authority_id, forced=forced)

    def stepped(self, kind: str, step: str) -> float:
        labels = {"kind": kind, "step": step}
        return self.metrics.registry.get_sample_value("podsvid_signer_authority_steps_total", labels) or 0.0


def on_fake_time(main: Callable[[], Awaitable[Any]]) -> None:
    loop = looptime.new_event_loop(start=0)
    try:
        loop.run_until_complete(main())
    finally:
        loop.close()


async def while_running(loops: list[Awaitable[None]], seconds: float) -> None:
    """The loops for so long; they must not end by themselves."""
    tasks = [asyncio.ensure_future(each) for each in loops]
    try:
        await asyncio.sleep(seconds)
        assert not [each for each in tasks if each.done()]
    finally:
        for each in tasks:
            each.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


async def two() -> tuple[FakeKube, Replica, Replica]:
    clock = StepClock()
    kube = FakeKube(clock)
    one, other = Replica(kube, clock), Replica(kube, clock, "two")
    await one.open()
    await other.open()
    return kube, one, other


def test_two_replicas_that_start_a_cluster_at_once_have_the_same_authorities() -> None:
    async def run() -> None:
        clock = StepClock()
        kube = FakeKube(clock)
        one, other = Replica(kube, clock), Replica(kube, clock, "two")
        before(kube, "create", other.open)
        await one.open()
        assert one.state.to_json() == other.state.to_json()
        assert (await one.kept()).to_json() == one.state.to_json()

    asyncio.run(run())


def test_a_secret_that_goes_while_a_replica_starts_is_not_made_anew() -> None:
    async def run() -> None:
        clock = StepClock()
        kube = FakeKube(clock)
        one, other = Replica(kube, clock), Replica(kube, clock, "two")
        before(kube, "create", other.open)
        load = one.store.load

        async def gone() -> Any:
            if SECRET in kube.objects:
                kube.remove(SECRET)
            return await load()

        one.store.load = gone  # type: ignore[method-assign]
        with pytest.raises(StateDamaged, match="deleted while this signer started"):
            await one.open()
        assert one.rotation.state is None

    asyncio.run(run())


def test_a_secret_that_is_gone_is_not_made_anew_by_who_knows_it() -> None:
    async def run() -> None:
        kube, one, _ = await two()
        confirmed, known = one.rotation.confirmed_at, one.state
        kube.remove(SECRET)
        one.clock.pass_by(minutes=1)
        with pytest.raises(StateDamaged, match="is gone"):
            await one.ask("prepare")
        assert SECRET not in kube.objects
        assert (one.rotation.confirmed_at, one.state) == (confirmed, known)

    asyncio.run(run())


def test_steps_that_two_people_ask_for_at_once_are_both_taken() -> None:
    async def run() -> None:
        kube, one, other = await two()

        async def meanwhile() -> None:
            await other.ask("prepare", "jwt")

        before(kube, "replace", meanwhile)
        await one.ask("prepare", "x509")
        assert stages(one.state) == stages(one.state, "jwt") == ["active", "prepared"]
        assert (one.stepped("x509", "prepare"), other.stepped("jwt", "prepare")) == (1, 1)

    asyncio.run(run())


def test_the_same_step_asked_for_twice_at_once_is_taken_once() -> None:
    async def run() -> None:
        kube, one, other = await two()

        async def meanwhile() -> None:
            await other.ask("prepare")

        before(kube, "replace", meanwhile)
        with pytest.raises(TransitionRefused, match="prepared already"):
            await one.ask("prepare")
        assert stages(one.state) == ["active", "prepared"]
        assert one.stepped("x509", "prepare") == 0

    asyncio.run(run())


def test_a_step_that_always_comes_too_late_is_refused_and_not_forced_through() -> None:
    async def run() -> None:
        kube, one, _ = await two()
        replace, tries = kube.replace, 0

        async def changed_first(path: str, body: Any) -> Any:
            nonlocal tries
            tries += 1
            kube.put(SECRET, {**kube.objects[SECRET], "metadata": {"name": "authority"}})
            return await replace(path, body)

        kube.replace = changed_first  # type: ignore[method-assign]
        with pytest.raises(TransitionRefused, match="at the same time"):
            await one.ask("prepare")
        assert tries == ATTEMPTS
        assert stages(one.state) == ["active"]

    asyncio.run(run())


def test_an_older_state_replaces_no_newer_one() -> None:
    """A watch that is late brings what was; an authority that was revoked since must not be back."""

    async def run() -> None:
        _, one, _ = await two()
        await one.ask("prepare")
        old = one.state
        await one.ask("revoke", authority_id=old.x509[1].id)
        newest, version = one.state, one.rotation.states.version
        assert stages(newest) == ["active"]
        one.rotation.see(old)
        one.rotation.see(newest)
        assert one.state is newest
        assert one.rotation.states.version == version

    asyncio.run(run())


def test_only_who_leads_takes_steps_by_itself() -> None:
    async def main() -> None:
        _, one, other = await two()
        await one.leader.attempt()
        one.clock.pass_by(days=6)
        await while_running([other.rotation.run()], 5)
        assert other.stepped("x509", "prepare") == 0
        await while_running([one.rotation.run()], 5)
        assert (stages(one.state), stages(one.state, "jwt")) == (["old", "active"], ["old", "active"])

    on_fake_time(main)


def test_a_leader_that_was_held_up_takes_no_step_by_what_it_once_knew() -> None:
    async def main() -> None:
        kube, one, _ = await two()
        await one.leader.attempt()
        one.clock.pass_by(days=6)

        def held_up() -> None:
            one.monotonic += 60

        before(kube, "get", held_up)
        await while_running([one.rotation.run()], 3)
        assert not one.leader.leading
        assert stages(await one.kept()) == ["active"]

    on_fake_time(main)


def test_two_that_both_take_themselves_for_leaders_make_one_authority() -> None:
    async def main() -> None:
        kube, one, other = await two()
        await one.leader.attempt()
        kube.remove(LEASE)
        await other.leader.attempt()
        assert one.leader.leading
        assert other.leader.leading
        one.clock.pass_by(days=5, minutes=1)
        get = kube.get

        async def slow(path: str) -> Any:
            found = await get(path)
            await asyncio.sleep(0.5)
            return found

        # Both have read the same before either writes.
        kube.get = slow  # type: ignore[method-assign]
        await while_running([one.rotation.run(), other.rotation.run()], 30)
        kept = await one.kept()
        assert stages(kept) == stages(kept, "jwt") == ["old", "active"]
        assert one.state.to_json() == other.state.to_json() == kept.to_json()
        for kind in ("x509", "jwt"):
            for step in ("prepare", "activate"):
                assert one.stepped(kind, step) + other.stepped(kind, step) == 1

    on_fake_time(main)
