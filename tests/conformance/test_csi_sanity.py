"""kubernetes-csi/csi-test's csi-sanity against a real agent."""

import asyncio
import re
import subprocess
import xml.etree.ElementTree as ElementTree
from pathlib import Path

import pytest

from tests.support import DRIVER, IS_ROOT, node

# The only place where something of the suite is left out; every pattern has its reason.
SKIPPED = {
    r"Controller Server": "podsvid has no controller service: volumes are inline and ephemeral",
    r"Controller Service": "as above",
    r"should remove target path": "makes its volume through the controller service; tests/node covers unpublish",
    r"should fail when volume does not exist on the specified path": "makes its volume through the controller service",
    r"should work": "makes its volume through the controller service and never sets readonly or pod information",
    r"should be idempotent": "as above; tests/node publishes 100 times",
    r"NodeStageVolume|NodeUnstageVolume|NodeExpandVolume": "not advertised: there is nothing to stage or expand",
}


@pytest.mark.skipif(not IS_ROOT, reason="the agent mounts: run as root")
def test_csi_sanity(go_tools: Path) -> None:
    async def run() -> None:
        async with node() as (here, _):
            report = here.base / "junit.xml"
            process = await asyncio.create_subprocess_exec(
                str(go_tools / "csi-sanity"),
                f"--csi.endpoint={here.kubelet_root}/plugins/{DRIVER}/csi.sock",
                f"--csi.mountdir={here.base}/mountdir",
                f"--csi.stagingdir={here.base}/stagingdir",
                f"--ginkgo.skip={'|'.join(SKIPPED)}",
                f"--ginkgo.junit-report={report}",
                "--ginkgo.no-color",
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
            )
            output = (await process.communicate())[0].decode()
            cases = ElementTree.parse(report).getroot().iter("testcase")
            passed = [case.get("name", "") for case in cases if case.get("status") == "passed"]
            print("\n".join(passed))
            assert process.returncode == 0, output[-6000:]
            # A suite that ran nothing would pass as well.
            for wanted in ("GetPluginInfo", "Probe", "GetPluginCapabilities", "NodeGetInfo", "NodeGetCapabilities"):
                assert any(re.search(wanted, name) for name in passed), wanted
            assert sum("NodePublishVolume" in name for name in passed) >= 3
            assert sum("NodeUnpublishVolume" in name for name in passed) >= 2
            assert sum("NodeGetVolumeStats" in name for name in passed) >= 2
            assert here.mounts() == []

    asyncio.run(run())
