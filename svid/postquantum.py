"""Which verifiers follow certificates with ML-DSA keys and signatures (FIPS 204, RFC 9881), and what needs them to.

The table is what tests/conformance/test_post_quantum.py finds over TLS 1.3, with certificates that are issued here.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from enum import StrEnum
from types import MappingProxyType

from cryptography import x509

from svid.authority import PublicAuthority, X509Authority
from svid.certificates import is_ml_dsa
from svid.x509svid import issued_by


class Part(StrEnum):
    """Where ML-DSA is: in a root that nothing leads to, above an EC leaf, in the leaf.

    The last is no part of a certificate: the two sides agree on their keys by X25519MLKEM768, by themselves.
    """

    ROOT_BESIDE = "A"
    ABOVE = "B"
    LEAF = "C"
    KEY_EXCHANGE = "K"


@dataclass(frozen=True, slots=True)
class Verifier:
    """A program or library; `follows` has the parts that it takes, `but` what more is to be said of some.

    `instead`: what takes more.
    """

    name: str
    follows: frozenset[Part]
    but: tuple[tuple[Part, str], ...] = ()
    instead: str = ""

    def answer(self, part: Part) -> str:
        """For people."""
        word = "yes" if part in self.follows else "no"
        return ": ".join([word, *(text for of, text in self.but if of is part)])


def _parts(letters: str) -> frozenset[Part]:
    return frozenset(map(Part, letters))


_SCHEMES = "with `tls_params.signature_algorithms` that name ML-DSA (`mldsa65`), at both ends"
_PATHS = "`CertPathValidator` does, TLS does not"
VERIFIERS: Mapping[str, Verifier] = MappingProxyType(
    {
        "openssl-4.0": Verifier("OpenSSL 4.0", _parts("ABCK")),
        "node-26": Verifier("Node.js 26 (OpenSSL 3.5)", _parts("ABCK")),
        "openssl-3.0": Verifier(
            "OpenSSL before 3.5 (Debian 12 with its Python and nginx, Node.js 20)",
            _parts("A"),
            instead="OpenSSL 3.5",
        ),
        "go-1.27": Verifier("Go 1.27", _parts("ABCK")),
        "go-1.26": Verifier("Go before 1.27", _parts("AK"), instead="Go 1.27"),
        "envoy-1.40": Verifier("Envoy 1.40", _parts("ABCK"), ((Part.LEAF, _SCHEMES),)),
        "grpcio-1.85": Verifier("gRPC for Python 1.85", _parts("ABK")),
        "java-25": Verifier("Java 25", _parts("A"), ((Part.ABOVE, _PATHS), (Part.LEAF, _PATHS)), "none yet"),
        "java-17": Verifier("Java 17", _parts("A"), instead="none yet"),
    }
)


def refusing(part: Part) -> tuple[Verifier, ...]:
    """Those that cannot follow."""
    return tuple(each for each in VERIFIERS.values() if part not in each.follows)


def signs_below(authority: X509Authority | PublicAuthority) -> bool:
    """Whether who verifies its SVIDs has to verify a signature by ML-DSA: its own, or one above it."""
    if any(map(is_ml_dsa, authority.chain)):
        return True
    anchors = [each for each in authority.bundle.x509_authorities if _leads(authority, each)]
    return bool(anchors) and all(map(is_ml_dsa, anchors))


def _leads(authority: X509Authority | PublicAuthority, root: x509.Certificate) -> bool:
    return any(each == root or issued_by(each, root) for each in authority.chain)


def unused_roots(
    roots: Iterable[x509.Certificate], authorities: Iterable[X509Authority | PublicAuthority]
) -> tuple[x509.Certificate, ...]:
    """Those of `roots` with ML-DSA keys that none of `authorities` leads to."""
    given = tuple(authorities)
    return tuple(root for root in roots if is_ml_dsa(root) and not any(_leads(each, root) for each in given))
