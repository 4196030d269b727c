"""`podsvid explain` where the signer is the CA of Istio's proxies: what a pod without a csi volume gets there."""

from contextlib import redirect_stdout
from io import StringIO
from typing import Any

import pytest

from podsvid.authority import show_explained
from signer.front.admin import AdminService
from signer.pb import admin_pb2
from signer.policy.policies import Policies
from signer.policy.policy import PolicySettings
from tests.signer_rig import DRIVER
from tests.unit.signer.istio_door import OUTAGE, TD, IstioDoor, at_istios_door, spiffe
from tests.unit.signer.test_minting import TTLS

WEB = spiffe("default", "web")


async def explained(door: IstioDoor, *, proxies: bool = True) -> admin_pb2.ExplainResponse:
    await door.told()
    policies = Policies(door.site.kube, PolicySettings(TD, ttls=TTLS), OUTAGE, door.site.clock)
    for mirror in policies._mirrors:
        await mirror._list()
    nothing: Any = None
    service = AdminService(
        nothing,
        policies,
        door.pods,
        frozenset({DRIVER}),
        door.site.clock,
        nothing,
        namespace="podsvid",
        proxies=proxies,
    )
    return await service.explain(admin_pb2.ExplainRequest(namespace="default", pod="web"), nothing)


def shown(found: admin_pb2.ExplainResponse) -> list[str]:
    with redirect_stdout(StringIO()) as text:
        show_explained("default/web", found, every=False)
    return text.getvalue().splitlines()


def test_a_pod_of_the_mesh_is_said_to_get_what_its_proxies_get() -> None:
    async def test(door: IstioDoor) -> None:
        door.proxy()
        found = await explained(door)
        assert (found.outcome, found.spiffe_id, found.proxy_ttl) == ("allowed", WEB, "1h30m")
        assert (found.x509_ttl, found.x509_ttl_most) == ("", "")
        assert shown(found) == [
            f"pod default/web: {WEB}",
            "policy: (default)",
            "Istio's proxies in it get certificates of that identity, which live 1h30m at most",
        ]
        door.policy("short", x509TTL="10m")
        assert (await explained(door)).proxy_ttl == "10m"

    at_istios_door(test)


def test_where_that_door_is_shut_it_gets_nothing() -> None:
    async def test(door: IstioDoor) -> None:
        door.proxy()
        found = await explained(door, proxies=False)
        assert found.outcome.startswith("refused: POD_WITHOUT_DRIVER: ")
        assert not found.proxy_ttl

    at_istios_door(test)


def test_what_is_refused_there_is_said_to_be() -> None:
    async def test(door: IstioDoor) -> None:
        door.proxy()
        door.policy("own", spiffeIDTemplate="/of/{pod}")
        found = await explained(door)
        assert found.outcome.startswith("refused: POLICY_UNUSABLE: the pod has no csi volume, and Istio's proxies take")
        assert (found.spiffe_id, found.entitled, found.proxy_ttl) == ("", "", "")
        door.policy("own", deny=True)
        found = await explained(door)
        assert found.outcome.startswith("refused: POLICY_DENIED: ")
        assert not found.proxy_ttl

    at_istios_door(test)


@pytest.mark.parametrize("phase", ["Succeeded", "Failed"])
def test_a_pod_that_nothing_is_signed_for_is_refused_as_ever(phase: str) -> None:
    async def test(door: IstioDoor) -> None:
        door.proxy(phase=phase)
        assert (await explained(door)).outcome.startswith("refused: POD_FINISHED: ")

    at_istios_door(test)


def test_a_pod_with_a_volume_is_told_of_both() -> None:
    async def test(door: IstioDoor) -> None:
        door.site.pod("web")
        found = await explained(door)
        assert (found.x509_ttl, found.x509_ttl_most, found.proxy_ttl) == ("1h", "1h30m", "1h30m")
        # Its volume gets such an identity, and its proxies do not.
        door.policy("own", spiffeIDTemplate="/of/{pod}")
        found = await explained(door)
        assert (found.outcome, found.spiffe_id) == ("allowed", "spiffe://example.org/of/web")
        assert not found.proxy_ttl

    at_istios_door(test)
