"""Pods' identities as users of PostgreSQL, by all that docs/tutorials/postgresql.md has people write and type."""

import os
import re
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
import yaml

from signer.cluster.objects import PolicyObject
from signer.model import LivePod
from signer.policy.policy import Policy, PolicySettings, decide, matching, read_policy
from signer.policy.services import Service
from svid.authority import X509Authority
from svid.certificates import certificates_from_pem, serial_of, to_pem
from svid.keys import KeyAlgorithm, key_to_pem
from svid.spiffeid import TrustDomain
from tests.ports import free_port
from tests.support import IS_ROOT, ROOT
from tests.typed import typed

PROGRAMS = next(iter(sorted(Path("/usr/lib/postgresql").glob("*/bin"), reverse=True)), Path("/nowhere"))
USER = "postgres"
pytestmark = [
    pytest.mark.skipif(not IS_ROOT, reason="PostgreSQL runs as a user of its own: run as root"),
    pytest.mark.skipif(not (PROGRAMS / "initdb").exists(), reason="needs PostgreSQL: apt-get install postgresql"),
    pytest.mark.timeout(180),
]
PAGE = (ROOT / "docs" / "tutorials" / "postgresql.md").read_text(encoding="utf-8")
TD = TrustDomain("example.org")
DB = Service("shop", "db", (("app", "db"),))
HOUR = timedelta(hours=1)


def block(begin: str) -> str:
    """The page's block whose text begins so. Raises ValueError unless there is just one."""
    blocks = [re.sub(r"^ {4}", "", each, flags=re.M) for each in re.findall(r"(?:^(?: {4}.*)?\n)+", PAGE, re.M)]
    (found,) = [each.strip("\n") for each in blocks if each.strip("\n").startswith(begin)]
    return found + "\n"


def policies() -> list[Policy]:
    found = []
    for text in re.findall(r"(?:^ {4}.*\n)+", PAGE, re.M):
        if text.strip().startswith("apiVersion"):
            body: dict[str, Any] = yaml.safe_load(text)
            body["metadata"] |= {"uid": body["metadata"]["name"], "creationTimestamp": "2030-01-01T00:00:00Z"}
            policy = read_policy(typed(PolicyObject, body))
            assert policy is not None
            found.append(policy)
    assert len(found) == 2
    # What a tenant of another namespace may write.
    return [*found, replace(found[0], namespace="other", uid="of-another")]


@dataclass(frozen=True)
class Lab:
    """A server by the page, and what its pods and their clients have."""

    folder: Path
    authority: X509Authority
    port: int

    def files(self, account: str, namespace: str = "shop") -> Path:
        """What such a pod finds at /spiffe, by the page's policies; anew with each call."""
        pod = LivePod(namespace, f"{account}-0", "uid", "node", account, {"app": account})
        found = decide(matching(policies(), pod, {}), pod, (DB,), PolicySettings(TD))
        key = KeyAlgorithm.EC_P256.generate()
        chain = self.authority.issue(
            *(key.public_key(), found.spiffe_id),
            ttl=HOUR,
            now=datetime.now(UTC),
            dns_names=found.dns_names,
            common_name=found.common_name,
        )
        there = self.folder / f"{account}-{namespace}"
        newest = there / f"..{serial_of(chain[0])}"
        newest.mkdir(parents=True)
        for name, content, mode in (
            ("tls.crt", to_pem(chain), 0o444),
            ("tls.key", key_to_pem(key), 0o600),
            ("ca.crt", self.authority.bundle.to_pem(), 0o444),
        ):
            (newest / name).write_bytes(content)
            (newest / name).chmod(mode)
            shutil.chown(newest / name, USER)
            if not (there / name).is_symlink():
                (there / name).symlink_to(f"..data/{name}")
        (there / "..new").symlink_to(newest.name)
        (there / "..new").rename(there / "..data")
        return there

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
        process = self.shell(text, spiffe)
        out, err = process.communicate(timeout=60)
        return subprocess.CompletedProcess(text, process.returncode, out, err)

    def query(self, command: str, spiffe: Path) -> "subprocess.CompletedProcess[str]":
        """As a client with these files; `command` is a line of the page."""
        return self.run(f"{EXPORT}\n{command}", spiffe)

    def serial(self) -> str:
        """Of the certificate that the server shows."""
        shown = subprocess.run(
            ["openssl", "s_client", "-starttls", "postgres", "-connect", f"127.0.0.1:{self.port}"],
            input=b"",
            capture_output=True,
            check=False,
        )
        return serial_of(certificates_from_pem(shown.stdout[shown.stdout.index(b"-----BEGIN") :])[0])


