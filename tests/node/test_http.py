"""Health, readiness and metrics as kubelet's probes and Prometheus ask for them."""

import asyncio
import urllib.error
import urllib.request

import pytest

from podsvid.quickstart.kubelet import StandInKubelet
from tests.support import DRIVER, IS_ROOT, VOLUME, Host, host, pod, svid_stream

pytestmark = pytest.mark.skipif(not IS_ROOT, reason="the agent mounts: run as root")


def address(here: Host) -> str:
    for event in here.events():
        if event["event"] == "http serving":
            return str(event["address"])
    raise AssertionError("no http address in the log")


async def get(here: Host, path: str) -> tuple[int, str]:
    def ask() -> tuple[int, str]:
        try:
            with urllib.request.urlopen(f"http://{address(here)}{path}", timeout=30) as answer:
                return answer.status, answer.read().decode()
        except urllib.error.HTTPError as error:
            return error.code, error.read().decode()

    return await asyncio.to_thread(ask)


def test_probes_and_metrics() -> None:
    async def run() -> None:
        with host() as here:
            here.start("--metrics-listen", "127.0.0.1:0")
            kubelet = StandInKubelet(here.kubelet_root)
            await kubelet.start()
            try:
                registration = await kubelet.wait_registered(DRIVER)
                target = await kubelet.publish(pod(), VOLUME)
                assert (await get(here, "/healthz"))[0] == 200
                assert (await get(here, "/readyz")) == (200, "ok\n")
                assert (await get(here, "/other"))[0] == 404
                async with svid_stream(here.short(target) / "socket") as call:
                    await anext(aiter(call))
                    # Gauges are asked every two seconds; the process that serves sockets says by itself what is open.
                    metrics = ""
                    wanted = ("podsvid_volumes 1.0", 'open_calls{method="/SpiffeWorkloadAPI/FetchX509SVID"} 1.0')
                    async with asyncio.timeout(30):
                        while not all(each in metrics for each in wanted):
                            metrics = (await get(here, "/metrics"))[1]
                            await asyncio.sleep(0.5)
                assert 'podsvid_api_open_calls{method="/SpiffeWorkloadAPI/FetchX509SVID"} 1.0' in metrics
                assert 'podsvid_publish_duration_seconds_count{result="published"} 1.0' in metrics
                assert 'podsvid_rotations_total{kind="x509",result="ok"} 0.0' in metrics
                assert "podsvid_earliest_expiry_timestamp_seconds 1" in metrics
                assert "web" not in metrics
                registration.registry_socket.unlink()
                status, text = await get(here, "/healthz")
                assert (status, text) == (503, "the registration socket of csi.podsvid.io is missing\n")
                # The agent notices by itself and kubelet registers it again.
                await kubelet.wait_deregistered(DRIVER)
                await kubelet.wait_registered(DRIVER)
                assert (await get(here, "/healthz"))[0] == 200
            finally:
                await kubelet.stop()

    asyncio.run(run())
