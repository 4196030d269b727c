"""`podsvid api` as a process, against a Workload API on a real socket: a fake one that may lie, and the agent's."""

import asyncio
import contextlib
import errno
import fcntl
import json
import os
import signal
import stat
import subprocess
import sys
import tempfile
import threading
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import grpc
import pytest
from cryptography import x509

from agent.pb import workload_pb2
from podsvid.api.address import target
from podsvid.api.errors import NoIdentity, UnusableAnswer
from podsvid.api.file_set import DirectoryInUse, FileSet, NotOurs, SetFile
from podsvid.api.following import Backoff, follow_x509
from podsvid.api.watch import Notification
from podsvid.api.workload_client import WorkloadApiClient
from runtime.clock import SystemClock
from svid.bundle import TrustBundle
from svid.jwtauthority import JwtSigningKey
from svid.jwtsvid import JwtAlgorithm
from svid.spiffeid import SpiffeId, TrustDomain
from tests.fake_workload_api import WEB, FakeWorkloadApi, Refusal, authority, eventually, x509_answer, x509_svid
from tests.support import IS_ROOT, ROOT, VOLUME, node, pod

OTHERS = authority("other.example")
# Where a process is waited for; far more than it takes.
DEADLINE = 60.0


@pytest.fixture
def base() -> Iterator[Path]:
    """A short directory: a socket's path has room for 107 bytes."""
    with tempfile.TemporaryDirectory(prefix="pv", dir="/tmp") as found:
        yield Path(found)


@dataclass(frozen=True)
class Ended:
    code: int | None
    out: str
    err: str

    @property
    def document(self) -> Any:
        return json.loads(self.out)


def environment(**more: str) -> dict[str, str]:
    kept = {name: value for name, value in os.environ.items() if name not in ("SPIFFE_ENDPOINT_SOCKET", "PODSVID_DIR")}
    return {**kept, "PYTHONPATH": str(ROOT), **more}


async def start(*arguments: str, **more: str) -> asyncio.subprocess.Process:
    return await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "podsvid", "api", *arguments),
        env=environment(**more),
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )


async def podsvid(*arguments: str, stdin: str = "", **more: str) -> Ended:
    """Run `podsvid api …` to its end; `more` are environment variables."""
    process = await start(*arguments, **more)
    try:
        async with asyncio.timeout(DEADLINE):
            out, err = await process.communicate(stdin.encode())
    finally:
        with contextlib.suppress(ProcessLookupError):
            process.kill()
    assert "Traceback" not in err.decode()
    assert "PRIVATE" not in out.decode() + err.decode()
    return Ended(process.returncode, out.decode(), err.decode())


class Watching:
    """A running `podsvid api watch`, with what it has printed so far."""

    def __init__(self, process: asyncio.subprocess.Process) -> None:
        self.process = process
        self.out: list[str] = []
        self.err: list[str] = []
        assert process.stdout is not None
        assert process.stderr is not None
        self._readers = [
            asyncio.create_task(self._read(process.stdout, self.out)),
            asyncio.create_task(self._read(process.stderr, self.err)),
        ]

    @property
    def serials(self) -> list[str]:
        return [json.loads(line)["svids"][0]["serial"] for line in self.out]

    def said(self, text: str) -> bool:
        return any(text in line for line in self.err)

    async def end(self, number: signal.Signals = signal.SIGTERM) -> int:
        self.process.send_signal(number)
        return await self.ended()

    async def ended(self) -> int:
        async with asyncio.timeout(DEADLINE):
            await asyncio.gather(*self._readers)
            code = await self.process.wait()
        assert not self.said("Traceback"), self.err
        return code

    async def _read(self, stream: asyncio.StreamReader, lines: list[str]) -> None:
        async for line in stream:
            lines.append(line.decode().rstrip("\n"))


@contextlib.asynccontextmanager
async def watching(*arguments: str, **more: str) -> AsyncIterator[Watching]:
    process = await start("watch", *arguments, **more)
    found = Watching(process)
    try:
        yield found
    except BaseException:
        print("\n".join(found.err[-20:]), file=sys.stderr)
        raise
    finally:
        with contextlib.suppress(ProcessLookupError):
            process.kill()
        await process.wait()


def with_server(
    base: Path, test: Callable[[FakeWorkloadApi], Awaitable[None]], *, missing: tuple[str, ...] = ()
) -> None:
    """Run `test` beside a server that has an SVID and the own bundle."""

    async def run() -> None:
        async with FakeWorkloadApi(base / "socket", missing=missing) as server:
            server.rotate()
            server.publish_bundles()
            await test(server)

    asyncio.run(run())


def refuse(code: grpc.StatusCode, details: str = "as the test wants") -> Callable[[], None]:
    def before() -> None:
        raise Refusal(code, details)

    return before


def modes(directory: Path) -> dict[str, int]:
    """What a reader finds by name, links followed."""
    return {path.name: stat.S_IMODE(path.stat().st_mode) for path in directory.iterdir() if path.name[:2] != ".."}


def serial_in(directory: Path) -> str:
    return f"{x509.load_pem_x509_certificate((directory / 'svid.0.pem').read_bytes()).serial_number:x}"


# --- fetch x509


