"""The server's own certificate: the signer's name and identity, for a day, renewed in time and with the authority."""

from datetime import timedelta
from typing import Any

import grpc
import pytest
from cryptography import x509

from signer.authority.state import AuthorityState
from signer.front.tls import ServerIdentity
from signer.minting.own import LIFETIME
from svid.dnsnames import SIGNER_NAME
from svid.errors import SvidError
from svid.x509svid import check_x509_svid
from tests.signer_rig import START, StepClock
from tests.unit.signer.test_lifecycle import advanced, first, life


class Made:
    """Stands for grpc.ssl_server_credentials, which nothing can be read from."""

    def __init__(self) -> None:
        self.pairs: list[tuple[bytes, bytes]] = []

    def __call__(self, pairs: Any, **more: Any) -> object:
        assert more == {}  # clients prove themselves by token
        self.pairs += pairs
        return object()


@pytest.fixture
def made(monkeypatch: pytest.MonkeyPatch) -> Made:
    found = Made()
    monkeypatch.setattr(grpc, "ssl_server_credentials", found)
    return found


def renewed(identity: ServerIdentity, state: AuthorityState) -> grpc.ServerCredentials | None:
    """New credentials where they are due, as the server takes them."""
    return identity.taken(identity.made(state)) if identity.due(state) else None


def test_it_is_the_signers_and_for_a_day(made: Made) -> None:
    state = first()
    assert renewed(ServerIdentity(StepClock()), state) is not None
    ((key, pem),) = made.pairs
    chain = tuple(x509.load_pem_x509_certificates(pem))
    assert str(check_x509_svid(chain, state.bundle, START)) == "spiffe://example.org/podsvid/signer"
    names = chain[0].extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    assert names.get_values_for_type(x509.DNSName) == [SIGNER_NAME]
    assert chain[0].not_valid_after_utc - START == LIFETIME == timedelta(days=1)
    assert b"PRIVATE KEY" in key


def test_it_is_renewed_at_half_of_its_life(made: Made) -> None:
    clock, state = StepClock(), first()
    identity = ServerIdentity(clock)
    assert renewed(identity, state) is not None
    assert renewed(identity, state) is None
    clock.pass_by(hours=12, seconds=-1)
    assert renewed(identity, state) is None
    clock.pass_by(seconds=1)
    assert renewed(identity, state) is not None
    assert renewed(identity, state) is None
    one, other = made.pairs
    assert one[0] != other[0]


def test_it_is_renewed_when_another_authority_signs(made: Made) -> None:
    """Its own root may be distrusted at once: a forced rotation."""
    clock, state = StepClock(), first()
    later = state
    while later.active_x509_id == state.active_x509_id:
        clock.pass_by(hours=6)
        later = advanced(later, clock.now())
    identity = ServerIdentity(clock)
    assert renewed(identity, state) is not None
    assert renewed(identity, later) is not None
    assert renewed(identity, later) is None
    issuers = [x509.load_pem_x509_certificate(pem).issuer for _, pem in made.pairs]
    assert issuers[0] != issuers[1]


def test_an_authority_that_is_over_signs_none_and_the_next_one_is_tried(made: Made) -> None:
    clock, state = StepClock(), first()
    identity = ServerIdentity(clock)
    clock.pass_by(days=11)
    for _ in range(2):
        with pytest.raises(SvidError):
            renewed(identity, state)
    assert made.pairs == []
    clock.set_by(days=-11)
    assert renewed(identity, state) is not None


def test_where_clients_may_lack_the_next_authority_it_stays_while_its_own_is_trusted(made: Made) -> None:
    clock, state = StepClock(), first()
    identity = ServerIdentity(clock, ("ca.mesh.example",), lasting=True)
    assert renewed(identity, state) is not None
    names = x509.load_pem_x509_certificates(made.pairs[0][1])[0].extensions
    shown = names.get_extension_for_class(x509.SubjectAlternativeName).value
    assert shown.get_values_for_type(x509.DNSName) == ["ca.mesh.example"]
    rotating, _ = life().asked(state, "x509", forced=False, now=clock.now())
    clock.pass_by(minutes=10)
    rotated = advanced(advanced(rotating, clock.now()), clock.now())
    assert rotated.active_x509_id != state.active_x509_id
    assert not identity.due(rotated)
    clock.pass_by(hours=11, minutes=50)
    assert identity.due(rotated)
    # One that is trusted no more proves nothing.
    stolen, _ = life().asked(state, "x509", forced=True, now=START)
    while any(slot.id == state.active_x509_id for slot in stolen.x509):
        stolen = advanced(stolen, clock.now())
        clock.pass_by(seconds=30)
    clock.at = START
    assert identity.due(stolen)
