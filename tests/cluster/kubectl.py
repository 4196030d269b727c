"""kubectl, of the cluster's version, and the plain manifests as a person has them before them."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from .chart import ROOT
from .cluster import Cluster
from .host import SEARCH_PATH, which
from .programs import program

MANIFESTS = ROOT / "deploy" / "manifests"


@dataclass(frozen=True)
class Shell:
    """Where a person types, such as in a copy of deploy/manifests, with the rights of a kubeconfig.

    `programs`: folders of others beside kubectl and Helm; `more`: what these read of the environment.
    """

    folder: Path
    kubeconfig: Path
    programs: tuple[Path, ...] = ()
    more: Mapping[str, str] = field(default_factory=dict)

    def typed(self, line: str, seconds: float = 180) -> subprocess.CompletedProcess[str]:
        """Run a line, or several; what they printed. The caller looks at the return code."""
        ours = [program("kubectl").parent, program("helm").parent, *self.programs]
        path = os.pathsep.join([*map(str, ours), SEARCH_PATH])
        # What kubectl remembers of an API server is kept in the home directory.
        own = {"PATH": path, "KUBECONFIG": str(self.kubeconfig), "HOME": str(self.folder)}
        # The limit is the shell's: it ends what the line started, too.
        command = [which("timeout"), f"{seconds}", which("sh"), "-e", "-c", line]
        return subprocess.run(
            command,
            cwd=self.folder,
            env={**os.environ, **own, **self.more},
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            check=False,
        )

    def done(self, line: str, seconds: float = 180) -> str:
        """The same for what has to succeed."""
        done = self.typed(line, seconds)
        assert done.returncode == 0, f"{line}: {done.stdout}{done.stderr}"
        return done.stdout + done.stderr


def shell(cluster: Cluster, folder: Path, image: str, trust_domain: str) -> Shell:
    """The manifests with what README.md has people change in them, and the paths of this cluster's node."""
    there = folder / "manifests"
    shutil.copytree(MANIFESTS, there)
    edited = (("podsvid.yaml", 2, 2), ("public/podsvid.yaml", 2, 2), ("uninstall/check.yaml", 0, 1))
    for name, trust_domains, images in edited:
        text = (there / name).read_text()
        for old, new, places in (
            (r'trust_domain: "example\.org"', f'trust_domain: "{trust_domain}"', trust_domains),
            (r"image: podsvid:\S+", f"image: {image}", images),
            ("imagePullPolicy: IfNotPresent", "imagePullPolicy: Never", images),
            (r"/var/lib/kubelet\b", str(cluster.kubelet_root), None),
            (r"(?<!/var)/run/podsvid\b(?!-)", str(cluster.layout.agent_run_dir), None),
        ):
            text, changed = re.subn(old, new, text)
            assert places is None or changed == places, f"{name}: {old}"
        (there / name).write_text(text)
    return Shell(there, cluster.kubeconfig)