def test_fetch_x509_prints_every_form_and_writes_what_openssl_verifies(base: Path) -> None:
    async def run(server: FakeWorkloadApi) -> None:
        one, two = (
            x509_svid(server.issuer),
            x509_svid(server.issuer, SpiffeId.parse("spiffe://example.org/b"), hint="b"),
        )
        server.rotate(one, two, federated=[OTHERS.bundle])
        socket, out = str(server.path), base / "new" / "out"
        found = await podsvid("fetch", "x509", "--socket", socket, "--output", "json", "--write", str(out))
        assert (found.code, found.err) == (0, "")
        assert found.document == {
            "svids": [
                {
                    "spiffe_id": str(svid.spiffe_id),
                    "hint": svid.hint,
                    "serial": svid.serial,
                    "not_before": svid.not_before.isoformat(),
                    "not_after": svid.not_after.isoformat(),
                    "chain": svid.chain_pem().decode(),
                    "bundle": server.issuer.bundle.to_pem().decode(),
                }
                for svid in (one, two)
            ],
            "federated_bundles": {"other.example": OTHERS.bundle.to_pem().decode()},
        }
        assert modes(out) == {
            "svid.0.pem": 0o644,
            "svid.0.key": 0o600,
            "bundle.0.pem": 0o644,
            "svid.1.pem": 0o644,
            "svid.1.key": 0o600,
            "bundle.1.pem": 0o644,
            "federated_bundle.other.example.pem": 0o644,
        }
        for number in (0, 1):
            verified = subprocess.run(
                [
                    "openssl",
                    "verify",
                    "-x509_strict",
                    "-CAfile",
                    out / f"bundle.{number}.pem",
                    out / f"svid.{number}.pem",
                ],
                check=False,
                capture_output=True,
            )
            assert verified.returncode == 0
        assert (out / "svid.1.key").read_bytes() == two.key_pem()
        assert (out / "federated_bundle.other.example.pem").read_bytes() == OTHERS.bundle.to_pem()
        text = (await podsvid("fetch", "x509", "--socket", socket)).out
        assert text.splitlines()[0].split() == ["SPIFFE", "ID:", str(WEB)]
        assert one.serial in text
        assert two.serial in text
        pem = (await podsvid("fetch", "x509", "--socket", socket, "--output", "pem")).out
        certificates = x509.load_pem_x509_certificates(pem.encode())
        authorities = server.issuer.bundle.x509_authorities
        assert certificates == [*one.chain, *authorities, *two.chain, *authorities, *OTHERS.bundle.x509_authorities]

    with_server(base, run)


@pytest.mark.spec("EP-5", "EP-11", "EP-12", "EP-13", "EP-14", "C-21")
def test_the_endpoint_comes_from_the_option_then_from_the_environment(base: Path) -> None:
    async def run(server: FakeWorkloadApi) -> None:
        fetch = ("fetch", "x509", "--output", "json")
        nobody = f"unix://{base}/nobody"
        for variable in (
            f"unix://{server.path}",
            f"unix:{server.path}",
            str(server.path),
            f"tcp://127.0.0.1:{server.port}",
        ):
            assert (await podsvid(*fetch, SPIFFE_ENDPOINT_SOCKET=variable)).code == 0
        assert (await podsvid(*fetch, "--socket", f"unix://{server.path}", SPIFFE_ENDPOINT_SOCKET=nobody)).code == 0
        assert (await podsvid(*fetch, SPIFFE_ENDPOINT_SOCKET=nobody)).code == 3
        for wrong in ("", "tcp://localhost:80", "unix://rel/path", "run/socket"):
            found = await podsvid(*fetch, SPIFFE_ENDPOINT_SOCKET=wrong)
            assert (found.code, found.out) == (2, "")
            assert "INVALID_WORKLOAD_API_ADDRESS" in found.err

    with_server(base, run)


@pytest.mark.spec("EP-15", "EP-16", "EP-17", "EP-18")
@pytest.mark.parametrize(
    ("code", "wanted", "reason"),
    [
        (grpc.StatusCode.UNAVAILABLE, 3, "WORKLOAD_API_UNREACHABLE"),
        (grpc.StatusCode.DEADLINE_EXCEEDED, 3, "WORKLOAD_API_UNREACHABLE"),
        (grpc.StatusCode.PERMISSION_DENIED, 4, "NO_IDENTITY"),
        (grpc.StatusCode.INVALID_ARGUMENT, 1, "WORKLOAD_API_REFUSED"),
        (grpc.StatusCode.UNIMPLEMENTED, 1, "WORKLOAD_API_NOT_SERVED"),
        (grpc.StatusCode.INTERNAL, 1, "WORKLOAD_API_ERROR"),
    ],
)
def test_each_status_has_its_exit_code_and_writes_nothing(
    base: Path, code: grpc.StatusCode, wanted: int, reason: str
) -> None:
    async def run(server: FakeWorkloadApi) -> None:
        server.before["FetchX509SVID"] = refuse(code, "no identity issued \x1b[2J")
        out = base / "out"
        found = await podsvid("fetch", "x509", "--socket", str(server.path), "--write", str(out))
        assert (found.code, found.out) == (wanted, "")
        assert found.err.startswith(f"podsvid: {reason}: ")
        assert code.name in found.err
        assert "\x1b" not in found.err
        assert not out.exists()

    with_server(base, run)


def test_silence_an_empty_stream_and_nobody_there_are_unreachable(base: Path) -> None:
    async def run(server: FakeWorkloadApi) -> None:
        for path in (base / "none", base):
            assert (await podsvid("fetch", "x509", "--socket", str(path))).code == 3
        server.before["FetchX509SVID"] = refuse(grpc.StatusCode.OK)
        found = await podsvid("fetch", "x509", "--socket", str(server.path))
        assert found.code == 3
        assert "ended the stream without an answer" in found.err

    with_server(base, run)

    async def silent() -> None:
        async with FakeWorkloadApi(base / "socket") as server:
            for arguments in (("fetch", "x509"), ("watch",)):
                found = await podsvid(*arguments, "--socket", str(server.path), "--timeout", "0.2")
                assert found.code == 3
                assert "within 0.2 s" in found.err

    asyncio.run(silent())


def test_an_answer_that_does_not_verify_is_exit_code_1_and_writes_nothing(base: Path) -> None:
    async def run(server: FakeWorkloadApi) -> None:
        stranger = x509_svid(authority())
        server.rotate(stranger)
        out = base / "out"
        found = await podsvid("fetch", "x509", "--socket", str(server.path), "--write", str(out), "--output", "pem")
        assert (found.code, found.out) == (1, "")
        assert "WORKLOAD_API_ANSWER_UNUSABLE" in found.err
        assert not out.exists()

    with_server(base, run)


def test_files_that_cannot_be_written_are_exit_code_1_and_nothing_is_printed(base: Path) -> None:
    async def run(server: FakeWorkloadApi) -> None:
        (base / "file").write_text("mine")
        (base / "taken").mkdir()
        (base / "taken" / "svid.0.pem").write_text("mine")
        for directory in ("file", "taken"):
            found = await podsvid("fetch", "x509", "--socket", str(server.path), "--write", str(base / directory))
            assert (found.code, found.out) == (1, "")
        assert (base / "file").read_text() == "mine"
        assert [path.name for path in (base / "taken").iterdir()] == ["svid.0.pem"]
        assert (base / "taken" / "svid.0.pem").read_text() == "mine"

    with_server(base, run)


