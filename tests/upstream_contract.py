"""What podsvid expects of a cloud's CA: checked of the stand-ins that unit tests ask by the clouds' own libraries."""

from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Protocol

from cryptography import x509

from signer.authority.granting import granted
from signer.authority.lifecycle import Life
from signer.authority.request import X509Request, new_request
from signer.authority.state import AuthorityState
from signer.upstream.certify import UpstreamUnusable
from signer.upstream.remote import Answer, Denied, Elsewhere, Issued, Pending, RemoteUpstream, UpstreamAway
from svid.certificates import to_pem
from svid.keys import KeyAlgorithm
from svid.x509svid import check_x509_svid
from tests.openbao_contract import POLICY, TD, WEB, serves

LONGEST = 10


class Cloud(Protocol):
    """A service with one CA, that is a root unless it is said otherwise."""

    def root(self) -> x509.Certificate:
        """What is to be trusted."""
        ...

    def remote(self, *, roots: Path | None = None, blank: bool = False) -> RemoteUpstream:
        """A signer's way there. `blank`: by the other of two ways to ask, where there are two."""
        ...

    def is_below(self) -> None:
        """Its CA is from now on one below the root."""
        ...

    def ends_in(self, life: timedelta) -> None:
        """Its CA is from now on one that ends so soon."""
        ...

    def forbids(self, secret: str) -> None:
        """It allows nothing; its words have `secret`, where those of the real one repeat what was signed."""
        ...

    def is_busy(self) -> None:
        """It takes no more calls now."""
        ...

    def drops_subjects(self) -> None:
        """What it issues has another subject than was asked for."""
        ...


def a_request(remote: RemoteUpstream, lifetime: timedelta = POLICY.authority_ttl) -> X509Request:
    """Of a new key."""
    return new_request(remote.name, TD, KeyAlgorithm.EC_P256.generate(), lifetime, datetime.now(UTC), wished=False)


async def answered(remote: RemoteUpstream, request: X509Request | None = None) -> Answer:
    """What it says in the end."""
    asked = (request or a_request(remote)).to_ca(TD)
    handle = await remote.submit(asked)
    for _ in range(LONGEST):
        if not isinstance(found := await remote.poll(asked, handle), Pending):
            return found
    raise AssertionError("it thinks for ever")


async def issued(remote: RemoteUpstream, request: X509Request | None = None) -> Issued:
    found = await answered(remote, request)
    assert isinstance(found, Issued), found
    return found


async def first(remote: RemoteUpstream) -> AuthorityState:
    """What a signer stores whose first authority it certified."""
    unborn = await Life(POLICY, Elsewhere(remote.name), TD).first(datetime.now(UTC))
    return granted(unborn, await issued(remote, unborn.request), POLICY, datetime.now(UTC))[0]


async def check_two_signers_below_it_verify_each_other(cloud: Cloud, folder: Path) -> None:
    """One trust domain may be that of several clusters."""
    cloud.is_below()
    here, there = await first(cloud.remote()), await first(cloud.remote())
    leaf = KeyAlgorithm.EC_P256.generate().public_key()
    chain = here.active_x509.issue(leaf, WEB, ttl=timedelta(minutes=1), now=datetime.now(UTC))
    assert check_x509_svid(chain, there.bundle, datetime.now(UTC)) == WEB


async def check_signs(cloud: Cloud, folder: Path, *, blank: bool = False) -> None:
    """It certifies what the signer's trial takes: an SVID verifies under the root, and nothing else is trusted."""
    remote = cloud.remote(blank=blank)
    unborn = await Life(POLICY, Elsewhere(remote.name), TD).first(datetime.now(UTC))
    assert unborn.request is not None
    found = await issued(remote, unborn.request)
    assert (found.roots, found.note) == ((cloud.root(),), "")
    state, slot = granted(unborn, found, POLICY, datetime.now(UTC))
    assert serves(state)
    own = slot.authority.chain[0]
    assert own.subject == unborn.request.csr.subject
    names = own.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    assert names == x509.SubjectAlternativeName([x509.UniformResourceIdentifier(str(TD.id))])
    assert own.extensions.get_extension_for_class(x509.BasicConstraints).value.path_length == 0
    assert abs(own.not_valid_after_utc - datetime.now(UTC) - POLICY.authority_ttl) < timedelta(minutes=1)


