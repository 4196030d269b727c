"""Trial before service: what could not serve is refused in a sentence, and nothing of it is published."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from datetime import datetime, timedelta

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID
from hypothesis import given, settings
from hypothesis import strategies as st

from signer.authority.lifecycle import Life, Step
from signer.authority.state import AuthorityState
from signer.errors import CertificateRefused
from signer.upstream.certify import SelfSigned
from svid.acceptance import accept
from svid.authority import X509Authority
from svid.bundle import TrustBundle
from svid.errors import IssuanceRefused
from svid.keys import KeyAlgorithm, PrivateKey, signature_hash
from svid.spiffeid import TrustDomain
from tests.signer_rig import START
from tests.unit.signer.test_lifecycle import ALL, KEY, POLICY, TD, TTL, WEB, advanced, done, stages

DAY = timedelta(days=1)
Extension = tuple[x509.ExtensionType, bool]
FENCE = x509.NameConstraints([x509.UniformResourceIdentifier("example.org")], None)
STRANGE = x509.UnrecognizedExtension(x509.ObjectIdentifier("1.2.3.4"), b"\x05\x00")
WEB_ONLY = x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH])


def marked(key: PrivateKey) -> str:
    """A name that no other key's CA has; where a key was in memory says nothing, as another comes to be there."""
    return x509.SubjectKeyIdentifier.from_public_key(key.public_key()).digest.hex()


def name(text: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, text)])


@dataclass(frozen=True)
class Ca:
    """A CA as another product makes it: nothing of it is checked here."""

    certificate: x509.Certificate
    key: PrivateKey

    @classmethod
    def root(cls, text: str = "root", *, life: timedelta = 3650 * DAY, **bent: object) -> "Ca":
        key = KeyAlgorithm.EC_P256.generate()
        return cls(_signed(name(text), key, None, key, START + life, **bent), key)  # type: ignore[arg-type]

    def below(self, text: str, key: PrivateKey | None = None, *, life: timedelta = 3650 * DAY, **bent: object) -> "Ca":
        own = key or KeyAlgorithm.EC_P256.generate()
        return Ca(_signed(name(text), own, self.certificate, self.key, START + life, **bent), own)  # type: ignore[arg-type]


def _signed(
    subject: x509.Name,
    key: PrivateKey,
    issuer: x509.Certificate | None,
    by: PrivateKey,
    end: datetime,
    *,
    more: Sequence[Extension] = (),
    path_length: int | None = None,
    start: datetime = START - DAY,
    uri: str | None = None,
) -> x509.Certificate:
    usage = x509.KeyUsage(False, False, False, False, False, True, True, False, False)
    builder = (
        x509.CertificateBuilder(
            issuer.subject if issuer else subject, subject, key.public_key(), x509.random_serial_number(), start, end
        )
        .add_extension(x509.BasicConstraints(True, path_length), True)
        .add_extension(usage, True)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), False)
    )
    if uri is not None:
        builder = builder.add_extension(x509.SubjectAlternativeName([x509.UniformResourceIdentifier(uri)]), False)
    for value, critical in more:
        builder = builder.add_extension(value, critical)
    return builder.sign(by, signature_hash(by))


def authority(issuing: Ca, *above: Ca, roots: Sequence[Ca]) -> X509Authority:
    chain = (issuing.certificate, *(each.certificate for each in above))
    return X509Authority(TD, chain, issuing.key, TrustBundle(TD, tuple(each.certificate for each in roots)))


class Above:
    """A CA above whose answer is made anew for each key."""

    def __init__(self, answer: Callable[[PrivateKey, datetime], X509Authority]) -> None:
        self.answer = answer
        self.asked = 0

    async def certify(
        self, trust_domain: TrustDomain, key: PrivateKey, lifetime: timedelta, now: datetime
    ) -> X509Authority:
        self.asked += 1
        return self.answer(key, min(now + lifetime, datetime.max.replace(tzinfo=now.tzinfo)))


