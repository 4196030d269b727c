"""cert-manager as the CA above: by the contract that a real one keeps, and against statuses that mean ill."""

import argparse
import asyncio
import base64
import json
import os
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import replace
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from cryptography import x509
from cryptography.x509.oid import NameOID
from hypothesis import given
from hypothesis import strategies as st

from runtime.bounded import Bounded
from runtime.settings import InvalidSetting
from signer import config
from signer.certmanager_settings import CertManagerSettings
from signer.cluster.kube import Object
from signer.config import SignerConfig
from signer.errors import NotFound, SignerError
from signer.upstream import certmanager
from signer.upstream.certify import UpstreamUnusable
from signer.upstream.certmanager import API, LABEL, PREFIX, Certified, CertManager, verdict
from signer.upstream.chosen import chosen
from signer.upstream.remote import MAX_HANDLE, NO_HANDLE, Denied, Elsewhere, Issued, Pending, UpstreamAway
from svid.certificates import certificates_from_pem, to_pem
from tests import certmanager_contract as contract
from tests.certmanager_contract import a_request, signer
from tests.fake_kube import FakeKube
from tests.openbao_contract import TD
from tests.signer_rig import StepClock
from tests.unit.signer.test_openbao import DAY, Ca

REQUESTS = f"{API}/namespaces/podsvid/certificaterequests"
WHICH = "CertificateRequest podsvid/a"


class Ticking(StepClock):
    """Each look is a second later, so that what is made later is younger."""

    def now(self) -> datetime:
        self.pass_by(seconds=1)
        return super().now()


class StandIn:
    """Implements contract.Installation: as much of cert-manager as podsvid sees of it."""

    namespace = "podsvid"

    def __init__(self) -> None:
        self.api = FakeKube(Ticking())
        self.issuers: dict[str, Ca] = {}
        self.above: dict[str, Ca] = {}

    async def issuer(self, name: str, *, without_root: bool = False) -> x509.Certificate:
        if name not in self.issuers:
            root = Ca(f"{name} root")
            self.above[name] = root
            self.issuers[name] = Ca(name, root) if without_root else root
        found: x509.Certificate = self.above[name].certificate
        return found

    async def approve(self, request: str) -> None:
        path = f"{REQUESTS}/{request}"
        approved = _condition("Approved", "True", "test", "somebody")
        spec = self.api.objects[path]["spec"]
        assert (spec["isCA"], spec["usages"]) == (True, ["cert sign", "crl sign"])
        issuer = self.issuers.get(spec["issuerRef"]["name"])
        if issuer is None:
            why = 'Referenced "Issuer" not found: issuer.cert-manager.io "nobody" not found'
            self.status(request, conditions=[approved, _condition("Ready", "False", "Pending", why)])
            return
        csr = x509.load_pem_x509_csr(base64.b64decode(spec["request"]))
        life = timedelta(seconds=int(spec["duration"].removesuffix("s")))
        own = issuer.sign(csr.subject, csr.public_key(), life, None, *csr.extensions)
        # Without one that is its own issuer; the top of what it knows is named apart.
        chain = [own] if issuer in self.above.values() else [own, issuer.certificate]
        ready = _condition("Ready", "True", "Issued", "Certificate fetched from issuer successfully")
        self.status(
            request,
            conditions=[approved, ready],
            certificate=_b64(to_pem(chain)),
            ca=_b64(to_pem([issuer.certificate])),
        )

    async def deny(self, request: str, why: str) -> None:
        self.status(
            request,
            conditions=[
                _condition("Denied", "True", "test", why),
                _condition("Ready", "False", "Denied", "The CertificateRequest was denied by an approval controller"),
            ],
        )

    def status(self, request: str, **status: Any) -> None:
        path = f"{REQUESTS}/{request}"
        self.api.put(path, {**self.api.objects[path], "status": status})


def _condition(kind: str, status: str, reason: str = "", message: str = "") -> Object:
    return {"type": kind, "status": status, "reason": reason, "message": message}


def _b64(data: bytes) -> str:
    return base64.b64encode(data).decode()


def told(**status: Any) -> Any:
    return verdict(json.dumps(status).encode(), WHICH)


