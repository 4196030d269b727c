"""What is signed: only what policy gives, never podsvid's own names, within the signer's bounds."""

from dataclasses import replace
from datetime import timedelta

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import rsa
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.serialization import Encoding

from signer.authority.state import AuthorityState
from signer.errors import CertificateRefused, Reason, Refused
from signer.minting.minting import MAX_CSR, IssuedX509, Minting, MintingSettings, proven_key
from signer.model import Entitlement, LivePod, TtlLimits
from svid import authority as authority_module
from svid.keys import KeyAlgorithm, PrivateKey, signature_hash
from svid.spiffeid import SpiffeId
from tests.signer_rig import START, StepClock
from tests.unit.signer.test_lifecycle import WEB, done, first, life

POD = LivePod("default", "web-0", "uid", "node-a", "web")
TTLS = TtlLimits(
    x509_ttl=timedelta(hours=1),
    x509_min_ttl=timedelta(minutes=1),
    x509_pod_max_ttl=timedelta(minutes=90),
    x509_max_ttl=timedelta(hours=4),
    jwt_ttl=timedelta(minutes=5),
    jwt_max_ttl=timedelta(minutes=30),
)
SETTINGS = MintingSettings(
    TTLS,
    dns_names=("{service_account}.{namespace}.svc", "*.podsvid.internal"),
)
GIVEN = Entitlement(WEB, "shop/policy")
HOUR = timedelta(hours=1)


def csr(key: PrivateKey) -> bytes:
    builder = x509.CertificateSigningRequestBuilder().subject_name(x509.Name([]))
    return builder.sign(key, signature_hash(key)).public_bytes(Encoding.DER)


REQUEST = csr(KeyAlgorithm.EC_P256.generate())


def roomy(state: AuthorityState) -> AuthorityState:
    """In which any lifetime is recorded that the settings allow."""
    longest = timedelta(days=1)
    x509 = tuple(replace(slot, longest=longest) for slot in state.x509)
    return replace(state, x509=x509, jwt=tuple(replace(slot, longest=longest) for slot in state.jwt))


def minting(at: timedelta = timedelta(0)) -> Minting:
    state = roomy(first())
    return Minting(lambda: state, SETTINGS, StepClock(START + at))


def refused(given: Entitlement, *wished: str, request: bytes = REQUEST) -> Reason:
    with pytest.raises(Refused) as caught:
        minting().x509(POD, given, request, None, wished)
    return caught.value.reason


@pytest.mark.parametrize("name", ["signer.podsvid.internal", "podsvid.internal", "a.b.podsvid.internal"])
def test_the_signers_own_name_is_given_to_nobody(name: str) -> None:
    assert refused(replace(GIVEN, dns_names=(name,))) is Reason.DNS_NAME_DENIED
    assert refused(Entitlement(WEB), name) is Reason.DNS_NAME_DENIED


@pytest.mark.parametrize(
    "path", ["/podsvid", "/podsvid/signer", "/podsvid/x/y", "/spire", "/spire/server", "/spire/agent/x"]
)
def test_podsvids_and_spires_own_identities_are_given_to_nobody(path: str) -> None:
    own = replace(GIVEN, spiffe_id=SpiffeId.parse(f"spiffe://example.org{path}"))
    assert refused(own) is Reason.POLICY_UNUSABLE
    with pytest.raises(Refused):
        minting().jwt(own, str(own.spiffe_id), ["a"])


def test_dns_names() -> None:
    issued = minting().x509(POD, replace(GIVEN, dns_names=("a.test", "b.test")), REQUEST, None, ["b.test"])
    names = issued.chain[0].extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    assert names.get_values_for_type(x509.DNSName) == ["a.test", "b.test"]
    assert minting().x509(POD, Entitlement(WEB), REQUEST, None, ["web.default.svc"]).chain
    # The signer's own patterns are for pods without a policy.
    assert refused(GIVEN, "web.default.svc") is Reason.DNS_NAME_DENIED
    assert refused(GIVEN, *(f"n{number}.test" for number in range(33))) is Reason.INVALID_REQUEST


@pytest.mark.parametrize("name", ["default", "(default)", ""])
def test_what_a_pod_gets_without_a_policy_hangs_on_no_name(name: str) -> None:
    assert refused(replace(GIVEN, policy=name), "web.default.svc") is Reason.DNS_NAME_DENIED


