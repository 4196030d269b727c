"""The signer asks OpenBao itself for its authorities, by each way of logging in, and lives with its moods."""

import asyncio
import json
import subprocess
import sys
from collections.abc import Iterator, Mapping
from datetime import timedelta
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes

from svid.certificates import certificates_from_pem
from tests import openbao_contract as contract
from tests.interop.openbao.bao import Bao, server
from tests.interop.rig import Cluster, authorities, cluster, openssl, spiffe_ids, until
from tests.interop.traffic import Traffic
from tests.ports import free_port
from tests.support import ROOT

TRUST_DOMAIN = "spiffe://example.org"
POLICY = """
path "pki/root/sign-intermediate" { capabilities = ["update"] }
path "pki/issuer/nobody/sign-intermediate" { capabilities = ["update"] }
path "issuing/root/sign-intermediate" { capabilities = ["update"] }
path "brief/root/sign-intermediate" { capabilities = ["update"] }
path "moving/root/sign-intermediate" { capabilities = ["update"] }
path "replaced/root/sign-intermediate" { capabilities = ["update"] }
path "stolen/root/sign-intermediate" { capabilities = ["update"] }
"""


class Real:
    """Implements contract.Engine on a server in dev mode."""

    def __init__(self, bao: Bao) -> None:
        self.bao, self.address = bao, bao.address
        self.roots: dict[str, str] = {}
        bao.call("sys/policies/acl/podsvid", {"policy": POLICY})
        bao.call("sys/auth/approle", {"type": "approle"})
        bao.call("auth/approle/role/podsvid", {"token_policies": "podsvid", "token_ttl": "5m"})

    def root_of(self, mount: str) -> x509.Certificate:
        if mount not in self.roots:
            self.roots[mount] = self.bao.pki(mount)
        return certificates_from_pem(self.roots[mount].encode())[0]

    def issuing(self, mount: str, root: str) -> None:
        self.bao.call(f"sys/mounts/{mount}", {"type": "pki", "config": {"max_lease_ttl": "8760h"}})
        csr = self.bao.call(f"{mount}/intermediate/generate/internal", {"common_name": mount, "key_type": "ec"})["csr"]
        above = self.bao.call(f"{root}/root/sign-intermediate", {"csr": csr, "ttl": "4000h", "common_name": mount})
        self.bao.call(f"{mount}/intermediate/set-signed", {"certificate": above["certificate"]})

    def most(self, mount: str, lifetime: timedelta) -> None:
        self.bao.call(f"sys/mounts/{mount}/tune", {"max_lease_ttl": f"{int(lifetime.total_seconds())}s"})

    def credential(self) -> tuple[str, str]:
        role = str(self.bao.call("auth/approle/role/podsvid/role-id")["role_id"])
        return role, str(self.bao.call("auth/approle/role/podsvid/secret-id", {})["secret_id"])

    def seal(self) -> None:
        self.bao.call("sys/seal", {})

    def unseal(self) -> None:
        self.bao.unseal()


@pytest.fixture(scope="module")
def real(programs: Mapping[str, Path], tmp_path_factory: pytest.TempPathFactory) -> Iterator[Real]:
    with server(programs["bao"], tmp_path_factory.mktemp("bao")) as found:
        yield Real(found)


@pytest.mark.parametrize("check", contract.CHECKS, ids=lambda check: check.__name__)
def test_it_is_what_the_stand_in_of_the_unit_tests_is(real: Real, tmp_path: Path, check: object) -> None:
    asyncio.run(check(real, tmp_path))  # type: ignore[operator]


def flags(real: Real, folder: Path, mount: str) -> tuple[str, ...]:
    """A signer's, by AppRole."""
    role, secret = real.credential()
    file = folder / "secret-id"
    file.write_text(secret)
    return (
        *("--upstream", "openbao", "--openbao-address", real.address, "--openbao-mount", mount),
        *("--openbao-auth", "approle", "--openbao-role-id", role, "--openbao-secret-id-file", str(file)),
        *("--reissue-over", "2s", "--retire-after", "1s"),
    )


