"""Chains above the leaf: RFC 5280 path validation as X509-SVID.md 5.1 asks for it, and what an authority hands out."""

import subprocess
from datetime import UTC, datetime, timedelta
from itertools import product
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.x509.oid import NameOID

from svid.authority import BACKDATE, X509Authority
from svid.bundle import TrustBundle
from svid.certificates import to_pem
from svid.errors import InvalidKey, InvalidSvid, IssuanceRefused
from svid.keys import KeyAlgorithm, PrivateKey, algorithm_of, signature_hash
from svid.spiffeid import SpiffeId, TrustDomain
from svid.x509svid import X509Svid, check_x509_svid

NOW = datetime(2026, 6, 1, 12, 0, 0, tzinfo=UTC)
HOUR = timedelta(hours=1)
TD = TrustDomain("example.org")
WEB = SpiffeId.parse("spiffe://example.org/ns/default/sa/web")
EC = KeyAlgorithm.EC_P256
FAST = [algorithm for algorithm in KeyAlgorithm if not algorithm.slow] + [KeyAlgorithm.RSA_2048]


class Ca:
    """A CA certificate and its key, signed by `parent` or by itself; every part can be bent."""

    def __init__(
        self,
        name: str,
        parent: "Ca | None" = None,
        *,
        key: PrivateKey | None = None,
        path_length: int | None = None,
        starts: timedelta = -HOUR,
        ends: timedelta = HOUR * 24,
        ca: bool = True,
        cert_sign: bool = True,
        uri: str | None = None,
        constraints: x509.NameConstraints | None = None,
        critical: bool = True,
        algorithm: KeyAlgorithm = EC,
    ) -> None:
        self.key = key or algorithm.generate()
        signer = parent or self
        builder = (
            x509.CertificateBuilder()
            .subject_name(_name(name))
            .issuer_name(parent.certificate.subject if parent else _name(name))
            .public_key(self.key.public_key())
            .serial_number(x509.random_serial_number())
            .not_valid_before(NOW + starts)
            .not_valid_after(NOW + ends)
            .add_extension(x509.BasicConstraints(ca, path_length if ca else None), critical=True)
            .add_extension(
                x509.KeyUsage(False, False, False, False, False, cert_sign, True, False, False), critical=True
            )
        )
        # Without these nobody else tells certificates of one name apart.
        builder = builder.add_extension(x509.SubjectKeyIdentifier.from_public_key(self.key.public_key()), False)
        above = x509.AuthorityKeyIdentifier.from_issuer_public_key(signer.key.public_key())
        builder = builder.add_extension(above, critical=False)
        if uri is not None:
            names = x509.SubjectAlternativeName([x509.UniformResourceIdentifier(uri)])
            builder = builder.add_extension(names, critical=False)
        if constraints is not None:
            builder = builder.add_extension(constraints, critical=critical)
        self.certificate: x509.Certificate = builder.sign(signer.key, signature_hash(signer.key))


def _name(text: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, text)])


def bundle(*authorities: Ca) -> TrustBundle:
    return TrustBundle(TD, tuple(authority.certificate for authority in authorities))


def leaf(issuer: Ca) -> x509.Certificate:
    """A good leaf of `issuer`, made by an authority that trusts it directly."""
    maker = X509Authority(TD, (issuer.certificate,), issuer.key, bundle(issuer))
    return maker.issue(EC.generate().public_key(), WEB, ttl=HOUR, now=NOW)[0]


def blind_leaf(issuer: Ca) -> x509.Certificate:
    """A good leaf of an `issuer` that no authority would sign with: signed by its key under its name."""
    return leaf(Ca(issuer.certificate.subject.rfc4514_string().removeprefix("CN="), key=issuer.key))


@pytest.mark.parametrize(("above", "below"), list(product(FAST, FAST)))
def test_every_authority_algorithm_issues_to_every_key(above: KeyAlgorithm, below: KeyAlgorithm) -> None:
    issuer = X509Authority.create(TD, algorithm=above, lifetime=HOUR * 24, now=NOW)
    key = below.generate()
    made = X509Svid(WEB, issuer.issue(key.public_key(), WEB, ttl=HOUR, now=NOW), key)
    made.check(issuer.bundle, NOW)
    assert algorithm_of(made.leaf.public_key()) is below


@pytest.mark.parametrize(
    "key",
    [
        pytest.param(lambda: ec.generate_private_key(ec.SECP521R1()), id="P-521"),
        pytest.param(lambda: ec.generate_private_key(ec.SECP256K1()), id="secp256k1"),
        pytest.param(lambda: rsa.generate_private_key(65537, 1024), id="RSA-1024"),
        pytest.param(lambda: rsa.generate_private_key(65537, 2056), id="RSA-2056"),
    ],
)
def test_unlisted_keys_are_refused(key) -> None:  # type: ignore[no-untyped-def]
    issuer = X509Authority.create(TD, algorithm=EC, lifetime=HOUR, now=NOW)
    with pytest.raises(InvalidKey):
        issuer.issue(key().public_key(), WEB, ttl=HOUR, now=NOW)


