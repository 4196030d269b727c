"""Pods' identities as users of MariaDB, by all that docs/tutorials/mariadb.md has people write and type."""

import os
import shutil
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

USER = "mysql"
SEARCH = "/usr/sbin:/usr/bin:/sbin:/bin"
pytestmark = [
    pytest.mark.skipif(not IS_ROOT, reason="MariaDB runs as a user of its own: run as root"),
    pytest.mark.skipif(
        not shutil.which("mariadbd", path=SEARCH), reason="needs MariaDB: apt-get install mariadb-server"
    ),
    pytest.mark.timeout(180),
]
PAGE = page("mariadb.md")
DB = Service("shop", "db", (("app", "db"),))
SERVER, CLIENT = PAGE.block("[mariadbd]"), PAGE.block("[client]")
MINE, ROOTS = PAGE.block("mariadb --defaults-file=client.cnf -N"), PAGE.block("mariadb --defaults-file=client.cnf -u")


@dataclass(frozen=True)
class Lab:
    """A server by the page, and what its pods and their clients have."""

    volumes: Volumes
    port: int

    @property
    def folder(self) -> Path:
        """Where the server is."""
        return self.volumes.folder

    def log(self) -> str:
        """The server's."""
        return (self.folder / "log").read_text()

    def shell(self, text: str, spiffe: Path, user: str = USER) -> "subprocess.Popen[str]":
        """Type it where `client.cnf` is by the page, and the Service's name leads here; in a session of its own."""
        text = text.replace("/spiffe", str(spiffe)).replace("/run/mysqld/mysqld.sock", f"{self.folder}/socket")
        own = f"mount --bind {self.folder}/hosts /etc/hosts; exec setpriv --reuid {user} --regid {user} --clear-groups"
        # Who looks a name up without DNS asks this file: bound over in a mount namespace, which ends with the command.
        command = ["unshare", "--mount", "sh", "-ec", f'{own} sh -ec "$0"', text]
        pipe = subprocess.PIPE
        return subprocess.Popen(
            command, stdin=pipe, stdout=pipe, stderr=pipe, cwd=spiffe, env={"PATH": SEARCH, "HOME": str(self.folder)},
            text=True, start_new_session=True,
        )  # fmt: skip

    def query(self, command: str, spiffe: Path) -> "subprocess.CompletedProcess[str]":
        """As a client with these files; `command` is one of the page."""
        self.client(spiffe)
        return self.run(command, spiffe)

    def client(self, spiffe: Path, text: str = CLIENT) -> None:
        """Write its `client.cnf`."""
        text = f"{text}port = {self.port}\nprotocol = tcp\n"
        (spiffe / "client.cnf").write_text(text.replace("/spiffe", str(spiffe)))

    def run(self, text: str, spiffe: Path, user: str = USER) -> "subprocess.CompletedProcess[str]":
        """To its end."""
        return ended(self.shell(text, spiffe, user))

    def serial(self) -> str:
        """Of the certificate that the server shows."""
        return shown_serial(self.port, "mysql")


@pytest.fixture
def lab() -> Iterator[Lab]:
    with volumes("mariadb", USER, policies=PAGE.policies(2), services=[DB]) as found:
        yield from _served(Lab(found, free_port()))


def _served(lab: Lab) -> Iterator[Lab]:
    folder, database = lab.folder, lab.volumes.of("db")
    (folder / "hosts").write_text("127.0.0.1 localhost db.shop.svc\n")
    made = lab.run(
        f"mariadb-install-db --no-defaults --datadir={folder}/data --skip-test-db "
        "--auth-root-authentication-method=socket --auth-root-socket-user=root",
        database,
    )
    assert made.returncode == 0, made.stdout[-1500:] + made.stderr
    own = f"datadir = {folder}/data\nsocket = {folder}/socket\npid-file = {folder}/pid\nport = {lab.port}\n"
    configuration = SERVER.replace("/spiffe", str(database)) + own + "bind-address = 127.0.0.1\n"
    (folder / "server.cnf").write_text(configuration)
    server = lab.shell(f"exec mariadbd --defaults-file={folder}/server.cnf >{folder}/log 2>&1", database)
    try:
        until = time.monotonic() + 60
        while not (folder / "socket").exists():
            assert server.poll() is None, lab.log()
            assert time.monotonic() < until, lab.log()
            time.sleep(0.05)
        users = f'mariadb --socket /run/mysqld/mysqld.sock -e "{PAGE.block("CREATE USER billing")}"'
        made = lab.run(users, database, user="root")
        assert made.returncode == 0, made.stderr
        yield lab
    finally:
        _end(server)