@pytest.mark.parametrize("check", contract.CHECKS, ids=lambda each: each.__name__)
def test_the_stand_in_keeps_the_contract_of_a_real_one(
    tmp_path: Path, check: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(contract, "LOOK_SECONDS", 0.0)
    monkeypatch.setattr(contract, "NEXT_SECOND", 0.0)
    asyncio.run(check(StandIn(), tmp_path))


def answered(test: Callable[[StandIn, CertManager], Awaitable[None]]) -> None:
    """With an issuer `root`."""

    async def run() -> None:
        at = StandIn()
        await at.issuer("root")
        await test(at, signer(at, "root"))

    asyncio.run(run())


async def status_of(at: StandIn, remote: CertManager, **status: Any) -> Any:
    """What comes of a request with that status."""
    request = a_request(remote)
    handle = await remote.submit(request.to_ca(TD))
    at.status(f"{PREFIX}{request.id}", **status)
    return await remote.poll(request.to_ca(TD), handle)


READY = _condition("Ready", "True", "Issued")


def test_what_is_asked_for_is_a_ca_and_nothing_more() -> None:
    async def test(at: StandIn, remote: CertManager) -> None:
        request = a_request(remote)
        handle = await remote.submit(request.to_ca(TD))
        made = at.api.objects[f"{REQUESTS}/{PREFIX}{request.id}"]
        assert made["spec"] == {
            "request": made["spec"]["request"],
            "isCA": True,
            "usages": ["cert sign", "crl sign"],
            "duration": "864000s",
            "issuerRef": {"name": "root", "kind": "Issuer", "group": "cert-manager.io"},
        }
        assert x509.load_pem_x509_csr(base64.b64decode(made["spec"]["request"])) == request.csr
        assert "ownerReferences" not in made["metadata"], "a new installation must not take a waiting request along"
        assert made["metadata"]["annotations"] == {"podsvid.io/trust-domain": "example.org"}
        assert len(made["metadata"]["labels"][LABEL]) == 40
        assert json.loads(handle) == {"uid": made["metadata"]["uid"]}
        assert len(handle) <= MAX_HANDLE

    answered(test)


def test_a_certificate_that_ends_early_is_told() -> None:
    async def test(at: StandIn, remote: CertManager) -> None:
        request = a_request(remote)
        own = at.issuers["root"].sign(request.csr.subject, request.csr.public_key(), DAY, None)
        handle = await remote.submit(request.to_ca(TD))
        at.status(f"{PREFIX}{request.id}", conditions=[READY], certificate=_b64(to_pem([own])))
        found = await remote.poll(request.to_ca(TD), handle)
        assert isinstance(found, Issued)
        assert "of the 10d that were asked for" in found.note
        assert found.roots == (), "a root that nothing names is not guessed"

    answered(test)


def test_an_issuer_that_drops_what_tells_two_authorities_apart_is_refused_at_the_first() -> None:
    """Vault's, of cert-manager, does: the first authority would serve, and each rotation be refused."""

    async def test(at: StandIn, remote: CertManager) -> None:
        request = a_request(remote)
        handle = await remote.submit(request.to_ca(TD))
        kept = [each for each in request.csr.subject if each.oid == NameOID.COMMON_NAME]
        own = at.issuers["root"].sign(x509.Name(kept), request.csr.public_key(), DAY, None)
        at.status(f"{PREFIX}{request.id}", conditions=[READY], certificate=_b64(to_pem([own])))
        found = await remote.poll(request.to_ca(TD), handle)
        assert isinstance(found, Denied)
        assert "replaced the subject that was asked for" in found.reason

    answered(test)


@pytest.mark.parametrize(
    ("status", "said"),
    [
        ({"certificate": "!"}, "something that is no PEM"),
        ({"certificate": _b64(b"\xff")}, "something that is no PEM"),
        ({"certificate": _b64(b"nothing")}, "no PEM certificate"),
        ({"certificate": _b64(b"-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----")}, "no PEM certificate"),
        ({"certificate": "A" * (certmanager.MAX_CERTIFICATE + 4)}, "more than 256 KiB"),
        ({"certificate": "AAAA", "ca": "A" * (certmanager.MAX_CA + 4)}, "more than 256 KiB"),
        ({"certificate": 1}, "cannot be read"),
        ({"conditions": [1]}, "cannot be read"),
        ({"conditions": [READY] * 33}, "has 33 conditions"),
        ({"conditions": [READY, _condition("Denied", "True")], "certificate": "AAAA"}, "was denied"),
        ({"conditions": [_condition("InvalidRequest", "True", "x", "y")]}, "is none that cert-manager takes: x: y"),
        ({"conditions": [_condition("Ready", "False", "Failed", "a\nb\x1b[31m")]}, r"failed: Failed: a b\u001b[31m"),
    ],
)
def test_what_cannot_be_taken_ends_the_request_with_a_sentence(status: Mapping[str, Any], said: str) -> None:
    async def test(at: StandIn, remote: CertManager) -> None:
        found = await status_of(at, remote, **{"conditions": [READY], **status})
        assert isinstance(found, Denied)
        assert found.permanent, "cert-manager decides a request once"
        assert said in found.reason
        assert len(found.reason) < 1000

    answered(test)


def test_more_certificates_than_anybody_has_are_not_verified() -> None:
    async def test(at: StandIn, remote: CertManager) -> None:
        many = [Ca(str(number)).certificate for number in range(34)]
        found = await status_of(at, remote, conditions=[READY], certificate=_b64(to_pem(many)))
        assert isinstance(found, Denied)
        assert "more than 32 certificates" in found.reason

    answered(test)


@pytest.mark.parametrize(
    ("status", "said"),
    [
        ({}, "is not approved yet"),
        ({"conditions": None}, "is not approved yet"),
        ({"conditions": [_condition("Approved", "False")]}, "is not approved yet"),
        ({"conditions": [_condition("Approved", "True", "x")]}, "is approved, and waits for its issuer"),
        # Ready comes with a certificate, or is not what it says.
        ({"conditions": [_condition("Approved", "True", "x"), READY]}, "is approved, and waits for its issuer: Issued"),
        ({"conditions": [_condition("Denied", "False")]}, "is not approved yet"),
        ({"certificate": "AAAA"}, "is not approved yet"),
    ],
)
def test_what_is_not_decided_is_waited_for(status: Mapping[str, Any], said: str) -> None:
    found = told(**status)
    assert isinstance(found, Pending)
    assert found.reason.startswith(f"{WHICH} {said}")


_TEXTS = st.one_of(st.none(), st.text(max_size=30), st.sampled_from(["Ready", "Denied", "Approved", "True", "False"]))
_CONDITIONS = st.lists(st.fixed_dictionaries(dict.fromkeys(("type", "status", "reason", "message"), _TEXTS)))
_STATUSES = st.fixed_dictionaries({}, optional={"conditions": _CONDITIONS, "certificate": _TEXTS, "ca": _TEXTS})


@given(st.one_of(st.binary(max_size=200), _STATUSES.map(lambda each: json.dumps(each).encode())))
def test_any_status_is_read_as_one_of_three(data: bytes) -> None:
    found = verdict(data, WHICH)
    assert isinstance(found, Pending | Denied | Certified)
    if not isinstance(found, Certified):
        assert found.reason.startswith((WHICH, "the status of "))
        assert all(" " <= each <= "~" for each in found.reason)
    else:
        status = json.loads(data)
        status["conditions"].append(_condition("Denied", "True"))
        assert isinstance(told(**status), Denied), "whoever says no is heard"


def test_who_asks_in_which_namespace_may_do_nothing_else_there() -> None:
    """Of what others made, what only looks alike, and what is not answered yet, nothing is deleted."""

    async def test(at: StandIn, remote: CertManager) -> None:
        request = a_request(remote)
        waiting, foreign = a_request(remote), a_request(remote)
        await remote.submit(waiting.to_ca(TD))
        await remote.submit(foreign.to_ca(TD))
        own = at.api.objects[f"{REQUESTS}/{PREFIX}{foreign.id}"]
        at.api.remove(f"{REQUESTS}/{PREFIX}{foreign.id}")
        at.api.put(f"{REQUESTS}/somebodys", {**own, "metadata": {"labels": own["metadata"]["labels"]}})
        at.status("somebodys", conditions=[_condition("Denied", "True")])
        await contract.issued(at, remote, request)
        await remote.forget(request.id, NO_HANDLE)
        assert sorted(await contract.left(at)) == sorted([f"{PREFIX}{waiting.id}", "somebodys"])

    answered(test)


def test_of_those_that_were_refused_the_last_one_stays() -> None:
    async def test(at: StandIn, remote: CertManager) -> None:
        for _ in range(3):
            request = a_request(remote)
            await remote.submit(request.to_ca(TD))
            await at.deny(f"{PREFIX}{request.id}", "no")
            await remote.forget(request.id, NO_HANDLE)
            assert await contract.left(at) == [f"{PREFIX}{request.id}"]

    answered(test)


@pytest.mark.parametrize(
    ("denied", "said", "kind"),
    [
        ("create", "may not make CertificateRequest podsvid/", UpstreamUnusable),
        ("get", "may not read CertificateRequest podsvid/", UpstreamUnusable),
        ("list", "may not clean up CertificateRequest podsvid/", UpstreamUnusable),
        ("delete", "may not clean up CertificateRequest podsvid/", UpstreamUnusable),
        ("down", ": the API server is down", UpstreamAway),
    ],
)
def test_what_the_api_server_refuses_is_said(denied: str, said: str, kind: type[SignerError]) -> None:
    async def test(at: StandIn, remote: CertManager) -> None:
        request = a_request(remote).to_ca(TD)
        handle = "{}"
        if denied in ("get", "list", "delete"):
            handle = await remote.submit(request)
        at.api.denied = {(denied, REQUESTS)}
        at.api.down = denied == "down"

        async def step(name: str) -> None:
            if name == "submit":
                await remote.submit(request)
            elif name == "poll":
                await remote.poll(request, handle)
            else:
                await remote.forget(request.id, handle)

        steps = {"create": ["submit"], "get": ["poll", "forget"], "down": ["submit", "poll", "forget"]}
        for name in steps.get(denied, ["forget"]):
            with pytest.raises(kind) as caught:
                await step(name)
            assert said in str(caught.value)

    answered(test)


def test_a_cluster_without_cert_manager_is_told_so() -> None:
    async def test(at: StandIn, remote: CertManager) -> None:
        async def nothing(path: str, body: Object) -> Object:
            raise NotFound("the API server answers 404: the server could not find the requested resource")

        at.api.create = nothing  # type: ignore[method-assign]
        with pytest.raises(UpstreamUnusable, match="is cert-manager installed, and is there such a namespace"):
            await remote.submit(a_request(remote).to_ca(TD))

    answered(test)


def test_roots_in_a_file_are_the_only_ones(tmp_path: Path) -> None:
    async def test(at: StandIn, remote: CertManager) -> None:
        file = tmp_path / "roots.pem"
        remote = signer(at, "root", roots=file)
        request = a_request(remote)
        handle = await remote.submit(request.to_ca(TD))
        await at.approve(f"{PREFIX}{request.id}")
        with pytest.raises(UpstreamUnusable, match="cannot be read"):
            await remote.poll(request.to_ca(TD), handle)
        other = Ca("other").certificate
        file.write_bytes(to_pem([other]))
        found = await remote.poll(request.to_ca(TD), handle)
        assert isinstance(found, Issued)
        assert found.roots == certificates_from_pem(file.read_bytes()) == (other,), "what cert-manager names counts not"

    answered(test)


def test_a_file_that_hangs_is_waited_for_so_long_and_no_longer(tmp_path: Path) -> None:
    async def test(at: StandIn, remote: CertManager) -> None:
        pipe = tmp_path / "pipe"
        os.mkfifo(pipe)
        held = replace(signer(at, "root", roots=pipe), reader=Bounded(0.05))
        with pytest.raises(UpstreamUnusable, match="their file system hangs"):
            await held.roots()
        # Who reads it waits for a writer.
        os.close(os.open(pipe, os.O_WRONLY | os.O_NONBLOCK))

    answered(test)


def loaded(given: Mapping[str, str | None]) -> SignerConfig:
    parser = argparse.ArgumentParser()
    config.add_arguments(parser)
    flags = [f"--{name.replace('_', '-')}={value}" for name, value in given.items() if value is not None]
    return config.load(parser.parse_args(["--trust-domain", "example.org", "--namespace", "identity", *flags]), {})


SOUND: Mapping[str, str | None] = {"upstream": "cert-manager", "cert_manager_issuer_name": "org-ca"}


def test_the_settings_that_are_needed_are_a_name() -> None:
    found = loaded(SOUND)
    assert found.above.cert_manager == CertManagerSettings("org-ca", "Issuer", "cert-manager.io", "identity", None)
    api = FakeKube(StepClock())
    ca = chosen(found.above, api, StepClock())
    assert isinstance(ca.remote, CertManager)
    assert ca.remote.api is api
    assert ca.above == Elsewhere("cert-manager Issuer org-ca, asked in namespace identity")
    external = {
        "cert_manager_issuer_kind": "AWSPCAClusterIssuer",
        "cert_manager_issuer_group": "awspca.cert-manager.io",
    }
    named = chosen(loaded({**SOUND, **external, "cert_manager_namespace": "pki"}).above, api, StepClock()).above
    assert named == Elsewhere("cert-manager AWSPCAClusterIssuer.awspca.cert-manager.io org-ca, asked in namespace pki")


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"cert_manager_issuer_name": None}, "say which issuer is asked"),
        ({"cert_manager_issuer_name": "a/b"}, "a Kubernetes name"),
        ({"cert_manager_issuer_kind": "a/b"}, "a kind, such as"),
        ({"cert_manager_issuer_kind": "StepIssuer"}, "has the kinds Issuer and ClusterIssuer"),
        ({"cert_manager_issuer_group": "../x"}, "an API group"),
        ({"cert_manager_namespace": "a.b"}, "a namespace's name"),
        ({"upstream_dir": "/upstream"}, "they name two upstream CAs"),
        ({"upstream": "files"}, "nothing is asked of cert-manager"),
        ({"openbao_role": "x"}, "nothing is asked of OpenBao"),
    ],
)
def test_settings_that_cannot_be_are_refused(change: dict[str, str | None], said: str) -> None:
    with pytest.raises(InvalidSetting) as caught:
        loaded({**SOUND, **change})
    assert said in str(caught.value)
