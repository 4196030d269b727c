"""The image's pinned packages are those that the project asks for."""

import importlib.util
import re
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path
from types import ModuleType

import multidict
import pytest
from packaging.requirements import Requirement
from packaging.version import Version

ROOT = Path(__file__).parents[2]
IMAGE = ROOT / "deploy" / "image"
PINNED = dict(re.findall(r"^([a-z0-9.-]+)==(\S+)", (ROOT / "deploy" / "image" / "requirements.txt").read_text(), re.M))


@pytest.mark.parametrize(
    "wanted", tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["dependencies"], ids=str
)
def test_each_dependency_is_pinned_to_a_version_that_will_do(wanted: str) -> None:
    requirement = Requirement(wanted)
    assert requirement.specifier.contains(Version(PINNED[requirement.name])), "make requirements.txt anew"


def test_every_package_has_hashes() -> None:
    for name in ("requirements.txt", "build-requirements.txt"):
        text = (ROOT / "deploy" / "image" / name).read_text()
        blocks = re.split(r"^(?=[a-z0-9.-]+==)", text, flags=re.M)[1:]
        assert blocks
        assert all("--hash=sha256:" in block for block in blocks)


def test_every_package_of_the_project_is_copied() -> None:
    packages = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]["packages"]["find"]["include"]
    top = {name.removesuffix("*") for name in packages}
    text = (ROOT / "deploy" / "image" / "Containerfile").read_text()
    assert {name for name in top if f"COPY {name} /build/source/{name}\n" in text} == top
    ignored = (ROOT / "deploy" / "image" / "Containerfile.dockerignore").read_text().split()
    assert {f"!{name}" for name in top} <= set(ignored)


@pytest.fixture
def finish() -> ModuleType:
    return _script("finish")