# --- fetch jwt


def test_fetch_jwt_prints_every_form_and_writes_the_bare_token(base: Path) -> None:
    async def run(server: FakeWorkloadApi) -> None:
        fetch = ("fetch", "jwt", "--socket", str(server.path), "--audience", "a", "--audience", "b")
        (row,) = (await podsvid(*fetch, "--output", "json")).document["svids"]
        assert sorted(row) == ["audience", "expires_at", "hint", "issued_at", "spiffe_id", "token"]
        assert (row["spiffe_id"], row["audience"], row["hint"]) == (str(WEB), ["a", "b"], "")
        assert datetime.fromisoformat(row["expires_at"]) > datetime.now(UTC)
        token = (await podsvid(*fetch, "--output", "token")).out
        assert token.count(".") == 2
        assert token.endswith("\n")
        text = (await podsvid(*fetch, "--spiffe-id", "spiffe://example.org/b")).out
        assert text.splitlines()[0].split() == ["SPIFFE", "ID:", "spiffe://example.org/b"]
        out = base / "out"
        for form in ("text", "json"):
            found = await podsvid(*fetch, "--write", str(out), "--output", form)
            written = (out / "jwt_svid.0.token").read_text()
            assert written.strip() == written
            assert written not in found.out
        assert modes(out) == {"jwt_svid.0.token": 0o600}
        assert found.document["svids"][0]["token"] is None

    with_server(base, run)


def test_an_identity_that_is_not_the_callers_is_exit_code_4(base: Path) -> None:
    async def run(server: FakeWorkloadApi) -> None:
        server.before["FetchJWTSVID"] = refuse(grpc.StatusCode.PERMISSION_DENIED)
        found = await podsvid(
            *("fetch", "jwt", "--socket", str(server.path), "--audience", "a", "--spiffe-id", "spiffe://example.org/x")
        )
        assert (found.code, found.out) == (4, "")

    with_server(base, run)


def jwt_answer(token: str, spiffe_id: str = str(WEB)) -> bytes:
    return workload_pb2.JWTSVIDResponse(
        svids=[workload_pb2.JWTSVID(spiffe_id=spiffe_id, svid=token)]
    ).SerializeToString()


def test_tokens_for_others_and_things_that_are_none_are_refused(base: Path) -> None:
    async def run(server: FakeWorkloadApi) -> None:
        now = datetime.now(UTC)

        def token(*audiences: str, at: datetime = now) -> str:
            return server.key.issue(WEB, audiences, ttl=timedelta(minutes=5), now=at).token

        wrong = {
            "nothing": b"",
            "garbage": b"\xff\xff",
            "no token": jwt_answer(""),
            "no JWT": jwt_answer("a.b.c"),
            "a line feed": jwt_answer(token("a", "b") + "\n"),
            "another's ID": jwt_answer(token("a", "b"), "spiffe://example.org/root"),
            "no ID": jwt_answer(token("a", "b"), ""),
            "one audience of two": jwt_answer(token("a")),
            "an escape sequence": jwt_answer(token("a", "b") + "\x1b[2J"),
            "expired": jwt_answer(token("a", "b", at=now - timedelta(hours=1))),
        }
        async with WorkloadApiClient(target(str(server.path)), SystemClock()) as client:
            for name, answer in wrong.items():
                server.jwt = lambda _, answer=answer: answer  # type: ignore[misc]
                with pytest.raises(UnusableAnswer):
                    await client.fetch_jwt(["a", "b"], None)
                    pytest.fail(name)
            server.jwt = lambda _: jwt_answer(token("a", "b"))
            with pytest.raises(UnusableAnswer, match="another identity"):
                await client.fetch_jwt(["a"], SpiffeId.parse("spiffe://example.org/mine"))
            assert [svid.spiffe_id for svid in await client.fetch_jwt(["a", "b"], WEB)] == [WEB]

    with_server(base, run)


# --- fetch bundle


@pytest.mark.spec("WL-30")
def test_fetch_bundle_has_all_trust_domains_of_both_profiles(base: Path) -> None:
    async def run(server: FakeWorkloadApi) -> None:
        jwt_only = TrustBundle(TrustDomain("jwt.example"), (), (JwtSigningKey.create(JwtAlgorithm.ES256).public,))
        server.publish_bundles(OTHERS.bundle, jwt_only)
        fetch = ("fetch", "bundle", "--socket", str(server.path))
        out = base / "out"
        found = await podsvid(*fetch, "--output", "json", "--write", str(out))
        assert (found.code, found.err) == (0, "")
        rows = found.document["bundles"]
        assert list(rows) == ["example.org", "jwt.example", "other.example"]
        assert rows["other.example"] == {"x509": OTHERS.bundle.to_pem().decode(), "jwt": {"keys": []}}
        assert [key["kid"] for key in rows["example.org"]["jwt"]["keys"]] == [server.key.key_id]
        assert rows["jwt.example"]["x509"] == ""
        assert modes(out) == {
            "trust_bundle.example.org.pem": 0o644,
            "trust_bundle.example.org.jwks": 0o644,
            "trust_bundle.jwt.example.jwks": 0o644,
            "trust_bundle.other.example.pem": 0o644,
        }
        assert (out / "trust_bundle.example.org.pem").read_bytes() == server.issuer.bundle.to_pem()
        assert json.loads((out / "trust_bundle.example.org.jwks").read_bytes()) == rows["example.org"]["jwt"]
        pem = (await podsvid(*fetch, "--output", "pem")).out
        assert len(x509.load_pem_x509_certificates(pem.encode())) == 2
        text = (await podsvid(*fetch)).out
        assert server.key.key_id in text
        assert "other.example" in text

    with_server(base, run)


