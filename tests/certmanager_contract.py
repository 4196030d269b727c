"""What podsvid expects of a cert-manager: checked of a real one, and of the stand-in that unit tests use."""

import asyncio
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, Protocol

from cryptography import x509

from signer.authority.granting import granted
from signer.authority.lifecycle import Life
from signer.authority.request import X509Request, new_request
from signer.certmanager_settings import CertManagerSettings
from signer.cluster.kube import KubeApi
from signer.cluster.objects import Named
from signer.upstream.certify import UpstreamUnusable
from signer.upstream.certmanager import API, LABEL, PREFIX, CertManager
from signer.upstream.remote import NO_HANDLE, Answer, Denied, Elsewhere, Issued, Pending
from svid.certificates import to_pem
from svid.keys import KeyAlgorithm
from tests.openbao_contract import POLICY, TD, serves

LOOK_SECONDS, PATIENCE = 0.05, 60.0
# Objects are dated by the second.
NEXT_SECOND = 1.1


class Installation(Protocol):
    """A cert-manager of which nobody approves by himself, as the signer's account sees it."""

    namespace: str

    @property
    def api(self) -> KubeApi: ...

    async def issuer(self, name: str, *, without_root: bool = False) -> x509.Certificate:
        """An Issuer of that name, made where there is none; its root. `without_root`: it does not know that."""
        ...

    async def approve(self, request: str) -> None:
        """Say yes to the request of that name, as somebody who may."""
        ...

    async def deny(self, request: str, why: str) -> None:
        """Say no."""
        ...


def signer(at: Installation, issuer: str, **changes: Any) -> CertManager:
    settings = CertManagerSettings(issuer, "Issuer", "cert-manager.io", at.namespace, None)
    return CertManager(replace(settings, **changes), at.api)


def a_request(remote: CertManager, lifetime: timedelta = POLICY.authority_ttl) -> X509Request:
    """Of a new key."""
    return new_request(remote.name, TD, KeyAlgorithm.EC_P256.generate(), lifetime, datetime.now(UTC), wished=False)


async def decided(remote: CertManager, request: X509Request, handle: str) -> Answer:
    """What it says in the end."""
    async with asyncio.timeout(PATIENCE):
        while isinstance(found := await remote.poll(request.to_ca(TD), handle), Pending):
            await asyncio.sleep(LOOK_SECONDS)
    return found


async def issued(at: Installation, remote: CertManager, request: X509Request) -> Issued:
    handle = await remote.submit(request.to_ca(TD))
    await at.approve(f"{PREFIX}{request.id}")
    found = await decided(remote, request, handle)
    assert isinstance(found, Issued), found
    return found


async def refused(remote: CertManager, request: X509Request, handle: str) -> str:
    found = await decided(remote, request, handle)
    assert isinstance(found, Denied), found
    assert found.permanent
    return found.reason


async def left(at: Installation) -> list[str]:
    """The requests of podsvid that are there."""
    path = f"{API}/namespaces/{at.namespace}/certificaterequests"
    page = await at.api.list(path, Named, {"labelSelector": LABEL})
    return [each.metadata.name or "" for each in page.items]


async def check_signs_what_was_approved(at: Installation, folder: Path) -> None:
    """It certifies what the signer's trial takes, and not before somebody approves; a rotation leaves nothing."""
    root = await at.issuer("root")
    remote = signer(at, "root")
    unborn = await Life(POLICY, Elsewhere(remote.name), TD).first(datetime.now(UTC))
    request = unborn.request
    assert request is not None
    handle = await remote.submit(request.to_ca(TD))
    found = await remote.poll(request.to_ca(TD), handle)
    assert isinstance(found, Pending)
    assert found.reason == f"CertificateRequest {at.namespace}/{PREFIX}{request.id} is not approved yet"
    # Whoever leads next asks once more: it is the same request.
    assert await remote.submit(request.to_ca(TD)) == handle
    assert await left(at) == [f"{PREFIX}{request.id}"]
    await at.approve(f"{PREFIX}{request.id}")
    answer = await decided(remote, request, handle)
    assert isinstance(answer, Issued)
    assert (answer.roots, answer.note) == ((root,), "")
    state, slot = granted(unborn, answer, POLICY, datetime.now(UTC))
    assert serves(state)
    own = slot.authority.chain[0]
    assert own.subject == request.csr.subject
    names = own.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    assert names == x509.SubjectAlternativeName([x509.UniformResourceIdentifier(str(TD.id))])
    usage = own.extensions.get_extension_for_class(x509.KeyUsage).value
    assert (usage.key_cert_sign, usage.crl_sign) == (True, True)
    assert (usage.digital_signature, usage.key_encipherment) == (False, False), "those of servers are not wanted"
    await remote.forget(request.id, handle)
    assert await left(at) == []
    await remote.forget(request.id, handle)


