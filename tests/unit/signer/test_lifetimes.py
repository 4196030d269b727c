"""Trust in an authority ends after the longest SVID that it issued, whatever the settings are by then."""

import asyncio
import json
import logging
from collections.abc import Mapping
from dataclasses import replace
from datetime import timedelta
from typing import Any

import pytest
from cryptography import x509
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from signer.authority.knowledge import Acks
from signer.authority.lifecycle import Life
from signer.authority.lifetimes import PAUSE, Lifetimes
from signer.authority.slots import KINDS, Stage
from signer.authority.state import AuthorityState
from signer.authority.timing import SHORTEST
from signer.errors import StateDamaged
from signer.minting.minting import Minting, MintingSettings
from signer.model import TtlLimits
from svid.jwtsvid import JwtSvid, check_jwt_svid
from svid.x509svid import check_x509_svid
from tests.meanwhile import before, unhurried
from tests.signer_rig import START, StepClock
from tests.unit.signer.test_lifecycle import ALL, POLICY, TD, WEB, advanced, done, life, stages
from tests.unit.signer.test_minting import GIVEN, POD, REQUEST
from tests.unit.signer.test_rotation import PATH, Cluster, Replica

HOUR = timedelta(hours=1)
MINUTE = timedelta(minutes=1)
# The signer's defaults: SVIDs may live a day and usually live an hour.
CHART: Mapping[str, timedelta] = {
    "x509_ttl": HOUR,
    "x509_max_ttl": 24 * HOUR,
    "jwt_ttl": 5 * MINUTE,
    "jwt_max_ttl": HOUR,
    "overlap": HOUR + 5 * MINUTE,
}
ENDS = {"x509": HOUR + CHART["overlap"], "jwt": 7.5 * MINUTE + CHART["overlap"]}
TTLS = TtlLimits(
    x509_ttl=CHART["x509_ttl"],
    x509_min_ttl=MINUTE,
    x509_pod_max_ttl=CHART["x509_max_ttl"],
    x509_max_ttl=CHART["x509_max_ttl"],
    jwt_ttl=CHART["jwt_ttl"],
    jwt_max_ttl=CHART["jwt_max_ttl"],
)
SETTINGS = MintingSettings(TTLS)


def chart(**changes: timedelta) -> Life:
    return life(**{**CHART, **changes})


def begun() -> AuthorityState:
    return done(chart().first(START))


def rotated(state: AuthorityState, kind: str, by: Life) -> AuthorityState:
    return advanced(by.asked(state, kind, forced=False, now=START)[0], START, by=by)


def trusted_for(state: AuthorityState, kind: str) -> timedelta:
    old = state.find(kind, Stage.OLD)
    assert old is not None
    assert old.ends_at is not None
    return old.ends_at - START


@pytest.mark.parametrize("kind", KINDS)
def test_usual_svids_end_trust_soon_and_not_after_what_the_settings_would_allow(kind: str) -> None:
    state = rotated(begun(), kind, chart())
    assert trusted_for(state, kind) == ENDS[kind]
    assert stages(advanced(state, START + ENDS[kind] - timedelta(seconds=1), by=chart()), kind) == ["old", "active"]
    assert stages(advanced(state, START + ENDS[kind], by=chart()), kind) == ["active"]
    # So does the next one.
    assert state.longest(kind) == ENDS[kind] - CHART["overlap"]


@pytest.mark.parametrize("kind", KINDS)
def test_a_setting_that_was_lowered_ends_no_trust_early(kind: str) -> None:
    state = chart().promised(begun(), kind, CHART[f"{kind}_max_ttl"])
    lowered = chart(x509_ttl=5 * MINUTE, x509_max_ttl=5 * MINUTE, jwt_ttl=MINUTE, jwt_max_ttl=MINUTE)
    after = rotated(state, kind, lowered)
    assert trusted_for(after, kind) == CHART[f"{kind}_max_ttl"] + CHART["overlap"]
    # The next one issued nothing that long.
    assert after.longest(kind) in (5 * MINUTE, MINUTE)
    # Nor does one that was raised prolong it: nothing longer was signed.
    raised = chart(x509_ttl=12 * HOUR, jwt_ttl=HOUR)
    assert trusted_for(rotated(begun(), kind, raised), kind) == ENDS[kind]