@pytest.mark.spec("C-9")
def test_a_server_without_the_jwt_profile_still_gives_x509_bundles(base: Path) -> None:
    async def run(server: FakeWorkloadApi) -> None:
        found = await podsvid("fetch", "bundle", "--socket", str(server.path), "--output", "json")
        assert found.code == 0
        assert found.document["bundles"]["example.org"]["jwt"] == {"keys": []}
        assert (await podsvid("fetch", "jwt", "--socket", str(server.path), "--audience", "a")).code == 1

    with_server(base, run, missing=("FetchJWTSVID", "FetchJWTBundles", "ValidateJWTSVID"))


def test_only_a_missing_profile_is_passed_over(base: Path) -> None:
    async def run(server: FakeWorkloadApi) -> None:
        async with WorkloadApiClient(target(str(server.path)), SystemClock()) as client:
            server.before["FetchJWTBundles"] = refuse(grpc.StatusCode.PERMISSION_DENIED)
            with pytest.raises(NoIdentity):
                await client.fetch_bundles()
            server.before.clear()

            def jwks(text: str) -> bytes:
                found = {"spiffe://example.org": text.encode()}
                return workload_pb2.JWTBundlesResponse(bundles=found).SerializeToString()

            for wrong in ("", "[]", "{}", '{"keys": {}}', '{"keys": [], "keys": []}', '{"keys": [NaN]}', "\ufeff{}"):
                server.jwt_bundles.publish(jwks(wrong))
                with pytest.raises(UnusableAnswer):
                    await client.fetch_bundles()
            # Keys of other uses are left out (JWT-SVID 6.2), odd entries as well.
            (key,) = json.loads(TrustBundle(WEB.trust_domain, (), (server.key.public,)).to_jwt_jwks())["keys"]
            uses: list[Any] = ["x509-svid", "wit-svid", ["jwt-svid"], None, 1, "sig", "jwt-svid"]
            entries = [*({**key, "kid": f"{n}", "use": use} for n, use in enumerate(uses)), 1, {}, {**key, "kid": "7"}]
            server.jwt_bundles.publish(jwks(json.dumps({"keys": entries})))
            (bundle,) = await client.fetch_bundles()
            assert [authority.key_id for authority in bundle.jwt_authorities] == ["5", "6", "7"]

    with_server(base, run)


# --- validate jwt


def test_validate_jwt_reads_a_token_from_everywhere_and_says_whose_it_is(base: Path) -> None:
    async def run(server: FakeWorkloadApi) -> None:
        issued = server.key.issue(WEB, ["a"], ttl=timedelta(minutes=5), now=datetime.now(UTC), jwt_id="\x1b[2J")
        (base / "token").write_text(f"{issued.token}\n")
        validate = ("validate", "jwt", "--socket", str(server.path), "--audience", "a")
        for source, stdin in (
            (("--svid", issued.token), ""),
            (("--svid-file", str(base / "token")), ""),
            (("--svid-file", "-"), f"{issued.token}\n"),
            (("--svid", "-"), f"{issued.token}\n"),
        ):
            found = await podsvid(*validate, *source, "--output", "json", stdin=stdin)
            assert (found.code, found.err) == (0, "")
            assert found.document == {"spiffe_id": str(WEB), "claims": dict(issued.claims)}
        text = (await podsvid(*validate, "--svid", issued.token)).out
        assert text.splitlines()[0].split() == ["SPIFFE", "ID:", str(WEB)]
        assert "\x1b" not in text
        for wrong in ("", "x", issued.token[:-4], "ü", "a" * 70000):
            found = await podsvid(*validate, "--svid-file", "-", stdin=wrong)
            assert (found.code, found.out) == (5, "")
            assert "TOKEN_INVALID" in found.err
            assert issued.token[:40] not in found.err
        (base / "binary").write_bytes(b"\xff\xfe")
        assert (await podsvid(*validate, "--svid-file", str(base / "binary"))).code == 5
        assert (await podsvid(*validate, "--svid", "\udcff")).code == 5
        elsewhere = ("validate", "jwt", "--socket", str(server.path), "--audience", "b", "--svid", issued.token)
        assert (await podsvid(*elsewhere)).code == 5
        assert (await podsvid(*validate, "--svid-file", str(base / "no"))).code == 1

    with_server(base, run)


def test_a_validation_that_contradicts_itself_is_refused(base: Path) -> None:
    async def run(server: FakeWorkloadApi) -> None:
        async with WorkloadApiClient(target(str(server.path)), SystemClock()) as client:
            answers: tuple[tuple[str, dict[str, Any]], ...] = (
                (str(WEB), {}),
                ("", {"sub": str(WEB)}),
                ("spiffe://example.org/root", {"sub": str(WEB)}),
                (str(WEB), {"sub": str(WEB), "exp": float("inf")}),
                (str(WEB), {"sub": str(WEB), "deep": [{"nan": float("nan")}]}),
            )
            for spiffe_id, claims in answers:
                answer = workload_pb2.ValidateJWTSVIDResponse(spiffe_id=spiffe_id)
                answer.claims.update(claims)
                server.validate = lambda _, answer=answer: answer.SerializeToString()  # type: ignore[misc]
                with pytest.raises(UnusableAnswer):
                    await client.validate_jwt("t", "a")

    with_server(base, run)


# --- the files


def contents(directory: Path, name: str = "data") -> dict[str, bytes]:
    data = directory / f"..{name}"
    return {path.name: path.read_bytes() for path in data.iterdir()}


def generations(directory: Path) -> list[str]:
    return [path.name for path in directory.iterdir() if path.name.startswith("..podsvid.")]


def test_a_set_is_replaced_as_one_and_what_is_no_longer_part_vanishes(base: Path) -> None:
    out = base / "out"
    files = FileSet(out, "data")
    os.umask(mask := os.umask(0o077))
    try:
        os.umask(0o077)
        files.write({"a": SetFile(b"1"), "b": SetFile(b"1", secret=True)})
    finally:
        os.umask(mask)
    assert modes(out) == {"a": 0o644, "b": 0o600}
    (out / "mine").write_text("x")
    held = os.open(out / "..data", os.O_RDONLY)
    files.write({"a": SetFile(b"2"), "c": SetFile(b"2")})
    assert modes(out).keys() == {"a", "c", "mine"}
    assert (out / "a").read_bytes() == (out / "c").read_bytes() == b"2"
    # Whoever has the one before open reads it to its end; the one before that is gone.
    assert sorted(os.listdir(held)) == ["a", "b"]
    files.write({"a": SetFile(b"3")})
    assert os.listdir(held) == []
    os.close(held)
    assert len(generations(out)) == 2
    assert contents(out) == {"a": b"3"}
    assert (out / "mine").read_text() == "x"


