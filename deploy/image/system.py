"""Gather what podsvid needs of the base image into an empty root, which with podsvid's environment is the image.

    system.py ENVIRONMENT ROOT

The base is Debian or Ubuntu, or built on one of them. Taken are Python without what nobody runs, in byte code only, the
libraries that it and the environment's are linked against, and a few files of the system. No shell, no package manager:
who is let into a container finds podsvid there.
"""

import compileall
import os
import re
import shutil
import ssl
import subprocess
import sys
import sysconfig
from collections.abc import Iterable
from pathlib import Path

from finish import UNCHECKED

# Of the standard library: what builds, tests, draws, edits and installs; and what needs libraries of its own that
# podsvid never loads (databases, terminals' line editing).
NOT_RUN = (
    *("ensurepip", "venv", "distutils", "idlelib", "lib2to3", "pydoc_data", "tkinter", "turtle.py", "turtledemo"),
    *("test", "curses", "dbm", "sqlite3", "config-*", "site-packages", "dist-packages"),
    *("EXTERNALLY-MANAGED", "sitecustomize.py"),
    *("_curses*.so", "_dbm*.so", "_gdbm*.so", "_sqlite3*.so", "_test*.so", "_tkinter*.so", "_ctypes_test*.so"),
    *("readline*.so", "nis*.so", "ossaudiodev*.so", "xx*.so", "__pycache__"),
)
# Loaded by name, so that no library's list of others shows them: how the C library looks up names, and ends threads.
BY_NAME = ("libnss_files.so.2", "libnss_dns.so.2", "libresolv.so.2", "libgcc_s.so.1")
# The Containerfile's to copy: while this runs, whoever builds may have mounted certificates of his own there.
CERTIFICATES = Path("/etc/ssl/certs")
# Of the system, where the base has it: names, how they are looked up, where libraries are. By the last three scanners
# find which release's packages these are; without Debian's or Ubuntu's own one Trivy matches none of them.
FILES = (
    *("/etc/passwd", "/etc/group", "/etc/nsswitch.conf", "/etc/ld.so.cache", "/etc/ssl/openssl.cnf"),
    *("/etc/os-release", "/etc/debian_version", "/etc/lsb-release"),
)
TREES = (
    *("/usr/lib/ssl", "/usr/share/ca-certificates", "/usr/local/share/ca-certificates"),
    *("/usr/lib/locale/C.utf8", "/usr/share/common-licenses"),
)
PACKAGES = Path("/var/lib/dpkg")
# What a runtime mounts or a program expects. Kubernetes mounts over /tmp as well.
FOLDERS = {"dev": 0o755, "proc": 0o755, "run": 0o755, "sys": 0o755, "tmp": 0o1777, "var/run": 0o755}
LINKED = re.compile(r"(/\S+) \(0x")


def main(environment: Path, root: Path) -> None:
    """Fill the root. Raises CalledProcessError and OSError, and SystemExit where the base is not one that will do."""
    check_packages(PACKAGES)
    python = Path(sysconfig.get_config_var("BINDIR")) / f"python{sysconfig.get_python_version()}"
    for name in (environment / "bin" / "python3", python):
        take(name, root)
    folders = {Path(sysconfig.get_path(name, vars=_base())) for name in ("stdlib", "platstdlib")}
    for folder in sorted(folders):
        take_tree(folder, root, NOT_RUN)
        _compile(root / folder.relative_to("/"))
    loaded = [python, *(root / folder.relative_to("/") for folder in folders), environment]
    for library in libraries(loaded, (root, environment)):
        take(library, root)
    for file in FILES:
        if Path(file).exists():
            take(Path(file), root)
    for tree in TREES:
        if Path(tree).exists():
            take_tree(Path(tree), root, ("private", "misc"))
    paths = ssl.get_default_verify_paths()
    check_roots((Path(paths.openssl_cafile), Path(paths.openssl_capath)), root)
    for name, mode in FOLDERS.items():
        (root / name).mkdir(parents=True, exist_ok=True)
        (root / name).chmod(mode)
    shutil.rmtree(root / environment.relative_to("/"), ignore_errors=True)  # a layer of its own
    record_packages(root)


def check_packages(packages: Path) -> None:
    """Raises SystemExit where the base is not of Debian's kind."""
    if not (packages / "status").is_file():
        raise SystemExit(
            f"the base has no {packages / 'status'}: it has to be Debian or Ubuntu, or built on one of them, such as "
            "docker.io/library/python:3.13-slim-bookworm"
        )


