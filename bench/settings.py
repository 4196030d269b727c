"""What it costs to read the agent's settings: by the code here, by that of another commit, and by libraries.

    python -m bench.settings [--before FOLDER] [--libraries FOLDER] [--rounds N]

`--before`: a checkout of another commit; `--libraries`: where pydantic-settings was installed (`pip install --target`).
Each measurement is a new interpreter; commands take turns, so what else the machine does meets all of them. It prints
the rows of bench/results/settings.md.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
CONFIG = """trust_domain: example.org
kubelet_root: {base}/k
run_dir: {base}/r
state_dir: {base}/s
metrics_listen: "off"
x509_ttl: 30m
jwt_ttl: 4m
driver_names: [csi.podsvid.io, csi.spiffe.io]
volumes: "500"
socket_rate: "300"
log_level: info
"""
_TOLD = """
import json, resource
used = resource.getrusage(resource.RUSAGE_SELF)
status = dict(line.split(":", 1) for line in open("/proc/self/status"))
print(json.dumps([(used.ru_utime + used.ru_stime) * 1000, int(status["VmRSS"].split()[0]) / 1024]))
"""
_OWN = """
import argparse, sys
from agent import config
parser = argparse.ArgumentParser()
config.add_arguments(parser)
config.load(parser.parse_args(["--config", sys.argv[1]]), {})
"""
# The same keys and defaults with plain types: the rest of the checks is left to be written beside either library.
_FIELDS = """
import dataclasses, sys
from agent import config
parse = config.settings
fields = {}
for each in dataclasses.fields(config.AgentConfig):
    kind = type(each.metadata["parse"]).__name__
    default = each.metadata["default"]
    if kind == "Number":
        fields[each.name] = (int, int(default))
    elif kind == "Listed":
        fields[each.name] = (tuple[str, ...], tuple(default.split(",")))
    elif each.metadata["parse"] is parse.boolean:
        fields[each.name] = (bool, default == "true")
    else:
        fields[each.name] = (str, default or "")
"""
_MSGSPEC = (
    _FIELDS
    + """
import msgspec, yaml
model = msgspec.defstruct("Agent", [(name, *each) for name, each in fields.items()], forbid_unknown_fields=True)
msgspec.convert(yaml.safe_load(open(sys.argv[1])), model, strict=False)
"""
)
_PYDANTIC = (
    _FIELDS
    + """
import yaml
from pydantic import create_model
from pydantic_settings import BaseSettings, SettingsConfigDict
base = type("Base", (BaseSettings,), {"model_config": SettingsConfigDict(env_prefix="PODSVID_", extra="forbid")})
model = create_model("Agent", __base__=base, **fields)
model(**yaml.safe_load(open(sys.argv[1])))
"""
)


def measured(program: str, root: Path, more: str, file: Path) -> list[float]:
    """CPU time in ms and memory in MiB of one interpreter that runs `program`."""
    path = os.pathsep.join(filter(None, [str(root), more]))
    environment = {**os.environ, "PYTHONPATH": path, "PYTHONSAFEPATH": "1"}
    command = [sys.executable, "-c", program + _TOLD, str(file)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True, timeout=60)
    found: list[float] = json.loads(done.stdout)
    return found


def served(root: Path, file: Path) -> list[float]:
    """CPU time in ms until a whole agent says that it serves, and its memory in MiB then."""
    environment = {**os.environ, "PYTHONPATH": str(root)}
    command = [sys.executable, "-m", "podsvid", "agent", "--config", str(file)]
    with subprocess.Popen(
        command, env=environment, cwd=root, stderr=subprocess.PIPE, stdout=subprocess.PIPE
    ) as process:
        try:
            for pipe in filter(None, (process.stderr, process.stdout)):
                for line in pipe:
                    if b"agent serving" in line:
                        folder = Path(f"/proc/{process.pid}")
                        numbers = (folder / "stat").read_text(encoding="ascii").rpartition(")")[2].split()
                        ticks = int(numbers[11]) + int(numbers[12])
                        status = (folder / "status").read_text(encoding="ascii")
                        memory = next(int(each.split()[1]) for each in status.splitlines() if each.startswith("VmRSS"))
                        return [ticks * 1000 / os.sysconf("SC_CLK_TCK"), memory / 1024]
        finally:
            process.terminate()
            process.communicate(timeout=30)
    raise SystemExit("the agent did not serve")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--before", type=Path)
    parser.add_argument("--libraries", default="")
    parser.add_argument("--rounds", type=int, default=15)
    given = parser.parse_args()
    rows: dict[str, list[list[float]]] = {}
    load, began = os.getloadavg()[0], time.monotonic()
    with tempfile.TemporaryDirectory(prefix="s") as folder:
        base, file = Path(folder), Path(folder) / "agent.yaml"
        for name in ("pods", "plugins", "plugins_registry"):
            (base / "k" / name).mkdir(parents=True)
        file.write_text(CONFIG.format(base=base), encoding="utf-8")
        commands: dict[str, Callable[[], list[float]]] = {"interpreter alone": lambda: measured("", ROOT, "", file)}
        before: Path | None = given.before
        if before is not None:
            old = before
            commands["settings, before"] = lambda: measured(_OWN, old, "", file)
        commands["settings, now"] = lambda: measured(_OWN, ROOT, "", file)
        commands["msgspec beside the same module"] = lambda: measured(_MSGSPEC, ROOT, "", file)
        if given.libraries:
            commands["pydantic-settings beside the same module"] = lambda: measured(
                _PYDANTIC, ROOT, given.libraries, file
            )
        if before is not None:
            commands["whole agent until it serves, before"] = lambda: served(old, file)
        commands["whole agent until it serves, now"] = lambda: served(ROOT, file)
        for _ in range(given.rounds):
            for name, run in commands.items():
                rows.setdefault(name, []).append(run())
    print(f"{os.cpu_count()} cores, Python {sys.version.split()[0]}, load {load:.1f}, {time.monotonic() - began:.0f} s")
    print("| | CPU time, median ms | of rounds | RSS, median MiB |\n|---|---|---|---|")
    for name, found in rows.items():
        times, memory = [each[0] for each in found], statistics.median(each[1] for each in found)
        spread = f"{min(times):.0f}-{max(times):.0f}"
        print(f"| {name} | {statistics.median(times):.0f} | {spread} | {memory:.1f} |")


if __name__ == "__main__":
    main()
