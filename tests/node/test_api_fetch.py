"""`podsvid api fetch` and `validate` as processes, against a fake Workload API that may lie."""

import asyncio
import json
import subprocess
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import grpc
import pytest
from cryptography import x509

from agent.pb import workload_pb2
from podsvid.api.address import target
from podsvid.api.errors import NoIdentity, UnusableAnswer
from podsvid.api.workload_client import WorkloadApiClient
from runtime.clock import SystemClock
from svid.bundle import TrustBundle
from svid.jws import JwtAlgorithm
from svid.jwtauthority import JwtSigningKey
from svid.spiffeid import SpiffeId, TrustDomain
from tests.fake_workload_api import WEB, FakeWorkloadApi, authority, x509_svid
from tests.node.api_rig import OTHERS, modes, podsvid, refuse, with_server


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
                    "not_before": f"{svid.not_before:%Y-%m-%dT%H:%M:%SZ}",
                    "not_after": f"{svid.not_after:%Y-%m-%dT%H:%M:%SZ}",
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


def test_fetch_jwt_prints_what_kubectl_takes_from_a_program(base: Path) -> None:
    async def run(server: FakeWorkloadApi) -> None:
        fetch = ("fetch", "jwt", "--socket", str(server.path), "--audience", "kube", "--output", "exec-credential")
        (row,) = (await podsvid(*fetch[:-2], "--output", "json")).document["svids"]
        v1, v1beta1 = "client.authentication.k8s.io/v1", "client.authentication.k8s.io/v1beta1"
        for info, version in (
            ("", v1),
            (json.dumps({"apiVersion": v1beta1, "kind": "ExecCredential", "spec": {"interactive": False}}), v1beta1),
            (json.dumps({"apiVersion": "client.authentication.k8s.io/v1alpha1"}), v1),
            ("{", v1),
            ("[]", v1),
        ):
            found = await podsvid(*fetch, KUBERNETES_EXEC_INFO=info)
            assert (found.code, found.err) == (0, "")
            document = json.loads(found.out)
            assert sorted(document) == ["apiVersion", "kind", "status"]
            assert (document["apiVersion"], document["kind"]) == (version, "ExecCredential")
            assert sorted(document["status"]) == ["expirationTimestamp", "token"]
            # kubectl asks again when that has passed; of a token without it, it never does.
            assert document["status"]["expirationTimestamp"] >= row["expires_at"]
            assert document["status"]["token"].count(".") == 2

    with_server(base, run)


def test_a_credential_is_of_one_identity(base: Path) -> None:
    async def run(server: FakeWorkloadApi) -> None:
        fetch = ("fetch", "jwt", "--socket", str(server.path), "--audience", "kube", "--output", "exec-credential")
        # One message after the other is one with both.
        server.jwt = lambda request: b"".join(
            server.issue_jwt(workload_pb2.JWTSVIDRequest(audience=request.audience, spiffe_id=each))
            for each in ("spiffe://example.org/a", "spiffe://example.org/b")
        )
        found = await podsvid(*fetch)
        assert (found.code, found.out) == (2, "")
        assert "the socket has 2 identities" in found.err
        assert "--spiffe-id" in found.err

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