@pytest.mark.parametrize(
    ("policy", "wished", "granted", "noticed"),
    [
        (None, None, 60, False),
        (None, 80, 80, False),
        (None, 120, 90, True),
        (None, 600, 90, True),
        (150, 600, 150, True),
        (150, 120, 120, False),
        (600, 300, 240, True),
        (None, 0.1, 1, True),
        (30, None, 30, False),
        (30, 90, 30, True),
        (30, 10, 10, False),
        (60 * 24, None, 240, False),
    ],
)
def test_lifetimes(policy: float | None, wished: float | None, granted: float, noticed: bool) -> None:
    given = replace(GIVEN, x509_ttl=timedelta(minutes=policy) if policy else None)
    issued = minting().x509(POD, given, REQUEST, timedelta(minutes=wished) if wished else None, ())
    assert issued.chain[0].not_valid_after_utc - START == timedelta(minutes=granted)
    assert bool(issued.notice) is noticed
    assert issued.clipped == issued.notice


@pytest.mark.parametrize("seconds", [0, 10, 120, 600])
def test_an_svid_begins_as_long_ago_as_the_setting_says(seconds: float) -> None:
    back, state, at = timedelta(seconds=seconds), roomy(first()), START + timedelta(hours=1)
    found = Minting(lambda: state, replace(SETTINGS, backdate=back), StepClock(at))
    issued = found.x509(POD, GIVEN, REQUEST, None, ())
    assert issued.chain[0].not_valid_before_utc == at - back
    assert issued.at == at
    assert issued.renewal.start > at, "what was before the signature is no part of its life"


def test_what_was_clipped_is_said_as_the_pods_author_wrote_it() -> None:
    issued = minting().x509(POD, GIVEN, REQUEST, timedelta(hours=999), (), "999h")
    assert issued.clipped.startswith("ttl 999h was asked for, 1h30m is granted: ")


def test_keys() -> None:
    assert refused(replace(GIVEN, key_algorithms=frozenset({KeyAlgorithm.ED25519}))) is Reason.KEY_ALGORITHM_DENIED
    for algorithm in (KeyAlgorithm.EC_P384, KeyAlgorithm.ED25519, KeyAlgorithm.RSA_2048, KeyAlgorithm.ML_DSA_44):
        key = algorithm.generate()
        assert proven_key(csr(key)) == key.public_key()
    weak = rsa.generate_private_key(65537, 1024)
    builder = x509.CertificateSigningRequestBuilder().subject_name(x509.Name([]))
    assert refused(GIVEN, request=builder.sign(weak, SHA256()).public_bytes(Encoding.DER)) is Reason.KEY_WEAK
    assert refused(GIVEN, request=csr(rsa.generate_private_key(3, 2048))) is Reason.KEY_WEAK
    for broken in (b"", b"\x30\x00", REQUEST[:-3], b"x" * 20_000):
        assert refused(GIVEN, request=broken) is Reason.CSR_INVALID
    # The signature's last bytes changed: still a request, not proven.
    forged = REQUEST[:-1] + bytes([REQUEST[-1] ^ 1])
    assert refused(GIVEN, request=forged) is Reason.PROOF_OF_POSSESSION


@pytest.mark.parametrize("algorithm", list(KeyAlgorithm))
def test_a_proof_is_what_the_library_takes_for_one(algorithm: KeyAlgorithm) -> None:
    key = algorithm.generate()
    good, other = csr(key), csr(algorithm.generate())
    request = x509.load_der_x509_csr(good)
    assert proven_key(good) == key.public_key()
    # Another request's signature, another message below this one, and another algorithm that it says it is of.
    wrong = [good.replace(request.signature, x509.load_der_x509_csr(other).signature)]
    wrong.append(bytes([*good[:-1], good[-1] ^ 1]))
    # ecdsa-with-SHA256 and -SHA384 (RFC 5758 3.2), sha256WithRSAEncryption and sha384WithRSAEncryption (RFC 8017).
    for one, two in (("2a8648ce3d040302", "2a8648ce3d040303"), ("2a864886f70d01010b", "2a864886f70d01010c")):
        for from_, to in ((one, two), (two, one)):
            head, found, tail = good.rpartition(bytes.fromhex(from_))
            if found:
                wrong.append(head + bytes.fromhex(to) + tail)
    for each in wrong:
        assert len(each) == len(good) or each != good
        try:
            assert not x509.load_der_x509_csr(each).is_signature_valid
        except ValueError:
            continue
        assert refused(GIVEN, request=each) is Reason.PROOF_OF_POSSESSION


