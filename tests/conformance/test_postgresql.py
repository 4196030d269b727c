"""Pods' identities as users of PostgreSQL, by all that docs/tutorials/postgresql.md has people write and type."""

import os
import signal
import subprocess
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from signer.policy.services import Service
from svid.certificates import certificates_from_pem, serial_of
from tests.ports import free_port
from tests.support import IS_ROOT
from tests.tutorials import Volumes, ended, page, shown_serial, volumes

PROGRAMS = next(iter(sorted(Path("/usr/lib/postgresql").glob("*/bin"), reverse=True)), Path("/nowhere"))
USER = "postgres"
pytestmark = [
    pytest.mark.skipif(not IS_ROOT, reason="PostgreSQL runs as a user of its own: run as root"),
    pytest.mark.skipif(not (PROGRAMS / "initdb").exists(), reason="needs PostgreSQL: apt-get install postgresql"),
    pytest.mark.timeout(180),
]
PAGE = page("postgresql.md")
DB = Service("shop", "db", (("app", "db"),))


@dataclass(frozen=True)
class Lab:
    """A server by the page, and what its pods and their clients have."""

    volumes: Volumes
    port: int

    @property
    def folder(self) -> Path:
        """Where the server is."""
        return self.volumes.folder

    def shell(self, text: str, spiffe: Path | None = None) -> "subprocess.Popen[str]":
        """Type it as PostgreSQL's user, where a name of the cluster leads to this server; in a session of its own."""
        environment = {
            **{name: value for name, value in os.environ.items() if not name.startswith("PG")},
            "PATH": f"{PROGRAMS}:/usr/bin:/bin",
            "PGPORT": str(self.port),
            **({"PGHOSTADDR": "127.0.0.1"} if "db.shop.svc" in text else {"PGHOST": str(self.folder)}),
        }
        command = ["sh", "-ec", text.replace("/spiffe", str(spiffe or "/nowhere"))]
        pipe = subprocess.PIPE
        return subprocess.Popen(
            command,
            stdin=pipe,
            stdout=pipe,
            stderr=pipe,
            cwd=self.folder,
            env=environment,
            text=True,
            user=USER,
            group=USER,
            start_new_session=True,
        )

    def run(self, text: str, spiffe: Path | None = None) -> "subprocess.CompletedProcess[str]":
        return ended(self.shell(text, spiffe))

    def query(self, command: str, spiffe: Path) -> "subprocess.CompletedProcess[str]":
        """As a client with these files; `command` is a line of the page."""
        return self.run(f"{EXPORT}\n{command}", spiffe)

    def serial(self) -> str:
        """Of the certificate that the server shows."""
        return shown_serial(self.port, "postgres")


@pytest.fixture
def lab() -> Iterator[Lab]:
    with volumes("postgresql", USER, policies=PAGE.policies(2), services=[DB]) as found:
        yield from _served(Lab(found, free_port()))


def _served(lab: Lab) -> Iterator[Lab]:
    folder, data = lab.folder, lab.folder / "data"
    try:
        made = lab.run(f"initdb -D {data} -U postgres --no-sync")
        assert made.returncode == 0, made.stdout[-1500:] + made.stderr
        settings = PAGE.block("ssl = on").replace("/spiffe", str(lab.volumes.of("db")))
        with (data / "postgresql.conf").open("a") as configuration:
            configuration.write(f"\n{settings}unix_socket_directories = '{folder}'\nlisten_addresses = '127.0.0.1'\n")
        (data / "pg_hba.conf").write_text(PAGE.block("local    all"))
        (data / "pg_ident.conf").write_text(PAGE.block("pods  billing"))
        started = lab.run(f"pg_ctl -D {data} -w -l {folder}/log start")
        assert started.returncode == 0, (folder / "log").read_text()
        yield lab
    finally:
        lab.run(f"pg_ctl -D {data} -m immediate -w stop")


UNNAMED = 'no match in usermap "pods" for user'
EXPORT, MINE = PAGE.block("export PGSSLMODE").splitlines()


def test_a_pod_is_its_user_and_nobody_else(lab: Lab) -> None:
    made = lab.run(PAGE.block("psql -U postgres"))
    assert made.returncode == 0, made.stderr
    billing = lab.volumes.of("billing")
    said = lab.query(MINE, billing)
    assert (said.returncode, said.stdout) == (0, "billing\n"), said.stderr + (lab.folder / "log").read_text()
    refused = lab.query(PAGE.block("psql -h db.shop.svc -U postgres"), billing)
    assert refused.returncode == 2
    assert 'certificate authentication failed for user "postgres"' in refused.stderr
    # Of the same name elsewhere, and of the same namespace without a policy: who have certificates of the same CA.
    for stranger, why in (
        (
            lab.volumes.of("billing", "other"),
            'no match in usermap "pods" for user "billing" authenticated as "billing@other"',
        ),
        (lab.volumes.of("web"), "client certificate contains no user name"),
    ):
        refused = lab.query(MINE, stranger)
        assert (refused.returncode, refused.stdout) == (2, "")
        assert why in (lab.folder / "log").read_text()
        assert why in PAGE.text


def test_what_renews_is_shown_by_the_pages_loop_and_no_connection_is_lost(lab: Lab) -> None:
    lab.run(PAGE.block("psql -U postgres"))
    client = lab.shell(f"{EXPORT}\n{MINE.partition(' -Atc')[0]} -At", lab.volumes.of("billing"))
    text = PAGE.block("last=").replace("sleep 5", "sleep 0.1").replace("/var/run/postgresql", str(lab.folder))
    loop = lab.shell(text, lab.folder / "db-shop")
    try:
        assert asked(client, "SELECT 1") == "1"
        before = lab.serial()
        for _ in range(3):
            renewed = certificates_from_pem((lab.volumes.of("db") / "tls.crt").read_bytes())[0]
            assert before != serial_of(renewed)
            until = time.monotonic() + 30
            while lab.serial() != serial_of(renewed):
                assert loop.poll() is None
                assert time.monotonic() < until
            assert lab.query(MINE, lab.volumes.of("billing")).stdout == "billing\n"
            assert asked(client, "SELECT current_user") == "billing"
    finally:
        for process in (loop, client):
            os.killpg(process.pid, signal.SIGKILL)
            process.communicate()


def asked(client: "subprocess.Popen[str]", query: str) -> str:
    """What an open session answers."""
    assert client.stdin is not None
    assert client.stdout is not None
    client.stdin.write(f"{query};\n")
    client.stdin.flush()
    return client.stdout.readline().strip()
