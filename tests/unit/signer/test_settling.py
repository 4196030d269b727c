"""Verifiers that never acknowledge lose nothing: partners that poll the bundle, readers that cache keys for a day."""

import asyncio
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from signer.authority import settling
from signer.authority.advice import to_do
from signer.authority.anchors import UpstreamRoot
from signer.authority.knowledge import Acks
from signer.authority.lifecycle import Life
from signer.authority.rollback import Rollbacks
from signer.authority.slots import KINDS, Stage, X509Slot
from signer.authority.state import Abandoned, AuthorityState
from signer.authority.timing import FORCED_GRACE, Audience, LifecyclePolicy, lifecycle_policy
from signer.errors import TransitionRefused
from signer.istio_settings import RENEWED
from signer.upstream.certify import SelfSigned
from svid.authority import X509Authority
from svid.bundle import TrustBundle
from svid.errors import SvidError
from svid.federation import interval
from svid.jwtsvid import check_jwt_svid
from svid.x509svid import check_x509_svid
from tests.signer_rig import START, StepClock
from tests.unit.signer.test_audience_settings import loaded
from tests.unit.signer.test_lifecycle import ALL, KEY, POLICY, TD, TTL, WEB, advanced, done, stages
from tests.unit.signer.test_rotation import Cluster, Replica, loop, passes, until

SECOND, MINUTE, HOUR, DAY = timedelta(seconds=1), timedelta(minutes=1), timedelta(hours=1), timedelta(days=1)
HINT = 5 * MINUTE
FEDERATION = Audience("federation", 5 * HINT, 5 * HINT, HINT / 3)
OIDC = Audience("oidc", timedelta(0), DAY, MINUTE)
BOTH = (FEDERATION, OIDC)
NOBODY = Acks(frozenset({"silent"}), None)


