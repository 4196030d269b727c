"""Who keeps podsvid from being uninstalled."""

import asyncio

from podsvid.uninstall_check import in_use, policies_left, report
from tests.fake_kube import FakeKube
from tests.signer_rig import DRIVER, Site

DRIVERS = frozenset({DRIVER})


def test_pods_that_mount_the_driver_and_policies_are_named() -> None:
    site = Site()
    site.pod("web")
    site.pod("plain", driver=None)
    site.kube.put("/apis/podsvid.io/v1alpha1/namespaces/shop/workloadidentities/web", {"spec": {}})
    site.kube.put("/apis/podsvid.io/v1alpha1/clusterworkloadidentities/all", {"spec": {}})
    pods = asyncio.run(in_use(site.kube, DRIVERS))
    policies = asyncio.run(policies_left(site.kube))
    assert pods == ["default/web"]
    assert policies == ["clusterworkloadidentities all", "workloadidentities shop/web"]
    text = "\n".join(report(pods, policies, DRIVERS, "here"))
    assert text.startswith(f"REFUSED: 1 pods mount {DRIVER}")
    assert "default/web" in text
    assert "kubectl delete crd workloadidentities.podsvid.io clusterworkloadidentities.podsvid.io" in text


def test_nothing_in_the_way() -> None:
    site = Site()
    site.pod("plain", driver=None)
    assert report(asyncio.run(in_use(site.kube, DRIVERS)), [], DRIVERS, "here")[0] == f"no pod mounts {DRIVER}"


def test_a_cluster_without_the_custom_resources() -> None:
    kube = FakeKube(Site().clock)
    kube.missing |= {
        f"/apis/podsvid.io/v1alpha1/{each}" for each in ("workloadidentities", "clusterworkloadidentities")
    }
    assert asyncio.run(policies_left(kube)) == []


def test_a_long_list_is_cut() -> None:
    lines = report([f"a/{n}" for n in range(60)], [], DRIVERS, "here")
    assert lines[51] == "  and 10 more"
    assert "  kubectl -n here delete secret podsvid-authority" in lines
