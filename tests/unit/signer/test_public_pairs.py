"""Certificates of the public listeners: files that are read anew, the own SVID, and what stays when either breaks."""

import asyncio
import errno
import logging
import os
import ssl
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from types import SimpleNamespace

import pytest

from agent.authority.proven import _is_named
from signer.authority.lifecycle import Life
from signer.authority.slots import Stage
from signer.authority.state import AuthorityState
from signer.keystore.keys import Keys
from signer.keystore.store import KeyStoreUnavailable
from signer.minting.own import OwnSvid
from signer.public import tls
from signer.public.pairs import MAX_FILE, FilePair, OwnPair, PairUnusable, read_pair
from signer.public.shown import Pair
from signer.upstream.certify import SelfSigned
from svid.certificates import certificates_from_pem
from svid.dnsnames import SIGNER_NAME
from svid.keys import KeyAlgorithm
from svid.x509svid import check_x509_svid
from tests.public_rig import web_pair, write_pair
from tests.signer_rig import START, StepClock
from tests.unit.signer.test_lifecycle import POLICY, TD, advanced, first, life

GOOD = web_pair(START)
OTHER = web_pair(START)
Look = tuple[Pair | None, str]


def left(state: AuthorityState) -> AuthorityState:
    """The state when all but the active X.509 authority have left it."""
    return replace(state, x509=tuple(each for each in state.x509 if each.stage is Stage.ACTIVE))


def looks(source: FilePair) -> Look:
    asyncio.run(source.look(None))
    return source.pair, source.trouble


def test_files_are_taken_and_taken_anew_when_they_change(tmp_path: Path) -> None:
    source = FilePair("bundle", *write_pair(GOOD, tmp_path), StepClock())
    assert looks(source) == (GOOD, "")
    assert source.ends == START + timedelta(days=365)
    write_pair(OTHER, tmp_path)
    assert looks(source) == (OTHER, "")


@pytest.mark.parametrize(
    ("pair", "why"),
    [
        (Pair(b"", GOOD.key), "has no certificate"),
        (Pair(b"rubbish", GOOD.key), "has no certificate"),
        (Pair(GOOD.chain, OTHER.key), "is not the unencrypted PEM key of the certificate in"),
        (Pair(GOOD.chain, b""), "is not the unencrypted PEM key"),
        (web_pair(START, password=b"hush"), "is not the unencrypted PEM key"),
        (web_pair(START, life=-timedelta(seconds=1)), "ended at 20"),
        (Pair(b"#" * (MAX_FILE + 1), GOOD.key), "has more than"),
    ],
)
def test_broken_files_keep_the_pair_before_and_are_reported_once(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, pair: Pair, why: str
) -> None:
    source = FilePair("bundle", *write_pair(GOOD, tmp_path), StepClock())
    assert looks(source) == (GOOD, "")
    write_pair(pair, tmp_path)
    caplog.clear()
    for _ in range(2):
        kept, said = looks(source)
        assert kept == GOOD
        assert why in said
    assert [each.levelno for each in caplog.records] == [logging.ERROR]
    assert "PRIVATE" not in caplog.text
    write_pair(OTHER, tmp_path)
    assert looks(source) == (OTHER, "")


def test_files_that_are_not_there_are_no_pair(tmp_path: Path) -> None:
    chain, key = write_pair(GOOD, tmp_path)
    key.unlink()
    source = FilePair("bundle", chain, key, StepClock())
    found, why = looks(source)
    assert found is None
    assert why == f"{key}: No such file or directory"


def let_go(pipe: Path) -> bool:
    """Whether there was somebody who reads the pipe, who sees its end then."""
    try:
        os.close(os.open(pipe, os.O_WRONLY | os.O_NONBLOCK))
    except OSError as error:
        if error.errno != errno.ENXIO:
            raise
        return False
    return True


def test_a_file_that_hangs_is_not_waited_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("signer.public.pairs.LOOK_SECONDS", 0.05)
    chain, key = write_pair(GOOD, tmp_path)
    chain.unlink()
    os.mkfifo(chain)
    source = FilePair("bundle", chain, key, StepClock())

    async def run() -> None:
        await source.look(None)
        # Whoever reads the pipe is let go, once it has begun to.
        async with asyncio.timeout(30):
            while not let_go(chain):
                await asyncio.sleep(0.01)

    asyncio.run(run())
    assert source.pair is None
    assert "are not read within" in source.trouble


def test_a_pair_that_ended_is_none(tmp_path: Path) -> None:
    files = write_pair(web_pair(START, life=timedelta(hours=1)), tmp_path)
    assert read_pair(*files, START)[1] == START + timedelta(hours=1)
    with pytest.raises(PairUnusable, match="ended at"):
        read_pair(*files, START + timedelta(hours=1))