@pytest.mark.spec("X509-22", "X509-30", "C-46")
def test_chain_of_two_intermediates() -> None:
    root = Ca("root", path_length=2)
    upper = Ca("upper", root, path_length=1)
    lower = Ca("lower", upper, path_length=0)
    chain = [leaf(lower), lower.certificate, upper.certificate]
    assert check_x509_svid(chain, bundle(root), NOW) == WEB
    assert check_x509_svid([*chain, root.certificate], bundle(root), NOW) == WEB
    with pytest.raises(InvalidSvid, match="not signed by the next one"):  # C-46
        check_x509_svid([chain[0], chain[2], chain[1]], bundle(root), NOW)
    with pytest.raises(InvalidSvid, match="does not lead"):
        check_x509_svid(chain[:2], bundle(root), NOW)


def test_an_anchor_need_not_sign_itself() -> None:  # TD-23 is only a SHOULD
    anchor = Ca("intermediate", Ca("root"))
    assert check_x509_svid([leaf(anchor)], bundle(anchor), NOW) == WEB


@pytest.mark.parametrize("uri", ["spiffe://example.org/", "spiffe://example.org/a/path", "https://example.org", None])
def test_an_odd_name_on_a_foreign_ca_does_no_harm(uri: str | None) -> None:  # AMB-2, AMB-3
    root = Ca("root", uri=uri)
    lower = Ca("lower", root, uri=uri)
    assert check_x509_svid([leaf(lower), lower.certificate], bundle(root), NOW) == WEB


@pytest.mark.spec("X509-7", "X509-10", "X509-30")
@pytest.mark.parametrize(
    ("bent", "sentence"),
    [
        pytest.param({"ca": False}, "not a CA certificate", id="X509-7"),
        pytest.param({"cert_sign": False}, "lacks keyCertSign", id="X509-10"),
        pytest.param({"ends": timedelta(seconds=-1)}, "expired", id="X509-30 expired"),
        pytest.param({"starts": timedelta(seconds=1)}, "not valid before", id="X509-30 not yet valid"),
    ],
)
def test_an_intermediate_that_must_not_sign(bent: dict[str, object], sentence: str) -> None:
    root = Ca("root")
    lower = Ca("lower", root, **bent)  # type: ignore[arg-type]
    with pytest.raises(InvalidSvid, match=sentence):
        check_x509_svid([blind_leaf(lower), lower.certificate], bundle(root), NOW)


@pytest.mark.spec("X509-30")
@pytest.mark.parametrize("bent", [{"ends": timedelta(seconds=-1)}, {"starts": timedelta(seconds=1)}])
def test_an_anchor_counts_only_while_it_is_valid(bent: dict[str, timedelta]) -> None:
    root = Ca("root", **bent)  # type: ignore[arg-type]
    with pytest.raises(InvalidSvid, match=r"expired|not valid before"):
        check_x509_svid([blind_leaf(root)], bundle(root), NOW)


@pytest.mark.parametrize("order", [(0, 1), (1, 0)])
def test_a_renewed_root_works_beside_its_expired_self(order: tuple[int, int]) -> None:
    old = Ca("root", starts=-HOUR * 9, ends=-HOUR)
    both = (old, Ca("root", key=old.key))
    trusted = bundle(*(both[place] for place in order))
    assert check_x509_svid([leaf(both[1])], trusted, NOW) == WEB


def test_roots_of_one_name_are_told_apart_by_their_keys() -> None:
    first, second = Ca("root"), Ca("root", algorithm=KeyAlgorithm.RSA_2048)
    assert check_x509_svid([leaf(second)], bundle(first, second), NOW) == WEB
    with pytest.raises(InvalidSvid, match="does not lead"):
        check_x509_svid([leaf(second)], bundle(first), NOW)


