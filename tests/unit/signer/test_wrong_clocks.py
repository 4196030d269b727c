"""A wall clock that is set, back or forward, makes nothing that is known older or younger, and nobody wait or pass."""

import asyncio
import random
from collections.abc import Callable
from datetime import datetime, timedelta

import pytest

from agent.authority.contact import Contact
from runtime.clock import SystemClock
from signer.attestation.doubt import Doubt, Limit, Limits
from signer.attestation.outage import PAUSE, Outage
from signer.authority.acknowledgements import STALE
from signer.authority.rollback import FIRST_PAUSE, OTHERS, Rollbacks, Shown
from signer.cluster.events import REPEAT, Events
from signer.cluster.leader import Leader
from signer.cluster.mirror import FRESH_SECONDS, Mirror
from signer.cluster.objects import Named
from signer.errors import ApiUnavailable, Reason, Refused
from signer.front.audit import REFUSAL_WINDOW, Audit
from signer.front.limits import NodeLimits
from signer.model import PodClaim, Sender, Standing
from tests.fake_kube import FakeKube
from tests.signer_rig import START, StepClock
from tests.unit.signer.said import all_read, wanted
from tests.unit.signer.test_acknowledgements import A, agents, following, put, replica
from tests.unit.signer.test_agreement import Known
from tests.unit.signer.test_attestation import SETTINGS, WEB, Rig, rigged
from tests.unit.signer.test_lifecycle import first
from tests.unit.signer.test_rotation import Cluster, Replica

WRONG = pytest.mark.parametrize("wrong", [timedelta(hours=-1), timedelta(hours=1)], ids=["back", "forward"])
LIMIT = SETTINGS.outage_limit


def lasts(clock: StepClock, seconds: float, wrong: timedelta, holds: Callable[[], bool]) -> None:
    """It holds for so long and not longer, though the wall clock is set meanwhile."""
    assert holds()
    clock.wrong = wrong
    clock.pass_by(seconds=seconds - 0.5)
    assert holds(), "it ended before its time"
    clock.pass_by(seconds=1)
    assert not holds(), "it outlasted its time"


def test_the_hosts_seconds_are_not_its_time_of_day() -> None:
    clock = SystemClock()
    one, two = clock.monotonic(), clock.monotonic()
    assert 0 <= one <= two < datetime.now().timestamp() / 2


@WRONG
def test_what_a_mirror_has(wrong: timedelta) -> None:
    clock = StepClock()
    mirror: Mirror[Named, str] = Mirror(FakeKube(clock), "/api/v1/pods", Named, lambda each: "", clock)
    asyncio.run(mirror._list())
    lasts(clock, FRESH_SECONDS, wrong, lambda: mirror.fresh)
    mirror._report(ApiUnavailable("away"))
    # It is lost since then, however often that is found.
    clock.wrong = timedelta(0)
    mirror._report(ApiUnavailable("away"))
    lasts(clock, LIMIT.total_seconds(), wrong, lambda: not mirror.outdated(LIMIT))


@WRONG
def test_the_stored_state(wrong: timedelta) -> None:
    async def run() -> None:
        cluster = Cluster()
        one = Replica(cluster, "one")
        await one.open()
        lasts(cluster.clock, LIMIT.total_seconds(), wrong, lambda: one.rotation.confirmed_within(LIMIT))

    asyncio.run(run())


@WRONG
def test_a_review_of_a_token(wrong: timedelta) -> None:
    """One that the cluster revoked since would be taken for good."""

    async def test(rig: Rig) -> None:
        claim = rig.site.pod("web")
        token = rig.site.token(claim, life=2 * 3600)
        await rig.reviews.verify(token)
        (known,) = rig.reviews._known.values()
        lasts(rig.site.clock, rig.reviews._seconds, wrong, lambda: rig.reviews._counts(known))

    rigged(test)


def test_a_review_counts_no_longer_than_its_token() -> None:
    async def test(rig: Rig) -> None:
        await rig.reviews.verify(rig.site.token(rig.site.pod("web"), life=5))
        (known,) = rig.reviews._known.values()
        assert rig.reviews._counts(known)
        rig.site.clock.wrong = timedelta(seconds=5)
        assert not rig.reviews._counts(known)

    rigged(test)


@WRONG
def test_identities_without_the_api_server(wrong: timedelta) -> None:
    async def test(rig: Rig) -> None:
        claim = rig.site.pod("web")
        token, agent = rig.site.token(claim), rig.site.agent()
        rig.attestor.issued(await rig.attest(claim, token, agent), WEB)

        def served() -> bool:
            try:
                rig.attestor._within_outage()
            except Refused as error:
                assert error.reason is Reason.API_SERVER_UNAVAILABLE
                return False
            return True

        lasts(rig.site.clock, LIMIT.total_seconds(), wrong, served)

    rigged(test)


