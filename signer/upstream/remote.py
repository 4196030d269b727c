"""The seam to a CA elsewhere: what it is asked for, what it may answer, and how it fails."""

from dataclasses import dataclass
from datetime import timedelta
from typing import Protocol, TypeAlias

from cryptography import x509

from signer.errors import SignerError
from signer.upstream.roots import RootSet
from svid.spiffeid import TrustDomain

# Characters: a handle is kept in the authorities' Secret.
MAX_HANDLE = 1024
# Of a CA that answers in the call itself: there is nothing to remember.
NO_HANDLE = "{}"


class UpstreamAway(SignerError):
    """The CA above cannot be asked now; it may answer later without anybody doing anything."""

    reason = "UPSTREAM_AWAY"


@dataclass(frozen=True, slots=True)
class Elsewhere:
    """The authorities' certificates come from a CA that is asked, and may answer days later. `name` is for people,
    and names the CA: a request to another one is not this one's."""

    name: str


@dataclass(frozen=True, slots=True)
class CaRequest:
    """What is asked for. `id` names the key: 40 hex digits of the SHA-256 of its SubjectPublicKeyInfo."""

    id: str
    csr: x509.CertificateSigningRequest
    trust_domain: TrustDomain
    lifetime: timedelta


@dataclass(frozen=True, slots=True)
class Pending:
    """It has not decided. `reason` is for people. `by_person`: one of them has to decide, in days maybe, and asking
    in another way would not get further."""

    reason: str
    retry_after: timedelta
    by_person: bool = False


@dataclass(frozen=True, slots=True)
class Issued:
    """`chain`: the new certificate first, then what is above it. `roots`: those that it names along; () says nothing.

    `note`: what a person should know of it, such as that it ends sooner than was asked for. `named_alike`: this CA
    gives all that it certifies one subject; verifiers tell them apart by their keys' identifiers, which it sets.
    """

    chain: tuple[x509.Certificate, ...]
    roots: tuple[x509.Certificate, ...] = ()
    note: str = ""
    named_alike: bool = False


@dataclass(frozen=True, slots=True)
class Denied:
    """It will not. `permanent`: asking again for the same changes nothing, and the request is given up."""

    reason: str
    permanent: bool


Answer: TypeAlias = Pending | Issued | Denied


class RemoteUpstream(Protocol):
    """A CA elsewhere. The key stays here: it is handed a request. Each call gets 30 s, and there is one at a time.

    Raises UpstreamAway and UpstreamUnusable, and nothing else; neither text holds a secret.
    """

    @property
    def name(self) -> str:
        """Which CA, for people; another name is another CA."""
        ...

    async def submit(self, request: CaRequest) -> str:
        """Ask. A handle for `poll`, which is stored: JSON without a secret, MAX_HANDLE characters at most.

        The same request may come again, where the answer to it was lost: it is the same request, where the CA can tell.
        A CA that answers in the call itself returns NO_HANDLE and is asked by `poll`.
        """
        ...

    async def poll(self, request: CaRequest, handle: str) -> Answer:
        """What became of it."""
        ...

    async def forget(self, request_id: str, handle: str) -> None:
        """Nobody wants its answer any more: clean up, as far as that is possible."""
        ...

    async def roots(self) -> RootSet:
        """What is to be trusted now, whether or not anything was certified below it. Cheap."""
        ...
