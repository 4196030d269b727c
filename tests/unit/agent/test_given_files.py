"""An authority in files that somebody else replaces: followed, checked as at the start, and never for the worse."""

import argparse
import asyncio
import logging
import os
import threading
from collections.abc import Awaitable, Callable
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest

from agent import config
from agent.authority.given import FollowedJwtKeys, GivenX509
from agent.authority.jwt_keys import open_given
from agent.authority.local import IssuePolicy, LocalAuthority
from agent.authority.protocol import JwtRequest, MintRequest
from agent.config import AgentConfig
from agent.daemon import _local_authority
from agent.errors import AuthorityDamaged
from csi.model import PodRef
from runtime.bounded import Bounded
from runtime.stopping import Stopped, unless
from svid.authority import X509Authority
from svid.bundle import TrustBundle
from svid.certificates import to_pem
from svid.jws import JwtAlgorithm
from svid.jwtauthority import JwtSigningKey
from svid.keys import KeyAlgorithm, key_to_pem
from svid.x509svid import check_x509_svid
from tests.fake_authority import HOUR, SPIFFE_ID, TRUST_DOMAIN, StepClock, root

POD = PodRef("default", "web-1", "0b6a9a4e-6a8e-4c1c-9f3c-111111111111", "web")
FILES = ("tls.crt", "tls.key")


def put(path: Path, data: bytes) -> None:
    """As kubelet replaces what a Secret's volume shows: another file under the name."""
    new = path.with_name(f"{path.name}.new")
    new.write_bytes(data)
    os.rename(new, path)


class Scene:
    """An authority of files: a certificate, its key, a JWT key, and roots where a test gives some."""

    def __init__(self, folder: Path, roots: bool) -> None:
        self.reader = Bounded()
        self.folder, self.clock = folder, StepClock()
        self.first, self.second = root(self.clock.at), root(self.clock.at)
        self.bundle = folder / "ca.crt" if roots else None
        self.jwt = JwtSigningKey.create(JwtAlgorithm.ES256)
        self.hand(self.first)
        self.roots(self.first)
        put(folder / "jwt.key", key_to_pem(self.jwt.private_key))
        self.authority = LocalAuthority(
            GivenX509(folder / "tls.crt", folder / "tls.key", self.bundle, TRUST_DOMAIN),
            IssuePolicy(HOUR, HOUR, HOUR * 2),
            self.clock,
            self.reader,
            FollowedJwtKeys(folder / "jwt.key", None, JwtAlgorithm.ES256, TRUST_DOMAIN, timedelta(minutes=5)),
        )

    def hand(self, authority: X509Authority) -> None:
        put(self.folder / "tls.crt", to_pem(authority.chain))
        put(self.folder / "tls.key", key_to_pem(authority.private_key))

    def roots(self, *authorities: X509Authority) -> None:
        if self.bundle is not None:
            put(self.bundle, to_pem([each.chain[-1] for each in authorities]))

    async def mint(self) -> Any:
        minted = await self.authority.mint_x509(MintRequest(POD, None, KeyAlgorithm.EC_P256.generate(), None, ()))
        assert check_x509_svid(minted.chain, minted.trust.bundle, self.clock.at) == SPIFFE_ID
        return minted

    @property
    def trusted(self) -> list[X509Authority]:
        found = self.authority.trust.current
        assert found is not None
        known = {each.chain[-1]: each for each in (self.first, self.second)}
        return [known[each] for each in found.bundle.x509_authorities]


Play = Callable[[Scene], Awaitable[None]]


def on_stage(folder: Path, play: Play, *, roots: bool = False) -> None:
    async def main() -> None:
        await play(Scene(folder, roots))

    asyncio.run(main())


