"""What a pod's author asks for in a volume: read within bounds, and said before kubelet finds it refused."""

from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from signer import parts
from signer.attestation.pods import read_pod
from signer.attestation.volumes import MAX_CHARACTERS, MAX_WISHES
from signer.cluster.kube import Object
from signer.cluster.objects import Pod as PodObject
from signer.model import NO_POLICY, SourceWish, VolumeWish
from signer.policy.policies import Policies
from signer.policy.policy import PolicySettings
from signer.wishes import stale_mounts
from svid.spiffeid import TrustDomain
from tests.live_pods import Fixed
from tests.pod_certificates import SIGNER, source
from tests.signer_rig import DRIVER
from tests.typed import typed
from tests.unit.signer.test_audience_settings import loaded
from tests.unit.signer.test_policy_status import HOME, MINUTE, Rig, followed, pod, told

PLAIN = VolumeWish("identity")


def volume(name: str = "identity", driver: str = DRIVER, **attributes: str) -> Object:
    return {"name": name, "csi": {"driver": driver, "volumeAttributes": attributes or None}}


def wishes(volumes: list[Object], **spec: Any) -> tuple[VolumeWish, ...]:
    body = {
        "metadata": {"uid": "u", "name": "n", "namespace": "ns"},
        "spec": {"nodeName": "node-a", "serviceAccountName": "web", "volumes": volumes, **spec},
    }
    found = read_pod(typed(PodObject, body), drivers=frozenset({DRIVER}))
    assert found is not None
    return found.wishes


def test_volumes_of_the_own_drivers_are_read_and_no_others() -> None:
    found = wishes(
        [
            volume(),
            volume("tls", keyAlgorithm="rsa-2048", dnsNames="a.ns.svc, b.ns.svc", ttl="1h"),
            volume("other", "csi.other.io", keyAlgorithm="rsa-4096"),
            {"name": "scratch", "emptyDir": {}},
        ]
    )
    assert found == (PLAIN, VolumeWish("tls", "rsa-2048", "a.ns.svc, b.ns.svc"))
    assert wishes([]) == ()


def test_of_a_pod_that_has_finished_nothing_is_kept() -> None:
    body = {"metadata": {"uid": "u", "name": "n", "namespace": "ns"}, "spec": {"volumes": [volume()]}}
    done = read_pod(typed(PodObject, {**body, "status": {"phase": "Succeeded"}}), drivers=frozenset({DRIVER}))
    assert done is not None
    assert done.wishes == ()


def test_mounts_by_sub_path_are_found_where_they_last() -> None:
    by_sub_path = [{"name": "identity", "subPath": "tls.crt"}, {"name": "identity", "subPathExpr": "$(X)"}]
    whole = [{"name": "identity", "mountPath": "/run/spiffe"}, {"name": "identity", "subPath": "."}]
    found = wishes(
        [volume(), volume("tls")],
        containers=[
            {"name": "app", "volumeMounts": by_sub_path},
            {"name": "whole", "volumeMounts": whole},
            {"name": "none"},
        ],
        initContainers=[
            {"name": "setup", "volumeMounts": by_sub_path},
            {"name": "sidecar", "restartPolicy": "Always", "volumeMounts": by_sub_path},
        ],
    )
    assert found == (VolumeWish("identity", by_sub_path=("sidecar", "app")), VolumeWish("tls"))
    assert stale_mounts(found[0]).startswith("volume identity is mounted by subPath in container sidecar, app: ")
    assert stale_mounts(found[1]) == ""


@given(
    st.lists(
        st.builds(
            lambda name, key, dns: volume(name, keyAlgorithm=key, dnsNames=dns),
            st.text(min_size=1, max_size=70),
            st.text(max_size=2000),
            st.text(max_size=2000),
        ),
        max_size=20,
    ),
    st.lists(st.text(min_size=1, max_size=70), max_size=20),
)
def test_what_is_kept_is_bounded_whatever_a_pod_asks_for(volumes: list[Object], containers: list[str]) -> None:
    mounts = [{"name": each["name"], "subPath": "x"} for each in volumes]
    found = wishes(volumes, containers=[{"name": each, "volumeMounts": mounts} for each in containers])
    assert len(found) <= MAX_WISHES
    kept = (text for each in found for text in (each.volume, each.key_algorithm, each.dns_names, *each.by_sub_path))
    assert sum(map(len, kept)) <= MAX_CHARACTERS


