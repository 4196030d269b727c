"""Make an installed environment ready for an image: compiled, without what nobody runs, with its bill of materials.

    finish.py ENVIRONMENT

Byte code is checked by nothing but its presence (PEP 552, unchecked hash), so that the same inputs give the same files
and a start on a read-only file system compiles nothing.
"""

import compileall
import py_compile
import struct
import subprocess
import sys
from pathlib import Path

# podsvid's own packages keep their sources, for tracebacks and readers; others' come as byte code only.
OWN = ("agent", "csi", "podsvid", "runtime", "signer", "svid")
# Mostly docstrings (generated models, in kubernetes twice), or never run by podsvid: without them.
TERSE = ("kubernetes", "oauthlib", "pydantic", "pygments")
USELESS = ("*.pyi", "*.c", "*.h", "*.pxd", "*.pyx")
# Loaded by nobody: the kubernetes package finds its models and calls when they are named, and podsvid names none;
# of pygments' languages rich shows none here. A test of the image loads every module of podsvid.
NEVER_LOADED = (
    *("kubernetes/client/api/[!_]*.py", "kubernetes/client/models/[!_]*.py"),
    *("kubernetes/aio/client/api/[!_]*.py", "kubernetes/aio/client/models/[!_]*.py"),
    *("pygments/lexers/[!_]*.py", "multidict/_testcapi.*"),
)
# Commands of libraries; nobody runs them here.
COMMANDS = ("kubectl-podsvid", "podsvid", "python*")
UNCHECKED = py_compile.PycInvalidationMode.UNCHECKED_HASH


def main(environment: Path) -> None:
    """Change the environment in place. Raises CalledProcessError, and SystemExit when a package does not compile."""
    (packages,) = environment.glob("lib/python3*/site-packages")
    # Lists of files that are not all there any more; podsvid's own has the time of its build in it, by a hash.
    records = (name for pattern in ("direct_url.json", "RECORD") for name in packages.glob(f"*.dist-info/{pattern}"))
    for left in (*environment.glob("bin/[Aa]ctivate*"), *records):
        left.unlink()
    for command in (environment / "bin").iterdir():
        if not any(command.match(pattern) for pattern in COMMANDS):
            command.unlink()
    for pattern in NEVER_LOADED:
        found = list(packages.glob(pattern))
        if not found:
            raise SystemExit(f"{pattern} is not there any more: look at what there is to leave out")
        for each in found:
            each.unlink()
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
    for library in packages.rglob("*.so"):
        library.write_bytes(stripped(library.read_bytes()))
    share = environment / "share"
    share.mkdir(exist_ok=True)
    # Beside this script's interpreter: the tool is no part of the image.
    generator = Path(sys.executable).with_name("cyclonedx-py")
    bill = share / "sbom.cdx.json"
    command = [str(generator), "environment", "--output-reproducible", "--of", "JSON", "-o", str(bill)]
    subprocess.run([*command, str(environment / "bin" / "python")], check=True)  # noqa: S603 - made above


def stripped(library: bytes) -> bytes:
    """A shared library without what only debuggers read: its sections' table, and all that no segment has.

    Some wheels bring six times as much of that as of code, and bases no tool that takes it away. What is no 64-bit
    little-endian ELF file stays as it is.
    """
    if library[:6] != b"\x7fELF\x02\x01":
        return library
    (first,) = struct.unpack_from("<Q", library, 0x20)
    size, number = struct.unpack_from("<HH", library, 0x36)
    end = first + size * number
    for at in range(first, end, size):
        offset, length = struct.unpack_from("<Q16xQ", library, at + 8)
        end = max(end, offset + length)
    head = bytearray(library[:end])
    struct.pack_into("<Q", head, 0x28, 0)
    struct.pack_into("<HH", head, 0x3C, 0, 0)
    return bytes(head)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