@pytest.mark.parametrize(
    ("ttl", "most", "recorded"),
    [
        (timedelta(seconds=1), 24 * HOUR, SHORTEST),
        (SHORTEST, 24 * HOUR, SHORTEST),
        (SHORTEST + timedelta(seconds=1), 24 * HOUR, 2 * SHORTEST),
        (HOUR, 24 * HOUR, HOUR),
        (HOUR + timedelta(seconds=1), 24 * HOUR, 2 * HOUR),
        (17 * HOUR, 24 * HOUR, 24 * HOUR),
        (25 * HOUR, 24 * HOUR, 25 * HOUR),
        (30 * MINUTE, 40 * MINUTE, 30 * MINUTE),
        (35 * MINUTE, 40 * MINUTE, 40 * MINUTE),
    ],
)
def test_few_lifetimes_are_recorded_and_none_below_what_is_signed(
    ttl: timedelta, most: timedelta, recorded: timedelta
) -> None:
    assert replace(POLICY, x509_max_ttl=most).rounded("x509", ttl) == recorded >= ttl


@pytest.mark.parametrize("kind", KINDS)
def test_a_promise_is_of_the_active_one_and_made_once(kind: str) -> None:
    state = rotated(begun(), kind, chart())
    state, _ = done(chart().prepare(state, kind, START))
    old, _, prepared = state.slots(kind)
    after = chart().promised(state, kind, HOUR - timedelta(seconds=1) if kind == "jwt" else 3 * HOUR)
    assert after.sequence == state.sequence + 1
    assert after.longest(kind) == (HOUR if kind == "jwt" else 4 * HOUR)
    assert (after.slots(kind)[0].longest, after.slots(kind)[2].longest) == (old.longest, prepared.longest)
    other = "x509" if kind == "jwt" else "jwt"
    assert after.slots(other) == state.slots(other)
    assert chart().promised(after, kind, HOUR - timedelta(seconds=2)) is after
    again = AuthorityState.from_json(after.to_json(), TD)
    assert (again.longest(kind), again.outdated) == (after.longest(kind), False)
    # Of all lifetimes there are a handful of records.
    records, found = 0, begun()
    for minutes in range(1, 24 * 60 + 1):
        promised = chart().promised(found, "x509", minutes * MINUTE)
        records, found = records + (promised is not found), promised
    assert records == 5


def test_what_lives_longer_than_is_recorded_is_cut_and_says_so() -> None:
    """Whoever forgot to promise it, and when the record cannot be made."""
    state = begun()
    alone = Minting(lambda: state, SETTINGS, StepClock())
    issued = alone.x509(POD, GIVEN, REQUEST, 2 * HOUR, ())
    assert issued.chain[0].not_valid_after_utc - START == HOUR
    assert issued.notice == "ttl 2h could not be recorded yet, 1h is granted meanwhile"
    assert issued.clipped == ""
    assert alone.x509(POD, GIVEN, REQUEST, HOUR, ()).notice == ""
    token = alone.jwt(replace(GIVEN, jwt_ttl=HOUR), str(WEB), ["a"])
    assert token.svid.expires_at - START == 7.5 * MINUTE
    state = chart().promised(state, "x509", 2 * HOUR)
    assert alone.x509(POD, GIVEN, REQUEST, 2 * HOUR, ()).chain[0].not_valid_after_utc - START == 2 * HOUR


def test_a_lifetime_that_is_none_is_not_read() -> None:
    document = json.loads(begun().to_json())
    nonsense: list[Any] = [0, -1, True, "3600", float("nan"), float("inf"), [], 10**30]
    for seconds in nonsense:
        for kind in KINDS:
            entry = {**document[kind][0], "longest_seconds": seconds}
            with pytest.raises(StateDamaged):
                AuthorityState.from_json(json.dumps({**document, kind: [entry]}).encode(), TD)


def test_of_an_authority_of_before_the_settings_are_recorded_once() -> None:
    """What it issued is not known: as long as may be, from then on whatever the settings become."""
    document = json.loads(begun().to_json())
    for kind in KINDS:
        del document[kind][0]["longest_seconds"]
    state = AuthorityState.from_json(json.dumps(document).encode(), TD)
    assert state.outdated
    assert state.longest("x509") is None
    # Until then nothing is cut, and nothing needs a promise.
    assert chart().promised(state, "x509", 24 * HOUR) is state
    issued = Minting(lambda: state, SETTINGS, StepClock()).x509(POD, GIVEN, REQUEST, 24 * HOUR, ())
    assert issued.chain[0].not_valid_after_utc - START == 24 * HOUR
    assert trusted_for(rotated(state, "x509", chart()), "x509") == 24 * HOUR + CHART["overlap"]
    step = chart().due(state, ALL, START)
    assert step is not None
    assert step.action == "rewrite"
    after = done(chart().do(state, step, START))
    assert (after.longest("x509"), after.longest("jwt")) == (24 * HOUR, HOUR)


