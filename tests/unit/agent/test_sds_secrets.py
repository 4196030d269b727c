"""Envoy's secrets by name: only what verifies is sent, and no domain speaks for another."""

from dataclasses import replace
from datetime import datetime

import pytest

from agent.pb import sds_pb2
from agent.socket.sds_secrets import MAX_NAMES, Rendered, SdsNames, Secrets
from runtime.feed import Feed
from svid.bundle import TrustBundle
from svid.identity import WorkloadIdentity
from svid.keys import KeyAlgorithm, PrivateKey
from svid.spiffeid import TrustDomain
from svid.x509svid import X509Svid
from tests.fake_authority import HOUR, SPIFFE_ID, StepClock, root

PARTNER = TrustDomain("partner.test")


class Scene:
    """One identity with a federated domain, and its secrets."""

    def __init__(self) -> None:
        self.clock = StepClock()
        self.x509 = root(self.clock.at)
        partner = TrustBundle(PARTNER, root(self.clock.at, PARTNER).chain)
        svid = self.svid(KeyAlgorithm.EC_P256.generate(), self.clock.at)
        self.identity = WorkloadIdentity((svid,), self.x509.bundle, (partner,))
        self.feed: Feed[WorkloadIdentity] = Feed()
        self.secrets = Secrets(self.feed, SdsNames(), self.clock, "default/web-1")

    def svid(self, key: PrivateKey, now: datetime) -> X509Svid:
        return X509Svid(SPIFFE_ID, self.x509.issue(key.public_key(), SPIFFE_ID, ttl=HOUR, now=now), key)

    def secret(self, name: str, *, plain: bool = False) -> sds_pb2.Secret | None:
        found = self.secrets.get(name, plain)
        return sds_pb2.Secret.FromString(found.data) if found else None


@pytest.fixture
def at() -> Scene:
    return Scene()


def test_before_the_first_identity_there_is_nothing(at: Scene) -> None:
    assert at.secret("default") is at.secret("ROOTCA") is None
    assert at.secrets.names() == []


@pytest.mark.parametrize("name", ["default", str(SPIFFE_ID)])
def test_an_svid_with_its_own_key_until_it_has_ended(at: Scene, name: str) -> None:
    at.feed.publish(at.identity)
    found = at.secret(name)
    assert found is not None
    assert found.name == name
    assert found.tls_certificate.private_key.inline_bytes == at.identity.default.key_pem()
    assert found.tls_certificate.certificate_chain.inline_bytes == at.identity.default.chain_pem()
    at.clock.at += HOUR
    assert at.secret(name) is None
    assert at.secret("ROOTCA") is not None, "the bundle is good even when the own SVID is not"


def test_an_svid_that_its_bundle_does_not_verify_is_not_sent(at: Scene) -> None:
    at.feed.publish(replace(at.identity, bundle=root(at.clock.at).bundle))
    assert at.secret("default") is None
    assert at.secret(str(SPIFFE_ID)) is None


@pytest.mark.parametrize("name", ["", "other", "spiffe://example.org/ns/default/sa/admin", "spiffe://stranger.test"])
def test_names_of_others_are_nothing(at: Scene, name: str) -> None:
    at.feed.publish(at.identity)
    assert at.secret(name) is None


def test_to_one_plain_ca_only_one_domain_is_told(at: Scene) -> None:
    at.feed.publish(at.identity)
    assert at.secret("ALL", plain=True) is None, "any of them could speak for any ID"
    for name, bundle in (("ROOTCA", at.identity.bundle), (str(PARTNER.id), at.identity.federated[0])):
        found = at.secret(name, plain=True)
        assert found is not None
        assert found.validation_context.trusted_ca.inline_bytes == bundle.to_pem()


def test_each_domains_certificates_are_bound_to_its_name(at: Scene) -> None:
    at.feed.publish(at.identity)
    found = at.secret("ALL")
    assert found is not None
    packed = found.validation_context.custom_validator_config.typed_config.value
    config = sds_pb2.SPIFFECertValidatorConfig.FromString(packed)
    assert {each.name: each.trust_bundle.inline_bytes for each in config.trust_domains} == {
        "example.org": at.identity.bundle.to_pem(),
        "partner.test": at.identity.federated[0].to_pem(),
    }


def test_a_domain_without_certificates_costs_nobody_elses(at: Scene) -> None:
    at.feed.publish(replace(at.identity, federated=(TrustBundle(PARTNER),)))
    assert at.secret(str(PARTNER.id)) is None
    assert at.secret("ALL", plain=True) is not None


def version(found: Rendered | None) -> str:
    assert found is not None
    return found.version


def test_a_version_changes_with_the_certificate(at: Scene) -> None:
    at.feed.publish(at.identity)
    before = version(at.secrets.get("default", False))
    # As after a renewal that kept the key.
    at.feed.publish(replace(at.identity, svids=(at.svid(at.identity.default.private_key, at.clock.at),)))
    assert version(at.secrets.get("default", False)) != before


def test_a_version_is_made_of_the_public_part(at: Scene, monkeypatch: pytest.MonkeyPatch) -> None:
    hashed = []

    class Hash:
        def hexdigest(self) -> str:
            return "0" * 64

    def remember(data: bytes) -> Hash:
        hashed.append(data)
        return Hash()

    monkeypatch.setattr("agent.socket.sds_secrets.hashlib.sha256", remember)
    at.feed.publish(at.identity)
    at.secrets.get("default", False)
    assert hashed == [at.identity.default.chain_pem()]


def test_a_new_identity_replaces_all_that_was_rendered(at: Scene) -> None:
    at.feed.publish(at.identity)
    at.secrets.get("ALL", False)
    at.feed.publish(replace(at.identity, federated=()))
    assert at.secret(str(PARTNER.id)) is None
    assert str(PARTNER.id) not in at.secrets.names()


def test_ever_new_names_do_not_fill_memory_and_keep_nobody_from_what_there_is(at: Scene) -> None:
    at.feed.publish(at.identity)
    for number in range(4 * MAX_NAMES):
        assert at.secrets.get(f"name-{number}", False) is None
    assert at.secrets._rendered[1] == {}
    assert at.secrets.get("default", False) is not None
    assert at.secrets.get("ALL", False) is not None


def test_what_is_kept_of_the_identity_is_not_what_was_looked_at(at: Scene, monkeypatch: pytest.MonkeyPatch) -> None:
    """The library keeps what it reads of a certificate, 5 KB, with that."""
    real, looked = X509Svid.check, list[X509Svid]()

    def check(self: X509Svid, bundle: TrustBundle, now: datetime) -> None:
        looked.append(self)
        real(self, bundle, now)

    monkeypatch.setattr(X509Svid, "check", check)
    at.feed.publish(at.identity)
    assert at.secret("default") is not None
    assert looked == [at.identity.default]
    assert looked[0].chain[0] is not at.identity.default.chain[0]
