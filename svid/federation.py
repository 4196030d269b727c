"""SPIFFE Federation: the bundle that is published for others, which of theirs are taken, and when to look again
(SPIFFE_Federation.md 4 to 6, Trust_Domain_and_Bundle.md 4)."""

from collections import Counter
from dataclasses import replace
from datetime import timedelta
from enum import Enum

from cryptography.hazmat.primitives.asymmetric import rsa

from svid.bundle import LeftOut, TrustBundle
from svid.errors import InvalidBundle
from svid.spiffeid import TrustDomain

# Of a partner's document: bytes, and authorities of both kinds. Clients of the Workload API take answers of 4 MiB, and
# one holds all bundles.
MAX_DOCUMENT = 512 * 1024
MAX_AUTHORITIES = 100
# Entries of any kind, each of which is looked at.
MAX_ENTRIES = 200
# What verifying by an authority may cost: bits of an RSA key, its exponent, and how many are tried for one name.
MAX_RSA_BITS, MAX_RSA_EXPONENT, MAX_OF_ONE_NAME = 8192, 2**32, 8
# Kubernetes' integers, and those of most readers.
_MAX_SEQUENCE = 2**63 - 1
# A partner's hint is believed within these; without one (4.1) it is the middle one.
LEAST_HINT, NO_HINT, MOST_HINT = timedelta(seconds=60), timedelta(seconds=300), timedelta(hours=24)
# As often as SPIRE's server looks: one look may fail, and a partner whose key was stolen waits for no more than a third
# of its hint. Never so rarely that a key which was taken back is believed for hours longer.
LOOKS_IN_A_HINT = 4
LEAST_INTERVAL, MOST_INTERVAL = timedelta(seconds=30), timedelta(hours=1)
# The longest after a look that failed.
AFTER_FAILURE = timedelta(minutes=5)


def bundle_document(bundle: TrustBundle, refresh_hint: timedelta) -> bytes:
    """The bundle as partners fetch it, with its sequence and how often to look.

    Raises InvalidBundle for one without X.509 authorities or a sequence: partners obey an empty bundle, and order what
    they got by the sequence.
    """
    if not bundle.x509_authorities or bundle.sequence is None:
        raise InvalidBundle(f"the trust bundle of {bundle.trust_domain} is not one to publish")
    return replace(bundle, refresh_hint=refresh_hint).to_jwks()


class Order(Enum):
    """How a bundle that was found stands to the one that is held (4.2)."""

    NEWER = "newer"
    SAME = "same"
    # Something changed and the sequence did not, which it has to (TDB 4.1.1).
    UNNUMBERED = "unnumbered"
    OLDER = "older"


def order(held: TrustBundle | None, found: TrustBundle) -> Order:
    """By sequence where both have one; else the one that came last is the newest."""
    if held is None:
        return Order.NEWER
    same = found.digest() == held.digest()
    if held.sequence is None or found.sequence is None:
        return Order.SAME if same and found.sequence == held.sequence else Order.NEWER
    if found.sequence == held.sequence:
        return Order.SAME if same else Order.UNNUMBERED
    return Order.NEWER if found.sequence > held.sequence else Order.OLDER


def accepted(trust_domain: TrustDomain, document: bytes, own: TrustBundle, left_out: LeftOut) -> TrustBundle:
    """What a partner publishes as the bundle of `trust_domain`, which the document does not name. Raises InvalidBundle.

    `left_out` is told of entries that cannot be authorities. An empty bundle is one (TDB 4.1.3). `own`: of the trust
    domain that looks; a document with one of its authorities is somebody else's mistake, or a trick. Takes a tenth of a
    second for the worst document.
    """
    if len(document) > MAX_DOCUMENT:
        raise InvalidBundle(f"the bundle is longer than {MAX_DOCUMENT >> 10} KiB")
    found = TrustBundle.from_jwks(trust_domain, document, left_out, MAX_ENTRIES)
    if len(found.x509_authorities) + len(found.jwt_authorities) > MAX_AUTHORITIES:
        raise InvalidBundle(f"the bundle has more than {MAX_AUTHORITIES} authorities")
    if found.sequence is not None and not 0 <= found.sequence <= _MAX_SEQUENCE:
        raise InvalidBundle("the bundle's spiffe_sequence is no number of 63 bits")
    found = replace(
        found,
        x509_authorities=tuple(each for each in found.x509_authorities if _is_cheap(each.public_key(), left_out)),
        jwt_authorities=tuple(each for each in found.jwt_authorities if _is_cheap(each.public_key, left_out)),
    )
    names = Counter(each.subject.public_bytes() for each in found.x509_authorities)
    if any(number > MAX_OF_ONE_NAME for number in names.values()):
        raise InvalidBundle(f"the bundle has more than {MAX_OF_ONE_NAME} X.509 authorities of one name")
    if found.public_keys & own.public_keys:
        raise InvalidBundle(f"the bundle has an authority of {own.trust_domain}: does its URL lead back here?")
    # Written anew it can be longer than it came.
    if len(found.to_jwks()) > MAX_DOCUMENT:
        raise InvalidBundle(f"the bundle is longer than {MAX_DOCUMENT >> 10} KiB, once written in full")
    return found


def _is_cheap(key: object, left_out: LeftOut) -> bool:
    if not isinstance(key, rsa.RSAPublicKey):
        return True
    if key.key_size <= MAX_RSA_BITS and key.public_numbers().e <= MAX_RSA_EXPONENT:
        return True
    left_out(f"RSA key of {key.key_size} bits; {MAX_RSA_BITS} and an exponent of 32 bits are the most")
    return False


def interval(bundle: TrustBundle | None) -> timedelta:
    """Until the next look, after one that succeeded."""
    hint = bundle.refresh_hint if bundle is not None and bundle.refresh_hint is not None else NO_HINT
    hint = min(max(hint, LEAST_HINT), MOST_HINT)
    return min(max(hint / LOOKS_IN_A_HINT, LEAST_INTERVAL), MOST_INTERVAL)


def interval_after_failure(bundle: TrustBundle | None) -> timedelta:
    """The same after one that failed: the next interval, and no burst (6.2)."""
    return min(interval(bundle), AFTER_FAILURE)
