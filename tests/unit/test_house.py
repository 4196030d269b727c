"""The house: each contract of the imports refuses what it is there for, no file is long, every room has a threshold."""

import re
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PACKAGES = ("svid", "runtime", "csi", "agent", "signer", "podsvid")
MAX_LINES = 400
PRODUCT = sorted(
    path.relative_to(ROOT)
    for package in PACKAGES
    for path in (ROOT / package).rglob("*.py")
    if path.parent.name != "pb"
)
ROOMS = sorted({path.parent for path in PRODUCT})
# Contract (the beginning of its name): file, and what may not be imported there.
PLANTED = {
    "packages": ("svid/identity.py", "runtime.clock"),
    "agent: ": ("agent/socket/endpoint.py", "agent.authority.protocol"),
    "signer: ": ("signer/policy/policy.py", "signer.minting.minting"),
    "svid does": ("svid/renewal.py", "time"),
    "kubernetes only": ("podsvid/explain.py", "kubernetes"),
    "gRPC only": ("agent/workload/workload.py", "grpc"),
    "the agent's processes": ("csi/mount.py", "kubernetes"),
    "agent/authority": ("agent/authority/local.py", "csi.volume"),
    "agent/socket": ("agent/socket/sds.py", "csi.mount"),
    "the process that mounts": ("agent/servers/link.py", "agent.socket.endpoint"),
    "only the process": ("agent/exposed/confinement.py", "agent.exposed.unloaded"),
    "the exposed process": ("agent/exposed/server.py", "csi.volume"),
    "agent/workload": ("agent/workload/issuer.py", "agent.authority.local"),
    "signer/cluster": ("signer/cluster/mirror.py", "svid.identity"),
    "signer/upstream": ("signer/upstream/certify.py", "signer.model"),
    "a cloud's library": ("signer/upstream/openbao.py", "boto3"),
    "signer/attestation": ("signer/attestation/pods.py", "svid.authority"),
    "signer/policy": ("signer/policy/template.py", "cryptography"),
    "signer/publishing": ("signer/publishing/config_maps.py", "svid.jwtauthority"),
    "signer/minting": ("signer/minting/minting.py", "signer.cluster.kube"),
    "the process that serves strangers": ("signer/public/child.py", "svid.identity"),
    "the signer's workers": ("signer/workers/child.py", "signer.policy.policy"),
    "the console's server": ("podsvid/console/guard.py", "grpc"),
    "podsvid/console": ("podsvid/console/on_node.py", "agent.workload.problems"),
    "podsvid/api": ("podsvid/api/watch.py", "agent.workload.problems"),
}


def contracts() -> list[str]:
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    return [each["name"] for each in settings["tool"]["importlinter"]["contracts"]]


def linted(folder: Path) -> tuple[int, str]:
    """lint-imports in `folder`: its exit status, and what it printed, on one line."""
    command = [str(Path(sys.executable).with_name("lint-imports")), "--no-cache"]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
    return done.returncode, re.sub(r"\s+", " ", done.stdout + done.stderr)


@pytest.fixture(scope="module")
def planted(tmp_path_factory: pytest.TempPathFactory) -> str:
    """What lint-imports says of a copy of the product with every violation in it at once."""
    copy = tmp_path_factory.mktemp("house")
    shutil.copy(ROOT / "pyproject.toml", copy)
    for package in PACKAGES:
        shutil.copytree(ROOT / package, copy / package, ignore=shutil.ignore_patterns("__pycache__"))
    for name, module in PLANTED.values():
        path = copy / name
        path.write_text(f"{path.read_text(encoding='utf-8')}\nimport {module}\n", encoding="utf-8")
    room = copy / "agent" / "attic"
    room.mkdir()
    (room / "__init__.py").touch()
    status, said = linted(copy)
    assert status == 1, said
    return said


def test_the_product_keeps_every_contract() -> None:
    status, said = linted(ROOT)
    assert status == 0, said


@pytest.mark.parametrize("contract", contracts())
def test_what_a_contract_is_there_for_is_refused(contract: str, planted: str) -> None:
    (name, module) = next(found for beginning, found in PLANTED.items() if contract.startswith(beginning))
    assert re.search(rf"{re.escape(contract)} ?BROKEN", planted)
    importer = name.removesuffix(".py").replace("/", ".")
    assert f"- {importer} -> {module} (l." in planted[planted.index(f" {contract} ---") :]


def test_a_room_without_a_place_is_refused(planted: str) -> None:
    assert "are not listed as layers: - agent.attic" in planted


@pytest.mark.parametrize("path", PRODUCT, ids=str)
def test_no_file_is_long(path: Path) -> None:
    lines = len((ROOT / path).read_text(encoding="utf-8").splitlines())
    assert lines <= MAX_LINES, f"{path} has {lines} lines: divide it by what it owns"


@pytest.mark.parametrize("room", ROOMS, ids=str)
def test_every_room_has_a_threshold(room: Path) -> None:
    threshold = (ROOT / room / "__init__.py").read_text(encoding="utf-8")
    for word in ("\nIn it: ", "\nNever in it: ", "\nThrough it goes: "):
        assert word in threshold, f"{room}/__init__.py does not say {word.strip()}"


def test_every_file_says_what_it_owns() -> None:
    silent = [str(path) for path in PRODUCT if not (ROOT / path).read_text(encoding="utf-8").startswith('"""')]
    assert silent == []