def published(real: Real, mount: str, folder: Path) -> Path:
    """The root that anybody is given who asks the engine for it."""
    file = folder / f"{mount}.crt"
    file.write_bytes(real.bao.raw(f"{mount}/ca/pem"))
    return file


def test_pods_verify_under_openbaos_root_over_a_rotation_and_a_seal(real: Real, tmp_path: Path) -> None:
    real.root_of("pki")
    root = published(real, "pki", tmp_path)

    async def run() -> None:
        async with cluster(*flags(real, tmp_path, "pki")) as here:
            target = await here.publish(0)
            held = certificates_from_pem((target / "tls.crt").read_bytes())
            assert len(held) == 2, "leaf, and the signer's authority that OpenBao signed"
            assert (openssl(target, root), spiffe_ids(target)) == ("OK", [f"{TRUST_DOMAIN}/ns/default/sa/account-0"])
            real.seal()
            try:
                await here.authority("rotate", "--no-wait")
                await until_said(here, "sealed")
                told = json.loads(await here.authority("show", "--output", "json"))
                assert told["requested_x509"]["at"].startswith("OpenBao http://127.0.0.1")
                assert told["requested_x509"]["since"]
                # Nobody waits: the authority of before signs on.
                again = await here.publish(1)
                assert certificates_from_pem((again / "tls.crt").read_bytes())[1] == held[1]
            finally:
                real.unseal()
            await until(lambda: certificates_from_pem((target / "tls.crt").read_bytes())[1] != held[1])
            assert openssl(target, root) == "OK"
            assert authorities(target) == 1, "the root stays the same"

    asyncio.run(run())


async def until_said(here: Cluster, text: str) -> None:
    async with asyncio.timeout(30):
        while text not in await here.authority("show"):
            await asyncio.sleep(0.2)


def test_the_next_authority_is_below_another_root_when_the_engine_has_one(real: Real, tmp_path: Path) -> None:
    real.root_of("moving")

    async def run() -> None:
        async with cluster(*flags(real, tmp_path, "moving")) as here:
            target = await here.publish(0)
            made = real.bao.call("moving/root/rotate/internal", {"common_name": "second root", "key_type": "ec"})
            real.bao.call("moving/root/replace", {"default": made["issuer_id"]})
            only_new = tmp_path / "new.crt"
            only_new.write_text(str(made["certificate"]))
            await here.authority("rotate", "--no-wait")
            await until(lambda: openssl(target, only_new) == "OK")

    asyncio.run(run())


QUICK = (
    *("--upstream-root-interval", "1s", "--x509-min-ttl", "2s", "--x509-ttl", "6s", "--x509-max-ttl", "6s"),
    *("--outage-limit", "6s", "--forced-reissue-over", "2s"),
)


def test_a_root_is_replaced_under_traffic_and_nobody_fails(real: Real, tmp_path: Path) -> None:
    """Trusted before anything is below it, used when all have it, and the one before is gone in the end."""
    real.root_of("replaced")
    first = published(real, "replaced", tmp_path)
    old = str(real.bao.call("replaced/config/issuers")["default"])

    async def run() -> None:
        async with cluster(*flags(real, tmp_path, "replaced"), *QUICK) as here:
            targets = [await here.publish(0), await here.publish(1)]
            traffic = Traffic(*targets)
            talking = asyncio.create_task(traffic.run())
            try:
                made = real.bao.call("replaced/root/rotate/internal", {"common_name": "next root", "key_type": "ec"})
                only_new = tmp_path / "next.crt"
                only_new.write_text(str(made["certificate"]))
                await until(lambda: [authorities(each) for each in targets] == [2, 2])
                assert [openssl(each, first) for each in targets] == ["OK", "OK"]
                assert "OK" not in [openssl(each, only_new) for each in targets]
                told = json.loads(await here.authority("show", "--output", "json"))
                assert {each["subject"] for each in told["upstream_roots"]} == {"CN=replaced root", "CN=next root"}
                real.bao.call("replaced/root/replace", {"default": made["issuer_id"]})
                await here.authority("rotate", "--no-wait")
                await until(lambda: [openssl(each, only_new) for each in targets] == ["OK", "OK"])
                real.bao.delete(f"replaced/issuer/{old}")
                await until(lambda: [authorities(each) for each in targets] == [1, 1])
                assert [openssl(each, only_new) for each in targets] == ["OK", "OK"]
            finally:
                talking.cancel()
            assert traffic.failed == []
            assert traffic.done > 100

    asyncio.run(run())