def test_without_a_fresh_state_or_a_living_authority_nothing_is_signed() -> None:
    with pytest.raises(Refused) as caught:
        Minting(lambda: None, SETTINGS, StepClock()).x509(POD, GIVEN, REQUEST, None, ())
    assert caught.value.reason is Reason.AUTHORITY_UNAVAILABLE
    assert caught.value.retry_after is not None
    with pytest.raises(Refused) as caught:
        minting(timedelta(days=11)).x509(POD, GIVEN, REQUEST, None, ())
    assert caught.value.reason is Reason.AUTHORITY_UNAVAILABLE


@pytest.mark.parametrize("name", ["podsvid-istio.podsvid.svc", "*.podsvid.svc"])
def test_what_proxies_call_the_signer_by_is_signed_for_no_pod(name: str) -> None:
    state = roomy(first())
    settings = replace(SETTINGS, own_names=frozenset({"podsvid-istio.podsvid.svc"}), dns_names=(name,))
    found = Minting(lambda: state, settings, StepClock(START))
    for given, wished in ((replace(GIVEN, dns_names=(name,)), ()), (replace(GIVEN, policy=None), (name,))):
        with pytest.raises(Refused) as caught:
            found.x509(POD, given, REQUEST, None, wished)
        assert caught.value.reason is Reason.DNS_NAME_DENIED
        with pytest.raises(Refused) as caught:
            key = KeyAlgorithm.EC_P256.generate().public_key()
            found.pod_certificate(POD, given, key, timedelta(hours=1), wished, "there")
        assert caught.value.reason is Reason.DNS_NAME_DENIED


def test_jwt() -> None:
    found = minting().jwt(replace(GIVEN, jwt_ttl=timedelta(hours=5)), str(WEB), ["a", "b"])
    assert found.svid.expires_at - START == timedelta(minutes=30)
    with pytest.raises(Refused) as caught:
        minting().jwt(GIVEN, "spiffe://example.org/other", ["a"])
    assert caught.value.reason is Reason.NOT_ENTITLED
    with pytest.raises(Refused) as caught:
        minting().jwt(GIVEN, str(WEB), [])
    assert caught.value.reason is Reason.INVALID_REQUEST


def test_a_request_is_bounded_before_it_is_parsed() -> None:
    key = KeyAlgorithm.EC_P256.generate()
    padding = x509.UnrecognizedExtension(x509.ObjectIdentifier("1.2.3.4"), b"x" * MAX_CSR)
    builder = x509.CertificateSigningRequestBuilder().subject_name(x509.Name([])).add_extension(padding, critical=False)
    request = builder.sign(key, signature_hash(key)).public_bytes(Encoding.DER)
    assert refused(GIVEN, request=request) is Reason.CSR_INVALID
    assert refused(GIVEN, request=b"") is Reason.CSR_INVALID


def test_a_token_with_an_id_of_its_own_is_for_one_caller() -> None:
    state = first()
    with_id = Minting(lambda: state, replace(SETTINGS, jwt_id=True), StepClock())
    one, other = (with_id.jwt(GIVEN, str(WEB), ["a"]) for _ in range(2))
    assert not one.reusable
    assert one.svid.claims["jti"] != other.svid.claims["jti"]
    assert minting().jwt(GIVEN, str(WEB), ["a"]).reusable


@pytest.mark.parametrize("path", ["/podsvidx", "/podsvid-signer", "/ns/podsvid", "/x/podsvid/signer"])
def test_what_is_only_called_alike_is_nobodys_own(path: str) -> None:
    other = replace(GIVEN, spiffe_id=SpiffeId.parse(f"spiffe://example.org{path}"))
    assert minting().x509(POD, other, REQUEST, None, ()).chain
    assert minting().jwt(other, str(other.spiffe_id), ["a"]).svid.token


@pytest.mark.parametrize("policy", [timedelta(seconds=2), timedelta(seconds=59)])
def test_no_policy_gets_less_than_the_shortest_lifetime(policy: timedelta) -> None:
    issued = minting().x509(POD, replace(GIVEN, x509_ttl=policy), REQUEST, None, ())
    assert issued.chain[0].not_valid_after_utc - START == timedelta(minutes=1)


