"""What the commands load that a person waits for: three processes of them answer one `podsvid explain`."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

# Neither daemon, of which there is one constant to know; rich only where there is a table to draw.
HEAVY = ("signer.front", "signer.policy", "signer.authority", "agent.admin", "agent.workload")
PACKAGES = ("rich", "kubernetes", "aiohttp", "cryptography")
# The process of pods' sockets, of which a node has two, knows nothing of what only the agent does, and no client of
# HTTP. The agent has one and a server as well, since it counts by prometheus_client.
EXPOSED_LACKS: tuple[str, ...] = (
    "argparse",
    "csi",
    "http",
    "importlib.metadata",
    "jwt",
    "prometheus_client",
    "svid.authority",
)
EXPOSED_LACKS += ("svid.jwtauthority", "urllib.request", "yaml")
# A whole OpenSSL, beside that of what verifies certificates: no socket of a pod speaks TLS.
EXPOSED_LACKS += ("_hashlib", "_ssl", "ssl")
AGENT_LACKS = ("agent.exposed", "agent.socket", "aiohttp", "importlib.metadata", "jwt", "kubernetes", "signer.daemon")
LOADS = {"agent.exposed.__main__": EXPOSED_LACKS, "agent.daemon": AGENT_LACKS}


@pytest.mark.parametrize(
    "command",
    [
        "podsvid.explain",
        "podsvid.node",
        "podsvid.authority",
        "podsvid.documents",
        "podsvid.console.command",
        "podsvid.doctor.command",
    ],
)
def test_who_only_asks_loads_no_daemon(command: str) -> None:
    line = f"import sys, {command}; print(*sorted(sys.modules), sep='\\n')"
    done = subprocess.run([sys.executable, "-c", line], capture_output=True, text=True, check=True)
    loaded = done.stdout.split()
    assert command in loaded
    assert [each for each in loaded if each in HEAVY + PACKAGES] == []


@pytest.mark.parametrize(
    ("process", "lacks"), [("agent.exposed.__main__", EXPOSED_LACKS), ("agent.daemon", AGENT_LACKS)]
)
def test_a_process_of_each_node_loads_nothing_that_it_never_uses(process: str, lacks: tuple[str, ...]) -> None:
    line = f"import sys, {process}; print(*sorted(name for name, module in sys.modules.items() if module), sep='\\n')"
    done = subprocess.run([sys.executable, "-c", line], capture_output=True, text=True, check=True)
    loaded = done.stdout.split()
    assert process in loaded
    assert [each for each in loaded if each.startswith(lacks)] == []


@pytest.mark.parametrize("has_own", [True, False])
def test_the_process_of_pods_sockets_hashes_by_what_this_python_has(has_own: bool) -> None:
    without = "" if has_own else "sys.modules |= dict.fromkeys(('_sha256', '_sha2'));"
    hashed = "print(hashlib.sha256(b'').hexdigest()[:8])"
    line = f"import sys; {without} import agent.exposed.unloaded; import hashlib; {hashed}"
    done = subprocess.run([sys.executable, "-c", line], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["e3b0c442"]


def test_who_asks_by_kubeconfig_loads_no_model_of_what_a_cluster_may_have(tmp_path: Path) -> None:
    text = {
        "clusters": [{"name": "c", "cluster": {"server": "http://127.0.0.1:1"}}],
        "users": [{"name": "u", "user": {"token": "x"}}],
        "contexts": [{"name": "there", "context": {"cluster": "c", "user": "u"}}],
        "current-context": "there",
    }
    config = tmp_path / "config"
    config.write_text(json.dumps(text))
    asked = f"from podsvid.by_kubeconfig import KubeconfigCluster; KubeconfigCluster({str(config)!r}, None, 'podsvid')"
    line = f"import sys; {asked}; print(*sorted(sys.modules), sep='\\n')"
    done = subprocess.run([sys.executable, "-c", line], capture_output=True, text=True, check=True)
    loaded = done.stdout.split()
    assert "kubernetes.config.kube_config" in loaded
    # Hundreds of them, and a second of a processor.
    assert [each for each in loaded if each.startswith(("kubernetes.client.models.", "kubernetes.client.api."))] == []