def usual(root: Ca, **bent: object) -> Above:
    """It ends with its root, as each that is well kept does."""
    top = root.certificate.not_valid_after_utc

    def answer(key: PrivateKey, end: datetime) -> X509Authority:
        text = f"authority {marked(key)}"
        return authority(root.below(text, key, life=min(end, top) - START, **bent), roots=[root])

    return Above(answer)


def prepared(state: AuthorityState, upstream: Above) -> AuthorityState:
    return done(Life(POLICY, upstream, TD).prepare(state, "x509", START))[0]


def first(upstream: Above) -> AuthorityState:
    return done(Life(POLICY, upstream, TD).first(START))


def test_what_can_sign_is_taken() -> None:
    root = Ca.root()
    middle = root.below("middle", more=[(x509.ExtendedKeyUsage([ExtendedKeyUsageOID.ANY_EXTENDED_KEY_USAGE]), False)])
    accept(authority(middle.below("a"), middle, roots=[root]), START)
    accept(authority(middle.below("a", uri="spiffe://example.org"), middle, root, roots=[root]), START)
    accept(authority(root.below("a", path_length=0), roots=[root]), START)
    shop = root.below("shop", uri="https://pki.example/ca")
    accept(authority(shop.below("a"), shop, roots=[root]), START)
    # What is no part of the chain says nothing of it.
    accept(authority(root.below("a"), roots=[root, Ca.root("other", more=[(FENCE, True)])]), START)


def strangers() -> X509Authority:
    return authority(Ca.root().below("a"), roots=[Ca.root("another")])


def fenced() -> X509Authority:
    root = Ca.root()
    return authority(root.below("a", more=[(FENCE, True)]), roots=[root])


def fenced_above() -> X509Authority:
    root = Ca.root()
    middle = root.below("middle", more=[(FENCE, False)])
    return authority(middle.below("a"), middle, roots=[root])


def fenced_root() -> X509Authority:
    root = Ca.root(more=[(FENCE, True)])
    return authority(root.below("a"), roots=[root])


def strange() -> X509Authority:
    root = Ca.root(more=[(STRANGE, True)])
    return authority(root.below("a"), roots=[root])


def no_room() -> X509Authority:
    root = Ca.root(path_length=0)
    return authority(root.below("a"), roots=[root])


def no_room_between() -> X509Authority:
    root = Ca.root()
    middle = root.below("middle", path_length=0)
    lower = middle.below("lower")
    return authority(lower.below("a"), lower, middle, roots=[root])


def gap() -> X509Authority:
    root = Ca.root()
    middle = root.below("middle")
    return authority(middle.below("lower").below("a"), middle, roots=[root])


def incomplete() -> X509Authority:
    root = Ca.root()
    return authority(root.below("middle").below("a"), roots=[root])


def disordered() -> X509Authority:
    root = Ca.root()
    middle = root.below("middle")
    lower = middle.below("lower")
    return authority(lower.below("a"), middle, lower, roots=[root])


def for_servers() -> X509Authority:
    root = Ca.root()
    middle = root.below("middle", more=[(WEB_ONLY, False)])
    return authority(middle.below("a"), middle, roots=[root])


def over_above() -> X509Authority:
    root = Ca.root()
    middle = root.below("middle", life=-timedelta(hours=1))
    return authority(middle.below("a"), middle, roots=[root])


def over_root() -> X509Authority:
    root = Ca.root(life=-timedelta(hours=1))
    return authority(root.below("a"), roots=[root])


def later() -> X509Authority:
    root = Ca.root()
    return authority(root.below("a", start=START + TTL), roots=[root])


def another_domains() -> X509Authority:
    root = Ca.root()
    return authority(root.below("a", uri="spiffe://other.example"), roots=[root])


def below_another_domains() -> X509Authority:
    root = Ca.root()
    middle = root.below("middle", uri="spiffe://other.example")
    return authority(middle.below("a"), middle, roots=[root])


def workloads() -> X509Authority:
    root = Ca.root()
    return authority(root.below("a", uri="spiffe://example.org/ns/default/sa/web"), roots=[root])


def same_name() -> X509Authority:
    root = Ca.root()
    return authority(root.below("root"), roots=[root])