def test_what_was_issued_says_what_verifies_it_and_when_to_renew_it() -> None:
    state = first()
    issued = Minting(lambda: state, SETTINGS, StepClock()).x509(POD, GIVEN, REQUEST, None, ())
    assert issued.sequence == state.sequence > 0
    assert issued.key_algorithm is KeyAlgorithm.EC_P256
    assert issued.notice == ""
    assert START < issued.renewal.start < issued.renewal.end < issued.chain[0].not_valid_after_utc
    jwt = minting().jwt(GIVEN, str(WEB), ["a"])
    assert START < jwt.renewal.start < jwt.renewal.end < jwt.svid.expires_at


def test_the_key_is_the_requests_and_nothing_else_in_it_counts() -> None:
    key = KeyAlgorithm.EC_P256.generate()
    lie = x509.SubjectAlternativeName(
        [x509.UniformResourceIdentifier("spiffe://example.org/admin"), x509.DNSName("admin.test")]
    )
    builder = x509.CertificateSigningRequestBuilder().subject_name(
        x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "admin")])
    )
    builder = builder.add_extension(lie, critical=False)
    builder = builder.add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
    request = builder.sign(key, signature_hash(key)).public_bytes(Encoding.DER)
    (leaf,) = minting().x509(POD, GIVEN, request, None, ()).chain
    assert leaf.public_key() == key.public_key()
    names = leaf.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    assert names.get_values_for_type(x509.UniformResourceIdentifier) == [str(WEB)]
    assert names.get_values_for_type(x509.DNSName) == []
    assert not leaf.extensions.get_extension_for_class(x509.BasicConstraints).value.ca
    assert "admin" not in leaf.subject.rfc4514_string()


def test_bounds_are_reached_and_not_passed() -> None:
    full = tuple(f"n{number}.test" for number in range(32))
    given = replace(GIVEN, dns_names=full)
    assert minting().x509(POD, given, REQUEST, None, full).chain
    assert refused(given, *full, "n0.test") is Reason.INVALID_REQUEST


def test_a_pattern_is_of_the_pods_own_names() -> None:
    default = Entitlement(WEB)
    assert minting().x509(POD, default, REQUEST, None, ["web.default.svc"]).chain
    for name in ("web.other.svc", "other.default.svc", "web-0.default.svc", "default.web.svc", "web.web-0.svc", ""):
        assert refused(default, name) is Reason.DNS_NAME_DENIED
    # Of several names every one must be allowed.
    assert refused(default, "web.default.svc", "web.other.svc") is Reason.DNS_NAME_DENIED


def test_jwt_svids_may_be_switched_off_and_have_an_issuer() -> None:
    state = first()
    assert "iss" not in minting().jwt(GIVEN, str(WEB), ["a"]).svid.claims
    named = Minting(lambda: state, replace(SETTINGS, jwt_issuer="https://issuer.test"), StepClock())
    assert named.jwt(GIVEN, str(WEB), ["a"]).svid.claims["iss"] == "https://issuer.test"
    short = named.jwt(replace(GIVEN, jwt_ttl=timedelta(minutes=2)), str(WEB), ["a"])
    assert short.svid.expires_at - START == timedelta(minutes=2)
    assert named.jwt(GIVEN, str(WEB), ["a"]).svid.expires_at - START == timedelta(minutes=5)
    without = done(life(jwt_algorithm=None).first(START))
    with pytest.raises(Refused) as caught:
        Minting(lambda: without, SETTINGS, StepClock()).jwt(GIVEN, str(WEB), ["a"])
    assert caught.value.reason is Reason.JWT_DISABLED
    with pytest.raises(Refused) as caught:
        Minting(lambda: None, SETTINGS, StepClock()).jwt(GIVEN, str(WEB), ["a"])
    assert (caught.value.reason, bool(caught.value.retry_after)) == (Reason.AUTHORITY_UNAVAILABLE, True)


def test_what_the_authority_must_not_sign_is_refused_and_is_no_outage() -> None:
    with pytest.raises(Refused) as caught:
        minting().x509(POD, replace(GIVEN, dns_names=("not a name",)), REQUEST, None, ())
    assert caught.value.reason is Reason.ISSUANCE_REFUSED
    foreign = replace(GIVEN, spiffe_id=SpiffeId.parse("spiffe://partner.test/ns/default/sa/web"))
    with pytest.raises(Refused) as caught:
        minting().x509(POD, foreign, REQUEST, None, ())
    assert caught.value.reason is Reason.ISSUANCE_REFUSED