def test_sets_of_other_names_share_a_directory(base: Path) -> None:
    FileSet(base, "data").write({"a": SetFile(b"1")})
    FileSet(base, "jwt").write({"b": SetFile(b"2")})
    FileSet(base, "jwt").write({"c": SetFile(b"3")})
    FileSet(base, "data").write({"a": SetFile(b"4")})
    assert modes(base).keys() == {"a", "c"}
    with pytest.raises(NotOurs, match="/a is in the way"):
        FileSet(base, "jwt").write({"a": SetFile(b"5")})
    assert (base / "a").read_bytes() == b"4"


@pytest.mark.parametrize("kind", ["file", "directory", "link", "dangling", "data file", "data link"])
def test_what_somebody_else_made_is_never_replaced(base: Path, kind: str) -> None:
    (base / "elsewhere").write_text("precious")
    name = "..data" if kind.startswith("data") else "b"
    match kind:
        case "file" | "data file":
            (base / name).write_text("precious")
        case "directory":
            (base / name).mkdir()
        case "link" | "data link":
            (base / name).symlink_to("elsewhere")
        case "dangling":
            (base / name).symlink_to("nowhere")
    before = {path.name: os.readlink(path) if path.is_symlink() else "" for path in base.iterdir()}
    with pytest.raises(NotOurs, match="was not made by this command"):
        FileSet(base, "data").write({"a": SetFile(b"1"), "b": SetFile(b"1")})
    assert {path.name: os.readlink(path) if path.is_symlink() else "" for path in base.iterdir()} == before
    assert (base / "elsewhere").read_text() == "precious"