class Signers:
    """Two replicas of one cluster, which mint."""

    def __init__(self) -> None:
        self.cluster = Cluster()
        unhurried(self.cluster.kube)
        self.replicas = [Replica(self.cluster, name) for name in ("one", "two")]
        self.lifetimes = []
        for each in self.replicas:
            each.rotation._life = chart()
            self.lifetimes.append(Lifetimes(each.rotation, self.cluster.clock))

    async def open(self) -> None:
        for each in self.replicas:
            await each.rotation.open()

    async def mint(self, number: int, wished: timedelta) -> timedelta:
        """By that replica; how long it lives, and whether the stored state knew it before."""
        rotation = self.replicas[number].rotation
        minting = Minting(lambda: rotation.state, SETTINGS, self.cluster.clock, self.lifetimes[number])
        await minting.promise_x509(GIVEN, wished)
        leaf = minting.x509(POD, GIVEN, REQUEST, wished, ()).chain[0]
        lives = leaf.not_valid_after_utc - self.cluster.clock.now()
        recorded = self.cluster.stored.longest("x509")
        assert recorded is not None
        assert lives <= recorded
        return lives


def test_replicas_record_a_longer_lifetime_once_however_many_ask() -> None:
    async def run() -> None:
        signers = Signers()
        await signers.open()
        written = len(signers.cluster.writes())
        assert await signers.mint(0, HOUR) == HOUR
        assert len(signers.cluster.writes()) == written
        found = await asyncio.gather(*(signers.mint(number % 2, 90 * MINUTE) for number in range(50)))
        assert set(found) == {90 * MINUTE}
        assert signers.cluster.stored.longest("x509") == 2 * HOUR
        # The replica that was second at the API server lost its swap, and needs none.
        assert len(signers.cluster.writes()) - written <= 2
        written = len(signers.cluster.writes())
        assert await signers.mint(1, 2 * HOUR) == 2 * HOUR
        assert len(signers.cluster.writes()) == written

    asyncio.run(run())


def test_without_the_api_server_svids_are_shorter_and_nobody_waits_twice(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.WARNING, "podsvid.authority")

    async def run() -> None:
        signers = Signers()
        await signers.open()
        signers.cluster.kube.down = True
        tried = 0
        rotation = signers.replicas[0].rotation
        promise = rotation.promise

        async def counted(kind: str, ttl: timedelta) -> None:
            nonlocal tried
            tried += 1
            await promise(kind, ttl)

        rotation.promise = counted  # type: ignore[method-assign]
        assert await signers.mint(0, 2 * HOUR) == HOUR
        assert await signers.mint(0, 3 * HOUR) == HOUR
        assert tried == 1
        (line,) = (vars(each) for each in caplog.records if each.levelno == logging.WARNING)
        assert (line["kind"], line["seconds"]) == ("x509", 7200)
        signers.cluster.kube.down = False
        assert await signers.mint(0, 2 * HOUR) == HOUR
        signers.cluster.clock.pass_by(seconds=PAUSE)
        assert await signers.mint(0, 2 * HOUR) == 2 * HOUR

    asyncio.run(run())


def test_an_api_server_that_does_not_answer_holds_no_mint_up(monkeypatch: pytest.MonkeyPatch) -> None:
    async def run() -> None:
        signers = Signers()
        await signers.open()
        monkeypatch.setattr("signer.authority.lifetimes.PATIENCE", 0.01)

        async def never(path: str) -> Any:
            await asyncio.Event().wait()

        signers.cluster.kube.get = never  # type: ignore[method-assign]
        async with asyncio.timeout(10):
            assert await asyncio.gather(*(signers.mint(0, 2 * HOUR) for _ in range(5))) == [HOUR] * 5

    asyncio.run(run())


