"""podsvid's CA below a PKI of OpenBao: what it issues verifies there, and a CA that cannot issue is refused."""

import asyncio
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from datetime import UTC, datetime
from pathlib import Path

import pytest

from podsvid.quickstart.errors import PublishFailed
from podsvid.quickstart.pods import PodVolume
from svid.certificates import certificates_from_pem
from svid.keys import KeyAlgorithm, key_to_pem
from tests.interop.openbao.bao import Bao, BaoError, Files, intermediate, server, written
from tests.interop.rig import authorities, cluster, openssl, registered, spiffe_ids, until
from tests.ports import free_port
from tests.support import DEADLINE, ROOT, VOLUME, host, node, pod, serial

TRUST_DOMAIN = "spiffe://example.org"
WEB = f"{TRUST_DOMAIN}/ns/default/sa/web"


@pytest.fixture(scope="module")
def bao(programs: Mapping[str, Path], tmp_path_factory: pytest.TempPathFactory) -> Iterator[Bao]:
    with server(programs["bao"], tmp_path_factory.mktemp("bao")) as found:
        yield found


@pytest.fixture(scope="module")
def root(bao: Bao) -> str:
    """Of the engine `pki`."""
    return bao.pki("pki")


async def refused(files: Files, volume: PodVolume = VOLUME) -> str:
    """Why a pod gets no volume from an agent with these."""
    async with node(*files.agent) as (here, kubelet):
        with pytest.raises(PublishFailed) as caught:
            await kubelet.publish(pod(), volume)
        assert here.mounts() == []
    return caught.value.message


async def not_started(*flags: str) -> str:
    """What an agent with these flags says when it ends."""
    with host() as here:
        here.start(*flags)
        process = here.process
        assert process is not None
        await until(lambda: process.poll() is not None or "agent serving" in here.log.read_text(encoding="utf-8"))
        if process.poll() is None:
            pytest.fail("the agent serves with that CA")
        assert process.poll() == 1
        return here.log.read_text(encoding="utf-8")


def test_svids_verify_under_openbaos_root_and_go_on_doing_so_when_renewed(bao: Bao, root: str, tmp_path: Path) -> None:
    chain, key = intermediate(bao, "pki", TRUST_DOMAIN, max_path_length=0)
    files = written(tmp_path, chain, key, root)
    # What OpenBao hands to anybody who asks for its CA, without podsvid between.
    published = tmp_path / "published.crt"
    published.write_bytes(bao.raw("pki/ca/pem"))

    async def run() -> None:
        async with node(*files.agent, ttl="6s") as (_, kubelet):
            target = await kubelet.publish(pod(), VOLUME)
            assert openssl(target, published) == "OK"
            assert spiffe_ids(target) == [WEB]
            held = certificates_from_pem((target / "tls.crt").read_bytes())
            assert held[1:] == certificates_from_pem(chain.encode()), "the leaf's issuer goes along, the root does not"
            assert (target / "ca.crt").read_text().strip() == root.strip()
            before = serial(target)
            await until(lambda: serial(target) != before)
            assert openssl(target, published) == "OK"

    asyncio.run(run())


@pytest.mark.parametrize(
    ("key_type", "bits"), [("ec", 256), ("ec", 384), ("rsa", 2048), ("ed25519", 0)], ids=lambda each: str(each)
)
def test_a_key_that_openbao_made_is_taken_as_it_comes(
    bao: Bao, root: str, tmp_path: Path, key_type: str, bits: int
) -> None:
    # As a person does it: an engine for podsvid, whose key is exported once, signed by the root's engine.
    mount = f"podsvid-{key_type}-{bits}"
    bao.call(f"sys/mounts/{mount}", {"type": "pki", "config": {"max_lease_ttl": "8760h"}})
    body = {"common_name": "podsvid", "uri_sans": TRUST_DOMAIN, "key_type": key_type, "key_bits": bits}
    made = bao.call(f"{mount}/intermediate/generate/exported", body)
    signed = bao.call("pki/root/sign-intermediate", {"csr": made["csr"], "use_csr_values": True, "ttl": "720h"})
    files = written(tmp_path, str(signed["certificate"]), str(made["private_key"]), root)

    async def run() -> None:
        async with node(*files.agent) as (_, kubelet):
            target = await kubelet.publish(pod(), VOLUME)
            assert openssl(target, files.bundle) == "OK"
            assert spiffe_ids(target) == [WEB]

    asyncio.run(run())


