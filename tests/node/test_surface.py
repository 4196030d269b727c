"""The agent as a whole with what a pod can choose: driver names, layouts over restarts, lifetimes, DNS names, JWT-SVIDs
in files, and trust that changes without a new SVID."""

import asyncio
import json
import os
import subprocess
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import grpc
import grpc.aio
import jwt
import pytest

from agent.pb import workload_pb2
from podsvid.quickstart.errors import PublishFailed
from podsvid.quickstart.pods import PodVolume
from svid.authority import X509Authority
from svid.jws import JwtAlgorithm
from svid.jwtauthority import JwtSigningKey
from svid.keys import KeyAlgorithm, key_to_pem
from svid.spiffeid import TrustDomain
from tests.support import DEADLINE, DRIVER, HEADER, IS_ROOT, VOLUME, first, node, pod, serial

pytestmark = pytest.mark.skipif(not IS_ROOT, reason="the agent mounts: run as root")
SPIRE, CERT_MANAGER = "csi.spiffe.io", "spiffe.csi.cert-manager.io"


def volume(**attributes: str) -> PodVolume:
    return PodVolume(name="spiffe", attributes={name.replace("_", "-"): value for name, value in attributes.items()})


async def call(socket: Path, method: str, request: Any, answer: Any) -> Any:
    async with grpc.aio.insecure_channel(f"unix:{socket}") as channel:
        ask: Any = channel.unary_unary(f"/SpiffeWorkloadAPI/{method}")
        return answer.FromString(await ask(request.SerializeToString(), metadata=HEADER))


async def until(condition: Any) -> None:
    async with asyncio.timeout(DEADLINE):
        while not condition():
            await asyncio.sleep(0.02)


def test_manifests_written_for_other_drivers_work_unchanged() -> None:
    async def run() -> None:
        async with node("--driver-names", f"{DRIVER},{SPIRE},{CERT_MANAGER}") as (here, kubelet):
            for name in (SPIRE, CERT_MANAGER):
                await kubelet.wait_registered(name)
            kubelet.driver = SPIRE
            one = pod("one", "one")
            target = await kubelet.publish(one, PodVolume(name="spiffe"))
            shown = sorted(path.name for path in target.iterdir() if not path.name.startswith(".."))
            assert shown == ["api.sock", "socket", "spire-agent.sock"]
            answer = await first(here.short(target) / "spire-agent.sock")
            assert answer.svids[0].spiffe_id.endswith("/sa/one")
            with pytest.raises(PublishFailed, match="unknown"):
                await kubelet.publish(pod(), PodVolume("spiffe", attributes={f"{CERT_MANAGER}/fs-group": "2000"}))
            await kubelet.unpublish(one, PodVolume(name="spiffe"))
            kubelet.driver = CERT_MANAGER
            other = await kubelet.publish(
                pod("two", "two"), PodVolume("spiffe", attributes={f"{CERT_MANAGER}/fs-group": "2000"})
            )
            for name in ("tls.crt", "tls.key", "ca.crt"):
                found = (other / name).stat()
                assert (found.st_gid, found.st_mode & 0o777) == (2000, 0o440)
            # After a restart each is still what its driver's name made it.
            before = serial(other)
            here.kill()
            here.start("--driver-names", f"{DRIVER},{SPIRE},{CERT_MANAGER}")
            await kubelet.wait_deregistered(CERT_MANAGER)
            await kubelet.wait_registered(CERT_MANAGER)
            assert serial(other) == before
            assert (other / "tls.key").stat().st_gid == 2000
            assert here.mounts() == [str(other)]

    asyncio.run(run())