@pytest.mark.parametrize(
    ("spec", "wish", "said"),
    [
        (
            {"keyAlgorithms": ["rsa-2048"]},
            PLAIN,
            "KEY_ALGORITHM_DENIED: volume identity: policy shop/own wants",
        ),
        ({"keyAlgorithms": ["ec-p256"]}, VolumeWish("tls", "rsa-4096"), "rsa-4096; set volumeAttributes keyAlgorithm"),
        ({}, VolumeWish("tls", dns_names="b.other.svc"), "DNS_NAME_DENIED: volume tls: 'b.other.svc' is not among"),
        ({"dnsNameTemplates": ["a.{namespace}.svc"]}, VolumeWish("tls", dns_names="a.shop.svc"), ""),
        ({"keyAlgorithms": ["rsa-2048"]}, VolumeWish("tls", "rsa-2048"), ""),
        # The node refuses what no driver would send.
        ({"keyAlgorithms": ["rsa-2048"]}, VolumeWish("tls", "rsa-17"), ""),
        ({}, PLAIN, ""),
    ],
)
def test_a_pod_that_asks_for_what_policy_does_not_give_is_refused_in_all_words(
    spec: dict[str, Any], wish: VolumeWish, said: str
) -> None:
    """explain began with its ID, as if it were allowed, and the policy was Ready."""

    async def test(rig: Rig) -> None:
        path = rig.put(f"{HOME}/own", **spec)
        asking = pod(0, wishes=(PLAIN, wish) if wish != PLAIN and not spec.get("keyAlgorithms") else (wish,))
        found, conditions = await rig.status(path, asking, pod(1))
        explained = rig.policies.explain(asking)
        refused = conditions["PodsRefused"]
        assert conditions["Ready"]["status"] == "True", "the policy itself can be used"
        if said:
            assert said in explained.outcome
            assert explained.outcome.startswith("refused: ")
            # For its other volumes, which renew.
            assert (explained.spiffe_id, explained.policy) == ("spiffe://example.org/ns/shop/sa/web", "shop/own")
            assert (refused["status"], refused["reason"]) == ("True", "AskForMore")
            assert refused["message"].startswith("1 pod asks for what it does not give, such as shop/web-0: ")
            assert said in refused["message"]
        else:
            assert (explained.outcome, explained.spiffe_id) == ("allowed", "spiffe://example.org/ns/shop/sa/web")
            assert (refused["status"], refused["reason"]) == ("False", "NoneRefused")
        assert found["podsMatched"] == 2

    followed(test)


def source_wishes(*sources: Object, **more: Any) -> tuple[SourceWish, ...]:
    body = {
        "metadata": {"uid": "u", "name": "n", "namespace": "ns"},
        "spec": {"volumes": [{"name": "tls", "projected": {"sources": list(sources)}}]},
        **more,
    }
    found = read_pod(typed(PodObject, body), signer_name=SIGNER)
    assert found is not None
    return found.source_wishes


def test_of_the_own_signer_s_sources_it_is_read_what_they_ask_for_within_the_same_bounds() -> None:
    asked = source("ECDSAP384", userAnnotations={"b": "2", "a": "1"})
    assert source_wishes(source("ECDSAP521", signerName="other.example/a"), asked, {"configMap": {"name": "c"}}) == (
        SourceWish("tls", "ECDSAP384", (("a", "1"), ("b", "2"))),
    )
    assert len(source_wishes(*[source()] * (MAX_WISHES + 1))) == MAX_WISHES
    assert source_wishes(source(), source(userAnnotations={"a": "x" * MAX_CHARACTERS})) == (
        SourceWish("tls", "ECDSAP256"),
    )
    assert source_wishes(asked, status={"phase": "Succeeded"}) == ()


@pytest.mark.parametrize(
    ("spec", "wish", "said"),
    [
        ({"keyAlgorithms": ["ec-p384"]}, SourceWish("tls", "ECDSAP256"), "keyType to ECDSAP384"),
        ({"keyAlgorithms": ["ec-p384"]}, SourceWish("tls", "ECDSAP384"), ""),
        ({}, SourceWish("tls", "ECDSAP521"), "KEY_WEAK: volume tls: SVIDs are not for keys of keyType 'ECDSAP521'; "),
        ({}, SourceWish("tls", annotations=(("a.b/c", "d"),)), "INVALID_REQUEST: volume tls: the user annotation 'a."),
        ({}, SourceWish("tls", annotations=(("podsvid.io/dns-names", "a.b"),)), "podCertificate source's userAnnota"),
        (
            {"dnsNameTemplates": ["a.{namespace}.svc"]},
            SourceWish("tls", annotations=(("podsvid.io/dns-names", "a.shop.svc"),)),
            "",
        ),
    ],
)
def test_what_a_source_asks_for_and_policy_does_not_give_is_said_in_its_words(
    spec: dict[str, Any], wish: SourceWish, said: str
) -> None:
    async def test(rig: Rig) -> None:
        path = rig.put(f"{HOME}/own", **spec)
        asking = pod(0, source_wishes=(wish,))
        _, conditions = await rig.status(path, asking)
        outcome = rig.policies.explain(asking).outcome
        assert said in outcome if said else outcome == "allowed"
        assert "volumeAttributes" not in outcome
        assert conditions["PodsRefused"]["status"] == str(bool(said))

    followed(test)