def test_a_ca_below_an_issuing_ca_as_openbao_makes_them_without_being_asked(
    bao: Bao, root: str, tmp_path: Path
) -> None:
    # root, an issuing CA with a key that never leaves OpenBao, podsvid. No `use_csr_values`: OpenBao puts the common
    # name into a DNS name, and no path length anywhere.
    bao.call("sys/mounts/issuing", {"type": "pki", "config": {"max_lease_ttl": "8760h"}})
    csr = bao.call("issuing/intermediate/generate/internal", {"common_name": "issuing", "key_type": "ec"})["csr"]
    above = str(bao.call("pki/root/sign-intermediate", {"csr": csr, "ttl": "4000h"})["certificate"])
    bao.call("issuing/intermediate/set-signed", {"certificate": above})
    chain, key = intermediate(bao, "issuing", TRUST_DOMAIN, use_csr_values=False, common_name="podsvid.example.org")
    files = written(tmp_path, f"{chain}\n{above}", key, root)

    async def run() -> None:
        async with node(*files.agent) as (_, kubelet):
            target = await kubelet.publish(pod(), VOLUME)
            assert len(certificates_from_pem((target / "tls.crt").read_bytes())) == 3
            assert openssl(target, files.bundle) == "OK"

    asyncio.run(run())


def test_an_svid_never_outlives_what_openbao_granted(bao: Bao, root: str, tmp_path: Path) -> None:
    chain, key = intermediate(bao, "pki", TRUST_DOMAIN, ttl="30m")
    files = written(tmp_path, chain, key, root)
    end = certificates_from_pem(chain.encode())[0].not_valid_after_utc

    async def run() -> None:
        async with node(*files.agent, ttl="1h") as (_, kubelet):
            target = await kubelet.publish(pod(), VOLUME)
            assert certificates_from_pem((target / "tls.crt").read_bytes())[0].not_valid_after_utc == end
            assert openssl(target, files.bundle) == "OK"

    asyncio.run(run())


def test_another_root_of_openbao_replaces_the_first(bao: Bao, tmp_path: Path) -> None:
    old_root = bao.pki("moving")
    chain, key = intermediate(bao, "moving", TRUST_DOMAIN)
    files = written(tmp_path, chain, key, old_root)
    flags = files.agent

    async def run() -> None:
        with host() as here:
            here.start(*flags)
            async with registered(here) as kubelet:
                before = await kubelet.publish(pod(), VOLUME)
                assert here.stop() == 0
            made = bao.call("moving/root/rotate/internal", {"common_name": "second root", "key_type": "ec"})
            bao.call("moving/root/replace", {"default": made["issuer_id"]})
            new_root = str(made["certificate"])
            renewed, new_key = intermediate(bao, "moving", TRUST_DOMAIN)
            written(tmp_path, renewed, new_key, f"{old_root}\n{new_root}")
            only_new = tmp_path / "new.crt"
            only_new.write_text(new_root)
            here.start(*flags)
            async with registered(here) as kubelet:
                after = await kubelet.publish(pod("b"), VOLUME)
                assert openssl(after, only_new) == "OK"
                assert authorities(after) == 2
                # The pod that ran already holds its old SVID still, and both roots: each can verify the other.
                await until(lambda: authorities(before) == 2)
                assert openssl(before, after / "ca.crt") == "OK"
                assert openssl(after, before / "ca.crt") == "OK"
                assert openssl(before, only_new) != "OK"

    asyncio.run(run())


def test_an_expired_ca_is_refused(bao: Bao, root: str, tmp_path: Path) -> None:
    chain, key = intermediate(bao, "pki", TRUST_DOMAIN, ttl="1s")
    end = certificates_from_pem(chain.encode())[0].not_valid_after_utc
    until_expired = time.monotonic() + DEADLINE
    while datetime.now(UTC) <= end:
        assert time.monotonic() < until_expired
        time.sleep(0.1)
    said = asyncio.run(refused(written(tmp_path, chain, key, root)))
    assert f"authority expired at {end:%Y-%m-%dT%H:%M:%SZ}" in said


def test_a_ca_with_name_constraints_is_refused(bao: Bao, root: str, tmp_path: Path) -> None:
    chain, key = intermediate(bao, "pki", TRUST_DOMAIN, permitted_dns_domains=["example.org"])
    said = asyncio.run(not_started(*written(tmp_path, chain, key, root).agent))
    assert "name constraints, which are not supported" in said


def test_a_ca_below_a_root_with_name_constraints_is_refused(bao: Bao, tmp_path: Path) -> None:
    root = bao.pki("permits", permitted_dns_domains=["example.org"])
    said = asyncio.run(not_started(*written(tmp_path, *intermediate(bao, "permits", TRUST_DOMAIN), root).agent))
    assert "name constraints, which are not supported" in said


def test_a_ca_of_another_trust_domain_is_refused(bao: Bao, root: str, tmp_path: Path) -> None:
    chain, key = intermediate(bao, "pki", "spiffe://other.example")
    said = asyncio.run(not_started(*written(tmp_path, chain, key, root).agent))
    assert "spiffe://other.example" in said