@pytest.mark.spec("X509-8", "X509-30")
@pytest.mark.parametrize(
    ("limit", "names", "good"),
    [
        (0, [], True),
        (0, ["a"], False),
        (1, ["a"], True),
        (1, ["a", "b"], False),
        (2, ["a", "b"], True),
        pytest.param(0, ["root"], True, id="the root's own rollover does not count"),
        pytest.param(1, ["a", "a"], True, id="an intermediate's rollover does not count"),
        pytest.param(0, ["root", "a"], False, id="below a rollover the limit holds"),
    ],
)
def test_path_length_as_openssl_counts_it(limit: int, names: list[str], good: bool, tmp_path: Path) -> None:
    """X509-8, X509-30: self-issued certificates do not count (RFC 5280 4.2.1.9)."""
    root = lowest = Ca("root", path_length=limit)
    chain: list[x509.Certificate] = []
    for name in names:
        lowest = Ca(name, lowest)
        chain.insert(0, lowest.certificate)
    chain.insert(0, leaf(lowest))
    for file, certificates in (("leaf", chain[:1]), ("above", chain[1:]), ("root", [root.certificate])):
        (tmp_path / file).write_bytes(to_pem(certificates))
    files = [str(tmp_path / name) for name in ("root", "above", "leaf")]
    above = ["-untrusted", files[1]] if names else []
    command = ["openssl", "verify", "-attime", str(int(NOW.timestamp())), "-CAfile", files[0], *above, files[2]]
    judged = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (judged.returncode == 0) is good, judged.stderr
    if good:
        assert check_x509_svid(chain, bundle(root), NOW) == WEB
    else:
        with pytest.raises(InvalidSvid, match="path length"):
            check_x509_svid(chain, bundle(root), NOW)


@pytest.mark.spec("X509-24")
@pytest.mark.parametrize("critical", [True, False])
def test_name_constraints_are_not_passed_over(critical: bool) -> None:
    root = Ca("root")
    elsewhere = x509.NameConstraints([x509.UniformResourceIdentifier("other.org")], None)
    lower = Ca("lower", root, constraints=elsewhere, critical=critical)
    with pytest.raises(InvalidSvid, match="name constraints"):
        check_x509_svid([blind_leaf(lower), lower.certificate], bundle(root), NOW)


@pytest.mark.spec("X509-30")
def test_a_leaf_signs_nothing() -> None:
    root = Ca("root")
    key = EC.generate()
    middle = X509Authority(TD, (root.certificate,), root.key, bundle(root)).issue(
        key.public_key(), WEB, ttl=HOUR, now=NOW
    )[0]
    signed = (
        x509.CertificateBuilder()
        .subject_name(x509.Name([]))
        .issuer_name(middle.subject)
        .public_key(EC.generate().public_key())
        .serial_number(1)
        .not_valid_before(NOW)
        .not_valid_after(NOW + HOUR)
    )
    for extension in middle.extensions:
        signed = signed.add_extension(extension.value, critical=extension.critical)
    with pytest.raises(InvalidSvid, match="not a CA certificate"):
        check_x509_svid([signed.sign(key, signature_hash(key)), middle], bundle(root), NOW)


def test_chain_limits() -> None:
    root = Ca("root")
    with pytest.raises(InvalidSvid, match="empty"):
        check_x509_svid([], bundle(root), NOW)
    with pytest.raises(InvalidSvid, match="longer than"):
        check_x509_svid([leaf(root)] * 11, bundle(root), NOW)


def issue(authority: X509Authority, ttl: timedelta = HOUR, now: datetime = NOW) -> tuple[x509.Certificate, ...]:
    return authority.issue(EC.generate().public_key(), WEB, ttl=ttl, now=now)


@pytest.mark.spec("X509-25", "C-52")
@pytest.mark.parametrize("ends", ["root", "lower"])
def test_a_leaf_ends_with_the_first_certificate_above_it(ends: str) -> None:
    soon = timedelta(minutes=5)
    root = Ca("root", ends=soon if ends == "root" else HOUR * 24)
    lower = Ca("lower", root, ends=soon if ends == "lower" else HOUR * 24)
    authority = X509Authority(TD, (lower.certificate,), lower.key, bundle(root))
    assert issue(authority)[0].not_valid_after_utc == NOW + soon
    assert issue(authority, timedelta.max)[0].not_valid_after_utc == NOW + soon
    with pytest.raises(IssuanceRefused, match="authority expired"):
        issue(authority, now=NOW + soon)


def test_a_renewed_root_lengthens_what_is_issued() -> None:
    old = Ca("root", ends=timedelta(minutes=5))
    lower = Ca("lower", old)
    new = Ca("root", key=old.key)
    authority = X509Authority(TD, (lower.certificate,), lower.key, bundle(old, new))
    assert issue(authority)[0].not_valid_after_utc == NOW + HOUR


@pytest.mark.spec("X509-25")
def test_a_leaf_starts_no_earlier_than_its_issuer() -> None:
    root = Ca("root", starts=timedelta(seconds=-3))
    authority = X509Authority(TD, (root.certificate,), root.key, bundle(root))
    assert issue(authority)[0].not_valid_before_utc == NOW - timedelta(seconds=3)
    assert issue(authority, now=NOW + HOUR)[0].not_valid_before_utc == NOW + HOUR - BACKDATE
    with pytest.raises(IssuanceRefused, match="not valid before"):
        issue(authority, now=NOW - timedelta(seconds=4))


