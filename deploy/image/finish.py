"""Make an installed environment ready for an image: compiled, without what nobody runs, with its bill of materials.

    finish.py ENVIRONMENT

Byte code is checked by nothing but its presence (PEP 552, unchecked hash), so that the same inputs give the same files
and a start on a read-only file system compiles nothing.
"""

import compileall
import py_compile
import subprocess
import sys
from pathlib import Path

# podsvid's own packages keep their sources, for tracebacks and readers; others' come as byte code only.
OWN = ("agent", "csi", "podsvid", "runtime", "signer", "svid")
# Mostly docstrings (generated models, in kubernetes twice), or never run by podsvid: without them.
TERSE = ("kubernetes", "oauthlib", "pydantic", "pygments")
USELESS = ("*.pyi", "*.c", "*.h", "*.pxd", "*.pyx")
UNCHECKED = py_compile.PycInvalidationMode.UNCHECKED_HASH


def main(environment: Path) -> None:
    """Change the environment in place. Raises CalledProcessError, and SystemExit when a package does not compile."""
    (packages,) = environment.glob("lib/python3*/site-packages")
    for left in (*environment.glob("bin/[Aa]ctivate*"), *packages.glob("*/direct_url.json")):
        left.unlink()
    for pattern in USELESS:
        for found in packages.rglob(pattern):
            found.unlink()
    for root in sorted(packages.iterdir()):
        own = root.name in OWN
        if root.is_dir():
            done = compileall.compile_dir(
                root,
                quiet=1,
                legacy=not own,
                optimize=2 if root.name in TERSE else 0,
                stripdir=str(packages),
                invalidation_mode=UNCHECKED,
            )
        else:
            done = root.suffix != ".py" or compileall.compile_file(
                root, quiet=1, legacy=True, stripdir=str(packages), invalidation_mode=UNCHECKED
            )
        if not done:
            raise SystemExit(f"{root.name} does not compile")
        if not own:
            for source in [root] if root.suffix == ".py" else root.rglob("*.py"):
                source.unlink()
    share = environment / "share"
    share.mkdir(exist_ok=True)
    # Beside this script's interpreter: the tool is no part of the image.
    generator = Path(sys.executable).with_name("cyclonedx-py")
    bill = share / "sbom.cdx.json"
    command = [str(generator), "environment", "--output-reproducible", "--of", "JSON", "-o", str(bill)]
    subprocess.run([*command, str(environment / "bin" / "python")], check=True)  # noqa: S603 - made above


if __name__ == "__main__":
    main(Path(sys.argv[1]))
