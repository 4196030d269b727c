"""What the commands load that a person waits for: three processes of them answer one `podsvid explain`."""

import json
import subprocess
import sys
from importlib.util import find_spec
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
# A whole OpenSSL, beside that of what verifies certificates: no socket of a pod speaks TLS. Hashes are OpenSSL's where
# Python has none of its own, as some distributions build it.
OWN_HASHES = ("_md5", "_sha1", "_sha3", *(("_sha2",) if sys.version_info >= (3, 12) else ("_sha256", "_sha512")))
EXPOSED_LACKS += ("_ssl", "ssl", *(("_hashlib",) if all(map(find_spec, OWN_HASHES)) else ()))
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


@pytest.mark.parametrize("missing", [(), OWN_HASHES, *((each,) for each in OWN_HASHES)], ids="-".join)
def test_the_process_of_pods_sockets_hashes_by_what_this_python_has(missing: tuple[str, ...]) -> None:
    without = f"import sys; sys.modules |= dict.fromkeys({missing!r})"
    hashed = (
        "print(*(hashlib.new(each, b'').hexdigest()[:8] for each in ('md5', 'sha1', 'sha256', 'sha512', 'sha3_256')))"
    )
    line = f"{without}; import agent.exposed.__main__, hashlib, random; {hashed}"
    done = subprocess.run([sys.executable, "-c", line], capture_output=True, text=True, check=False)
    # hashlib writes of what it lacks, at each start.
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.split() == ["d41d8cd9", "da39a3ee", "e3b0c442", "cf83e135", "a7ffc6f8"]


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
