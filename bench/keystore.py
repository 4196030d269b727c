"""Measure a signer whose authorities' keys are in a PKCS#11 token (SoftHSM) beside one that has them in memory.

python -m bench.keystore: both in turn, each in a process of its own; prints a table and records it. What a token across
a network takes for a signature comes on top of SoftHSM's.
"""

import asyncio
import subprocess
import sys
import tempfile
from importlib.metadata import version
from pathlib import Path

import pytest

from bench.report import Report, environment, record, table
from bench.signer import NODES, mints
from tests.softhsm import Token

ROUNDS = 3


def main() -> int:
    report = Report()
    softhsm = subprocess.run(["softhsm2-util", "--version"], capture_output=True, text=True, check=False).stdout.strip()
    about = {**environment(), "softhsm": softhsm, "python-pkcs11": version("python-pkcs11")}
    cpu: dict[str, list[float]] = {"memory": [], "token": []}
    rates: dict[str, list[float]] = {"memory": [], "token": []}
    alone: dict[str, list[float]] = {"memory": [], "token": []}
    with tempfile.TemporaryDirectory(prefix="pv", dir="/tmp") as folder, pytest.MonkeyPatch.context() as patch:
        token = Token(Path(folder))
        token.make(patch)
        es256 = ("--jwt-algorithm", "ES256")
        flags = {"memory": es256, "token": (*es256, "--authority-key-uri", token.whole_uri)}
        for _ in range(ROUNDS):
            for where, given in flags.items():
                found = asyncio.run(mints(1000, 1, flags=given))
                cpu[where] += found.cpu
                rates[where] += found.rates
                # As many callers as nodes: each waits for its last before it asks again.
                quiet = asyncio.run(mints(400, 1, flags=given, at_once=NODES))
                alone[where] += [NODES * 1000 / each for each in quiet.rates]
    for what, unit, values in (
        ("CPU time of an attested mint in the signer's process", "ms", cpu),
        ("mints a second, 64 at once", "1/s", rates),
        (f"a mint, {NODES} at once", "ms", alone),
    ):
        report.add(f"keys in memory: {what}", unit, values["memory"])
        report.add(f"keys in a token: {what}", unit, values["token"], floor=values["memory"])
    print(table(report.rows, about))
    record(report.rows, about, "keystore")
    return 0


if __name__ == "__main__":
    sys.exit(main())