@pytest.mark.parametrize("call", ["mkdir", "symlink", "rename", "fsync", "fchmod"])
def test_a_write_that_fails_leaves_everything_as_it_was(base: Path, call: str, monkeypatch: pytest.MonkeyPatch) -> None:
    files = FileSet(base, "data")
    files.write({"a": SetFile(b"1", secret=True)})
    before = sorted(path.name for path in base.iterdir())

    def full(*_: object, **__: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch, pytest.raises(OSError, match="No space left"):
        patch.setattr(os, call, full)
        files.write({"a": SetFile(b"2"), "b": SetFile(b"2")})
    assert sorted(path.name for path in base.iterdir()) == before
    assert contents(base) == {"a": b"1"}
    files.write({"b": SetFile(b"3")})
    assert modes(base).keys() == {"b"}


WRITES_AND_DIES = """
import os, sys
from pathlib import Path
from podsvid.api.file_set import FileSet, SetFile
calls = int(sys.argv[2])
def dying(call):
    def wrapped(*arguments, **named):
        global calls
        calls -= 1
        if calls == 0:
            os.kill(os.getpid(), 9)
        return call(*arguments, **named)
    return wrapped
for name in ("mkdir", "symlink", "rename", "fsync", "fchmod", "open", "unlink", "rmdir", "listdir"):
    setattr(os, name, dying(getattr(os, name)))
FileSet(Path(sys.argv[1]), "data").write({"a": SetFile(b"2"), "new": SetFile(b"2")})
"""


def test_a_write_that_is_killed_at_any_point_leaves_a_whole_set_and_no_trace_after_the_next(base: Path) -> None:
    files = FileSet(base, "data")
    killed = 0
    for calls in range(1, 100):
        files.write({"a": SetFile(b"1"), "old": SetFile(b"1", secret=True)})
        ended = subprocess.run(
            [sys.executable, "-c", WRITES_AND_DIES, str(base), str(calls)], env=environment(), check=False
        )
        found = contents(base)
        assert found in ({"a": b"1", "old": b"1"}, {"a": b"2", "new": b"2"})
        assert {name: (base / name).read_bytes() for name in found} == found
        files.write({"a": SetFile(b"3"), "old": SetFile(b"3")})
        # Whatever of the killed one is left goes away by the write after it.
        files.write({"a": SetFile(b"4"), "old": SetFile(b"4")})
        assert len(generations(base)) == 2
        assert {path.name for path in base.iterdir()} == {"..data", "a", "old", *generations(base)}
        if ended.returncode == 0:
            break
        assert ended.returncode == -signal.SIGKILL
        killed += 1
    assert killed > 15


def read_in(folder: int, name: str) -> bytes:
    with os.fdopen(os.open(name, os.O_RDONLY, dir_fd=folder), "rb") as file:
        return file.read()


def test_a_reader_never_sees_half_a_set(base: Path) -> None:
    files = FileSet(base, "data")
    names = ("a", "b", "c")
    files.write({name: SetFile(b"0") for name in names})
    done = threading.Event()
    torn: list[set[bytes]] = []

    def read() -> None:
        while not done.is_set():
            folder = os.open(base / "..data", os.O_RDONLY | os.O_DIRECTORY)
            try:
                seen = {read_in(folder, name) for name in names}
            except FileNotFoundError:
                continue  # slept through two generations: gone, but never mixed
            finally:
                os.close(folder)
            if len(seen) != 1:
                torn.append(seen)

    reader = threading.Thread(target=read)
    reader.start()
    try:
        for n in range(100):
            files.write({name: SetFile(str(n).encode()) for name in names})
    finally:
        done.set()
        reader.join()
    assert torn == []


def test_writers_of_one_directory_wait_for_each_other_and_not_for_ever(
    base: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("podsvid.api.file_set._LOCK_WAIT", 0.05)
    holder = os.open(base, os.O_RDONLY)
    fcntl.flock(holder, fcntl.LOCK_EX)
    with pytest.raises(DirectoryInUse):
        FileSet(base, "data").write({"a": SetFile(b"1")})
    os.close(holder)
    FileSet(base, "data").write({"a": SetFile(b"1")})


# --- watch


def test_watch_prints_each_change_once_survives_the_server_and_ends_cleanly(base: Path) -> None:
    async def run(server: FakeWorkloadApi) -> None:
        out = base / "out"
        async with watching("--socket", str(server.path), "--output", "json", "--write", str(out)) as found:
            await eventually(lambda: len(found.out) == 1)
            server.x509.publish(server.x509.current or b"")
            svid = x509_svid(server.issuer)
            server.rotate(svid)
            await eventually(lambda: len(found.out) == 2)
            assert found.serials[-1] == svid.serial == serial_in(out)
            await server.stop()
            await eventually(lambda: found.said("trying again in"))
            await server.start()
            calls = len(server.calls)
            await eventually(lambda: len(server.calls) > calls)
            # The same state on a new connection is no change.
            svid = x509_svid(server.issuer)
            server.rotate(svid)
            await eventually(lambda: len(found.out) == 3)
            assert found.serials[-1] == svid.serial == serial_in(out)
            assert await found.end() == 0
            assert len(found.out) == 3

    with_server(base, run)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_watch_ends_cleanly_before_there_is_an_answer(base: Path, number: signal.Signals) -> None:
    async def run() -> None:
        async with watching("--socket", str(base / "none")) as found:
            await eventually(lambda: found.said("trying again in"))
            assert await found.end(number) == 0

    asyncio.run(run())


@pytest.mark.spec("EP-15", "EP-18")
@pytest.mark.parametrize("code", [grpc.StatusCode.INVALID_ARGUMENT, grpc.StatusCode.UNIMPLEMENTED])
def test_what_no_retry_would_mend_ends_the_watch(base: Path, code: grpc.StatusCode) -> None:
    async def run(server: FakeWorkloadApi) -> None:
        server.before["FetchX509SVID"] = refuse(code)
        found = await podsvid("watch", "--socket", str(server.path))
        assert found.code == 1
        assert code.name in found.err
        assert server.calls == ["FetchX509SVID"]

    with_server(base, run)


@pytest.mark.spec("EP-16", "EP-17", "C-32")
def test_other_refusals_are_retried_and_unusable_answers_waited_out(base: Path) -> None:
    async def run(server: FakeWorkloadApi) -> None:
        codes = [grpc.StatusCode.PERMISSION_DENIED, grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.INTERNAL]

        def before() -> None:
            if codes:
                raise Refusal(codes.pop())

        server.before["FetchX509SVID"] = before
        server.x509.publish(x509_answer(server.issuer, x509_svid(authority())))
        out = base / "out"
        async with watching("--socket", str(server.path), "--output", "json", "--write", str(out)) as found:
            await eventually(lambda: found.said("waiting for a better one"))
            assert [found.said(code) for code in ("PERMISSION_DENIED", "UNAVAILABLE", "INTERNAL")] == [True] * 3
            assert not out.exists()
            server.rotate()
            await eventually(lambda: len(found.out) == 1)
            assert len(server.calls) == 4
            server.x509.publish(b"\xff")
            await eventually(lambda: sum("waiting for a better one" in line for line in found.err) == 2)
            assert serial_in(out) == found.serials[0]
            assert await found.end() == 0

    with_server(base, run)


class Middle:
    def uniform(self, a: float, b: float) -> float:
        return (a + b) / 2


@pytest.mark.spec("WL-6")
def test_the_wait_before_a_new_connection_grows_and_starts_over_after_a_good_message(base: Path) -> None:
    async def run(server: FakeWorkloadApi) -> None:
        waits: list[float] = []
        down = [grpc.StatusCode.UNAVAILABLE] * 3

        def before() -> None:
            if down:
                raise Refusal(down.pop())

        async def sleep(seconds: float) -> None:
            waits.append(seconds)

        server.before["FetchX509SVID"] = before
        server.after_each = refuse(grpc.StatusCode.OK)
        address = target(str(server.path))
        followed = follow_x509(address, SystemClock(), Backoff(Middle(), first=4, most=12), lambda _: None, sleep)
        async with contextlib.aclosing(followed) as states:
            first = await anext(states)
            assert waits == [3, 6, 9]
            # An OK at the end of a stream is no end either, and a good message has come before it.
            assert (await anext(states)).svids[0].svid.serial == first.svids[0].svid.serial
            assert waits == [3, 6, 9, 3]
            # Messages that cannot be used are no success.
            server.x509.publish(b"\xff")
            server.after_each = lambda: server.rotate() if len(waits) == 7 else refuse(grpc.StatusCode.OK)()
            await anext(states)
            assert waits == [3, 6, 9, 3, 3, 6, 9]

    with_server(base, run)


def test_a_reader_that_goes_away_ends_the_watch_quietly(base: Path) -> None:
    async def run(server: FakeWorkloadApi) -> None:
        reading, writing = os.pipe()
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "podsvid", "api", "watch", "--socket", str(server.path)),
            env=environment(),
            stdout=writing,
            stderr=asyncio.subprocess.PIPE,
        )
        os.close(writing)
        await asyncio.to_thread(os.read, reading, 1)
        os.close(reading)
        server.rotate()
        async with asyncio.timeout(DEADLINE):
            _, err = await process.communicate()
        assert (process.returncode, err) == (1, b"")

    with_server(base, run)


# --- watch --exec

CHECK = """#!/bin/sh
# One run: read the chain, say so, wait where the test wants it, then read the rest: all of it has to fit, however slow
# the machine is and whatever has ended meanwhile.
cd "$PODSVID_DIR" || exit 9
echo "$PODSVID_DIR"
serial=$(openssl x509 -in svid.0.pem -noout -serial) || exit 9
echo "begin $serial" >> "$1"
if [ -n "$2" ]; then read -r _ < "$2"; fi
chain=$(openssl x509 -in svid.0.pem -noout -pubkey) && key=$(openssl pkey -in svid.0.key -pubout) || exit 9
if [ "$serial" = "$(openssl x509 -in svid.0.pem -noout -serial)" ] && [ "$chain" = "$key" ] &&
    openssl verify -x509_strict -no_check_time -CAfile bundle.0.pem svid.0.pem > /dev/null 2>&1
then echo "ok $serial" >> "$1"
else echo "TORN $serial" >> "$1"
fi
"""