@pytest.fixture(autouse=True)
def looks_always(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("signer.authority.rotation.LOOK_SECONDS", 0.0)


def life(*audiences: Audience, **changes: Any) -> Life:
    return Life(replace(POLICY, audiences=audiences, **changes), SelfSigned(), TD)


def first(by: Life) -> AuthorityState:
    return done(by.first(START))


def rotating(by: Life, kind: str, *, forced: bool = False) -> AuthorityState:
    """A rotation was asked for at START, and the new authority is published."""
    state, _ = by.asked(first(by), kind, forced=forced, now=START)
    return advanced(state, START, NOBODY, by=by)


@dataclass
class Verifier:
    """What it has read last, and when; `kinds`: what it verifies by that."""

    every: timedelta
    kinds: tuple[str, ...] = KINDS
    bundle: TrustBundle | None = None
    read_at: datetime = START - 1000 * DAY

    def passes(self, state: AuthorityState, now: datetime) -> None:
        if now - self.read_at >= self.every:
            self.bundle, self.read_at = state.bundle, now

    def accepts(self, kind: str, issued: Any, now: datetime) -> bool:
        assert self.bundle is not None
        try:
            if kind == "x509":
                check_x509_svid(issued, self.bundle, now)
            else:
                check_jwt_svid(issued.token, {TD: self.bundle}, "api", now)
        except SvidError:
            return False
        return True


@dataclass
class World:
    """A leader, another one at each moment, and verifiers outside; each SVID is presented when new and at its end."""

    policy: LifecyclePolicy
    verifiers: list[Verifier]
    acks: Acks = ALL
    now: datetime = START
    held: list[tuple[str, Any, datetime]] = field(default_factory=list)
    lost: int = 0
    served: set[tuple[str, str]] = field(default_factory=set)

    def __post_init__(self) -> None:
        self.state = done(self.leader.first(self.now))
        # They read a moment before anything changes: the worst moment that there is.
        self.look()

    @property
    def leader(self) -> Life:
        return Life(self.policy, SelfSigned(), TD)

    def ask(self, kind: str, *, forced: bool = False) -> None:
        self.state, _ = self.leader.asked(self.state, kind, forced=forced, now=self.now)

    def look(self) -> None:
        for each in self.verifiers:
            each.passes(self.state, self.now)

    def passes(self, step: timedelta) -> None:
        """Verifiers that are about to read do so before the leader's steps, and not after them."""
        self.now += step
        self.look()
        self.state = AuthorityState.from_json(advanced(self.state, self.now, self.acks, self.leader).to_json(), TD)
        self.issue()
        self.present()

    def issue(self) -> None:
        active = self.state.active_x509
        self.served.add(("x509", self.state.active_x509_id))
        if active.not_after > self.now:
            chain = active.issue(KEY, WEB, ttl=TTL, now=self.now)
            self.held.append(("x509", chain, chain[0].not_valid_after_utc))
        key = self.state.active_jwt
        if key is not None:
            self.served.add(("jwt", key.key_id))
            token = key.issue(WEB, ["api"], ttl=POLICY.jwt_max_ttl, now=self.now)
            self.held.append(("jwt", token, token.expires_at))

    def present(self) -> None:
        self.held = [each for each in self.held if each[2] > self.now]
        # The oldest and the newest of each kind: what is between has one's key or the other's.
        for kind in KINDS:
            mine = [each for each in self.held if each[0] == kind]
            for _, issued, _ in mine[:1] + mine[-1:]:
                for each in self.verifiers:
                    self.lost += kind in each.kinds and not each.accepts(kind, issued, self.now)


@pytest.mark.spec("FED-1", "FED-3")
@pytest.mark.parametrize("kind", KINDS)
def test_a_partner_that_polls_loses_nothing_through_two_rotations(kind: str) -> None:
    partner = Verifier(HINT)
    world = World(life(FEDERATION).policy, [partner])
    for _ in range(2):
        world.ask(kind)
        for _ in range(90):
            world.passes(MINUTE)
    assert len({each for each in world.served if each[0] == kind}) == 3
    assert world.lost == 0


def test_a_partner_that_missed_four_polls_loses_nothing() -> None:
    world = World(life(FEDERATION).policy, [Verifier(5 * HINT)])
    for kind in (*KINDS, *KINDS):
        world.ask(kind)
        for _ in range(40):
            world.passes(MINUTE)
    assert len(world.served) == 6
    assert world.lost == 0


def test_a_reader_of_keys_with_a_cache_of_a_day_loses_nothing_through_two_rotations() -> None:
    reader = Verifier(DAY, ("jwt",))
    world = World(life(OIDC).policy, [reader])
    for _ in range(2):
        world.ask("jwt")
        for _ in range(5 * 12):
            world.passes(30 * MINUTE)
    assert len({each for each in world.served if each[0] == "jwt"}) == 3
    assert world.lost == 0


def test_by_themselves_they_lose_nothing_either() -> None:
    """Both kinds, as the defaults have it but with short lives: no person asks for anything."""
    flags = ("--trust-audiences", "federation,oidc", "--jwt-key-period", "2d", "--authority-ttl", "4d")
    config = loaded(*flags, "--jwt-algorithm", "ES256", "--acknowledge-within", "2m")
    policy = lifecycle_policy(config)
    assert policy.audiences == (FEDERATION, replace(OIDC, jwt=DAY + HINT))
    hurried = lifecycle_policy(loaded("--trust-audiences", "federation", "--bundle-hint", "1m"))
    assert hurried.audiences == (Audience("federation", 5 * MINUTE, 5 * MINUTE, 45 * SECOND),)
    assert lifecycle_policy(loaded()).audiences == ()
    world = World(policy, [Verifier(3 * HINT), Verifier(DAY + HINT, ("jwt",))])
    # Silent agents bring nothing forward: the bound is for them alone.
    world.acks = NOBODY
    while len(world.served) < 6 and world.now < START + 8 * DAY:
        world.passes(15 * MINUTE)
    assert sum(kind == "jwt" for kind, _ in world.served) >= 3
    assert sum(kind == "x509" for kind, _ in world.served) >= 3
    assert world.lost == 0


def test_without_an_audience_they_would_lose() -> None:
    """The test's own verifiers are no sleepers: nobody waits for them here, and they refuse."""
    world = World(life().policy, [Verifier(HINT), Verifier(DAY, ("jwt",))])
    for kind in KINDS:
        world.ask(kind)
        world.passes(MINUTE)
    assert world.lost > 0


@pytest.mark.spec("FED-2")
@pytest.mark.parametrize(
    ("audiences", "kind", "needed"),
    [
        ((FEDERATION,), "x509", 5 * HINT),
        ((FEDERATION,), "jwt", 5 * HINT),
        ((OIDC,), "x509", timedelta(0)),
        ((OIDC,), "jwt", DAY),
        (BOTH, "x509", 5 * HINT),
        (BOTH, "jwt", DAY),
        ((), "jwt", timedelta(0)),
    ],
)
def test_it_signs_when_the_last_of_them_has_it(audiences: tuple[Audience, ...], kind: str, needed: timedelta) -> None:
    by = life(*audiences)
    state = rotating(by, kind)
    if needed:
        assert by.due(state, ALL, START + needed - SECOND) is None
        # The bound for silent agents is none for them.
        assert by.due(state, NOBODY, START + needed - SECOND) is None
    step = by.due(state, ALL, START + needed)
    assert step is not None
    assert (step.action, step.kind) == ("activate", kind)
    # Agents are waited for as before.
    assert by.due(state, NOBODY, START + min(needed, POLICY.ack_bound - SECOND)) is None
    assert by.due(state, NOBODY, START + max(needed, POLICY.ack_bound)) is not None


@pytest.mark.parametrize("kind", KINDS)
def test_a_person_waits_as_well_unless_it_is_forced(kind: str) -> None:
    by = life(*BOTH)
    state, _ = done(by.prepare(first(by), kind, START))
    needed = by.policy.settle(kind)
    with pytest.raises(TransitionRefused, match=r"federation.* may not have it before .*; wait, or use --forced"):
        by.activate(state, kind, ALL, START + 5 * HINT - SECOND, forced=False)
    with pytest.raises(TransitionRefused, match=f"before {START + needed:%Y-%m-%dT%H:%M:%SZ}"):
        by.activate(state, kind, ALL, START + needed - SECOND, forced=False)
    assert stages(by.activate(state, kind, ALL, START + needed, forced=False)[0], kind) == ["old", "active"]
    assert stages(by.activate(state, kind, ALL, START, forced=True)[0], kind) == ["old", "active"]


def test_after_a_theft_nobody_is_waited_for_but_who_reads_as_often_as_he_is_told() -> None:
    for audiences, kind, needed in (
        ((FEDERATION,), "x509", HINT / 3),
        ((FEDERATION,), "jwt", HINT / 3),
        ((OIDC,), "x509", timedelta(0)),
        ((OIDC,), "jwt", MINUTE),
        (BOTH, "jwt", HINT / 3),
    ):
        by = life(*audiences, forced_window=HINT)
        state = rotating(by, kind, forced=True)
        for acks in (ALL, NOBODY) if needed else ():
            assert by.due(state, acks, START + needed - SECOND) is None
        assert by.due(state, ALL, START + needed) is not None
    # Silent agents are waited for so long, and partners no longer.
    hurried = life(*BOTH, forced_window=20 * SECOND)
    state = rotating(hurried, "jwt", forced=True)
    assert hurried.due(state, NOBODY, START + 20 * SECOND - SECOND) is None
    assert hurried.due(state, NOBODY, START + 20 * SECOND) is not None


@pytest.mark.parametrize("kind", KINDS)
def test_after_a_theft_a_partner_that_looks_four_times_in_a_hint_loses_nothing(kind: str) -> None:
    """By the defaults, a tenth late as podsvid may be; and what was stolen is refused there one look later."""
    policy = lifecycle_policy(loaded("--trust-audiences", "federation", "--jwt-algorithm", "ES256"))
    late = interval(replace(done(Life(policy, SelfSigned(), TD).first(START)).bundle, refresh_hint=HINT)) * 1.1
    partner = Verifier(late, (kind,))
    world = World(policy, [partner])
    world.passes(MINUTE)
    stolen = world.state.active_x509, world.state.active_jwt
    world.ask(kind, forced=True)
    while world.state.abandoned_ids(kind) - {each.authority_id for each in world.state.abandoned if each.left_at}:
        world.passes(SECOND)
        # Those of before are re-issued or fetched anew.
        world.held = world.held[-2:]
    assert world.now <= START + MINUTE + 2 * policy.forced_window + FORCED_GRACE + 2 * SECOND
    assert world.lost == 0
    world.passes(late)
    authority, key = stolen
    assert key is not None
    forged = (
        authority.issue(KEY, WEB, ttl=TTL, now=world.now)
        if kind == "x509"
        else key.issue(WEB, ["api"], ttl=MINUTE, now=world.now)
    )
    assert not partner.accepts(kind, forged, world.now)


@pytest.mark.parametrize(("kind", "audience", "until"), [("x509", FEDERATION, 5 * HINT), ("jwt", OIDC, DAY)])
def test_after_a_theft_verifiers_lose_until_they_read_and_until_when_is_said(
    kind: str, audience: Audience, until: timedelta
) -> None:
    world = World(life(audience).policy, [Verifier(until, (kind,))])
    stolen = world.state.slots(kind)[0].id
    world.passes(MINUTE)
    world.ask(kind, forced=True)
    world.passes(SECOND)
    published = world.now
    while world.state.abandoned_ids(kind) - {each.authority_id for each in world.state.abandoned if each.left_at}:
        world.passes(30 * SECOND)
    assert world.lost > 0
    left = next(each.left_at for each in world.state.abandoned if each.authority_id == stolen)
    assert left is not None

    def said(now: datetime) -> list[str]:
        return [line for line in world.leader.outlook(world.state, ALL, now) if "never acknowledge" in line]

    active = world.state.find(kind, Stage.ACTIVE)
    assert active is not None
    refuses, accepts = said(world.now)
    assert f"({audience.name}) who last read" in refuses
    assert f" before {published:%Y-%m-%dT%H:%M:%SZ} refuse what {active.id} signs until they read again" in refuses
    assert f"by {published + until:%Y-%m-%dT%H:%M:%SZ} at the latest" in refuses
    assert f"({audience.name}) may accept what {stolen}" in accepts
    assert f"until {left + until:%Y-%m-%dT%H:%M:%SZ}" in accepts
    # Some readers have no bound.
    assert ("accepts it until then" in accepts) is (kind == "jwt")
    above = replace(world.state, abandoned=tuple(_certified(each, left + 9 * until) for each in world.state.abandoned))
    later = [line for line in world.leader.outlook(above, ALL, left + 2 * until) if "may accept" in line]
    if kind == "x509":
        (line,) = later
        assert f"until {left + 9 * until:%Y-%m-%dT%H:%M:%SZ}: a CA above certified it" in line
    else:
        assert later == []
    assert len(said(published + until - SECOND)) == 2
    assert accepts in said(left + until - SECOND)
    assert said(left + until) == []
    # From then on nothing is lost of what was issued since.
    while world.now < left + until:
        world.passes(10 * MINUTE)
    world.lost = 0
    world.held.clear()
    for _ in range(3):
        world.passes(10 * MINUTE)
    assert world.lost == 0


def _certified(each: Abandoned, until: datetime) -> Abandoned:
    return replace(each, certified_until=until if each.kind == "x509" else None)


def test_after_a_theft_pods_that_kubelet_renews_are_named_for_as_long_as_they_may_fail() -> None:
    pods = Audience("pod_certificates", 10 * MINUTE, timedelta(0), timedelta(0))
    world = World(life(pods).policy, [])
    stolen = world.state.active_x509_id
    world.passes(MINUTE)
    world.ask("x509", forced=True)
    while not any(each.left_at for each in world.state.abandoned):
        world.passes(30 * SECOND)
    (left,) = world.state.abandoned
    assert left.svids_end is not None
    assert world.now < left.svids_end

    def said(now: datetime) -> list[str]:
        return [line for line in world.leader.outlook(world.state, ALL, now) if "podCertificate" in line]

    (line,) = said(world.now)
    assert f"SVIDs of {stolen}, which was abandoned, until {left.svids_end:%Y-%m-%dT%H:%M:%SZ}" in line
    assert "delete those pods" in line
    assert said(left.svids_end) == []
    other = Life(life(FEDERATION).policy, SelfSigned(), TD)
    assert not [each for each in other.outlook(world.state, ALL, world.now) if "podCertificate" in each]


def test_it_is_said_whom_it_waits_for_and_until_when() -> None:
    by = life(*BOTH)
    state = rotating(by, "jwt")
    prepared = state.jwt[1].id

    def said(now: datetime, acks: Acks = ALL) -> str:
        (found,) = [line for line in by.outlook(state, acks, now) if line.startswith(f"jwt: activate {prepared} ")]
        return found.removeprefix(f"jwt: activate {prepared} ")

    both, readers = (
        f"verifiers that never acknowledge ({each}) had time to read it" for each in ("federation, oidc", "oidc")
    )
    last, unknown = "2030-01-02T00:00:00Z", Acks(frozenset(), None, "pods cannot be read now")
    assert said(START) == f"when {both}, at {last}"
    assert said(START + 5 * HINT) == f"when {readers}, at {last}"
    agents = "when 1 agents (silent) acknowledged it"
    assert said(START, NOBODY) == f"{agents} and {both}, at {last} at the latest"
    # What is not known has no end.
    assert said(START, unknown) == f"when it is known who has it and {both}, not before {last}"
    assert said(START + DAY, unknown) == "when it is known who has it"
    assert said(START + DAY, replace(NOBODY, unknown="why")) == "when it is known who has it"
    # The first ones of a cluster are new to everybody, and nobody has trusted others.
    state = first(by)
    assert "never acknowledge" not in "".join(by.outlook(state, ALL, START))


def test_a_stolen_key_that_signs_on_is_not_said_to_be_missed() -> None:
    """Nor what was dropped before it signed: verifiers have had the active one for as long as there is any."""
    by = life(*BOTH)
    state = done(by.prepare(first(by), "jwt", START))[0]
    state, _ = by.compromised(state, ("jwt",), START + MINUTE)
    assert len(state.abandoned) == 2
    assert "refuse" not in "".join(by.outlook(state, ALL, START + MINUTE))


@pytest.mark.parametrize(("kind", "audience", "until"), [("x509", FEDERATION, 5 * HINT), ("jwt", OIDC, DAY)])
def test_a_stolen_key_that_never_signed_was_published_and_is_told_of(
    kind: str, audience: Audience, until: timedelta
) -> None:
    """Who read in those minutes has it, and accepts what a thief signs."""
    by = life(audience)
    state = done(by.prepare(first(by), kind, START))[0]
    prepared = state.find(kind, Stage.PREPARED)
    assert prepared is not None
    left, before = START + MINUTE, state
    state, _ = by.compromised(state, (kind,), left)
    state = state.noting(before, left)
    said = "".join(by.outlook(state, ALL, left + SECOND))
    assert f"may accept what {prepared.id}, which was abandoned, signs until {left + until:%Y-%m-%dT%H:%M:%SZ}" in said
    told = "".join(to_do(state, left + SECOND))
    assert (prepared.id in told) is (kind == "jwt")


def test_a_scheduled_key_waits_for_its_lead_time_too() -> None:
    by = life(FEDERATION, jwt_lead=DAY)
    state = replace(done(by.prepare(first(by), "jwt", START))[0], goals=frozenset())
    (line,) = [each for each in by.outlook(state, ALL, START) if each.startswith("jwt: activate")]
    ready = START + by.policy.jwt_lead
    assert by.policy.jwt_lead > 5 * HINT
    assert "(federation) had time to read it and its lead time is over" in line
    assert f"at {ready:%Y-%m-%dT%H:%M:%SZ}" in line


def test_who_went_on_without_them_is_told_until_when_they_may_refuse() -> None:
    by = life(FEDERATION)
    state = done(by.prepare(first(by), "x509", START))[0]
    state, _ = by.activate(state, "x509", ALL, START + MINUTE, forced=True)
    (line,) = [line for line in by.outlook(state, ALL, START + MINUTE) if "never acknowledge" in line]
    assert f"refuse what {state.active_x509_id} signs until they read again, by 2030-01-01T00:25:00Z at" in line
    assert line.endswith("others know it, and nothing is to be done")
    late, _ = by.activate(done(by.prepare(first(by), "x509", START))[0], "x509", ALL, START + 5 * HINT, forced=False)
    assert not [line for line in by.outlook(late, ALL, START + 5 * HINT) if "never acknowledge" in line]


def test_an_ended_authority_is_replaced_whoever_may_not_have_the_next() -> None:
    by = life(*BOTH)
    end = first(by).active_x509.not_after
    late = end - MINUTE
    state = advanced(first(by), late, NOBODY, by=by)
    assert stages(state) == ["active", "prepared"]
    assert by.due(state, NOBODY, end - SECOND, ("x509",)) is None
    step = by.due(state, NOBODY, end, ("x509",))
    assert step is not None
    assert (step.action, step.reason) == ("activate", "the active one has ended")


def test_nobody_outside_is_waited_for_at_the_price_of_the_pods_own_svids() -> None:
    """The next one came late: its CA was away, or partners poll once a day."""
    by = life(replace(FEDERATION, x509=5 * DAY))
    state = first(by)
    end = state.active_x509.not_after
    spent = end - TTL - POLICY.reissue_window
    state = advanced(state, spent - MINUTE, by=by)
    assert stages(state) == ["active", "prepared"]
    assert f"had time to read it, at {spent:%Y-%m-%dT%H:%M:%SZ}" in "".join(by.outlook(state, ALL, spent - MINUTE))
    with pytest.raises(TransitionRefused, match=f"before {spent:%Y-%m-%dT%H:%M:%SZ}"):
        by.activate(state, "x509", ALL, spent - SECOND, forced=False)
    assert by.due(state, ALL, spent - SECOND, ("x509",)) is None
    # Agents are: what has not acknowledged refuses, in the cluster itself.
    assert by.due(state, NOBODY, spent, ("x509",)) is None
    assert by.due(state, NOBODY, spent - MINUTE + POLICY.ack_bound, ("x509",)) is not None
    step = by.due(state, ALL, spent, ("x509",))
    assert step is not None
    assert step.action == "activate"
    # All that it signs until then lives as long as usual.
    old = state.active_x509
    assert old.issue(KEY, WEB, ttl=TTL, now=spent)[0].not_valid_after_utc == spent + TTL
    state = done(by.do(state, step, spent))
    assert "refuse what" in "".join(by.outlook(state, ALL, spent))


def test_each_is_prepared_in_time_to_sign_when_its_turn_comes() -> None:
    by = life(*BOTH)
    state = first(by)
    half = START + (state.active_x509.not_after - START) / 2
    alone = life(FEDERATION, jwt_algorithm=None)
    without = replace(state, jwt=())
    assert alone.due(without, ALL, half - 5 * HINT - SECOND) is None
    assert alone.due(without, ALL, half - 5 * HINT) is not None
    turn = START + POLICY.jwt_period
    assert by.due(state, ALL, turn - DAY - SECOND, ("jwt",)) is None
    assert by.due(state, ALL, turn - DAY, ("jwt",)) is not None


def test_a_ca_above_that_gives_too_little_for_them_is_taken_and_it_is_said() -> None:
    """A setting for partners is no reason to be left without a CA."""
    partners = life(replace(FEDERATION, x509=5 * TTL))
    assert partners.policy.shortest_authority == life().policy.shortest_authority == 4 * TTL
    # A year is not asked for where a month is.
    assert life(x509_max_ttl=90 * DAY).policy.shortest_authority == POLICY.authority_ttl * 0.75

    def said(by: Life, lives: timedelta) -> list[str]:
        state = first(life(*by.policy.audiences, authority_ttl=lives))
        return [line for line in by.outlook(state, ALL, START) if "too soon to publish" in line]

    least = 5 * TTL + TTL + POLICY.reissue_window
    (line,) = said(partners, least - SECOND)
    assert "for 5h before it signs: verifiers that never acknowledge (federation) may refuse that one" in line
    assert "lower bundle_hint, or let the CA above certify for longer" in line
    assert said(partners, least) == []
    assert said(life(OIDC), 4 * TTL) == []


def test_readers_of_keys_that_the_period_leaves_too_little_are_named() -> None:
    def said(*flags: str) -> list[str]:
        by = Life(lifecycle_policy(loaded("--jwt-issuer", "https://issuer.test", *flags)), SelfSigned(), TD)
        return [line for line in by.outlook(first(by), ALL, START) if "keep keys" in line]

    (line,) = said("--jwt-key-period", "12h")
    assert line.startswith("jwt: a new key is published for 6h before it signs")
    assert line.endswith("for up to 1d: set jwt_key_period to 2d or more")
    assert said() == []


def test_under_a_root_that_they_have_nobody_waits() -> None:
    """A CA above certifies the next authority below the same root: nothing is new to verifiers outside."""
    policy = life(FEDERATION).policy
    state = done(life(FEDERATION).prepare(first(life(FEDERATION)), "x509", START + DAY))[0]
    active, prepared = state.x509
    assert isinstance(prepared.authority, X509Authority)
    (root,) = active.authority.bundle.x509_authorities
    (other,) = prepared.authority.bundle.x509_authorities

    def below(*roots: Any) -> X509Slot:
        bundle = TrustBundle(TD, roots)
        return replace(prepared, authority=replace(prepared.authority, bundle=bundle))

    def since(slot: X509Slot, **changes: Any) -> datetime:
        return settling.published_at(replace(state, x509=(active, slot), **changes), slot)

    assert since(below(root)) == START
    assert since(below(other)) == since(below(root, other)) == START + DAY
    # The CA above named it before.
    assert since(below(other), roots=(UpstreamRoot(other, START + 2 * MINUTE),)) == START + 2 * MINUTE
    assert since(below(other), roots=(UpstreamRoot(other, START + 2 * DAY),)) == START + DAY
    known = replace(state, x509=(active, below(root)))
    assert settling.ready_at(known, known.x509[1], policy) == START + DAY
    assert [each.until for each in settling.waits(known, policy)] == [START + 5 * HINT]


@pytest.mark.parametrize("kind", KINDS)
def test_where_an_older_secret_was_restored_the_time_begins_anew(kind: str) -> None:
    """Nobody knows what was published since the backup was saved."""
    by, clock = life(*BOTH), StepClock()
    state = rotating(by, kind)
    clock.pass_by(hours=2)
    after = Rollbacks(clock).above(state, state.sequence + 7, proven=True)
    assert {each.until for each in settling.waits(state, by.policy)} == {START + each for each in needed(kind)}
    assert {each.until for each in settling.waits(after, by.policy)} == {clock.now() + each for each in needed(kind)}


def needed(kind: str) -> set[timedelta]:
    return {each.settle(kind) for each in BOTH} - {timedelta(0)}


def test_a_leader_that_follows_goes_on_with_the_time_that_has_passed() -> None:
    async def run() -> None:
        cluster = Cluster()
        one, two = (Replica(cluster, name, life(FEDERATION)) for name in ("one", "two"))
        for each in (one, two):
            await each.open()
        await one.leader.attempt()
        await two.leader.attempt()
        await one.rotation.step("rotate", "x509", "", forced=False)
        async with loop(one.rotation.run()):
            await until(lambda: stages(cluster.stored) == ["active", "prepared"])
        (wait,) = one.rotation.awaited(cluster.stored)
        assert (wait.audience, wait.until) == ("federation", START + 5 * HINT)
        cluster.clock.pass_by(minutes=24)
        cluster.monotonic += 24 * 60
        await two.rotation.follow(cluster.stored)
        await two.leader.attempt()
        assert two.leader.leading
        async with loop(two.rotation.run()):
            await passes()
            assert stages(cluster.stored) == ["active", "prepared"]
            # A replica that has just started knows it from the Secret.
            three = Replica(cluster, "three", life(FEDERATION))
            await three.open()
            assert list(three.rotation.awaited(cluster.stored)) == [wait]
            cluster.clock.pass_by(minutes=1)
            await until(lambda: stages(cluster.stored) == ["old", "active"])

    asyncio.run(run())


class Outside(RuleBasedStateMachine):
    """A partner and a reader that read when they like, but for as long as they may not; all else in any order."""

    @initialize()
    def begin(self) -> None:
        self.world = World(life(*BOTH).policy, [Verifier(5 * HINT), Verifier(DAY, ("jwt",))])

    @rule(minutes=st.integers(1, 60 * 8), step=st.sampled_from([1, 7, 25]))
    def wait(self, minutes: int, step: int) -> None:
        for _ in range(max(1, min(minutes // step, 8))):
            self.world.passes(timedelta(minutes=step))

    @rule(which=st.integers(0, 1))
    def reads(self, which: int) -> None:
        self.world.verifiers[which].bundle = self.world.state.bundle
        self.world.verifiers[which].read_at = self.world.now

    @rule(kind=st.sampled_from(KINDS))
    def ask(self, kind: str) -> None:
        self.world.ask(kind)

    @rule(kind=st.sampled_from(KINDS), forced=st.just(False))
    def by_hand(self, kind: str, forced: bool) -> None:
        world = self.world
        try:
            if world.state.find(kind, Stage.PREPARED) is None:
                world.state = done(world.leader.prepare(world.state, kind, world.now))[0]
            else:
                world.state = world.leader.activate(world.state, kind, ALL, world.now, forced=forced)[0]
        except TransitionRefused:
            return

    @rule(silent=st.booleans())
    def agents(self, silent: bool) -> None:
        self.world.acks = NOBODY if silent else ALL

    @invariant()
    def nothing_is_lost(self) -> None:
        assert self.world.lost == 0


TestOutside = Outside.TestCase
TestOutside.settings = settings(
    max_examples=12, stateful_step_count=14, deadline=None, suppress_health_check=list(HealthCheck)
)


def test_a_forced_rotation_of_keys_says_who_accepts_them_still() -> None:
    for by, kind, told in ((life(*BOTH), "jwt", True), (life(*BOTH), "x509", False), (life(FEDERATION), "jwt", False)):
        _, said = by.asked(first(by), kind, forced=True, now=START)
        assert said.startswith(f"forced rotation of the {kind} authorities started; abandoned: ")
        assert ("podsvid oidc probe" in said) == told
        assert ("those who do as they are told do in 1m " in said) == told


def test_after_a_theft_proxies_are_named_for_as_long_as_they_may_fail() -> None:
    proxies = Audience("istio", DAY / 2, timedelta(0), timedelta(0))
    world = World(life(proxies).policy, [])
    stolen = world.state.active_x509_id
    world.passes(MINUTE)
    world.ask("x509", forced=True)
    while not any(each.left_at for each in world.state.abandoned):
        world.passes(30 * SECOND)
    (left,) = world.state.abandoned
    assert left.svids_end is not None

    def said(now: datetime) -> list[str]:
        return [line for line in world.leader.outlook(world.state, ALL, now) if "Istio's proxies" in line]

    (line,) = said(world.now)
    assert f"certificates of {stolen}, which was abandoned, until {left.svids_end:%Y-%m-%dT%H:%M:%SZ}" in line
    assert "restart those proxies" in line
    assert said(left.svids_end) == []


PROXIES = Audience("istio", 33 * MINUTE, timedelta(0), timedelta(0), renewed=0.55)


def lived(state: AuthorityState, longest: timedelta | None) -> AuthorityState:
    """As if those that sign had issued what lives so long."""
    return replace(state, x509=tuple(replace(slot, longest=longest) for slot in state.x509))


@pytest.mark.parametrize(
    ("longest", "needed"),
    # None: a signer of before recorded nothing, and it may be as much as there may be at all.
    [(HOUR, 33 * MINUTE), (DAY, 0.55 * DAY), (MINUTE, 33 * MINUTE), (None, 0.55 * DAY)],
)
def test_proxies_are_waited_for_as_long_as_what_they_have_lives(longest: timedelta | None, needed: timedelta) -> None:
    """x509_max_ttl was lowered to an hour: who has a certificate of a day asks for the next one, and hears of the new
    root, twelve hours later."""
    by = life(PROXIES, x509_max_ttl=DAY, authority_ttl=30 * DAY, jwt_algorithm=None)
    begun = lived(first(by), longest)
    state, _ = done(by.prepare(begun, "x509", START))
    assert by.due(state, ALL, START + needed - SECOND) is None
    assert by.due(state, ALL, START + needed) is not None
    with pytest.raises(TransitionRefused, match="istio"):
        by.activate(state, "x509", ALL, START + needed - SECOND, forced=False)
    # It is prepared so much earlier.
    assert by.due(begun, ALL, START + 15 * DAY - needed - SECOND) is None
    step = by.due(begun, ALL, START + 15 * DAY - needed)
    assert step is not None
    assert step.action == "prepare"
    # Keys of JWT-SVIDs are none of theirs.
    assert settling.needed(state, "jwt", PROXIES, by.policy) == timedelta(0)


def test_what_was_replaced_counts_until_the_last_that_it_issued_has_ended() -> None:
    by = life(PROXIES, x509_max_ttl=DAY, authority_ttl=30 * DAY, jwt_algorithm=None)
    state, _ = done(by.prepare(lived(first(by), DAY), "x509", START))
    state, _ = by.activate(state, "x509", ALL, START + 0.55 * DAY, forced=False)
    (active,) = [each for each in state.x509 if each.stage is Stage.ACTIVE]
    short = replace(state, x509=tuple(replace(each, longest=HOUR) if each is active else each for each in state.x509))
    assert settling.settle(short, "x509", by.policy) == 0.55 * DAY
    assert settling.settle(replace(short, x509=(replace(active, longest=HOUR),)), "x509", by.policy) == 33 * MINUTE


def test_partners_are_waited_for_by_their_hint_whatever_was_issued() -> None:
    by = life(FEDERATION, x509_max_ttl=DAY, authority_ttl=30 * DAY)
    assert settling.settle(lived(first(by), DAY), "x509", by.policy) == 5 * HINT


def istio(most: timedelta, lives: timedelta) -> Life:
    """By these lifetimes, as the settings have it."""
    proxies = Audience("istio", most * RENEWED, timedelta(0), timedelta(0), renewed=RENEWED)
    return life(proxies, x509_max_ttl=most, authority_ttl=lives, jwt_algorithm=None, ack_bound=MINUTE)


@dataclass
class Mesh:
    """A leader, a proxy that asks for its certificate at each moment, and renews at half of its life."""

    by: Life
    now: datetime = START
    # When each asked, and by when it has asked again and heard of all roots of that time.
    asked: list[tuple[datetime, datetime]] = field(default_factory=list)
    published: dict[str, datetime] = field(default_factory=dict)
    early: list[str] = field(default_factory=list)
    ended: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.state = done(self.by.first(self.now))
        self.passes(timedelta(0))

    def passes(self, step: timedelta) -> None:
        self.now += step
        before = self.state.active_x509_id
        self.state = advanced(self.state, self.now, ALL, self.by)
        for slot in self.state.x509:
            self.published.setdefault(slot.id, self.now)
        signs = self.state.active_x509_id
        if signs != before:
            since = self.published[signs]
            if any(asked < since and self.now < again for asked, again in self.asked):
                self.early.append(f"{signs} signs {self.now - since} after it was published")
        left = self.state.active_x509.not_after - self.now
        if left <= timedelta(0):
            self.ended.append(signs)
        self.state = self.by.promised(self.state, "x509", self.by.policy.x509_max_ttl)
        lives = min(self.by.policy.x509_max_ttl, self.state.longest("x509") or DAY, left)
        self.asked = [each for each in self.asked if each[1] > self.now] + [(self.now, self.now + lives / 2)]


@pytest.mark.parametrize(("most", "lives"), [(HOUR, 4 * HOUR), (HOUR, 14 * HOUR), (DAY / 2, 2 * DAY)])
def test_what_is_prepared_outlives_its_wait_though_lifetimes_were_lowered_since(
    most: timedelta, lives: timedelta
) -> None:
    """Authorities of four hours would end before the proxies are done with certificates of a day: the next one would
    sign at once, and the next."""
    mesh = Mesh(istio(DAY, 4 * DAY))
    mesh.passes(2 * HOUR)
    mesh.by = istio(most, lives)
    for _ in range(3 * 24 * 6):
        mesh.passes(10 * MINUTE)
    assert len(mesh.published) > 2
    assert (mesh.early, mesh.ended) == ([], [])
    # By then all of a day has gone, and authorities live as is wanted.
    (newest,) = [each for each in mesh.state.x509 if each.prepared_at == max(s.prepared_at for s in mesh.state.x509)]
    assert newest.authority.not_after - newest.prepared_at == lives


LIVES = st.tuples(st.sampled_from([15 * MINUTE, HOUR, 3 * HOUR, DAY / 2, DAY]), st.integers(16, 60))


@settings(max_examples=30, deadline=None, suppress_health_check=list(HealthCheck))
@given(
    lifetimes=st.lists(LIVES, min_size=1, max_size=3),
    hours=st.lists(st.integers(0, 80), min_size=3, max_size=3),
)
def test_no_authority_signs_before_every_proxy_knows_it_nor_after_its_end(
    lifetimes: list[tuple[timedelta, int]], hours: list[int]
) -> None:
    """Whatever lifetimes the settings had, and have."""
    mesh: Mesh | None = None
    for (most, quarters), some in zip(lifetimes, hours, strict=False):
        by = istio(most, most * quarters / 4)
        if mesh is None:
            mesh = Mesh(by)
        mesh.by = by
        for _ in range(some * 4):
            mesh.passes(15 * MINUTE)
        assert (mesh.early, mesh.ended) == ([], [])


def test_lifetimes_that_were_raised_since_let_nobody_miss_a_root() -> None:
    """By a day no authority of four hours has time left; its SVIDs end with it, and are renewed well before."""
    mesh = Mesh(istio(HOUR, 4 * HOUR))
    mesh.passes(30 * MINUTE)
    mesh.by = istio(DAY, 4 * DAY)
    for _ in range(12):
        mesh.passes(30 * MINUTE)
    assert len(mesh.published) > 1
    assert (mesh.early, mesh.ended) == ([], [])


def test_what_a_ca_above_cut_short_signs_before_it_has_no_time_left_and_it_is_said() -> None:
    by = istio(HOUR, 30 * DAY)
    state, _ = done(istio(HOUR, 6 * HOUR).prepare(lived(first(by), HOUR), "x509", START))
    state = lived(state, DAY)
    prepared = state.x509[1]
    # Six hours, without one for another SVID and ten minutes for renewing what it issued.
    assert settling.ready_at(state, prepared, by.policy) == START + 6 * HOUR - HOUR - POLICY.reissue_window
    (line,) = [each for each in by.outlook(state, ALL, START) if "too soon to be published" in each]
    assert line.startswith(f"x509: {prepared.id} ends at {START + 6 * HOUR:%Y-%m-%dT%H:%M:%SZ}")
    assert "for 13h12m before it signs: verifiers that never acknowledge (istio)" in line
    assert "revoke it and prepare another" in line
    assert not [each for each in by.outlook(lived(state, HOUR), ALL, START) if "too soon to be published" in each]


def test_what_ended_before_it_signed_never_signs() -> None:
    """Nobody knew for so long which agents have it."""
    by = istio(HOUR, 30 * DAY)
    state, _ = done(istio(HOUR, 6 * HOUR).prepare(first(by), "x509", START))
    prepared = state.x509[1]
    unknown = Acks(frozenset(), None, unknown="nobody was heard yet")
    over = START + 6 * HOUR
    assert by.due(state, unknown, over - SECOND) is None
    with pytest.raises(TransitionRefused, match="has ended"):
        by.activate(state, "x509", ALL, over, forced=True)
    step = by.due(state, unknown, over)
    assert step is not None
    assert (step.action, step.authority_id) == ("retire", prepared.id)
    assert stages(done(by.do(state, step, over))) == ["active"]