async def check_signs_by_the_other_way(cloud: Cloud, folder: Path) -> None:
    await check_signs(cloud, folder, blank=True)


async def check_below_a_root(cloud: Cloud, folder: Path) -> None:
    """The chain leads there, and the root is not in it."""
    cloud.is_below()
    remote = cloud.remote()
    found = await issued(remote)
    assert (len(found.chain), found.roots) == (2, (cloud.root(),))
    named = await remote.roots()
    assert (named.certificates, named.complete) == ((cloud.root(),), True)


async def check_what_is_asked_again_is_one_request(cloud: Cloud, folder: Path) -> None:
    """Whoever leads next may ask once more, where the answer was lost."""
    remote = cloud.remote()
    request = a_request(remote)
    first = await issued(remote, request)
    assert (await issued(cloud.remote(), request)).chain == first.chain
    assert (await issued(remote)).chain != first.chain


async def check_names_its_roots(cloud: Cloud, folder: Path) -> None:
    """Also where nothing was certified."""
    named = await cloud.remote().roots()
    assert (named.certificates, named.complete) == ((cloud.root(),), True)


async def check_the_roots_of_a_file_count_and_no_others(cloud: Cloud, folder: Path) -> None:
    file = folder / "roots.pem"
    file.write_bytes(to_pem([cloud.root()]))
    other = cloud.remote(roots=file)
    cloud.forbids("")
    named = await other.roots()
    assert (named.certificates, named.complete) == ((cloud.root(),), True)


async def check_a_ca_that_ends_soon_gives_what_it_has(cloud: Cloud, folder: Path) -> None:
    """It is said, and the signer decides whether that is enough."""
    cloud.ends_in(timedelta(hours=5))
    found = await issued(cloud.remote())
    assert "of the 10d that were asked for" in found.note
    assert found.chain[0].not_valid_after_utc <= cloud.root().not_valid_after_utc


async def check_who_may_not_is_told_so(cloud: Cloud, folder: Path) -> None:
    """Nothing of a credential is repeated."""
    remote = cloud.remote()
    cloud.forbids("")
    said = await failure(remote)
    assert said.startswith("UPSTREAM_UNUSABLE: ")
    assert "does not certify" in said
    secret = "session-token-0123456789"
    cloud.forbids(secret)
    assert secret not in await failure(remote)


async def check_busy_is_away(cloud: Cloud, folder: Path) -> None:
    """It is no fault of the signer's."""
    cloud.is_busy()
    assert (await failure(cloud.remote())).startswith("UPSTREAM_AWAY: ")


async def check_another_subject_is_refused(cloud: Cloud, folder: Path) -> None:
    """The first authority would serve, and each rotation be refused."""
    cloud.drops_subjects()
    found = await answered(cloud.remote())
    assert isinstance(found, Denied)
    assert found.permanent
    assert "replaced the subject that was asked for" in found.reason


CHECKS = (
    check_signs,
    check_signs_by_the_other_way,
    check_below_a_root,
    check_two_signers_below_it_verify_each_other,
    check_what_is_asked_again_is_one_request,
    check_names_its_roots,
    check_the_roots_of_a_file_count_and_no_others,
    check_a_ca_that_ends_soon_gives_what_it_has,
    check_who_may_not_is_told_so,
    check_busy_is_away,
    check_another_subject_is_refused,
)


async def failure(remote: RemoteUpstream) -> str:
    """Why it does not certify."""
    try:
        found = await answered(remote)
    except (UpstreamAway, UpstreamUnusable) as error:
        return f"{error.reason}: {error}"
    raise AssertionError(f"it answered {found}")