@pytest.mark.parametrize("request_", [b"\x30\x82", b"-----BEGIN CERTIFICATE REQUEST-----", b"\x00" * 100])
def test_rubbish_is_no_request(request_: bytes) -> None:
    assert refused(GIVEN, request=request_) is Reason.CSR_INVALID
    assert refused(GIVEN, request=request_ + REQUEST) is Reason.CSR_INVALID
    assert refused(GIVEN, request=REQUEST + request_) is Reason.CSR_INVALID


def certified(by: Minting, given: Entitlement = GIVEN, most: timedelta = timedelta(days=1)) -> IssuedX509:
    return by.pod_certificate(POD, given, KeyAlgorithm.EC_P256.generate().public_key(), most, (), "it")


@pytest.mark.parametrize(
    ("policy", "most", "lives"),
    [(None, 24, 1), (timedelta(minutes=5), 24, 1), (timedelta(hours=3), 24, 3), (timedelta(hours=3), 2, 2)],
)
def test_a_pods_certificate_lives_for_an_hour_at_least_from_its_beginning_to_its_end(
    policy: timedelta | None, most: int, lives: int
) -> None:
    state = roomy(first())
    settings = replace(SETTINGS, ttls=replace(SETTINGS.ttls, x509_ttl=HOUR, x509_max_ttl=24 * HOUR))
    # Older than what is back-dated.
    by = Minting(lambda: state, settings, StepClock(START + 10 * HOUR / 60))
    issued = certified(by, replace(GIVEN, x509_ttl=policy), most * HOUR)
    leaf = issued.chain[0]
    assert leaf.not_valid_after_utc - leaf.not_valid_before_utc == lives * HOUR
    assert bool(issued.notice) is (policy is not None and policy < HOUR)


def test_a_pods_certificate_begins_within_what_the_api_server_takes() -> None:
    state = roomy(first())
    settings = replace(SETTINGS, backdate=timedelta(minutes=10))
    at = START + HOUR
    leaf = certified(Minting(lambda: state, settings, StepClock(at))).chain[0]
    assert leaf.not_valid_before_utc == at - timedelta(minutes=3)


def test_where_an_authority_has_no_hour_left_a_pods_certificate_waits() -> None:
    state = roomy(first())
    by = Minting(lambda: state, SETTINGS, StepClock(state.active_x509.not_after - timedelta(minutes=50)))
    with pytest.raises(Refused, match="it waits for the next one") as caught:
        certified(by)
    assert caught.value.reason is Reason.AUTHORITY_UNAVAILABLE


def test_what_is_recorded_of_lifetimes_bounds_a_pods_certificate_too() -> None:
    state = first()
    short = replace(state, x509=tuple(replace(slot, longest=HOUR / 2) for slot in state.x509))
    with pytest.raises(Refused) as caught:
        certified(Minting(lambda: short, SETTINGS, StepClock()))
    assert caught.value.reason is Reason.AUTHORITY_UNAVAILABLE


def test_a_pods_certificate_is_read_each_time_and_an_agents_svid_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Kubelet hands the one on as it is; the agent verifies the other."""
    by = minting()
    assert [certified(by, GIVEN, timedelta(days=1)).chain, by.x509(POD, GIVEN, REQUEST, None, ()).chain]
    value = x509.BasicConstraints(ca=True, path_length=None)
    monkeypatch.setattr(authority_module, "END_ENTITY", x509.Extension(value.oid, True, value))
    assert by.x509(POD, GIVEN, REQUEST, None, (), verified_later=True).chain
    with pytest.raises(Refused) as caught:
        certified(by, GIVEN, timedelta(days=1))
    assert caught.value.reason is Reason.ISSUANCE_REFUSED
    # So is what nobody has said of that he verifies it.
    with pytest.raises(Refused) as caught:
        by.x509(POD, GIVEN, REQUEST, None, ())
    assert caught.value.reason is Reason.ISSUANCE_REFUSED
    # And from then on each.
    with pytest.raises(Refused) as caught:
        by.x509(POD, GIVEN, REQUEST, None, (), verified_later=True)
    assert caught.value.reason is Reason.ISSUANCE_REFUSED
    # No authority that makes such ones comes into service.
    with pytest.raises(CertificateRefused, match="leaf is a CA certificate"):
        minting()


def test_nobody_elses_identity_is_certified_for_a_pod_either() -> None:
    with pytest.raises(Refused) as caught:
        certified(minting(), replace(GIVEN, spiffe_id=SpiffeId(WEB.trust_domain, "/podsvid/signer")))
    assert caught.value.reason is Reason.POLICY_UNUSABLE
