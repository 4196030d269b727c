"""What a CA elsewhere gave, brought into order: its certificates into a chain, its words into a line for people."""

from collections.abc import Sequence
from datetime import timedelta

from cryptography import x509
from cryptography.x509.oid import NameOID

from runtime import durations
from signer.upstream.certify import UpstreamUnusable
from svid.certificates import certificates_from_pem, check_readable
from svid.errors import SvidError
from svid.x509svid import issued_by

# Above one certificate: each is verified.
MAX_ABOVE = 32
# Its clock, and that lifetimes are said in whole seconds.
_SLACK = timedelta(minutes=2)


def is_root(certificate: x509.Certificate) -> bool:
    """Whether it is signed with its own key."""
    return issued_by(certificate, certificate)


def certificates(texts: Sequence[str], by: str) -> tuple[x509.Certificate, ...]:
    """Of texts in PEM; empty ones have none. Raises UpstreamUnusable, which says that it was given `by`."""
    try:
        found = tuple(each for text in texts if text for each in certificates_from_pem(text.encode()))
        for each in found:
            check_readable(each)
        return found
    except (SvidError, ValueError):
        raise UpstreamUnusable(f"{by} gave something that is no PEM certificate") from None


def chained(
    own: x509.Certificate, above: Sequence[x509.Certificate]
) -> tuple[tuple[x509.Certificate, ...], x509.Certificate | None]:
    """From `own` upwards, in order, as far as `above` goes; then the root in which it ends, if that is there."""
    # Roots first: one that another has cross-signed ends the chain, and not whoever is to be left.
    others = sorted(dict.fromkeys(each for each in above if each != own), key=lambda each: not is_root(each))
    chain, below = [own], own
    while (found := next((each for each in others if issued_by(below, each)), None)) is not None:
        others.remove(found)
        if is_root(found):
            break
        chain.append(found)
        below = found
    return tuple(chain), found


def check_name(own: x509.Certificate, asked: x509.CertificateSigningRequest, by: str, hint: str) -> None:
    """Raises UpstreamUnusable where it lost the number in its subject by which two authorities are told apart."""
    if _numbers(own.subject) != _numbers(asked.subject):
        raise UpstreamUnusable(
            f"{by} replaced the subject that was asked for: two authorities would have one name, and verifiers mistake "
            f"them; {hint}"
        )


def _numbers(name: x509.Name) -> list[object]:
    return [each.value for each in name.get_attributes_for_oid(NameOID.SERIAL_NUMBER)]


def shorter(own: x509.Certificate, wanted: timedelta, by: str, hint: str) -> str:
    """For people: that `by` gave less time than was asked for; empty where it did not."""
    life = own.not_valid_after_utc - own.not_valid_before_utc
    if life >= wanted - _SLACK:
        return ""
    given = durations.text(timedelta(seconds=int(life.total_seconds())))
    return f"{by} gives {given} of the {durations.text(wanted)} that were asked for{hint}"