def test_what_another_replica_put_in_service_meanwhile_is_what_the_promise_is_of() -> None:
    async def run() -> None:
        signers = Signers()
        await signers.open()
        one, two = signers.replicas
        await two.rotation.step("prepare", "x509", "", forced=False)
        old = signers.cluster.stored.active_x509_id

        def activates() -> None:
            after, _ = chart().activate(signers.cluster.stored, "x509", ALL, START, forced=True)
            body = two.rotation._store._body(after, None)  # type: ignore[attr-defined]
            signers.cluster.kube.put(PATH, {"data": body["data"]})

        before(signers.cluster.kube, "replace", activates, "secrets")
        assert await signers.mint(0, 2 * HOUR) == 2 * HOUR
        assert one.rotation.state is not None
        slots = {slot.id: slot for slot in signers.cluster.stored.x509}
        # Nothing that long was signed by the one before.
        assert slots[old].longest == HOUR
        assert signers.cluster.stored.active_x509_id != old
        assert signers.cluster.stored.longest("x509") == 2 * HOUR

    asyncio.run(run())


class Ages(RuleBasedStateMachine):
    """Settings that change, wishes of any length and ordinary rotations: what was issued is trusted to its end."""

    @initialize()
    def begin(self) -> None:
        self.clock = StepClock()
        self.policy: dict[str, timedelta] = dict(CHART)
        self.state = begun()
        self.issued: list[tuple[x509.Certificate, ...]] = []
        self.tokens: list[JwtSvid] = []

    def store(self, after: AuthorityState) -> None:
        self.state = AuthorityState.from_json(after.to_json(), TD)

    async def promise(self, kind: str, ttl: timedelta) -> None:
        self.store(life(**self.policy).promised(self.state, kind, ttl))

    @rule(minutes=st.sampled_from([1, 10, 60, 600, 3000]))
    def wait(self, minutes: int) -> None:
        self.clock.pass_by(minutes=minutes)
        leader = life(**self.policy)
        for _ in range(10):
            step = leader.due(self.state, Acks(frozenset(), {}), self.clock.now())
            if step is None:
                return
            self.store(done(leader.do(self.state, step, self.clock.now())))

    @rule(kind=st.sampled_from(KINDS))
    def rotate(self, kind: str) -> None:
        self.store(life(**self.policy).asked(self.state, kind, forced=False, now=self.clock.now())[0])
        self.wait(1)

    @rule(hours=st.sampled_from([1, 4, 24, 48]))
    def set(self, hours: int) -> None:
        self.policy |= {"x509_max_ttl": hours * HOUR, "jwt_max_ttl": hours * HOUR / 24, "jwt_ttl": MINUTE}

    @rule(minutes=st.integers(1, 60 * 50), promised=st.booleans())
    def mint(self, minutes: int, promised: bool) -> None:
        if self.state.active_x509.not_after <= self.clock.now():
            return
        most = self.policy["x509_max_ttl"]
        bounds = replace(
            TTLS, x509_pod_max_ttl=most, x509_max_ttl=most, jwt_max_ttl=self.policy["jwt_max_ttl"], jwt_ttl=MINUTE
        )
        minting = Minting(lambda: self.state, MintingSettings(bounds), self.clock, self)
        given = replace(GIVEN, jwt_ttl=minutes * MINUTE)
        if promised:
            done(minting.promise_x509(given, minutes * MINUTE))
            done(minting.promise_jwt(given))
        self.issued.append(minting.x509(POD, given, REQUEST, minutes * MINUTE, ()).chain)
        self.tokens.append(minting.jwt(given, str(WEB), ["api"]).svid)

    @invariant()
    def what_was_issued_is_trusted_to_its_end(self) -> None:
        now = self.clock.now()
        self.issued = [chain for chain in self.issued if chain[0].not_valid_after_utc >= now]
        for chain in self.issued:
            check_x509_svid(chain, self.state.bundle, now)
        self.tokens = [token for token in self.tokens if token.expires_at > now]
        for token in self.tokens:
            check_jwt_svid(token.token, {TD: self.state.bundle}, "api", now)

    @invariant()
    def nothing_is_trusted_for_ever(self) -> None:
        for kind in KINDS:
            for slot in self.state.slots(kind):
                assert slot.ends_at is None or slot.ends_at <= self.clock.now() + 48 * HOUR + CHART["overlap"]


TestAges = Ages.TestCase
TestAges.settings = settings(max_examples=40, stateful_step_count=25, suppress_health_check=list(HealthCheck))