def test_a_replaced_ca_signs_at_the_next_look_and_the_one_before_is_trusted_while_its_svids_live(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    async def play(at: Scene) -> None:
        old = await at.mint()
        await at.authority.refresh()
        assert (at.trusted, at.authority.trust.version) == ([at.first], 1)
        at.hand(at.second)
        with caplog.at_level(logging.INFO, "podsvid.authority"):
            await at.authority.refresh()
        assert "the new one signs" in caplog.text
        new = await at.mint()
        assert new.chain[0].issuer == at.second.chain[0].subject
        assert at.trusted == [at.second, at.first]
        check_x509_svid(old.chain, new.trust.bundle, at.clock.at)
        # An SVID of it may have been asked for with the longest life there is.
        at.clock.at += HOUR * 2 - timedelta(seconds=1)
        await at.authority.refresh()
        assert at.trusted == [at.second, at.first]
        at.clock.at += timedelta(seconds=1)
        await at.authority.refresh()
        assert at.trusted == [at.second]
        version = at.authority.trust.version
        await at.authority.refresh()
        assert at.authority.trust.version == version

    on_stage(tmp_path, play)


def test_where_roots_are_given_they_say_who_is_trusted_and_for_how_long(tmp_path: Path) -> None:
    async def play(at: Scene) -> None:
        at.roots(at.first, at.second)
        await at.authority.refresh()
        assert at.trusted == [at.first, at.second]
        at.hand(at.second)
        await at.authority.refresh()
        assert (await at.mint()).chain[0].issuer == at.second.chain[0].subject
        # Withdrawn is withdrawn, whatever SVIDs there are.
        at.roots(at.second)
        await at.authority.refresh()
        assert at.trusted == [at.second]

    on_stage(tmp_path, play, roots=True)


def test_the_same_again_is_no_change(tmp_path: Path) -> None:
    async def play(at: Scene) -> None:
        at.hand(at.first)
        await at.authority.refresh()
        assert at.authority.trust.version == 1

    on_stage(tmp_path, play)


def another_key(at: Scene) -> None:
    put(at.folder / "tls.key", key_to_pem(at.second.private_key))


def rubbish(at: Scene) -> None:
    put(at.folder / "tls.crt", b"-----BEGIN CERTIFICATE-----\nrubbish\n")


def gone(at: Scene) -> None:
    (at.folder / "tls.crt").unlink()


def over(at: Scene) -> None:
    at.hand(
        X509Authority.create(TRUST_DOMAIN, algorithm=KeyAlgorithm.EC_P256, lifetime=HOUR, now=at.clock.at - HOUR * 2)
    )


def not_begun(at: Scene) -> None:
    at.hand(
        X509Authority.create(TRUST_DOMAIN, algorithm=KeyAlgorithm.EC_P256, lifetime=HOUR, now=at.clock.at + HOUR / 2)
    )


def of_no_authority(at: Scene) -> None:
    chain = at.second.issue(at.second.private_key.public_key(), SPIFFE_ID, ttl=HOUR, now=at.clock.at)
    at.hand(replace(at.second))
    put(at.folder / "tls.crt", to_pem(chain))


def not_under_its_roots(at: Scene) -> None:
    at.hand(at.second)
    at.roots(at.first)


@pytest.mark.parametrize(
    ("spoil", "why"),
    [
        (another_key, "does not match"),
        (rubbish, "PEM"),
        (gone, "cannot be read"),
        (over, "expired"),
        (not_begun, "invalid SVID"),
        (of_no_authority, "not a CA certificate"),
        (not_under_its_roots, "invalid SVID"),
    ],
)
def test_files_that_cannot_be_used_change_nothing_and_are_said_once(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, spoil: Callable[[Scene], None], why: str
) -> None:
    async def play(at: Scene) -> None:
        spoil(at)
        for _ in range(3):
            await at.authority.refresh()
        said = [each for each in caplog.records if "cannot be used" in each.getMessage()]
        assert len(said) == 1
        assert why in str(said[0].__dict__["error"])
        assert "PRIVATE" not in str(said[0].__dict__)
        assert (await at.mint()).chain[0].issuer == at.first.chain[0].subject
        assert at.trusted == [at.first]
        # Mended, it is followed.
        at.hand(at.second)
        at.roots(at.second)
        await at.authority.refresh()
        assert (await at.mint()).chain[0].issuer == at.second.chain[0].subject

    on_stage(tmp_path, play, roots=True)


def test_one_that_begins_later_signs_when_it_has_begun(tmp_path: Path) -> None:
    async def play(at: Scene) -> None:
        not_begun(at)
        await at.authority.refresh()
        assert at.trusted == [at.first]
        at.clock.at += HOUR * 2 / 3
        await at.authority.refresh()
        assert (await at.mint()).chain[0].issuer != at.first.chain[0].subject

    on_stage(tmp_path, play)


def test_a_replaced_jwt_key_signs_and_the_one_before_is_published_while_its_tokens_live(tmp_path: Path) -> None:
    async def play(at: Scene) -> None:
        other = JwtSigningKey.create(JwtAlgorithm.ES256)
        put(at.folder / "jwt.key", key_to_pem(other.private_key))
        await at.authority.refresh()
        token = await at.authority.mint_jwt(JwtRequest(POD, None, SPIFFE_ID, ("api",)))
        assert token.svid is not None

        def published() -> set[str]:
            found = at.authority.trust.current
            assert found is not None
            return {each.key_id for each in found.bundle.jwt_authorities}

        assert published() == {at.jwt.key_id, other.key_id}
        at.clock.at += timedelta(minutes=5)
        await at.authority.refresh()
        assert published() == {other.key_id}
        put(at.folder / "jwt.key", b"rubbish")
        await at.authority.refresh()
        assert published() == {other.key_id}

    on_stage(tmp_path, play)


def test_files_that_are_bad_at_the_start_are_refused(tmp_path: Path) -> None:
    for each in FILES:
        (tmp_path / each).write_bytes(b"rubbish")
    with pytest.raises(AuthorityDamaged):
        GivenX509(tmp_path / "tls.crt", tmp_path / "tls.key", None, TRUST_DOMAIN)


def test_a_jwt_key_that_cannot_be_published_is_no_silent_loss(tmp_path: Path) -> None:
    signing, other = JwtSigningKey.create(JwtAlgorithm.ES256), JwtSigningKey.create(JwtAlgorithm.RS256)
    put(tmp_path / "jwt.key", key_to_pem(signing.private_key))
    given = tmp_path / "jwks.json"
    given.write_bytes(TrustBundle(TRUST_DOMAIN, jwt_authorities=(other.public,)).to_jwks())
    found = open_given(tmp_path / "jwt.key", given, JwtAlgorithm.ES256, TRUST_DOMAIN)
    assert {each.key_id for each in found.authorities} == {signing.key_id, other.key_id}
    given.write_bytes(given.read_bytes().replace(b'"AQAB"', b'"!"'))
    with pytest.raises(AuthorityDamaged, match=f"kid '{other.key_id}'"):
        open_given(tmp_path / "jwt.key", given, JwtAlgorithm.ES256, TRUST_DOMAIN)


def test_files_that_could_never_issue_do_not_start_and_those_whose_time_is_not_now_do(tmp_path: Path) -> None:
    def started() -> None:
        GivenX509(tmp_path / "tls.crt", tmp_path / "tls.key", tmp_path / "ca.crt", TRUST_DOMAIN)

    def hand(authority: X509Authority, roots: X509Authority) -> None:
        put(tmp_path / "tls.crt", to_pem(authority.chain))
        put(tmp_path / "tls.key", key_to_pem(authority.private_key))
        put(tmp_path / "ca.crt", to_pem(roots.chain))

    now = StepClock().at
    for begin in (now - HOUR * 20, now, now + HOUR * 20):
        own = X509Authority.create(TRUST_DOMAIN, algorithm=KeyAlgorithm.EC_P256, lifetime=HOUR, now=begin)
        hand(own, own)
        started()
    hand(own, root(now))
    with pytest.raises(AuthorityDamaged, match="does not lead to an authority"):
        started()


def test_files_that_hang_change_nothing_and_what_they_say_at_last_is_published(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """The agent waited for them for ever, and did not end when it was told to."""

    async def play(at: Scene) -> None:
        at.reader.seconds = 0.05
        (tmp_path / "tls.crt").unlink()
        os.mkfifo(tmp_path / "tls.crt")
        # A look that waits for the file would not come back.
        watch = threading.Timer(60, (tmp_path / "tls.crt").open, ["r+b"])
        watch.start()
        for _ in range(3):
            await at.authority.refresh()
        watch.cancel()
        assert [each.message for each in caplog.records] == [
            "the authority's files are not read in time; what is held stays in service"
        ]
        assert (await at.mint()).chain[0].issuer == at.first.chain[0].subject
        put(tmp_path / "tls.key", key_to_pem(at.second.private_key))
        with (tmp_path / "tls.crt").open("wb") as pipe:
            put(tmp_path / "tls.crt", to_pem(at.second.chain))
            pipe.write(to_pem(at.second.chain))
        at.reader.seconds = 30.0
        await at.authority.refresh()
        assert at.trusted == [at.second, at.first]
        version = at.authority.trust.version
        await at.authority.refresh()
        assert at.authority.trust.version == version

    on_stage(tmp_path, play)


@pytest.mark.parametrize("hanging", ["tls.crt", "jwt.key"])
def test_an_agent_whose_files_hang_at_the_start_ends_when_told(tmp_path: Path, hanging: str) -> None:
    async def play(at: Scene) -> None:
        (tmp_path / hanging).unlink()
        os.mkfifo(tmp_path / hanging)
        stopping = asyncio.Event()
        asyncio.get_running_loop().call_soon(stopping.set)
        with pytest.raises(Stopped):
            await unless(stopping, _local_authority(config_of(tmp_path), at.clock))

    watch = threading.Timer(60, (tmp_path / hanging).open, ["r+b"])
    watch.start()
    on_stage(tmp_path, play)
    assert watch.is_alive()
    watch.cancel()
    os.close(os.open(tmp_path / hanging, os.O_RDWR))


def config_of(folder: Path) -> AgentConfig:
    parser = argparse.ArgumentParser()
    config.add_arguments(parser)
    files = {"ca-cert-file": "tls.crt", "ca-key-file": "tls.key", "jwt-key-file": "jwt.key"}
    flags = [f"--{name}={folder / file}" for name, file in files.items()]
    named = ["--node-name", "n1", "--trust-domain", str(TRUST_DOMAIN), "--authority", "file"]
    return config.load(parser.parse_args([*named, *flags]), {})