def test_a_stolen_root_is_revoked_under_traffic_and_nobody_fails(real: Real, tmp_path: Path) -> None:
    """It leaves with the last SVID below it, and stays away though the engine names it still."""
    stolen = real.root_of("stolen").fingerprint(hashes.SHA256()).hex()

    async def shown(here: Cluster) -> dict[str, set[str]]:
        told = json.loads(await here.authority("show", "--output", "json"))
        return {which: {each["subject"] for each in told[f"{which}_roots"]} for which in ("upstream", "revoked")}

    async def run() -> None:
        async with cluster(*flags(real, tmp_path, "stolen"), *QUICK) as here:
            targets = [await here.publish(0), await here.publish(1)]
            traffic = Traffic(*targets)
            talking = asyncio.create_task(traffic.run())
            try:
                # Nothing below another root can be had yet: nobody is cut off, and the word is kept.
                await here.authority("revoke-upstream", stolen, "--no-wait")
                await until_said(here, "leads to no root but one that was revoked")
                assert await shown(here) == {"upstream": {"CN=stolen root"}, "revoked": {"CN=stolen root"}}
                made = real.bao.call("stolen/root/rotate/internal", {"common_name": "next root", "key_type": "ec"})
                only_new = tmp_path / "next.crt"
                only_new.write_text(str(made["certificate"]))
                real.bao.call("stolen/root/replace", {"default": made["issuer_id"]})
                await here.authority("prepare")
                await here.authority("revoke-upstream", stolen)
                await until(lambda: [openssl(each, only_new) for each in targets] == ["OK", "OK"])
                await until(lambda: [authorities(each) for each in targets] == [1, 1])
                await until_said(here, "CN=stolen root is left out: it was revoked")
                assert await shown(here) == {"upstream": {"CN=next root"}, "revoked": {"CN=stolen root"}}
                assert [authorities(each) for each in targets] == [1, 1]
                await here.authority("trust-upstream", stolen)
                await until(lambda: [authorities(each) for each in targets] == [2, 2])
            finally:
                talking.cancel()
            assert traffic.failed == []
            assert traffic.done > 100

    asyncio.run(run())


def test_a_mount_that_gives_too_little_time_is_refused_and_told(real: Real, tmp_path: Path) -> None:
    real.root_of("brief")
    real.most("brief", timedelta(hours=1))
    log = tmp_path / "signer.log"

    async def run() -> None:
        command = [sys.executable, "-m", "tests.signer_process", str(tmp_path), "1", "1", "0", str(free_port())]
        with log.open("wb") as sink:
            process = subprocess.Popen(
                [*command, *flags(real, tmp_path, "brief")],
                cwd=ROOT,
                stdin=subprocess.DEVNULL,
                stdout=sink,
                stderr=sink,
            )
        try:
            await until(lambda: "was given up" in log.read_text())
            said = log.read_text()
            assert "gives 1h" in said
            assert "max_lease_ttl" in said
            assert process.poll() is None, "it stays, and says what it waits for"
        finally:
            process.kill()
            process.wait()

    asyncio.run(run())


def test_by_a_token_in_a_file_and_in_a_namespace(real: Real, tmp_path: Path) -> None:
    real.root_of("pki")
    token = tmp_path / "token"
    token.write_text("root")
    to = contract.signer(real, tmp_path)
    by_token = to.at("pki", auth="token", token_file=token, role_id=None, secret_id_file=None)
    asyncio.run(contract.issued(by_token))
    real.bao.call("sys/namespaces/team", {})
    said = asyncio.run(contract.unusable(to.at("pki", namespace="team", auth="token", token_file=token)))
    assert "in namespace team" in said
    assert asyncio.run(contract.issued(to.at("pki", auth="token", token_file=token, issuer="default"))).chain
