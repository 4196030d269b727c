"""The two images of the cluster, made from this host's programs: nothing is pulled."""

from __future__ import annotations

import hashlib
import io
import json
import re
import subprocess
import tarfile
from pathlib import Path

from .host import which

TEST_IMAGE = "localhost/podsvid-test:1"
PAUSE_IMAGE = "localhost/podsvid-pause:1"

_APPLETS = (
    "sh cat cp cut date echo env false grep head id ls mkdir nc readlink rm sed sleep sort stat tail test true wc"
)


def write_archive(path: Path) -> None:
    """Write both images to one archive that ``ctr images import`` reads."""
    layer = _layer()
    configs = {
        TEST_IMAGE: _config(layer, ["/bin/sh"]),
        # Every pod has a process that holds its namespaces; it only has to wait.
        PAUSE_IMAGE: _config(layer, ["/bin/sleep", "infinity"]),
    }
    manifest = []
    with tarfile.open(path, "w") as archive:
        _add(archive, "layer.tar", layer)
        for name, config in configs.items():
            config_name = f"{hashlib.sha256(config).hexdigest()}.json"
            _add(archive, config_name, config)
            manifest.append({"Config": config_name, "RepoTags": [name], "Layers": ["layer.tar"]})
        _add(archive, "manifest.json", json.dumps(manifest).encode())


def _config(layer: bytes, command: list[str]) -> bytes:
    return json.dumps(
        {
            "architecture": subprocess.check_output([which("dpkg"), "--print-architecture"], text=True).strip(),
            "os": "linux",
            "config": {"Entrypoint": command, "Env": ["PATH=/bin"]},
            "rootfs": {"type": "layers", "diff_ids": [f"sha256:{hashlib.sha256(layer).hexdigest()}"]},
        },
        sort_keys=True,
    ).encode()


def _layer() -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as archive:
        for folder, mode in (("bin", 0o755), ("etc", 0o755), ("proc", 0o755), ("tmp", 0o1777)):
            entry = tarfile.TarInfo(folder)
            entry.type, entry.mode = tarfile.DIRTYPE, mode
            archive.addfile(entry)
        _add(archive, "bin/busybox", Path(which("busybox")).read_bytes(), mode=0o755)
        for applet in _APPLETS.split():
            entry = tarfile.TarInfo(f"bin/{applet}")
            entry.type, entry.linkname = tarfile.SYMTYPE, "busybox"
            archive.addfile(entry)
        _add(archive, "etc/passwd", b"root:x:0:0::/:/bin/sh\n")
        openssl = Path(which("openssl"))
        _add(archive, "bin/openssl", openssl.read_bytes(), mode=0o755)
        for library in _libraries(openssl):
            _add(archive, str(library).lstrip("/"), library.read_bytes(), mode=0o755)
    return buffer.getvalue()


def _libraries(program: Path) -> list[Path]:
    listing = subprocess.check_output(["ldd", str(program)], text=True)
    return [Path(found) for found in re.findall(r"(/\S+) \(0x", listing)]


def _add(archive: tarfile.TarFile, name: str, content: bytes, mode: int = 0o644) -> None:
    entry = tarfile.TarInfo(name)
    entry.size, entry.mode = len(content), mode
    archive.addfile(entry, io.BytesIO(content))