def check_roots(paths: Iterable[Path], root: Path) -> None:
    """Whether one of the places where OpenSSL looks for public CAs leads to the certificates that the image will have.

    Raises SystemExit where it would find none, which nobody would notice before the first call to a cloud.
    """
    tried = list(paths)
    for path in tried:
        there = any(path.iterdir()) if path.is_dir() else path.is_file()
        if there and take(path, root).is_relative_to(root / CERTIFICATES.relative_to("/")):
            return
    raise SystemExit(
        f"OpenSSL's {' and '.join(map(str, tried))} lead to no certificates in {CERTIFICATES}, and the image takes "
        "none from elsewhere: the base needs its package ca-certificates, and a Python with its OpenSSL"
    )


def take(path: Path, root: Path) -> Path:
    """Copy a file, with each symbolic link on the way to it; where it is in the root. Raises OSError.

    Links to the certificates are taken without what is there.
    """
    at = Path("/")
    parts = list(path.relative_to("/").parts)
    while parts:
        at /= parts.pop(0)
        if at == CERTIFICATES:
            return root.joinpath(at.relative_to("/"), *parts)
        copy = root / at.relative_to("/")
        if at.is_symlink():
            copy.parent.mkdir(parents=True, exist_ok=True)
            if not copy.is_symlink():
                copy.symlink_to(at.readlink())
            target = Path(os.path.normpath(at.parent / at.readlink()))
            return take(target.joinpath(*parts), root)
        if at.is_dir():
            copy.mkdir(exist_ok=True)
        elif not copy.exists():
            shutil.copy2(at, copy)
    return root / at.relative_to("/")


def take_tree(folder: Path, root: Path, without: tuple[str, ...]) -> None:
    """Copy all files below a folder, but for names like those. Raises OSError."""
    take(folder, root)
    for entry in sorted(folder.iterdir()):
        if any(entry.match(pattern) for pattern in without):
            continue
        if entry.is_dir() and not entry.is_symlink():
            take_tree(entry, root, without)
        elif entry.exists():
            take(entry, root)


def libraries(places: Iterable[Path], own: tuple[Path, ...]) -> list[Path]:
    """What programs and libraries in these places are linked against, outside of `own`.

    Raises CalledProcessError, and SystemExit where something is missing.
    """
    found: set[Path] = set()
    for place in places:
        for file in [place] if place.is_file() else sorted(place.rglob("*.so*")):
            text = subprocess.run(["ldd", str(file)], check=False, capture_output=True, text=True).stdout  # noqa: S603, S607 - ours
            if "not found" in text:
                raise SystemExit(f"{file} needs what the base does not have:\n{text}")
            found |= {Path(each) for each in LINKED.findall(text)}
    found = {each for each in found if not any(each.is_relative_to(place) for place in own)}
    for each in list(found):
        found |= {beside for name in BY_NAME if (beside := each.with_name(name)).exists()}
    return sorted(found)


def record_packages(root: Path) -> None:
    """Say which of Debian's packages the files are of, where scanners look for that, with the packages' licences."""
    there = {_plain(f"/{file.relative_to(root)}") for file in root.rglob("*") if file.is_file()}
    listed = sorted((PACKAGES / "info").glob("*.list"))
    names = {
        each.stem.partition(":")[0]
        for each in listed
        if there & {_plain(line) for line in each.read_text(encoding="utf-8").splitlines()}
    }
    records = root / "var/lib/dpkg/status.d"
    records.mkdir(parents=True, exist_ok=True)
    for stanza in (PACKAGES / "status").read_text(encoding="utf-8").split("\n\n"):
        name = stanza.partition("\n")[0].removeprefix("Package: ")
        if name in names:
            (records / name).write_text(stanza.rstrip("\n") + "\n", encoding="utf-8")
            licence = Path("/usr/share/doc") / name / "copyright"
            if licence.exists():
                take(licence, root)


def _plain(path: str) -> str:
    # Since /lib and /bin are links into /usr, the lists have one name or the other.
    return path.removeprefix("/usr")


def _base() -> dict[str, str]:
    # The base's own folders: this script's Python is a virtual environment's.
    return {"base": sys.base_prefix, "installed_base": sys.base_prefix, "platbase": sys.base_exec_prefix,
            "installed_platbase": sys.base_exec_prefix}  # fmt: skip


def _compile(folder: Path) -> None:
    done = compileall.compile_dir(
        folder, quiet=1, legacy=True, stripdir=str(folder), prependdir="lib", invalidation_mode=UNCHECKED
    )
    if not done:
        raise SystemExit(f"{folder} does not compile")
    for source in folder.rglob("*.py"):
        source.unlink()


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