@pytest.mark.parametrize("layout", ["socket", "keystore", "istio", "combined"])
def test_a_volume_of_any_layout_is_picked_up_without_a_new_svid(layout: str) -> None:
    async def run() -> None:
        async with node() as (here, kubelet):
            target = await kubelet.publish(pod(), volume(layout=layout))
            socket = here.short(target) / "socket"
            before = (await first(socket)).svids[0].x509_svid
            generation = os.readlink(target / "..data")
            here.kill()
            here.start()
            await kubelet.wait_deregistered(DRIVER)
            await kubelet.wait_registered(DRIVER)
            assert (await first(socket)).svids[0].x509_svid == before
            assert os.readlink(target / "..data") == generation

    asyncio.run(run())


def test_a_lifetime_is_granted_within_bounds_and_the_condition_says_what_was_not() -> None:
    async def run() -> None:
        async with node("--x509-min-ttl", "2m", "--x509-max-ttl", "2h") as (here, kubelet):
            for wish, granted in (("90m", 5400), ("1s", 120), ("100h", 7200)):
                each, wished = pod(wish), volume(ttl=wish)
                target = await kubelet.publish(each, wished)
                dates = subprocess.run(
                    ["openssl", "x509", "-in", str(target / "tls.crt"), "-noout", "-enddate"],
                    capture_output=True, text=True, check=True,
                ).stdout.strip()  # fmt: skip
                end = datetime.strptime(dates, "notAfter=%b %d %H:%M:%S %Y %Z").replace(tzinfo=UTC)
                assert granted - 60 < (end - datetime.now(UTC)).total_seconds() <= granted
                message = (await kubelet.stats(each, wished)).volume_condition.message
                assert ("asked for" in message) == (wish != "90m")
            assert "the author of a pod should look at its volume" in here.log.read_text(encoding="utf-8")

    asyncio.run(run())


def test_dns_names_are_refused_unless_the_operator_allows_them() -> None:
    async def run() -> None:
        async with node("--dns-names", "*.{namespace}.svc,{service_account}.example.test") as (here, kubelet):
            wished = volume(dnsNames="db.default.svc,web.example.test")
            target = await kubelet.publish(pod(), wished)
            text = subprocess.run(
                ["openssl", "x509", "-in", str(target / "tls.crt"), "-noout", "-ext", "subjectAltName"],
                capture_output=True, text=True, check=True,
            ).stdout  # fmt: skip
            assert "DNS:db.default.svc, DNS:web.example.test" in text
            for name in ("db.other.svc", "api.example.test"):
                with pytest.raises(PublishFailed, match=f"DNS_NAME_DENIED: {name}"):
                    await kubelet.publish(pod("x"), volume(dnsNames=name))
            assert here.mounts() == [str(target)]

    asyncio.run(run())


@pytest.mark.spec("JWT-8")
def test_jwt_svids_in_files_are_renewed_and_survive_a_restart() -> None:
    async def run() -> None:
        async with node("--jwt-ttl", "30s") as (here, kubelet):
            target = await kubelet.publish(pod(), volume(jwt_audiences="db,sts=https://sts.test"))
            socket = here.short(target) / "socket"
            x509 = serial(target)
            one = (target / "db.jwt").read_text()
            assert jwt.decode(one, options={"verify_signature": False})["aud"] == ["db"]
            assert jwt.decode((target / "sts").read_text(), options={"verify_signature": False})["aud"] == [
                "https://sts.test"
            ]
            # The socket hands out the same token, not a second one.
            request = workload_pb2.JWTSVIDRequest(audience=["db"])
            answer = await call(socket, "FetchJWTSVID", request, workload_pb2.JWTSVIDResponse)
            here.kill()
            here.start("--jwt-ttl", "30s")
            await kubelet.wait_deregistered(DRIVER)
            await kubelet.wait_registered(DRIVER)
            assert answer.svids[0].svid == one
            await until(lambda: (target / "db.jwt").read_text() != one)
            assert serial(target) == x509
            fresh = (target / "db.jwt").read_text()
            validate = workload_pb2.ValidateJWTSVIDRequest(audience="db", svid=fresh)
            found = await call(socket, "ValidateJWTSVID", validate, workload_pb2.ValidateJWTSVIDResponse)
            assert found.spiffe_id == "spiffe://example.org/ns/default/sa/web"
            # JWT keys are kept as well: what the process before had signed is still valid, for half of its life.
            validate = workload_pb2.ValidateJWTSVIDRequest(audience="db", svid=one)
            assert await call(socket, "ValidateJWTSVID", validate, workload_pb2.ValidateJWTSVIDResponse)

    asyncio.run(run())