async def check_who_says_no_is_heard(at: Installation, folder: Path) -> None:
    """It stays for people to look at, until the next one has been answered."""
    await at.issuer("root")
    remote = signer(at, "root")
    request = a_request(remote)
    handle = await remote.submit(request.to_ca(TD))
    await at.deny(f"{PREFIX}{request.id}", "not in this cluster")
    said = await refused(remote, request, handle)
    assert "was denied: " in said
    assert "not in this cluster" in said
    await remote.forget(request.id, handle)
    assert await left(at) == [f"{PREFIX}{request.id}"]
    # What was made a second later is newer.
    await asyncio.sleep(NEXT_SECOND)
    following = a_request(remote)
    await issued(at, remote, following)
    await remote.forget(following.id, NO_HANDLE)
    assert await left(at) == []


async def check_an_issuer_that_does_not_know_its_root(at: Installation, folder: Path) -> None:
    """What it names is no root, which has to come from a file."""
    root = await at.issuer("issuing", without_root=True)
    remote = signer(at, "issuing")
    request = a_request(remote)
    found = await issued(at, remote, request)
    assert (len(found.chain), found.roots) == (2, ())
    assert not (await remote.roots()).certificates
    await remote.forget(request.id, NO_HANDLE)
    file = folder / "roots.pem"
    file.write_bytes(to_pem([root]))
    with_file = signer(at, "issuing", roots=file)
    unborn = await Life(POLICY, Elsewhere(with_file.name), TD).first(datetime.now(UTC))
    assert unborn.request is not None
    state, _ = granted(unborn, await issued(at, with_file, unborn.request), POLICY, datetime.now(UTC))
    assert serves(state)
    assert state.bundle.x509_authorities == (root,)
    assert ((await with_file.roots()).certificates, (await with_file.roots()).complete) == ((root,), True)
    await with_file.forget(unborn.request.id, NO_HANDLE)


async def check_an_issuer_that_is_not_there_is_waited_for(at: Installation, folder: Path) -> None:
    """Somebody may make it yet."""
    remote = signer(at, "nobody")
    request = a_request(remote)
    handle = await remote.submit(request.to_ca(TD))
    await at.approve(f"{PREFIX}{request.id}")
    async with asyncio.timeout(PATIENCE):
        while True:
            found = await remote.poll(request.to_ca(TD), handle)
            assert isinstance(found, Pending), found
            if "not found" in found.reason:
                break
            await asyncio.sleep(LOOK_SECONDS)
    assert "is approved, and waits for its issuer: Pending: " in found.reason
    await remote.forget(request.id, handle)
    assert await left(at) == []


async def check_one_that_was_deleted_or_replaced_is_over(at: Installation, folder: Path) -> None:
    """Who may make and delete them could have another issuer sign for the signer's key."""
    await at.issuer("root")
    await at.issuer("other")
    remote = signer(at, "root")
    request = a_request(remote)
    handle = await remote.submit(request.to_ca(TD))
    path = f"{API}/namespaces/{at.namespace}/certificaterequests/{PREFIX}{request.id}"
    await at.api.delete(path)
    assert "was deleted before" in await refused(remote, request, handle)
    other = await signer(at, "other").submit(request.to_ca(TD))
    await at.approve(f"{PREFIX}{request.id}")
    assert "was replaced by another one" in await refused(remote, request, handle)
    assert "was replaced by another one" in await refused(remote, request, other)
    try:
        await remote.submit(request.to_ca(TD))
    except UpstreamUnusable as error:
        assert "is not what the signer asks for" in str(error)
    else:
        raise AssertionError("it took another request for its own")
    await at.api.delete(path)


CHECKS = (
    check_signs_what_was_approved,
    check_who_says_no_is_heard,
    check_an_issuer_that_does_not_know_its_root,
    check_an_issuer_that_is_not_there_is_waited_for,
    check_one_that_was_deleted_or_replaced_is_over,
)
