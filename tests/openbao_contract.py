"""What podsvid expects of an OpenBao: checked of a real one, and of the stand-in that unit tests use."""

from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Protocol

from cryptography import x509

from signer.authority.granting import granted
from signer.authority.lifecycle import Life
from signer.authority.request import X509Request, new_request
from signer.authority.state import AuthorityState
from signer.authority.timing import LifecyclePolicy
from signer.openbao_settings import OpenBaoSettings
from signer.upstream.certify import UpstreamUnusable
from signer.upstream.openbao import OpenBao
from signer.upstream.remote import NO_HANDLE, Elsewhere, Issued, UpstreamAway
from svid.certificates import to_pem
from svid.keys import KeyAlgorithm
from svid.spiffeid import SpiffeId, TrustDomain
from svid.x509svid import check_x509_svid

TD = TrustDomain("example.org")
WEB = SpiffeId.parse("spiffe://example.org/ns/default/sa/web")
POLICY = LifecyclePolicy(
    authority_ttl=timedelta(days=10),
    jwt_period=timedelta(days=5),
    x509_max_ttl=timedelta(hours=1),
    jwt_max_ttl=timedelta(minutes=10),
    ack_bound=timedelta(minutes=15),
    reissue_window=timedelta(minutes=10),
    forced_window=timedelta(seconds=90),
    overlap=timedelta(minutes=5),
    jwt_algorithm=None,
)


class Engine(Protocol):
    """A server with a PKI engine at `mount`, which has a root; the signer logs in by AppRole."""

    address: str

    def root_of(self, mount: str) -> x509.Certificate:
        """The root of that engine, made where there is none."""
        ...

    def issuing(self, mount: str, root: str) -> None:
        """An engine whose CA the one at `root` signed, and that does not have the root."""
        ...

    def most(self, mount: str, lifetime: timedelta) -> None:
        """What that engine signs ends after so long."""
        ...

    def credential(self) -> tuple[str, str]:
        """Of AppRole: a role id, and a secret id that may sign."""
        ...

    def seal(self) -> None: ...

    def unseal(self) -> None: ...


@dataclass(frozen=True)
class Signer:
    """A signer's way there."""

    settings: OpenBaoSettings

    def at(self, mount: str, **changes: object) -> OpenBao:
        return OpenBao(replace(self.settings, mount=mount, **changes))  # type: ignore[arg-type]


def signer(engine: Engine, folder: Path) -> Signer:
    role, secret = engine.credential()
    file = folder / "secret-id"
    file.write_text(secret + "\n")
    return Signer(
        OpenBaoSettings(
            engine.address, "pki", None, None, None, "approle", None, None, None, role, file, None, None, None
        )
    )


def a_request(remote: OpenBao, lifetime: timedelta = POLICY.authority_ttl) -> X509Request:
    """Of a new key."""
    return new_request(remote.name, TD, KeyAlgorithm.EC_P256.generate(), lifetime, _now(), wished=False)


async def issued(remote: OpenBao, request: X509Request | None = None) -> Issued:
    """What it says to a request."""
    asked = (request or a_request(remote)).to_ca(TD)
    assert await remote.submit(asked) == NO_HANDLE
    found = await remote.poll(asked, NO_HANDLE)
    assert isinstance(found, Issued)
    return found


async def check_signs(engine: Engine, folder: Path) -> None:
    """It certifies what the signer's trial takes: an SVID verifies under the root, and nothing else is trusted."""
    root = engine.root_of("pki")
    remote = signer(engine, folder).at("pki")
    unborn = await Life(POLICY, Elsewhere(remote.name), TD).first(_now())
    assert unborn.request is not None
    found = await issued(remote, unborn.request)
    assert found.roots == (root,)
    assert found.note == ""
    state, slot = granted(unborn, found, POLICY, _now())
    assert serves(state)
    own = slot.authority.chain[0]
    assert own.subject == unborn.request.csr.subject
    names = own.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    assert names == x509.SubjectAlternativeName([x509.UniformResourceIdentifier(str(TD.id))])
    assert own.extensions.get_extension_for_class(x509.BasicConstraints).value.path_length == 0
    # The same key once more is another certificate: such a CA does not know that it was asked before.
    again = await issued(remote, unborn.request)
    assert again.chain[0].public_key() == own.public_key()