@pytest.mark.spec("FED-13", "C-37", "WL-9")
def test_a_federated_bundle_that_changes_reaches_streams_and_files_without_a_new_svid(tmp_path: Path) -> None:
    def partner() -> Any:
        return X509Authority.create(
            TrustDomain("partner.test"),
            algorithm=KeyAlgorithm.EC_P256,
            lifetime=timedelta(days=1),
            now=datetime.now(UTC),
        ).bundle

    def put(bundle: Any) -> None:
        (tmp_path / "new").write_bytes(bundle.to_jwks())
        (tmp_path / "new").rename(tmp_path / "partner.json")

    async def run() -> None:
        one, two = partner(), partner()
        put(one)
        flags = ("--federated-bundles", f"partner.test={tmp_path / 'partner.json'}")
        async with node(*flags) as (here, kubelet):
            target = await kubelet.publish(pod(), volume(layout="grpc"))
            async with grpc.aio.insecure_channel(f"unix:{here.short(target) / 'socket'}") as channel:
                stream: Any = channel.unary_stream("/SpiffeWorkloadAPI/FetchX509SVID")(b"", metadata=HEADER)  # type: ignore[arg-type]
                before = workload_pb2.X509SVIDResponse.FromString(await stream.read())
                assert before.federated_bundles["spiffe://partner.test"] == one.to_der()
                put(two)
                async with asyncio.timeout(DEADLINE):
                    after = workload_pb2.X509SVIDResponse.FromString(await stream.read())
            assert after.federated_bundles["spiffe://partner.test"] == two.to_der()
            assert after.svids == before.svids
            entry = json.loads(two.to_jwks())["keys"][0]["x5c"][0]
            await until(lambda: entry in (target / "trust_bundles.json").read_text())

    asyncio.run(run())


def test_authority_from_files_with_a_jwt_key_and_others_published_beside_it(tmp_path: Path) -> None:
    issuer = X509Authority.create(
        TrustDomain("example.org"), algorithm=KeyAlgorithm.EC_P256, lifetime=timedelta(days=1), now=datetime.now(UTC)
    )
    signing, coming = JwtSigningKey.create(JwtAlgorithm.ES256), JwtSigningKey.create(JwtAlgorithm.ES256)
    (tmp_path / "ca.crt").write_bytes(issuer.bundle.to_pem())
    (tmp_path / "ca.key").write_bytes(key_to_pem(issuer.private_key))
    (tmp_path / "jwt.key").write_bytes(signing.to_pem())
    (tmp_path / "bundle.json").write_bytes(replace(issuer.bundle, jwt_authorities=(coming.public,)).to_jwks())
    flags = ["--authority", "file", "--jwt-algorithm", "ES256"]
    files = {"ca-cert": "ca.crt", "ca-key": "ca.key", "jwt-key": "jwt.key", "jwt-bundle": "bundle.json"}
    for flag, name in files.items():
        flags += [f"--{flag}-file", str(tmp_path / name)]

    async def run() -> None:
        async with node(*flags) as (here, kubelet):
            target = await kubelet.publish(pod(), VOLUME)
            socket = here.short(target) / "socket"
            request = workload_pb2.JWTSVIDRequest(audience=["db"])
            answer = await call(socket, "FetchJWTSVID", request, workload_pb2.JWTSVIDResponse)
            assert jwt.get_unverified_header(answer.svids[0].svid)["kid"] == signing.key_id
            kids = [key.get("kid") for key in json.loads((target / "bundle.json").read_bytes())["keys"]]
            assert kids == [None, signing.key_id, coming.key_id]

    asyncio.run(run())
