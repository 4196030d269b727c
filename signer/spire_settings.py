"""Which SPIRE server certifies the authorities, by which SVID the signer is known there, and what contradicts that."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from runtime.settings import MAX_SOCKET_PATH, Conflict, host_and_port
from svid.errors import InvalidSpiffeId
from svid.spiffeid import SpiffeId, TrustDomain

# As SPIRE calls its servers.
SERVER_PATH = "/spire/server"


def address(text: str) -> str:
    """Of a server. Raises ValueError, as all of these do."""
    try:
        host_and_port(text)
    except ValueError:
        raise ValueError("HOST:PORT such as spire-server.spire:8081") from None
    return text


def spiffe_id(text: str) -> SpiffeId:
    """Of a workload."""
    try:
        found = SpiffeId.parse(text)
    except InvalidSpiffeId as error:
        raise ValueError(f"a SPIFFE ID such as spiffe://example.org/podsvid-signer ({error})") from None
    if not found.path:
        raise ValueError("a SPIFFE ID with a path, such as spiffe://example.org/podsvid-signer")
    return found


@dataclass(frozen=True, slots=True)
class SpireSettings:
    """As the settings `spire_*` have them. `roots` is upstream_bundle_file, which is not for SPIRE."""

    trust_domain: TrustDomain
    address: str | None
    agent_socket: Path | None
    svid_dir: Path | None
    spiffe_id: SpiffeId | None
    roots: Path | None

    def conflicts(self) -> Iterator[Conflict]:
        """What keeps these from being used."""
        if self.address is None:
            yield Conflict(("upstream", "spire_address"), "say where the SPIRE server is: HOST:PORT")
        sources = ("spire_agent_socket", "spire_svid_dir")
        if self.agent_socket is None and self.svid_dir is None:
            yield Conflict(
                ("upstream", *sources),
                "the SPIRE server knows the signer by an SVID: give a SPIRE agent's socket, or a folder with files",
            )
        if self.agent_socket is not None and self.svid_dir is not None:
            yield Conflict(sources, "they name two SVIDs of the signer; give one")
        if self.agent_socket is not None and len(str(self.agent_socket)) > MAX_SOCKET_PATH:
            yield Conflict(("spire_agent_socket",), f"the path is too long for a socket: {MAX_SOCKET_PATH} bytes fit")
        if self.spiffe_id is None:
            # Not to be guessed from what an agent gives: until it did, a pod could have it.
            yield Conflict(
                ("upstream", "spire_spiffe_id"),
                "say by which SPIFFE ID the SPIRE server knows the signer; no pod gets it",
            )
        elif self.spiffe_id.trust_domain != self.trust_domain:
            yield Conflict(
                ("spire_spiffe_id", "trust_domain"), "a SPIRE server certifies for its own trust domain, which is one"
            )
        if self.roots is not None:
            yield Conflict(
                ("upstream", "upstream_bundle_file"), "the SPIRE server says itself what is to be trusted; leave it out"
            )