@pytest.fixture
def lab() -> Iterator[Lab]:
    folder = Path(tempfile.mkdtemp(prefix="podsvid-postgresql-"))
    shutil.chown(folder, USER)
    folder.chmod(0o755)
    now = datetime.now(UTC)
    authority = X509Authority.create(TD, algorithm=KeyAlgorithm.EC_P256, lifetime=24 * HOUR, now=now)
    found = Lab(folder, authority, free_port())
    try:
        made = found.run(f"initdb -D {folder}/data -U postgres --no-sync")
        assert made.returncode == 0, made.stdout[-1500:] + made.stderr
        spiffe, data = found.files("db"), folder / "data"
        settings = block("ssl = on").replace("/spiffe", str(spiffe))
        with (data / "postgresql.conf").open("a") as configuration:
            configuration.write(f"\n{settings}unix_socket_directories = '{folder}'\nlisten_addresses = '127.0.0.1'\n")
        (data / "pg_hba.conf").write_text(block("local    all"))
        (data / "pg_ident.conf").write_text(block("pods  billing"))
        started = found.run(f"pg_ctl -D {data} -w -l {folder}/log start")
        assert started.returncode == 0, (folder / "log").read_text()
        yield found
    finally:
        found.run(f"pg_ctl -D {folder}/data -m immediate -w stop")
        shutil.rmtree(folder)


UNNAMED = 'no match in usermap "pods" for user'
EXPORT, MINE = block("export PGSSLMODE").splitlines()


def test_a_pod_is_its_user_and_nobody_else(lab: Lab) -> None:
    made = lab.run(block("psql -U postgres"))
    assert made.returncode == 0, made.stderr
    billing = lab.files("billing")
    said = lab.query(MINE, billing)
    assert (said.returncode, said.stdout) == (0, "billing\n"), said.stderr + (lab.folder / "log").read_text()
    refused = lab.query(block("psql -h db.shop.svc -U postgres"), billing)
    assert refused.returncode == 2
    assert 'certificate authentication failed for user "postgres"' in refused.stderr
    # Of the same name elsewhere, and of the same namespace without a policy: who have certificates of the same CA.
    for stranger, why in (
        (
            lab.files("billing", "other"),
            'no match in usermap "pods" for user "billing" authenticated as "billing@other"',
        ),
        (lab.files("web"), "client certificate contains no user name"),
    ):
        refused = lab.query(MINE, stranger)
        assert (refused.returncode, refused.stdout) == (2, "")
        assert why in (lab.folder / "log").read_text()
        assert why in PAGE


def test_what_renews_is_shown_by_the_pages_loop_and_no_connection_is_lost(lab: Lab) -> None:
    lab.run(block("psql -U postgres"))
    client = lab.shell(f"{EXPORT}\n{MINE.partition(' -Atc')[0]} -At", lab.files("billing"))
    text = block("last=").replace("sleep 5", "sleep 0.1").replace("/var/run/postgresql", str(lab.folder))
    loop = lab.shell(text, lab.folder / "db-shop")
    try:
        assert asked(client, "SELECT 1") == "1"
        before = lab.serial()
        for _ in range(3):
            renewed = certificates_from_pem((lab.files("db") / "tls.crt").read_bytes())[0]
            assert before != serial_of(renewed)
            until = time.monotonic() + 30
            while lab.serial() != serial_of(renewed):
                assert loop.poll() is None
                assert time.monotonic() < until
            assert lab.query(MINE, lab.files("billing")).stdout == "billing\n"
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
