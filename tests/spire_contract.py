"""What podsvid expects of a SPIRE server above it: checked of a real one, and of the stand-in that unit tests use."""

from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Protocol

from cryptography import x509

from runtime.clock import SystemClock
from signer.authority.granting import granted
from signer.authority.lifecycle import Life
from signer.authority.request import new_request
from signer.spire_settings import SpireSettings
from signer.upstream.certify import UpstreamUnusable
from signer.upstream.remote import NO_HANDLE, Elsewhere, Issued, UpstreamAway
from signer.upstream.spire import Spire
from svid.keys import KeyAlgorithm
from svid.spiffeid import SpiffeId
from tests.openbao_contract import POLICY, TD, serves

# Ends before the CA of a server whose ca_ttl is a day.
LIFE = timedelta(hours=1)


class Server(Protocol):
    """A SPIRE server of trust domain TD with a CA of its own, and an agent that gives the signer an SVID."""

    @property
    def address(self) -> str: ...

    @property
    def agent_socket(self) -> Path: ...

    async def downstream(self, yes: bool) -> None:
        """Whether the entry of the signer's SVID is marked downstream; the server knows it when this returns."""
        ...

    async def authorities(self) -> tuple[x509.Certificate, ...]:
        """What the server's bundle has, by its own word."""
        ...

    async def another_ca(self) -> None:
        """The server signs with a new root from now on."""
        ...

    async def files(self, folder: Path) -> None:
        """tls.crt, tls.key and ca.crt in the folder: an SVID of that entry."""
        ...


def settings(server: Server) -> SpireSettings:
    """By the agent's socket."""
    return SpireSettings(TD, server.address, server.agent_socket, None, None, None)


def signer(server: Server, **changes: object) -> Spire:
    return Spire(replace(settings(server), **changes), SystemClock())  # type: ignore[arg-type]


async def issued(remote: Spire, life: timedelta = LIFE) -> Issued:
    """What it says to a request of a new key."""
    made = new_request(remote.name, TD, KeyAlgorithm.EC_P256.generate(), life, _now(), wished=False)
    return await answered(remote, made.to_ca(TD))


async def answered(remote: Spire, asked: object) -> Issued:
    assert await remote.submit(asked) == NO_HANDLE  # type: ignore[arg-type]
    found = await remote.poll(asked, NO_HANDLE)  # type: ignore[arg-type]
    assert isinstance(found, Issued)
    return found


async def check_signs_again_and_again(server: Server, folder: Path) -> None:
    """Two authorities of one SPIRE CA have one name; both serve."""
    remote = signer(server)
    policy = replace(POLICY, authority_ttl=LIFE, x509_max_ttl=timedelta(minutes=10))
    state = await Life(policy, Elsewhere(remote.name), TD).first(_now())
    assert state.request is not None
    found = await answered(remote, state.request.to_ca(TD))
    assert (found.note, found.named_alike, len(found.chain)) == ("", True, 1)
    assert set(found.roots) == set(await server.authorities())
    state, _ = granted(state, found, policy, _now())
    assert serves(state)
    own = found.chain[0]
    names = own.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    assert names == x509.SubjectAlternativeName([x509.UniformResourceIdentifier(str(TD.id))])
    request = new_request(remote.name, TD, KeyAlgorithm.EC_P256.generate(), LIFE, _now(), wished=True)
    again = await answered(remote, request.to_ca(TD))
    assert again.chain[0].subject == own.subject
    state, slot = granted(replace(state, request=request), again, policy, _now())
    assert slot.authority.chain == again.chain


async def check_names_its_bundle(server: Server, folder: Path) -> None:
    """It changes before anything is signed below what is new in it."""
    remote = signer(server)
    first = await remote.roots()
    assert set(first.certificates) == set(await server.authorities())
    assert first.complete
    await server.another_ca()
    second = await remote.roots()
    assert len(second.certificates) == len(first.certificates) + 1
    assert set(second.certificates) == set(await server.authorities())
    (new,) = set(second.certificates) - set(first.certificates)
    found = await issued(remote)
    found.chain[0].verify_directly_issued_by(new)


async def check_a_short_lifetime_is_told(server: Server, folder: Path) -> None:
    """Its own CA ends before."""
    found = await issued(signer(server), timedelta(days=30))
    assert "of the 30d that were asked for: see its ca_ttl" in found.note


async def check_an_svid_in_files(server: Server, folder: Path) -> None:
    """In place of the agent's socket."""
    await server.files(folder)
    assert (await issued(signer(server, agent_socket=None, svid_dir=folder))).chain


async def check_the_wanted_svid(server: Server, folder: Path) -> None:
    """One that the agent does not give is not replaced by another."""
    stranger = SpiffeId.parse(f"{TD.id}/somebody-else")
    said = await unusable(signer(server, spiffe_id=stranger))
    assert f"gives this signer no SVID of {stranger}" in said


async def check_who_is_not_downstream_is_told_so(server: Server, folder: Path) -> None:
    """And only it: everybody may know the bundle."""
    remote = signer(server)
    await server.downstream(False)
    try:
        said = await unusable(remote)
        assert "PERMISSION_DENIED" in said
        assert f"is the entry of {TD.id}/podsvid-signer marked -downstream" in said
        assert (await remote.roots()).certificates
    finally:
        await server.downstream(True)
    assert (await issued(remote)).chain


CHECKS = (
    check_signs_again_and_again,
    check_names_its_bundle,
    check_a_short_lifetime_is_told,
    check_an_svid_in_files,
    check_the_wanted_svid,
    check_who_is_not_downstream_is_told_so,
)


async def unusable(remote: Spire) -> str:
    try:
        await issued(remote)
    except UpstreamUnusable as error:
        return str(error)
    raise AssertionError("it certified")


async def away(remote: Spire) -> str:
    try:
        await issued(remote)
    except UpstreamAway as error:
        return str(error)
    raise AssertionError("it certified")


def _now() -> datetime:
    """A real server dates by its own clock."""
    return datetime.now(UTC)