@pytest.mark.spec("FED-44")
def test_the_own_svid_is_re_issued_at_half_of_its_life_and_when_its_issuer_leaves() -> None:
    state = first()
    asked, _ = life().asked(state, "x509", forced=False, now=START + timedelta(hours=12))
    later = advanced(asked, START + timedelta(hours=12))
    assert later.active_x509_id != state.active_x509_id
    without = left(later)

    async def run() -> None:
        clock = StepClock()
        source = OwnPair("bundle", clock, Keys())
        await source.look(None)
        assert source.pair is None
        await source.look(state)
        one = source.pair
        assert one is not None
        chain = certificates_from_pem(one.chain)
        assert str(check_x509_svid(chain, state.bundle, clock.now())) == "spiffe://example.org/podsvid/signer"
        assert source.ends is None, "renewed here"
        clock.pass_by(hours=12, seconds=-1)
        await source.look(state)
        assert source.pair is one
        clock.pass_by(seconds=1)
        await source.look(state)
        two = source.pair
        assert two is not None
        assert two != one
        # Another authority signs: partners may know only the one before, which is trusted still.
        await source.look(later)
        assert source.pair is two
        check_x509_svid(certificates_from_pem(two.chain), state.bundle, clock.now())
        check_x509_svid(certificates_from_pem(two.chain), later.bundle, clock.now())
        # It has left: due, whatever the clock says.
        await source.look(without)
        three = source.pair
        assert three is not None
        assert three != two
        check_x509_svid(certificates_from_pem(three.chain), later.active_x509.bundle, clock.now())
        await source.look(without)
        assert source.pair is three

    asyncio.run(run())


def test_an_authority_that_cannot_sign_leaves_the_svid_before(caplog: pytest.LogCaptureFixture) -> None:
    class Away(Keys):
        down = False

        async def do(self, *arguments: object, **named: object) -> object:  # type: ignore[override]
            if self.down:
                raise KeyStoreUnavailable("no token")
            return await super().do(*arguments, **named)  # type: ignore[arg-type]

    state = first()

    async def run() -> None:
        clock, keys = StepClock(), Away()
        source = OwnPair("bundle", clock, keys)
        await source.look(state)
        kept, keys.down = source.pair, True
        clock.pass_by(hours=12)
        caplog.clear()
        for _ in range(2):
            await source.look(state)
        assert source.pair is kept
        assert "no token" in source.trouble
        assert len(caplog.records) == 1
        keys.down = False
        await source.look(state)
        assert source.trouble == ""
        assert source.pair is not kept

    asyncio.run(run())


def test_below_a_root_that_is_trusted_no_more_another_is_due_at_once() -> None:
    state = first()
    asked, _ = life().asked(state, "x509", forced=False, now=START)
    later = advanced(asked, START)
    own = OwnSvid.issued(state, START)
    active, old = later.active_x509, next(each for each in later.x509 if each.stage is Stage.OLD)
    assert not own.due(later, START)
    # Its issuer is there, and the root that it leads to is not.
    elsewhere = replace(old, authority=replace(old.authority, bundle=active.bundle))
    moved = replace(later, x509=tuple(elsewhere if each is old else each for each in later.x509))
    assert own.due(moved, START)
    assert not OwnSvid.issued(moved, START).due(moved, START)


def test_agents_do_not_take_the_listeners_svid_for_the_signers() -> None:
    state = first()
    shown = OwnSvid.issued(state, START)
    agents = OwnSvid.issued(state, START, (SIGNER_NAME,))
    named = [_is_named(certificates_from_pem(each.chain)[0]) for each in (shown, agents)]
    assert named == [False, True]

    async def run() -> None:
        source = OwnPair("bundle", StepClock(), Keys())
        await source.look(state)
        assert source.pair is not None
        assert not _is_named(certificates_from_pem(source.pair.chain)[0])

    asyncio.run(run())


def test_an_authority_whose_chain_openssl_refuses_leaves_the_svid_before_and_signs_once(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """As OpenSSL before 3.5 does below an ML-DSA authority."""
    state = first()
    asked, _ = life().asked(state, "x509", forced=False, now=START + timedelta(hours=1))
    later = advanced(asked, START + timedelta(hours=1))
    signed: list[str] = []

    class Counting(Keys):
        async def do(self, *arguments: object, **named: object) -> object:  # type: ignore[override]
            signed.append("once")
            return await super().do(*arguments, **named)  # type: ignore[arg-type]

    refused: list[bytes] = []

    def context(pair: Pair) -> ssl.SSLContext:
        if refused:
            raise ssl.SSLError(1, "unsupported")
        return tls.context(pair)

    monkeypatch.setattr("signer.public.pairs.tls", SimpleNamespace(context=context))

    async def run() -> None:
        clock = StepClock()
        source = OwnPair("bundle", clock, Counting())
        await source.look(state)
        kept = source.pair
        assert kept is not None
        clock.pass_by(hours=1)
        refused.append(b"from now on")
        signed.clear()
        caplog.clear()
        for _ in range(3):
            await source.look(left(later))
        assert source.pair is kept
        assert "knows no ML-DSA" in source.trouble
        assert signed == ["once"]
        assert len(caplog.records) == 1
        # Its turn again: no other is signed for that.
        refused.clear()
        await source.look(left(later))
        assert source.trouble == ""
        assert source.pair not in (None, kept)
        assert signed == ["once"]

    asyncio.run(run())


def test_whatever_openssl_there_is_an_ml_dsa_authority_breaks_no_listener() -> None:
    by = Life(replace(POLICY, key_algorithm=KeyAlgorithm.ML_DSA_44), SelfSigned(), TD)
    state = asyncio.run(by.first(START))

    async def run() -> None:
        source = OwnPair("bundle", StepClock(), Keys())
        await source.look(state)
        if source.pair is None:
            assert "knows no ML-DSA" in source.trouble
        else:
            tls.context(source.pair)

    asyncio.run(run())