def test_a_certificate_without_the_key_usage_of_a_ca_is_refused(bao: Bao, root: str, tmp_path: Path) -> None:
    bao.call("pki/roles/leaf", {"allow_any_name": True, "key_type": "ec", "key_bits": 256})
    found = bao.call("pki/issue/leaf", {"common_name": "podsvid.example.org", "ttl": "1h"})
    files = written(tmp_path, str(found["certificate"]), str(found["private_key"]), root)
    said = asyncio.run(not_started(*files.agent))
    assert "authority certificate is not a CA certificate with keyCertSign" in said


def test_a_ca_with_the_key_of_another_is_refused(bao: Bao, root: str, tmp_path: Path) -> None:
    chain, _ = intermediate(bao, "pki", TRUST_DOMAIN)
    other = key_to_pem(KeyAlgorithm.EC_P256.generate()).decode()
    said = asyncio.run(not_started(*written(tmp_path, chain, other, root).agent))
    assert "authority key does not match its certificate" in said


def test_the_root_of_another_engine_is_refused(bao: Bao, tmp_path: Path) -> None:
    stranger = bao.pki("stranger")
    chain, key = intermediate(bao, "pki", TRUST_DOMAIN)
    said = asyncio.run(not_started(*written(tmp_path, chain, key, stranger).agent))
    assert "chain does not lead to an authority of trust domain example.org" in said


# --- the signer's authorities below it


def test_a_signers_authorities_are_below_openbaos_ca_over_a_rotation(bao: Bao, root: str, tmp_path: Path) -> None:
    chain, key = intermediate(bao, "pki", TRUST_DOMAIN, max_path_length=1)
    files = written(tmp_path, chain, key, root)
    flags = (*files.signer, "--reissue-over", "2s", "--retire-after", "1s")

    async def run() -> None:
        async with cluster(*flags) as here:
            target = await here.publish(0)
            held = certificates_from_pem((target / "tls.crt").read_bytes())
            assert len(held) == 3, "leaf, the signer's authority, the CA that OpenBao signed"
            assert openssl(target, files.bundle) == "OK"
            assert spiffe_ids(target) == [f"{TRUST_DOMAIN}/ns/default/sa/account-0"]
            await here.authority("rotate", "--no-wait")
            await until(lambda: certificates_from_pem((target / "tls.crt").read_bytes())[1] != held[1])
            after = certificates_from_pem((target / "tls.crt").read_bytes())
            assert after[2] == held[2]
            assert openssl(target, files.bundle) == "OK"
            assert authorities(target) == 1, "the root stays the same"

    asyncio.run(run())


def test_a_ca_that_leaves_no_room_for_the_signers_authority_is_refused(bao: Bao, root: str, tmp_path: Path) -> None:
    chain, key = intermediate(bao, "pki", TRUST_DOMAIN, max_path_length=0)
    flags = written(tmp_path, chain, key, root).signer

    async def run() -> None:
        with pytest.raises(RuntimeError) as caught:
            async with cluster(*flags):
                pass
        assert "path length of the authority above leaves no room for an intermediate" in str(caught.value)

    asyncio.run(run())


async def signer_not_serving(folder: Path, files: Files) -> str:
    """What a signer below that CA says of it; it stays, and serves nothing."""
    log = folder / "signer.log"
    command = [sys.executable, "-m", "tests.signer_process", str(folder), "1", "1", "0", str(free_port())]
    command += files.signer
    with log.open("wb") as sink:
        process = subprocess.Popen(command, cwd=ROOT, stdin=subprocess.DEVNULL, stdout=sink, stderr=sink)
    try:
        said = ("the CA above certifies none", "signer serving")
        await until(lambda: process.poll() is not None or any(each in log.read_text() for each in said))
        text = log.read_text()
        assert process.poll() is None, text
        assert "signer serving" not in text
        return text
    finally:
        process.kill()
        process.wait()


WRONG = {
    "name constraints": "name constraints",
    "another trust domain": "it is the CA of spiffe://other.example, not of spiffe://example.org",
    "another root": "chain does not lead to an authority of trust domain example.org",
}


@pytest.mark.parametrize("wrong", WRONG)
def test_a_signer_does_not_serve_below_a_ca_that_cannot_issue(bao: Bao, root: str, tmp_path: Path, wrong: str) -> None:
    wishes = {"permitted_dns_domains": ["example.org"]} if wrong == "name constraints" else {}
    domain = "spiffe://other.example" if wrong == "another trust domain" else TRUST_DOMAIN
    roots = bao.pki("unrelated") if wrong == "another root" else root
    files = written(tmp_path / "files", *intermediate(bao, "pki", domain, **wishes), roots)
    said = asyncio.run(signer_not_serving(tmp_path, files))
    assert '"reason": "UPSTREAM_UNUSABLE"' in said
    assert WRONG[wrong] in said


def test_openbao_itself_makes_no_ca_below_one_that_leaves_no_room(bao: Bao) -> None:
    bao.pki("short", max_path_length=0)
    with pytest.raises(BaoError, match="max path length of zero"):
        intermediate(bao, "short", TRUST_DOMAIN)
