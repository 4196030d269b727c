"""The Identity service: what kubelet and its sidecars ask first."""

import asyncio
from typing import Any

from csi.identity import IdentityService
from csi.pb import csi_pb2

NO_CONTEXT: Any = None


def test_the_driver_says_its_name_its_version_and_nothing_that_it_cannot_do() -> None:
    async def run() -> None:
        service = IdentityService("csi.podsvid.io", "1.2.3", lambda: True)
        info = await service.GetPluginInfo(csi_pb2.GetPluginInfoRequest(), NO_CONTEXT)
        assert (info.name, info.vendor_version) == ("csi.podsvid.io", "1.2.3")
        found = await service.GetPluginCapabilities(csi_pb2.GetPluginCapabilitiesRequest(), NO_CONTEXT)
        assert list(found.capabilities) == []

    asyncio.run(run())


def test_a_probe_says_whether_it_is_ready_now() -> None:
    async def run() -> None:
        ready = False
        service = IdentityService("csi.podsvid.io", "1.2.3", lambda: ready)
        for ready in (False, True, False):
            answer = await service.Probe(csi_pb2.ProbeRequest(), NO_CONTEXT)
            # Absent would mean ready.
            assert answer.HasField("ready")
            assert answer.ready.value is ready

    asyncio.run(run())