async def check_names_its_roots(engine: Engine, folder: Path) -> None:
    """Whoever asks may know what is to be trusted."""
    root = engine.root_of("pki")
    found = await signer(engine, folder).at("pki").roots()
    assert root in found.certificates
    assert found.complete


async def check_an_issuing_ca_without_its_root(engine: Engine, folder: Path) -> None:
    """The chain then ends below the root, which has to come from a file."""
    root = engine.root_of("pki")
    engine.issuing("issuing", "pki")
    to = signer(engine, folder)
    found = await issued(to.at("issuing"))
    assert (len(found.chain), found.roots) == (2, ())
    assert (await to.at("issuing").roots()).certificates == ()
    file = folder / "roots.pem"
    file.write_bytes(to_pem([root]))
    remote = to.at("issuing", roots=file)
    unborn = await Life(POLICY, Elsewhere(remote.name), TD).first(_now())
    assert unborn.request is not None
    found = await issued(remote, unborn.request)
    state, _ = granted(unborn, found, POLICY, _now())
    assert serves(state)
    assert state.bundle.x509_authorities == (root,)
    assert (await remote.roots()).certificates == (root,)


async def check_a_short_lifetime_is_told(engine: Engine, folder: Path) -> None:
    """The engine cuts it without an error."""
    engine.root_of("brief")
    engine.most("brief", timedelta(hours=1))
    found = await issued(signer(engine, folder).at("brief"))
    assert "gives 1h" in found.note
    assert "of the 10d that were asked for" in found.note


async def check_who_may_not_is_told_so(engine: Engine, folder: Path) -> None:
    """Nothing that was sent is repeated."""
    engine.root_of("pki")
    to = signer(engine, folder)
    assert to.settings.secret_id_file is not None
    secret = "wrong-secret-id-0123456789"
    to.settings.secret_id_file.write_text(secret)
    said = await unusable(to.at("pki"))
    assert "does not log the signer in by approle" in said
    assert secret not in said
    to = signer(engine, folder)
    assert "does not sign: 403" in await unusable(to.at("elsewhere"))
    token = folder / "token"
    token.write_text("s.notatokenofanybody")
    said = await unusable(to.at("pki", auth="token", token_file=token, secret_id_file=None))
    assert "does not sign: 403" in said
    assert "notatoken" not in said


async def check_another_issuer_is_told(engine: Engine, folder: Path) -> None:
    """It says so by a status by which others say that they are broken."""
    engine.root_of("pki")
    said = await unusable(signer(engine, folder).at("pki", issuer="nobody"))
    assert "is openbao_mount or openbao_issuer another one?" in said


async def check_sealed_is_away(engine: Engine, folder: Path) -> None:
    """It is no fault of the signer's, and over when it is unsealed."""
    engine.root_of("pki")
    remote = signer(engine, folder).at("pki")
    engine.seal()
    try:
        assert "sealed" in await away(remote)
    finally:
        engine.unseal()
    await issued(remote)


CHECKS = (
    check_signs,
    check_names_its_roots,
    check_an_issuing_ca_without_its_root,
    check_a_short_lifetime_is_told,
    check_who_may_not_is_told_so,
    check_another_issuer_is_told,
    check_sealed_is_away,
)


async def unusable(remote: OpenBao) -> str:
    try:
        await issued(remote)
    except UpstreamUnusable as error:
        return str(error)
    raise AssertionError("it certified")


async def away(remote: OpenBao) -> str:
    try:
        await issued(remote)
    except UpstreamAway as error:
        return str(error)
    raise AssertionError("it certified")


def serves(state: AuthorityState) -> bool:
    """Whether an SVID of it verifies under what would be published."""
    leaf = KeyAlgorithm.EC_P256.generate().public_key()
    chain = state.active_x509.issue(leaf, WEB, ttl=timedelta(minutes=1), now=_now())
    return check_x509_svid(chain, state.bundle, _now()) == WEB


def _now() -> datetime:
    """A real server dates by its own clock."""
    return datetime.now(UTC)
