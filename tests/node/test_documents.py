"""`podsvid bundle` and `podsvid oidc` against a signer's admin socket: what any web server can serve."""

import argparse
import asyncio
import fcntl
import json
import os
import signal
import stat
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest

from podsvid import documents
from podsvid.asked import NoDocument
from podsvid.documents import OlderDocument
from podsvid.interrupts import Interrupted
from podsvid.sockets import SocketAbsent
from signer.pb import admin_pb2
from svid import oidc
from svid.bundle import TrustBundle
from svid.federation import NO_HINT, bundle_document
from svid.oidc import Issuer
from svid.spiffeid import TrustDomain
from tests.signer_rig import Serving, Site, serving

ISSUER = "https://oidc.example.org/prod"


def parsed(folder: Path, *line: str) -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    commands = parser.add_subparsers(dest="command")
    documents.add_bundle_arguments(commands.add_parser("bundle"))
    documents.add_oidc_arguments(commands.add_parser("oidc"))
    return parser.parse_args([*line, "--socket", str(folder / "a.sock")])


async def say(folder: Path, *line: str) -> int:
    found = parsed(folder, *line)
    return await asyncio.to_thread(documents.run_bundle if found.command == "bundle" else documents.run_oidc, found)


def beside(folder: Path, test: Callable[[Serving], Awaitable[None]], *flags: str) -> None:
    """Run a test beside a replica."""

    async def run() -> None:
        site = Site()
        async with serving(site, folder, site.clock, *flags) as here:
            async with asyncio.timeout(10):
                while not (folder / "a.sock").is_socket():
                    await asyncio.sleep(0.01)
            await test(here)

    asyncio.run(run())