FAULTS: dict[Callable[[], X509Authority], str] = {
    strangers: "does not lead to an authority of trust domain example.org",
    fenced: "CN=a: certificate has name constraints, which are not supported",
    fenced_above: "CN=middle: certificate has name constraints",
    fenced_root: "CN=root: certificate has name constraints",
    strange: "CN=root: certificate has unknown critical extension 1.2.3.4",
    no_room: "longer than the path length",
    no_room_between: "longer than the path length",
    gap: "CN=a is followed by certificate CN=middle, which did not sign it",
    incomplete: "does not lead to an authority",
    disordered: "CN=a is followed by certificate CN=middle, which did not sign it",
    for_servers: "CN=middle: its extended key usage lacks serverAuth or clientAuth",
    over_above: "expired",
    over_root: "expired",
    later: "not valid before",
    below_another_domains: "CN=middle: it is the CA of spiffe://other.example",
    another_domains: "CA of spiffe://other.example, not of spiffe://example.org",
    workloads: "not of spiffe://example.org",
    same_name: "has the name of the CA that signed it",
}


@pytest.mark.parametrize("fault", FAULTS)
def test_each_fault_is_refused_in_a_sentence_of_its_own(fault: Callable[[], X509Authority]) -> None:
    with pytest.raises(IssuanceRefused) as caught:
        accept(fault(), START)
    assert FAULTS[fault] in str(caught.value)


@pytest.mark.parametrize("fault", [strangers, fenced, fenced_root, no_room, over_root, another_domains])
def test_none_of_them_is_published_and_the_active_one_signs_on(fault: Callable[[], X509Authority]) -> None:
    """U2 and U3: it was prepared, acknowledged, activated, and from then on no pod got an SVID."""
    state = first(usual(Ca.root()))
    made = fault()
    bad = Above(lambda key, end: replace(made))
    with pytest.raises(CertificateRefused) as caught:
        prepared(state, bad)
    assert caught.value.reason == "UPSTREAM_CERTIFICATE_REFUSED"
    assert FAULTS[fault] in str(caught.value)
    with pytest.raises(CertificateRefused):
        first(bad)
    assert state.active_x509.issue(KEY, WEB, ttl=TTL, now=START)


def test_svids_of_every_algorithm_are_tried(monkeypatch: pytest.MonkeyPatch) -> None:
    tried: list[object] = []
    issue = X509Authority.issue

    def noted(self: X509Authority, public_key: object, *rest: object, **more: object) -> object:
        tried.append(public_key)
        return issue(self, public_key, *rest, **more)  # type: ignore[arg-type]

    monkeypatch.setattr(X509Authority, "issue", noted)
    root = Ca.root()
    accept(authority(root.below("a"), roots=[root]), START)
    assert len(tried) == len(KeyAlgorithm)
    assert {each.key_size for each in tried if isinstance(each, rsa.RSAPublicKey)} == {2048, 3072, 4096}
    assert {each.key_size for each in tried if isinstance(each, ec.EllipticCurvePublicKey)} == {256, 384}


def test_a_key_or_a_name_that_is_there_already_is_refused() -> None:
    root = Ca.root()
    once = authority(root.below("a"), roots=[root])
    state = first(Above(lambda key, end: once))
    with pytest.raises(CertificateRefused, match="certified a key of before"):
        prepared(state, Above(lambda key, end: once))
    with pytest.raises(CertificateRefused, match="CN=a has the name of another authority"):
        prepared(state, Above(lambda key, end: authority(root.below("a", key), roots=[root])))


def test_too_short_a_life_is_refused_and_after_a_theft_taken() -> None:
    root = Ca.root()
    brief = Above(lambda key, end: authority(root.below(f"b {marked(key)}", key, life=3 * TTL), roots=[root]))
    with pytest.raises(CertificateRefused, match=r"ends at 2030-01-01T03:00:00Z, before 2030-01-01T04:00:00Z"):
        first(brief)
    state = first(usual(root))
    with pytest.raises(CertificateRefused, match="before 2030-01-01T04:00:00Z"):
        prepared(state, brief)
    life = Life(POLICY, brief, TD)
    stolen, _ = life.compromised(state, ("x509",), START)
    assert advanced(stolen, START, by=life).active_x509.not_after == START + 3 * TTL


