"""Generate the stubs from proto/, or with --check say whether the committed ones are stale.

Run as a script from anywhere: python proto/generate.py [--check]
"""

import argparse
import importlib.resources
import shutil
import sys
import tempfile
from pathlib import Path

from grpc_tools import protoc

ROOT = Path(__file__).resolve().parent.parent
# (folder below proto/, import package of the stubs, services too)
SETS = (
    ("csi", "csi/pb", True),
    ("workload", "agent/pb", False),
    ("envoy", "agent/pb", False),
    ("podsvid/agent/v1", "agent/pb", False),
    ("podsvid/signer/v1", "signer/pb", False),
    ("spire", "signer/pb", False),
    ("istio", "signer/pb", False),
)
INIT = '"""Generated from proto/ by proto/generate.py; do not edit."""\n'


def generate(out: Path) -> None:
    """Write all stubs below `out`, laid out as import packages."""
    well_known = str(importlib.resources.files("grpc_tools") / "_proto")
    for folder, package, services in SETS:
        (out / package).mkdir(parents=True, exist_ok=True)
        (out / package / "__init__.py").write_text(INIT, encoding="utf-8")
        sources = sorted((ROOT / "proto" / folder).glob("*.proto"))
        arguments = ["protoc", f"-I{package}={ROOT / 'proto' / folder}", f"-I{well_known}"]
        arguments += [f"--python_out={out}", f"--pyi_out={out}"]
        if services:
            arguments.append(f"--grpc_python_out={out}")
        arguments += [f"{package}/{source.name}" for source in sources]
        if protoc.main(arguments) != 0:
            raise SystemExit(f"protoc failed for proto/{folder}")


def stale(fresh: Path) -> list[str]:
    """Stubs that differ from what is committed, either way."""
    found = []
    for _, package, _ in SETS:
        names = {path.name for base in (fresh, ROOT) for path in (base / package).iterdir() if path.is_file()}
        for name in sorted(names):
            made, kept = fresh / package / name, ROOT / package / name
            if not made.exists() or not kept.exists() or made.read_bytes() != kept.read_bytes():
                found.append(f"{package}/{name}")
    return found


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--check", action="store_true", help="change nothing; exit 1 when a stub is stale")
    check = parser.parse_args().check
    with tempfile.TemporaryDirectory() as folder:
        generate(Path(folder))
        if not check:
            # Nothing committed is touched before everything is made.
            shutil.copytree(folder, ROOT, dirs_exist_ok=True)
            return 0
        for name in (different := stale(Path(folder))):
            print(f"stale: {name} (run `make protos`)", file=sys.stderr)
    return 1 if different else 0


if __name__ == "__main__":
    sys.exit(main())