def test_the_bundle_is_shown_and_exported_as_partners_fetch_it(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    async def test(here: Serving) -> None:
        state = here.replica._rotation.state
        assert state is not None
        expected = bundle_document(state.bundle, NO_HINT)
        assert await say(tmp_path, "bundle", "show") == 0
        assert capsys.readouterr().out.encode() == expected
        assert await say(tmp_path, "bundle", "show", "--format", "pem") == 0
        assert capsys.readouterr().out.encode() == state.bundle.to_pem()
        assert await say(tmp_path, "bundle", "show", "-o", "json") == 0
        told: dict[str, Any] = json.loads(capsys.readouterr().out)
        assert (told["spiffe"].encode(), told["sequence"]) == (expected, str(state.sequence))
        file = tmp_path / "web" / "bundle.json"
        file.parent.mkdir()
        before = os.umask(0o077)
        try:
            for _ in range(2):  # also over the one before
                assert await say(tmp_path, "bundle", "export", str(file)) == 0
                assert capsys.readouterr().out == f"{file}: trust bundle of example.org, sequence {state.sequence}\n"
        finally:
            os.umask(before)
        assert file.read_bytes() == expected
        assert stat.S_IMODE(file.stat().st_mode) == 0o644, "a web server reads it"
        assert os.listdir(file.parent) == [file.name], "nothing unfinished is left"
        assert TrustBundle.from_jwks(TrustDomain("example.org"), file.read_bytes()).sequence == state.sequence

    beside(tmp_path, test)


def test_partners_are_told_to_poll_as_often_as_the_setting_says(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    async def test(here: Serving) -> None:
        assert await say(tmp_path, "bundle", "show") == 0
        assert json.loads(capsys.readouterr().out)["spiffe_refresh_hint"] == 7 * 60

    beside(tmp_path, test, "--bundle-hint", "7m")


def test_a_replica_that_is_behind_does_not_send_partners_back(tmp_path: Path) -> None:
    async def test(here: Serving) -> None:
        file = tmp_path / "out.json"
        newer = json.dumps({"keys": [], "spiffe_sequence": 2**62})
        file.write_text(newer)
        with pytest.raises(OlderDocument, match="ask again"):
            await say(tmp_path, "bundle", "export", str(file))
        assert file.read_text() == newer
        file.write_text("not of ours")
        assert await say(tmp_path, "bundle", "export", str(file)) == 0

    beside(tmp_path, test)


def test_a_file_that_cannot_be_replaced_stays_whole(tmp_path: Path) -> None:
    async def test(here: Serving) -> None:
        folder = tmp_path / "out.json"
        (folder / "inside").mkdir(parents=True)
        with pytest.raises(OSError, match="out"):
            await say(tmp_path, "bundle", "export", str(folder))
        assert not list(tmp_path.glob(".out.json*"))
        with pytest.raises(FileNotFoundError):
            await say(tmp_path, "bundle", "export", str(tmp_path / "absent" / "b.json"))

    beside(tmp_path, test)


def test_a_disk_that_is_full_leaves_the_document_before(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async def test(here: Serving) -> None:
        file = tmp_path / "out.json"
        file.write_text("before")

        def full(descriptor: int) -> None:
            raise OSError(28, "No space left on device")

        monkeypatch.setattr(os, "fsync", full)
        with pytest.raises(OSError, match="No space"):
            await say(tmp_path, "bundle", "export", str(file))
        assert file.read_text() == "before"
        assert not list(tmp_path.glob(".out.json*"))

    beside(tmp_path, test)


def test_the_documents_of_openid_connect_are_laid_out_below_the_issuers_url(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    async def test(here: Serving) -> None:
        state, folder = here.replica._rotation.state, tmp_path / "web"
        assert state is not None
        assert await say(tmp_path, "oidc", "export", str(folder)) == 0
        told = capsys.readouterr().out
        assert f"for {ISSUER}/keys\n" in told
        assert f"for {ISSUER}/.well-known/openid-configuration\n" in told
        issuer = Issuer.of(ISSUER, None)
        assert (folder / "keys").read_bytes() == oidc.keys(state.bundle)
        written = (folder / ".well-known" / "openid-configuration").read_bytes()
        assert written == oidc.configuration(state.bundle, issuer)
        assert json.loads(written)["id_token_signing_alg_values_supported"] == ["ES256"]

    beside(tmp_path, test, "--jwt-issuer", ISSUER, "--jwt-algorithm", "ES256")


@pytest.mark.parametrize(
    ("flags", "why"),
    [
        ((), "name no issuer"),
        (("--jwt-issuer", "https://a.example/?x"), r"name the issuer https://a.example/\?x, which verifiers cannot"),
        (("--jwt-issuer", ISSUER, "--jwt-svids", "false"), "no JWT authority"),
    ],
)
def test_what_cannot_be_exported_leaves_nothing(tmp_path: Path, flags: tuple[str, ...], why: str) -> None:
    async def test(here: Serving) -> None:
        with pytest.raises(NoDocument, match=why):
            await say(tmp_path, "oidc", "export", str(tmp_path / "web"))
        assert not (tmp_path / "web").exists()

    beside(tmp_path, test, *flags)


def answered(monkeypatch: pytest.MonkeyPatch, sequence: int) -> None:
    """A signer answers with what is of that sequence."""
    found = admin_pb2.PublishResponse(
        sequence=sequence,
        trust_domain="example.org",
        spiffe=json.dumps({"keys": [], "spiffe_sequence": sequence}),
        pem=f"pem {sequence}",
        issuer=ISSUER,
        jwks=f"keys {sequence}",
        openid_configuration="{}",
    )
    monkeypatch.setattr(documents, "_asked", lambda _: found)


@pytest.mark.parametrize(
    ("line", "file"),
    [
        (("bundle", "export", "b"), "b"),
        (("bundle", "export", "b", "--format", "pem"), "b"),
        (("oidc", "export", "."), "keys"),
    ],
)
def test_no_older_document_replaces_a_newer_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, line: tuple[str, ...], file: str
) -> None:
    monkeypatch.chdir(tmp_path)

    def export(sequence: int) -> bytes:
        answered(monkeypatch, sequence)
        assert asyncio.run(say(tmp_path, *line)) == 0
        return Path(file).read_bytes()

    newer = export(7)
    for _ in range(2):
        with pytest.raises(OlderDocument, match="has sequence 7, and the signer that was asked 6"):
            export(6)
        assert Path(file).read_bytes() == newer == export(7)
    assert export(8) != newer
    # Another cluster's, say.
    Path(file).unlink()
    assert export(6)

    # Another export has gone first and was quicker.
    def waits(descriptor: int, how: int) -> None:
        assert how == fcntl.LOCK_EX
        assert os.path.samestat(os.fstat(descriptor), tmp_path.stat())
        monkeypatch.setattr(fcntl, "flock", lambda *_: None)
        export(9)
        answered(monkeypatch, 7)

    monkeypatch.setattr(fcntl, "flock", waits)
    answered(monkeypatch, 7)
    with pytest.raises(OlderDocument, match="has sequence 9"):
        documents.run_bundle(found) if (found := parsed(tmp_path, *line)).command == "bundle" else documents.run_oidc(
            found
        )


def test_an_export_that_was_killed_is_in_nobodys_way(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    answered(monkeypatch, 7)
    (tmp_path / f".b.{os.getpid()}").touch()
    assert asyncio.run(say(tmp_path, "bundle", "export", str(tmp_path / "b"))) == 0


def test_an_export_that_is_ended_leaves_the_document_before(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    answered(monkeypatch, 7)
    file = tmp_path / "b"
    file.write_text("before")
    monkeypatch.setattr(os, "fsync", lambda _: signal.raise_signal(signal.SIGTERM))
    with pytest.raises(Interrupted):
        documents.run_bundle(parsed(tmp_path, "bundle", "export", str(file)))
    assert file.read_text() == "before"
    assert os.listdir(tmp_path) == ["b"]


def test_a_web_server_may_enter_what_an_export_makes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    answered(monkeypatch, 7)
    (tmp_path / "own").mkdir(mode=0o700)
    before = os.umask(0o077)
    try:
        assert documents.run_oidc(parsed(tmp_path, "oidc", "export", str(tmp_path / "own" / "a" / "b"))) == 0
    finally:
        os.umask(before)
    made = [tmp_path / "own" / "a", tmp_path / "own" / "a" / "b", tmp_path / "own" / "a" / "b" / ".well-known"]
    assert [stat.S_IMODE(each.stat().st_mode) for each in made] == [0o755] * 3
    assert stat.S_IMODE((tmp_path / "own").stat().st_mode) == 0o700, "that was there"


def test_without_a_signer_it_is_said_how_to_ask_one(tmp_path: Path) -> None:
    with pytest.raises(SocketAbsent, match="podsvid bundle show"):
        asyncio.run(say(tmp_path, "bundle", "show"))