def lived(upstream: Above, hours: int) -> tuple[AuthorityState, int]:
    """The state after so long, looked at every minute; and how many new authorities were published meanwhile."""
    life = Life(POLICY, upstream, TD)
    state, changes = first(upstream), 0
    for minute in range(hours * 60):
        now = START + timedelta(minutes=minute)
        step = life.due(state, ALL, now)
        try:
            after = state if step is None else done(life.do(state, step, now))
        except CertificateRefused:
            continue
        changes += len(after.x509) > len(state.x509)
        state = after
    return state, changes


def test_a_ca_above_that_is_about_to_end_is_not_approached_in_ever_smaller_steps() -> None:
    """U1: ten authorities were made and activated in the root's last hour, each at half of the rest."""
    upstream = usual(Ca.root(life=timedelta(hours=10)))
    state, changes = lived(upstream, 10)
    assert (changes, stages(state)) == (0, ["active"])
    assert state.active_x509.not_after == START + timedelta(hours=10)


@settings(max_examples=15, deadline=None)
@given(st.integers(5, 400))
def test_the_nearer_the_end_above_the_fewer_rotations(hours: int) -> None:
    """At most one for each wanted life, and the last, which ends with the root."""
    root = Ca.root(life=timedelta(hours=hours))
    life = Life(POLICY, usual(root), TD)
    state, changes, now = first(usual(root)), 0, START
    while now < START + timedelta(hours=hours):
        step = life.due(state, ALL, now)
        if step is not None and step.action == "prepare" and step.kind == "x509":
            try:
                state = done(life.do(state, step, now))
                changes += 1
            except CertificateRefused:
                now += timedelta(hours=1)
        elif step is not None:
            state = done(life.do(state, step, now))
        else:
            now += timedelta(hours=1)
    assert changes <= hours / (POLICY.authority_ttl / timedelta(hours=1)) * 2 + 1
    assert state.active_x509.not_after <= START + timedelta(hours=hours)


def test_a_shorter_life_than_before_is_no_sign_of_a_ca_about_to_end() -> None:
    """Where authority_ttl was lowered, by half of the old life there has to be an authority of the new."""
    state = first(usual(Ca.root()))
    life = Life(replace(POLICY, authority_ttl=POLICY.authority_ttl / 4), SelfSigned(), TD)
    now = START + POLICY.authority_ttl / 2
    after = done(life.do(state, Step("prepare", "x509", ""), now))
    assert stages(after) == ["active", "prepared"]
    assert after.x509[1].authority.not_after < state.active_x509.not_after


def test_once_the_active_one_has_ended_any_that_can_sign_is_taken() -> None:
    root = Ca.root(life=POLICY.authority_ttl + 2 * TTL)
    state = first(usual(root))
    now = state.active_x509.not_after + timedelta(minutes=1)
    assert root.certificate.not_valid_after_utc - now < POLICY.shortest_authority
    after = done(Life(POLICY, usual(root), TD).do(state, Step("prepare", "x509", ""), now))
    assert after.x509[-1].authority.not_after == root.certificate.not_valid_after_utc


def test_a_person_gets_a_rotation_that_gains_no_time() -> None:
    """To another CA, or to another key."""
    upstream = usual(Ca.root(life=timedelta(hours=10)))
    life = Life(POLICY, upstream, TD)
    asked, _ = life.asked(first(upstream), "x509", forced=False, now=START)
    assert stages(advanced(asked, START, by=life)) == ["old", "active"]
    assert stages(prepared(first(upstream), upstream)) == ["active", "prepared"]


def test_a_short_answer_shortens_the_wait_for_the_next_one_but_is_no_fault() -> None:
    """U9: less than was asked for, and enough."""
    root = Ca.root()
    upstream = Above(lambda key, end: authority(root.below(f"a {end}", key, life=end - 9 * DAY - START), roots=[root]))
    state = first(upstream)
    assert state.active_x509.not_after == START + DAY
    assert Life(POLICY, upstream, TD)._prepare_at(state, "x509") == START + DAY / 2