def _end(process: "subprocess.Popen[str]") -> None:
    os.killpg(process.pid, signal.SIGKILL)
    process.communicate()


def test_a_pod_is_its_user_and_nobody_else(lab: Lab) -> None:
    billing = lab.volumes.of("billing")
    said = lab.query(MINE, billing)
    assert (said.returncode, said.stdout) == (0, "billing@%\n"), said.stderr + lab.log()
    refused = lab.query(ROOTS, billing)
    assert (refused.returncode, refused.stdout) == (1, "")
    assert "Access denied for user 'root'" in refused.stderr
    # Of the same name elsewhere, and of the same namespace without a policy: who have certificates of the same CA.
    for stranger, subject in ((lab.volumes.of("billing", "other"), "/CN=billing@other"), (lab.volumes.of("web"), "")):
        refused = lab.query(MINE, stranger)
        assert (refused.returncode, refused.stdout) == (1, "")
        assert "Access denied for user 'billing'" in refused.stderr
        assert f"X509 subject mismatch: should be '/CN=billing@shop' but is '{subject}'" in lab.log()
        assert f"but is '{subject}'" in PAGE.text
    # Without a certificate, and without TLS.
    shown = "".join(f"{line}\n" for line in CLIENT.splitlines() if "tls." not in line)
    for client in (shown, "[client]\nhost = db.shop.svc\nuser = billing\nskip-ssl\n"):
        lab.client(billing, client)
        refused = lab.run(MINE, billing)
        assert (refused.returncode, refused.stdout) == (1, "")
        assert "Access denied for user 'billing'" in refused.stderr


def test_to_require_any_certificate_or_an_issuer_is_what_the_page_says(lab: Lab) -> None:
    def required(what: str) -> None:
        command = f'mariadb --socket /run/mysqld/mysqld.sock -e "ALTER USER billing REQUIRE {what}"'
        assert lab.run(command, lab.folder, user="root").returncode == 0

    required("X509")
    assert lab.query(MINE, lab.volumes.of("web")).stdout == "billing@%\n"
    required("ISSUER '/O=podsvid/CN=example.org/serialNumber=1'")
    assert "Access denied" in lab.query(MINE, lab.volumes.of("billing")).stderr
    assert "X509 issuer mismatch" in lab.log()


def test_a_client_takes_nobody_else_for_the_database(lab: Lab) -> None:
    billing = lab.volumes.of("billing")
    lab.client(billing, CLIENT.replace("db.shop.svc", "localhost"))
    refused = lab.run(MINE, billing)
    assert (refused.returncode, refused.stdout) == (1, "")
    assert "Validation of SSL server certificate failed" in refused.stderr
    # As the page says of the last line.
    lab.client(billing, CLIENT.replace("db.shop.svc", "localhost").replace("ssl-verify-server-cert\n", ""))
    assert lab.run(MINE, billing).stdout == "billing@%\n"


def test_what_renews_is_shown_by_the_pages_loop_and_no_connection_is_lost(lab: Lab) -> None:
    billing = lab.volumes.of("billing")
    lab.client(billing)
    client = lab.shell("mariadb --defaults-file=client.cnf -N --unbuffered", billing)
    loop = lab.shell(PAGE.block("last=").replace("sleep 5", "sleep 0.1"), lab.folder / "db-shop")
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
            assert lab.query(MINE, lab.volumes.of("billing")).stdout == "billing@%\n"
            assert asked(client, "SELECT current_user()") == "billing@%"
    finally:
        for process in (loop, client):
            _end(process)


def asked(client: "subprocess.Popen[str]", query: str) -> str:
    """What an open session answers."""
    assert client.stdin is not None
    assert client.stdout is not None
    client.stdin.write(f"{query};\n")
    client.stdin.flush()
    return client.stdout.readline().strip()