class Runs:
    """The command that --exec is to run, and what it has noted."""

    def __init__(self, base: Path) -> None:
        self._log = base / "log"
        self._log.touch()
        self._script = base / "check"
        self._script.write_text(CHECK)
        self._script.chmod(0o755)

    def command(self, fifo: Path | None = None) -> tuple[str, ...]:
        return (str(self._script), str(self._log), str(fifo or ""))

    def serials(self, what: str) -> list[str]:
        """Of the runs that noted `what`, in order."""
        lines = [line.split() for line in self._log.read_text().splitlines()]
        return [line[1].removeprefix("serial=").lower().lstrip("0") for line in lines if line[0] == what]


def test_over_a_hundred_rotations_each_during_a_run_every_run_sees_one_whole_state(base: Path) -> None:
    async def run(server: FakeWorkloadApi) -> None:
        issuers = (server.issuer, authority())
        fifo = base / "fifo"
        os.mkfifo(fifo)
        runs = Runs(base)
        sent = [x509_svid(server.issuer)]
        server.rotate(*sent)
        out = base / "out"
        async with watching("--socket", str(server.path), "--write", str(out), "--exec", *runs.command(fifo)) as found:
            for n in range(1, 102):
                await eventually(lambda n=n: len(runs.serials("begin")) == n)  # type: ignore[misc]
                if n <= 100:
                    server.issuer = issuers[n % 2]
                    sent.append(x509_svid(server.issuer))
                    server.rotate(sent[-1])
                    await eventually(lambda n=n: server.sent == n + 1)  # type: ignore[misc]
                await asyncio.to_thread(fifo.write_text, "go\n")
            await eventually(lambda: len(runs.serials("ok")) + len(runs.serials("TORN")) == 101)
            assert await found.end() == 0
        # gRPC has much to say about forks when it is given a chance to.
        assert {line for line in found.err if not line.startswith("podsvid: ")} == {str(out)}
        assert runs.serials("TORN") == []
        assert runs.serials("ok") == [svid.serial for svid in sent]

    with_server(base, run)


def test_a_hundred_rotations_at_once_become_few_runs_and_the_last_sees_the_newest(base: Path) -> None:
    async def run(server: FakeWorkloadApi) -> None:
        issuers = (server.issuer, authority())
        svids = [x509_svid(issuers[n % 2]) for n in range(100)]
        server.flood = [x509_answer(issuers[n % 2], svid) for n, svid in enumerate(svids)]
        last = x509_svid(server.issuer)
        server.rotate(last)
        runs = Runs(base)
        async with watching(
            *("--socket", str(server.path), "--write", str(base / "out"), "--exec", *runs.command())
        ) as found:
            await eventually(lambda: last.serial in runs.serials("ok"))
            assert await found.end() == 0
        seen, order = runs.serials("ok"), [svid.serial for svid in (*svids, last)]
        assert runs.serials("TORN") == []
        assert seen == [serial for serial in order if serial in seen]
        assert len(seen) < 50

    with_server(base, run)


def test_the_command_is_told_the_directory_and_does_not_speak_on_our_output(base: Path) -> None:
    async def run(server: FakeWorkloadApi) -> None:
        script = 'echo "out $PODSVID_DIR"; echo err >&2; cat; exit 3'
        relative = os.path.relpath(base / "out")
        watch = ("--socket", str(server.path), "--output", "json")
        async with watching(*watch, "--write", relative, "--exec", "--", "sh", "-c", script) as found:
            await eventually(lambda: found.said("sh ended with exit code 3"))
            # A command that fails does not end the watch.
            server.rotate()
            await eventually(lambda: sum("exit code 3" in line for line in found.err) == 2)
            assert found.said(f"out {os.path.abspath(relative)}")
            assert found.said("err")
            assert len(found.serials) == 2
            assert await found.end() == 0
        async with watching(*watch, "--exec", "sh", "-c", script, PODSVID_DIR="/inherited") as found:
            await eventually(lambda: found.said("exit code 3"))
            assert "out " in found.err
            assert await found.end() == 0

    with_server(base, run)


def alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except OSError:
        return False


@pytest.mark.parametrize("stubborn", [False, True])
def test_a_command_that_hangs_is_terminated_with_its_children_and_reported(base: Path, stubborn: bool) -> None:
    async def run(server: FakeWorkloadApi) -> None:
        trap = "trap '' TERM; " if stubborn else ""
        script = f"{trap}sleep 1000 & echo $! $$ >> {base}/pids; wait; wait; sleep 1000"
        watch = ("--socket", str(server.path), "--output", "json", "--exec-timeout", "0.3")
        async with watching(*watch, "--exec", "sh", "-c", script) as found:
            await eventually(lambda: found.said("sh has not ended within 0.3 s and is terminated"))
            wanted = signal.SIGKILL if stubborn else signal.SIGTERM
            await eventually(lambda: found.said(f"sh was ended by signal {int(wanted)}"))
            pids = [int(pid) for pid in (base / "pids").read_text().split()]
            await eventually(lambda: not any(map(alive, pids)))
            if not stubborn:
                server.rotate()
                await eventually(lambda: len((base / "pids").read_text().splitlines()) == 2)
            assert await found.end() == 0

    with_server(base, run)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_watch_ends_during_a_run_and_takes_the_command_along(base: Path, number: signal.Signals) -> None:
    async def run(server: FakeWorkloadApi) -> None:
        script = f"echo $$ > {base}/pid; exec sleep 1000"
        async with watching("--socket", str(server.path), "--exec", "sh", "-c", script) as found:
            await eventually(lambda: (base / "pid").exists() and (base / "pid").read_text().endswith("\n"))
            assert await found.end(number) == 0
            assert not alive(int((base / "pid").read_text()))

    with_server(base, run)