@pytest.fixture
def system(finish: ModuleType, monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.setitem(sys.modules, "finish", finish)
    return _script("system")


def _script(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(f"image_{name}", IMAGE / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_what_the_image_leaves_out_is_loaded_by_nothing_of_podsvid(finish: ModuleType) -> None:
    packages = Path(multidict.__file__).parents[1]
    left_out = {str(path) for pattern in finish.NEVER_LOADED for path in packages.glob(pattern)}
    assert len(left_out) > 1000
    program = """
import importlib, pkgutil, sys
import agent, csi, podsvid, runtime, signer, svid
for package in (agent, csi, podsvid, runtime, signer, svid):
    for found in pkgutil.walk_packages(package.__path__, package.__name__ + "."):
        if not found.name.endswith("__main__"):
            importlib.import_module(found.name)
print(*(module.__file__ for module in list(sys.modules.values()) if getattr(module, "__file__", None)), sep="\\n")
"""
    loaded = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True).stdout.split()
    assert len(loaded) > 1000
    assert left_out & set(loaded) == set()


def test_a_library_without_what_debuggers_read_loads_and_is_smaller(finish: ModuleType, tmp_path: Path) -> None:
    shutil.copytree(Path(multidict.__file__).parent, tmp_path / "multidict")
    (library,) = (tmp_path / "multidict").glob("_multidict.*.so")
    before = library.read_bytes()
    after = finish.stripped(before)
    assert len(after) < len(before) / 4
    assert finish.stripped(after) == after
    library.write_bytes(after)
    program = (
        "from multidict import _multidict as m; d = m.MultiDict(a=1); d.add('a', 2); print(d.getall('a'), m.__file__)"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=tmp_path, env={"PYTHONPATH": str(tmp_path)}, capture_output=True, text=True
    )
    assert done.stdout.split() == ["[1,", "2]", str(library)], done.stderr


def test_what_is_no_library_is_left_alone(finish: ModuleType) -> None:
    for data in (b"", b"!<arch>\n", b"\x7fELF\x01\x01" + bytes(100)):
        assert finish.stripped(data) == data


def test_a_file_is_taken_with_every_link_on_the_way(system: ModuleType, tmp_path: Path) -> None:
    base, root = tmp_path / "base", tmp_path / "root"
    (base / "usr/lib/deep").mkdir(parents=True)
    root.mkdir()
    (base / "usr/lib/deep/libx.so.1.2").write_text("x")
    (base / "usr/lib/deep/libx.so.1").symlink_to("libx.so.1.2")
    (base / "lib").symlink_to("usr/lib")
    (base / "usr/lib/unasked").write_text("y")
    system.take(base / "lib/deep/libx.so.1", root)
    inside = root / base.relative_to("/")
    assert (inside / "lib").readlink() == Path("usr/lib")
    assert (inside / "lib/deep/libx.so.1").readlink() == Path("libx.so.1.2")
    assert (inside / "lib/deep/libx.so.1").read_text() == "x"
    assert not (inside / "usr/lib/unasked").exists()


def test_a_folder_is_taken_without_what_is_not_run(system: ModuleType, tmp_path: Path) -> None:
    base, root = tmp_path / "base", tmp_path / "root"
    root.mkdir()
    for name in ("os.py", "turtle.py", "json/decoder.py", "test/regrtest.py", "ctypes/test/one.py", "_testcapi.x.so"):
        (base / name).parent.mkdir(parents=True, exist_ok=True)
        (base / name).write_text("")
    (base / "broken").symlink_to("nowhere")
    system.take_tree(base, root, system.NOT_RUN)
    inside = root / base.relative_to("/")
    files = {str(each.relative_to(inside)) for each in inside.rglob("*") if not each.is_dir() or each.is_symlink()}
    assert files == {"os.py", "json/decoder.py"}


@pytest.fixture
def certificates(system: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where the base has its certificates, with a bundle in it that is whoever builds'."""
    found = tmp_path / "base/etc/ssl/certs"
    found.mkdir(parents=True)
    (found / "ca-certificates.crt").write_text("mounted")
    (tmp_path / "root").mkdir()
    monkeypatch.setattr(system, "CERTIFICATES", found)
    return found


def test_certificates_of_whoever_builds_are_not_taken_with_the_links_to_them(
    system: ModuleType, tmp_path: Path, certificates: Path
) -> None:
    base, root = tmp_path / "base", tmp_path / "root"
    (base / "usr/lib/ssl").mkdir(parents=True)
    (base / "usr/lib/ssl/cert.pem").symlink_to(certificates / "ca-certificates.crt")
    (base / "usr/lib/ssl/certs").symlink_to(certificates)
    system.take_tree(base / "usr/lib/ssl", root, ())
    inside = root / base.relative_to("/") / "usr/lib/ssl"
    assert (inside / "cert.pem").readlink() == certificates / "ca-certificates.crt"
    assert (inside / "certs").readlink() == certificates
    assert not list(root.rglob("ca-certificates.crt"))
    system.check_roots((inside.parent / "nowhere", base / "usr/lib/ssl/cert.pem"), root)
    system.check_roots((base / "usr/lib/ssl/certs",), root)
    system.check_roots((certificates,), root)


def test_a_base_whose_openssl_looks_elsewhere_for_certificates_is_refused(
    system: ModuleType, tmp_path: Path, certificates: Path
) -> None:
    base, root = tmp_path / "base", tmp_path / "root"
    elsewhere = base / "etc/pki/tls"
    (elsewhere / "certs").mkdir(parents=True)
    (elsewhere / "cert.pem").write_text("as RHEL has it")
    (certificates / "ca-certificates.crt").unlink()
    (elsewhere / "empty").symlink_to(certificates)
    for paths in ((elsewhere / "cert.pem", elsewhere / "certs"), (elsewhere / "nowhere", elsewhere / "empty")):
        with pytest.raises(SystemExit, match="ca-certificates"):
            system.check_roots(paths, root)


def test_a_base_that_is_not_of_debians_kind_is_refused(system: ModuleType, tmp_path: Path) -> None:
    with pytest.raises(SystemExit, match="Debian or Ubuntu"):
        system.check_packages(tmp_path)
    (tmp_path / "status").write_text("Package: base-files\n")
    system.check_packages(tmp_path)
