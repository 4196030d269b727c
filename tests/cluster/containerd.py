"""The container runtime: its settings and the images that it is given."""

from __future__ import annotations

import subprocess
from pathlib import Path

from .host import ClusterError, cni_dir
from .image import PAUSE_IMAGE
from .layout import Layout
from .network import cni_configuration
from .programs import program


def configure(layout: Layout) -> list[str]:
    """Write its settings; the command that starts it."""
    home = layout.containerd
    networks = home / "cni"
    networks.mkdir(parents=True)
    (networks / "10-pods.conflist").write_text(cni_configuration(home / "addresses"))
    config = home / "config.toml"
    config.write_text(
        f"""\
version = 4
root = "{home}/root"
state = "{home}/state"
imports = []
disabled_plugins = [
  "io.containerd.image-verifier.v1.bindir",
  "io.containerd.nri.v1.nri",
  "io.containerd.snapshotter.v1.blockfile",
  "io.containerd.snapshotter.v1.btrfs",
  "io.containerd.snapshotter.v1.devmapper",
  "io.containerd.snapshotter.v1.erofs",
  "io.containerd.snapshotter.v1.zfs",
]
[plugins."io.containerd.server.v1.grpc"]
  address = "{layout.containerd_socket}"
[plugins."io.containerd.server.v1.ttrpc"]
  address = "{layout.containerd_socket}.ttrpc"
[plugins."io.containerd.internal.v1.opt"]
  path = "{home}/opt"
[plugins."io.containerd.cri.v1.images".pinned_images]
  sandbox = "{PAUSE_IMAGE}"
[plugins."io.containerd.cri.v1.runtime"]
  restrict_oom_score_adj = true
  netns_mounts_under_state_dir = true
  [plugins."io.containerd.cri.v1.runtime".cni]
    bin_dirs = ["{cni_dir()}"]
    conf_dir = "{networks}"
  [plugins."io.containerd.cri.v1.runtime".containerd.runtimes.runc]
    runtime_type = "io.containerd.runc.v2"
    # The host may have another containerd's first in its path.
    runtime_path = "{program("containerd-shim-runc-v2")}"
    [plugins."io.containerd.cri.v1.runtime".containerd.runtimes.runc.options]
      BinaryName = "{program("runc")}"
      Root = "{home}/runc"
      SystemdCgroup = false
"""
    )
    return [str(program("containerd")), "--config", str(config)]


def answers(layout: Layout) -> bool:
    """Whether it does."""
    return subprocess.run([*_ctr(layout), "version"], capture_output=True, check=False).returncode == 0


def load_images(layout: Layout, archive: Path) -> None:
    """Give it the images of an archive. Raises ClusterError."""
    command = [*_ctr(layout), "images", "import", str(archive)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise ClusterError(f"importing {archive.name} failed: {done.stderr[-2000:]}")


def _ctr(layout: Layout) -> list[str]:
    return [str(program("ctr")), "--address", str(layout.containerd_socket), "--namespace", "k8s.io"]
