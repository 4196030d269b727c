"""kubernetes-csi/csi-test's csi-sanity against a real agent."""

import asyncio
import re
import subprocess
import xml.etree.ElementTree as ElementTree
from collections.abc import Mapping
from pathlib import Path

import pytest

from tests.support import DRIVER, IS_ROOT, node

# The only place that says what of the suite does not run, each pattern with its reason. It is given to the suite, and
# what the suite leaves out by itself (a capability that is not advertised) has to be in it too.
SKIPPED = {
    r"Controller Server": "podsvid has no controller service: volumes are inline and ephemeral",
    r"GroupController": "as above",
    r"NodeUnpublishVolume should remove target path": "makes its volume through the controller service and never sets "
    "readonly; tests/node covers unpublish",
    r"NodeGetVolumeStats should fail when volume does not exist on the specified path": "publishes as above",
    r"Node Service should work": "publishes as above",
    r"Node Service should be idempotent": "publishes as above; tests/node publishes 100 times",
    r"NodeStageVolume|NodeUnstageVolume": "not advertised: there is nothing to stage",
    r"NodeExpandVolume": "not advertised: there is nothing to expand",
    r"single node multi writer capability": "not advertised: an inline volume has one pod",
}


@pytest.mark.skipif(not IS_ROOT, reason="the agent mounts: run as root")
def test_csi_sanity(go_tools: Mapping[str, Path]) -> None:
    async def run() -> None:
        async with node() as (here, _):
            report = here.base / "junit.xml"
            process = await asyncio.create_subprocess_exec(
                str(go_tools["csi-sanity"]),
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
            assert report.exists(), output[-6000:]
            cases = list(ElementTree.parse(report).getroot().iter("testcase"))
            passed = [case.get("name", "") for case in cases if case.get("status") == "passed"]
            left_out = [case.get("name", "") for case in cases if case.get("status") in ("skipped", "pending")]
            print("\n".join(passed))
            assert process.returncode == 0, output[-6000:]
            assert [name for name in left_out if not any(re.search(each, name) for each in SKIPPED)] == []
            assert [each for each in SKIPPED if not any(re.search(each, name) for name in left_out)] == [], "stale"
            # A suite that ran nothing would pass as well.
            for wanted in ("GetPluginInfo", "Probe", "GetPluginCapabilities", "NodeGetInfo", "NodeGetCapabilities"):
                assert any(re.search(wanted, name) for name in passed), wanted
            assert sum("NodePublishVolume" in name for name in passed) >= 3
            assert sum("NodeUnpublishVolume" in name for name in passed) >= 2
            assert sum("NodeGetVolumeStats" in name for name in passed) >= 3
            assert here.mounts() == []

    asyncio.run(run())