def test_a_command_that_cannot_be_started_is_exit_code_6_and_later_only_reported(base: Path) -> None:
    async def run(server: FakeWorkloadApi) -> None:
        command = base / "command"
        watch = ("watch", "--socket", str(server.path), "--exec", str(command))
        found = await podsvid(*watch)
        assert found.code == 6
        assert "COMMAND_NOT_STARTED" in found.err
        command.write_text("#!/bin/sh\nexit 0\n")
        assert (await podsvid(*watch)).code == 6  # not executable
        command.chmod(0o755)
        async with watching(*watch[1:]) as running:
            await eventually(lambda: running.said("ended with exit code 0"))
            command.unlink()
            server.rotate()
            await eventually(lambda: running.said("cannot be started"))
            assert await running.end() == 0
        assert (await podsvid("watch", "--socket", str(server.path), "--exec")).code == 2

    with_server(base, run)


# --- watch --signal

COUNTS = """
import signal, sys
def note(number, _):
    with open(sys.argv[1], "a") as file:
        file.write(f"{signal.Signals(number).name}\\n")
for name in ("SIGHUP", "SIGUSR1"):
    signal.signal(getattr(signal, name), note)
print("ready", flush=True)
while True:
    signal.pause()
"""


@pytest.mark.parametrize(("suffix", "name"), [("", "SIGHUP"), (":USR1", "SIGUSR1")])
def test_a_process_is_signalled_after_each_change_and_missed_without_harm(base: Path, suffix: str, name: str) -> None:
    async def run(server: FakeWorkloadApi) -> None:
        notes = base / "notes"
        notes.touch()
        with subprocess.Popen([sys.executable, "-c", COUNTS, str(notes)], stdout=subprocess.PIPE) as told:
            try:
                assert told.stdout is not None
                await asyncio.to_thread(told.stdout.readline)
                watch = ("--socket", str(server.path), "--output", "json", "--signal", f"{told.pid}{suffix}")
                async with watching(*watch) as found:
                    await eventually(lambda: notes.read_text() == f"{name}\n")
                    server.rotate()
                    await eventually(lambda: notes.read_text() == f"{name}\n" * 2)
                    told.kill()
                    told.wait()
                    for n in (3, 4):
                        server.rotate()
                        await eventually(lambda n=n: len(found.out) == n)  # type: ignore[misc]
                        await eventually(
                            lambda n=n: sum(f"{name} cannot be sent" in line for line in found.err) == n - 2  # type: ignore[misc]
                        )
                    assert await found.end() == 0
            finally:
                told.kill()

    with_server(base, run)


def started_as(pid: int) -> subprocess.Popen[bytes] | None:
    """A process with exactly that number, if the kernel can be talked into it."""
    for _ in range(200):
        try:
            Path("/proc/sys/kernel/ns_last_pid").write_text(str(pid - 1))
        except OSError:
            return None
        process = subprocess.Popen(["sleep", "1000"])
        if process.pid == pid:
            return process
        process.kill()
        process.wait()
    return None


def test_a_later_process_with_the_same_number_is_left_alone() -> None:
    reports: list[str] = []
    first = subprocess.Popen(["sleep", "1000"])
    # Not SIGHUP, which a test run under nohup passes on as ignored.
    notification = Notification(first.pid, signal.SIGUSR1, reports.append)
    notification.send()
    assert first.wait(DEADLINE) == -signal.SIGUSR1
    stranger = started_as(first.pid)
    if stranger is None:
        pytest.skip("process numbers cannot be chosen here")
    try:
        notification.send()
        assert reports == [f"SIGUSR1 cannot be sent to process {first.pid}: No such process"]
        stranger.terminate()
        assert stranger.wait(DEADLINE) == -signal.SIGTERM
    finally:
        stranger.kill()
        stranger.wait()


# --- the real agent


@pytest.mark.skipif(not IS_ROOT, reason="mounts on this host's own mount table: run as root")
def test_everything_works_against_the_agent_over_its_own_rotations(base: Path) -> None:
    async def run() -> None:
        async with node(ttl="2s") as (here, kubelet):
            socket = here.short(await kubelet.publish(pod(), VOLUME)) / "socket"
            found = await podsvid("fetch", "x509", "--output", "json", SPIFFE_ENDPOINT_SOCKET=f"unix://{socket}")
            assert found.document["svids"][0]["spiffe_id"] == str(WEB)
            common = ("--socket", str(socket), "--output", "json")
            (row,) = (await podsvid("fetch", "jwt", *common, "--audience", "a", "--audience", "b")).document["svids"]
            assert (row["spiffe_id"], sorted(row["audience"])) == (str(WEB), ["a", "b"])
            validate = ("validate", "jwt", *common, "--svid", row["token"], "--audience")
            assert (await podsvid(*validate, "b")).document["claims"]["sub"] == str(WEB)
            assert (await podsvid(*validate, "c")).code == 5
            other = ("--spiffe-id", "spiffe://example.org/other")
            assert (await podsvid("fetch", "jwt", *common, "--audience", "a", *other)).code == 4
            bundle = (await podsvid("fetch", "bundle", *common)).document["bundles"]["example.org"]
            assert x509.load_pem_x509_certificates(bundle["x509"].encode())
            assert bundle["jwt"]["keys"]
            runs = Runs(base)
            out = base / "out"
            async with watching("--socket", str(socket), "--write", str(out), "--exec", *runs.command()) as watched:
                await eventually(lambda: len(runs.serials("ok")) >= 10)
                assert await watched.end() == 0
            assert runs.serials("TORN") == []
            assert len(set(runs.serials("ok"))) == len(runs.serials("ok"))

    asyncio.run(run())


@pytest.mark.spec("WL-11", "WL-12")
def test_a_federated_bundle_that_the_next_answer_leaves_out_is_dropped(base: Path) -> None:
    async def run(server: FakeWorkloadApi) -> None:
        svid = x509_svid(server.issuer)
        server.rotate(svid, federated=[OTHERS.bundle])
        out = base / "out"
        async with watching("--socket", str(server.path), "--output", "json", "--write", str(out)) as found:
            await eventually(lambda: len(found.out) == 1)
            assert "federated_bundle.other.example.pem" in modes(out)
            server.rotate(svid)
            await eventually(lambda: len(found.out) == 2)
            assert "federated_bundle.other.example.pem" not in modes(out)
            assert json.loads(found.out[1])["federated_bundles"] == {}
            assert await found.end() == 0

    with_server(base, run)