def test_without_a_policy_the_cluster_s_patterns_say_what_may_be_asked_for() -> None:
    async def test(rig: Rig) -> None:
        settings = PolicySettings(TrustDomain("example.org"), dns_names=("*.{namespace}.svc",))
        policies = Policies(rig.kube, settings, 10 * MINUTE, rig.clock)
        for mirror in policies._mirrors:
            await mirror._list()
        own = pod(0, wishes=(VolumeWish("tls", dns_names="a.shop.svc"),))
        other = replace(own, wishes=(VolumeWish("tls", dns_names="a.other.svc"),))
        assert policies.explain(own).outcome == "allowed"
        assert policies.explain(other).outcome.startswith("refused: DNS_NAME_DENIED: volume tls: ")
        assert policies.explain(other).policy == NO_POLICY

    followed(test)


def test_a_policy_with_a_name_that_no_pod_can_have_is_not_ready() -> None:
    async def test(rig: Rig) -> None:
        path = rig.cluster("own", dnsNameTemplates=["signer.podsvid.internal"])
        _, conditions = await rig.status(path, pod())
        assert (conditions["Ready"]["status"], conditions["Ready"]["reason"]) == ("False", "Unusable")
        assert "signer.podsvid.internal is the signer's own" in conditions["Ready"]["message"]
        assert conditions["PodsRefused"]["status"] == "False", "no pod asks for it"

    followed(test)


def test_names_of_services_are_among_those_that_a_pod_may_ask_for() -> None:
    async def test(rig: Rig) -> None:
        path = rig.put(f"{HOME}/own", dnsNamesFromServices=True)
        asking = pod(0, labels={"app": "web"}, wishes=(VolumeWish("tls", dns_names="web.shop.svc"),))
        _, conditions = await rig.status(path, asking)
        assert conditions["PodsRefused"]["status"] == "True"
        spec = {"selector": {"app": "web"}}
        rig.kube.put("/api/v1/namespaces/shop/services/web", {"metadata": {"name": "web"}, "spec": spec})
        await told()
        assert rig.policies.explain(asking).outcome == "allowed"
        await rig.policies.statuses.write(Fixed([asking]))
        found = {each["type"]: each for each in rig.kube.objects[path]["status"]["conditions"]}
        assert found["PodsRefused"]["status"] == "False", "what a Service changes changes what is said"

    followed(test)


def test_a_partner_without_a_bundle_is_said() -> None:
    async def test(rig: Rig) -> None:
        known = {TrustDomain("partner.test")}
        rig.policies._federated = lambda: frozenset(known)
        path = rig.cluster("a", federatesWith=["partner.test", "absent.test", "example.org"])
        nobody = rig.cluster("nobody")
        _, conditions = await rig.status(path, pod())
        missing = conditions["FederationMissing"]
        assert (missing["status"], missing["reason"]) == ("True", "NoBundle")
        assert missing["message"].startswith("federatesWith absent.test: this cluster has no trust bundle of it")
        assert missing["message"] in rig.policies.explain(pod()).clipped
        known.add(TrustDomain("absent.test"))
        _, conditions = await rig.status(path, pod())
        assert conditions["FederationMissing"]["status"] == "False"
        assert "FederationMissing" not in (await rig.status(nobody, pod()))[1]

    followed(test)


def test_what_proxies_call_the_signer_by_no_policy_gives_a_pod() -> None:
    """It has Istio's tokens, and all identities that these stand for, who can answer at that name."""
    by = loaded("--istio-listen", "127.0.0.1:8446", "--namespace", "podsvid")
    named = "podsvid-istio.podsvid.svc"

    async def test(rig: Rig) -> None:
        rig.cluster("own", dnsNameTemplates=[named])
        for settings in (parts.policy(by), replace(parts.policy(by), own_names=frozenset())):
            policies = Policies(rig.kube, settings, 10 * MINUTE, rig.clock)
            for mirror in policies._mirrors:
                await mirror._list()
            for asking in (pod(0), pod(0, wishes=(PLAIN,))):
                said = policies.explain(asking).outcome
                if settings.own_names:
                    assert said == f"refused: DNS_NAME_DENIED: {named} is the signer's own; no pod can have it"
                else:
                    assert said == "allowed"
            (policy,) = policies.all()
            assert policies.unusable(policy, pod(0))[0].startswith(named if settings.own_names else "")
            assert bool(policies.unusable(policy, pod(0))[0]) == bool(settings.own_names)

    followed(test)
    assert parts.minting(by).own_names == parts.policy(by).own_names == {named, f"{named}.cluster.local"}
    off = loaded("--namespace", "podsvid")
    assert parts.minting(off).own_names == parts.policy(off).own_names == frozenset()