@pytest.mark.parametrize("anchor", ["root", "lower"])
def test_no_root_goes_along_with_a_leaf(anchor: str) -> None:
    root = Ca("root")
    lower = Ca("lower", root)
    trusted = {"root": root, "lower": lower}[anchor]
    authority = X509Authority(TD, (lower.certificate, root.certificate), lower.key, bundle(trusted))
    assert issue(authority)[1:] == ((lower.certificate,) if anchor == "root" else ())


def test_a_root_stays_at_home_when_verifiers_hold_its_renewal() -> None:
    old = Ca("root")
    lower = Ca("lower", old)
    authority = X509Authority(TD, (lower.certificate, old.certificate), lower.key, bundle(Ca("root", key=old.key)))
    assert issue(authority)[1:] == (lower.certificate,)


@pytest.mark.parametrize(
    ("algorithm", "name"),
    [
        (KeyAlgorithm.EC_P256, "sha256"),
        (KeyAlgorithm.EC_P384, "sha384"),
        (KeyAlgorithm.RSA_2048, "sha256"),
        (KeyAlgorithm.ED25519, None),
        (KeyAlgorithm.ML_DSA_65, None),
    ],
)
def test_the_hash_suits_the_key(algorithm: KeyAlgorithm, name: str | None) -> None:
    authority = X509Authority.create(TD, algorithm=algorithm, lifetime=HOUR, now=NOW)
    for certificate in (authority.chain[0], issue(authority)[0]):
        found = certificate.signature_hash_algorithm
        assert (found.name if found else None) == name


@pytest.mark.parametrize("lifetime", [timedelta(0), -HOUR, timedelta.max])
def test_no_authority_with_an_impossible_lifetime(lifetime: timedelta) -> None:
    with pytest.raises(IssuanceRefused, match="lifetime"):
        X509Authority.create(TD, algorithm=EC, lifetime=lifetime, now=NOW)


@pytest.mark.spec("ID-17", "ID-18", "X509-15", "X509-18", "X509-19", "X509-20", "X509-21")
def test_two_authorities_of_one_trust_domain_have_two_names() -> None:
    long = TrustDomain("a" * 255)
    first, second = (X509Authority.create(long, algorithm=EC, lifetime=HOUR, now=NOW).chain[0] for _ in "ab")
    assert first.subject != second.subject
    assert list(first.subject)
    assert first.extensions.get_extension_for_class(x509.BasicConstraints).value.path_length == 0
    names = first.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    assert names.get_values_for_type(x509.UniformResourceIdentifier) == [f"spiffe://{long}"]  # X509-20
    usage = first.extensions.get_extension_for_class(x509.KeyUsage)
    assert usage.critical
    assert not usage.value.digital_signature  # X509-15
    with pytest.raises(x509.ExtensionNotFound):
        first.extensions.get_extension_for_class(x509.ExtendedKeyUsage)  # X509-18


@pytest.mark.spec("X509-1", "X509-2", "CL-13")
def test_dns_names_come_after_the_id_and_once_each() -> None:
    authority = X509Authority.create(TD, algorithm=EC, lifetime=HOUR, now=NOW)
    names = ("web.default.svc", "web", "web.default.svc", "1a", "10.0.0.1a")
    made = authority.issue(EC.generate().public_key(), WEB, ttl=HOUR, now=NOW, dns_names=names)[0]
    found = made.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    assert found.get_values_for_type(x509.UniformResourceIdentifier) == [str(WEB)]
    assert found.get_values_for_type(x509.DNSName) == ["web.default.svc", "web", "1a", "10.0.0.1a"]


@pytest.mark.spec("X509-4", "X509-5")
@pytest.mark.parametrize("subject", [x509.Name([]), _name("web")])
def test_the_san_is_critical_just_when_the_subject_is_empty(subject: x509.Name) -> None:
    made = X509Authority.create(TD, algorithm=EC, lifetime=HOUR, now=NOW)
    authority = X509Authority(TD, made.chain, made.private_key, made.bundle, subject)
    certificate = issue(authority)[0]
    assert certificate.subject == subject
    names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName)
    assert names.critical is (not list(subject))


@pytest.mark.spec("X509-26")
def test_key_identifiers_link_the_leaf_to_its_issuer() -> None:
    authority = X509Authority.create(TD, algorithm=EC, lifetime=HOUR, now=NOW)
    above = authority.chain[0].extensions.get_extension_for_class(x509.SubjectKeyIdentifier).value
    below = issue(authority)[0].extensions.get_extension_for_class(x509.AuthorityKeyIdentifier).value
    assert below.key_identifier == above.digest