@WRONG
def test_what_other_replicas_passed_on(wrong: timedelta) -> None:
    """What is in another's ConfigMap is as old as it was seen to be; when it was written its own clock says."""

    async def run() -> None:
        clock = StepClock()
        kube = FakeKube(clock)
        put(kube, replica("one", {"a": [9, {}]}))
        leader = agents(kube, clock, "leader")

        async def test() -> None:
            def known() -> bool:
                return leader.summary(wanted(9), A) == (frozenset(), {})

            lasts(clock, STALE, wrong, known)
            # It lives, whatever its clock says.
            put(kube, replica("one", {"a": [9, {}]}, START - timedelta(days=1)))
            async with asyncio.timeout(10):
                while not known():
                    await asyncio.sleep(0)
            lasts(clock, STALE, timedelta(0), known)

        await following(leader, test)

    asyncio.run(run())


def test_a_replica_whose_word_was_made_anew_is_heard() -> None:
    """Listed again, the new one is read before the old one is found to be gone."""

    async def run() -> None:
        clock = StepClock()
        kube = FakeKube(clock)
        put(kube, replica("one", {"a": [9, {}]}))
        leader = agents(kube, clock, "leader")
        await leader._others._list()
        kube.objects.clear()
        put(kube, replica("one", {"a": [9, {}]}, START + timedelta(seconds=1)))
        await leader._others._list()
        assert leader.summary(wanted(9), A) == (frozenset(), {})
        kube.objects.clear()
        await leader._others._list()
        assert not leader._seen

    asyncio.run(run())


@WRONG
def test_agents_time_to_be_heard(wrong: timedelta) -> None:
    at = Known(first())
    asyncio.run(all_read(at.agents))
    lasts(at.clock, 60, wrong, lambda: "agents have until" in at.acks().unknown)
    at.clock.wrong = timedelta(0)
    at.knowledge.leads(True)
    at.clock.wrong = wrong
    until = at.clock.now() + timedelta(seconds=60)
    assert f"agents have until {until:%Y-%m-%dT%H:%M:%SZ}" in at.acks().unknown, "people read it by the clock they have"


@WRONG
def test_answers_to_rollbacks(wrong: timedelta) -> None:
    clock = StepClock()
    rollbacks, shown = Rollbacks(clock), Shown(frozenset({"a"}))
    lasts(clock, OTHERS.total_seconds(), wrong, lambda: rollbacks.waits(shown, frozenset({"a", "b"})))
    clock.wrong = timedelta(0)
    rollbacks.done(1, 2, 3, shown)
    lasts(clock, FIRST_PAUSE.total_seconds(), wrong, lambda: not rollbacks.due)
    clock.wrong = timedelta(0)
    rollbacks.written_back(1, 2)
    lasts(clock, 24 * 3600, wrong, lambda: bool(rollbacks.note))


@WRONG
def test_pauses_and_windows(wrong: timedelta) -> None:
    clock = StepClock()
    outage = Outage(clock)
    outage.unanswered(b"token", "")
    lasts(clock, PAUSE, wrong, lambda: outage.leaves(b"token", "", lambda: True))

    clock = StepClock()
    audit = Audit(clock)
    window = audit._window("node", Reason.BUSY)
    lasts(clock, REFUSAL_WINDOW, wrong, lambda: audit._window("node", Reason.BUSY) is window)

    clock = StepClock()
    events = Events(FakeKube(clock), "one", clock)

    def silent() -> bool:
        before = events._queue.qsize()
        events.refused(PodClaim("shop", "web", "uid"), "POLICY_DENIED", "no")
        return events._queue.qsize() == before

    assert not silent()
    lasts(clock, REPEAT, wrong, silent)


@WRONG
def test_rates(wrong: timedelta) -> None:
    async def run() -> None:
        clock = StepClock()
        limits = NodeLimits(1, 1, 100, clock)

        async def full() -> bool:
            try:
                with limits.slot("node"):
                    return False
            except Refused:
                return True

        assert [await full() for _ in range(2)] == [False, True]
        clock.wrong = wrong
        clock.pass_by(seconds=0.5)
        assert await full()
        clock.pass_by(seconds=0.5)
        assert not await full()

    asyncio.run(run())
    clock = StepClock()
    doubt = Doubt(clock, {Standing.STRANGER: Limits(Limit(1.0, 1.0), None)})

    def waits() -> bool:
        asked = doubt.ask(Sender(Standing.STRANGER, "a"))
        if asked is not None:
            doubt.answered(asked, refused=True)
        return asked is None

    assert not waits()
    lasts(clock, 1.0, wrong, waits)


@WRONG
def test_a_lease(wrong: timedelta) -> None:
    clock = StepClock()
    one = Leader(FakeKube(clock), "podsvid", "lease", "one", timedelta(seconds=15), clock, random.Random(1))
    asyncio.run(one.attempt())
    lasts(clock, 12, wrong, lambda: one.leading)


@WRONG
def test_how_long_an_agent_is_without_a_signer(wrong: timedelta) -> None:
    clock = StepClock()
    contact = Contact("signer:1", clock, random.Random(1))
    clock.wrong = wrong
    clock.pass_by(seconds=10)
    assert contact.away_for == 10.0
    contact.answered(1)
    assert contact.away_for == 0.0
    contact.lost("gone")
    assert contact.away_since == clock.now()
    clock.wrong = -wrong
    clock.pass_by(seconds=3)
    contact.lost("gone still")
    assert contact.away_for == 3.0
