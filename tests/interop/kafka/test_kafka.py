"""Pods' identities as principals of Kafka, by all that docs/tutorials/kafka.md has people write and type."""

import os
import re
import signal
import subprocess
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import pytest

from signer.policy.services import Service
from svid.certificates import certificates_from_pem, serial_of
from tests.ports import free_port
from tests.tutorials import Volumes, page, volumes

pytestmark = pytest.mark.timeout(600)
PAGE = page("kafka.md")
KAFKA = Service("shop", "kafka", (("app", "kafka"),))
CLIENT = PAGE.block("security.protocol=SSL")
TO, *GRANTS = PAGE.block("export TO=").splitlines()
WRITE, READ = PAGE.block("echo paid").strip(), PAGE.block("kafka-console-consumer.sh").strip()
PATIENCE = 60.0
# What the archive of Kafka has as scripts.
COMMANDS = {
    "kafka-storage.sh": "kafka.tools.StorageTool",
    "kafka-server-start.sh": "kafka.Kafka",
    "kafka-topics.sh": "org.apache.kafka.tools.TopicCommand",
    "kafka-acls.sh": "org.apache.kafka.tools.AclCommand",
    "kafka-configs.sh": "org.apache.kafka.tools.ConfigCommand",
    "kafka-console-producer.sh": "org.apache.kafka.tools.ConsoleProducer",
    "kafka-console-consumer.sh": "org.apache.kafka.tools.consumer.ConsoleConsumer",
}
# Smaller, and started sooner; the JDK's own file of hosts in place of a cluster's DNS.
JAVA = "exec java -Xmx256m -XX:TieredStopAtLevel=1 -XX:+UseSerialGC -Dorg.slf4j.simpleLogger.defaultLogLevel=warn"


@dataclass(frozen=True)
class Lab:
    """A broker by the page, and what its pods and their clients have."""

    volumes: Volumes
    ports: tuple[int, int]

    @property
    def folder(self) -> Path:
        """Where the broker is."""
        return self.volumes.folder

    def pod(self, account: str, namespace: str = "shop") -> Path:
        """A pod with its volume, `client.properties` in it; renewed with each call."""
        there = self.volumes.of(account, namespace)
        # Who gets no answer is not to be waited for a minute.
        hasty = "default.api.timeout.ms=10000\nrequest.timeout.ms=5000\nmax.block.ms=10000\ndelivery.timeout.ms=10000\n"
        (there / "client.properties").write_text(self.here(CLIENT, there) + hasty + "linger.ms=0\n")
        return there

    def here(self, text: str, there: Path) -> str:
        """With this run's places in place of the page's."""
        names = {"/spiffe": str(there), "/var/lib/kafka": str(self.folder)}
        names |= {"9093": str(self.ports[0]), "9094": str(self.ports[1])}
        for old, new in names.items():
            text = text.replace(old, new)
        return text

    def shell(self, text: str, there: Path) -> "subprocess.Popen[str]":
        """Type it in that pod; in a session of its own."""
        pipe = subprocess.PIPE
        return subprocess.Popen(
            ["sh", "-ec", self.here(text, there)], stdin=pipe, stdout=pipe, stderr=pipe, cwd=there, text=True,
            env={"PATH": f"{self.folder}/bin:{os.environ['PATH']}"}, start_new_session=True,
        )  # fmt: skip

    def run(self, text: str, there: Path) -> "subprocess.CompletedProcess[str]":
        """To its end."""
        process = self.shell(text, there)
        try:
            out, err = process.communicate(timeout=PATIENCE)
        except subprocess.TimeoutExpired:
            end(process)
            raise
        return subprocess.CompletedProcess(text, process.returncode, out, err)

    def log(self) -> str:
        """The broker's."""
        return (self.folder / "log").read_text()

    def serial(self) -> str:
        """Of the certificate that the broker shows; empty when it shows none."""
        shown = subprocess.run(
            ["openssl", "s_client", "-connect", f"127.0.0.1:{self.ports[0]}"],
            input=b"",
            capture_output=True,
            check=False,
        )
        _, begin, rest = shown.stdout.partition(b"-----BEGIN")
        return serial_of(certificates_from_pem(begin + rest)[0]) if begin else ""


def end(process: "subprocess.Popen[str]") -> None:
    os.killpg(process.pid, signal.SIGKILL)
    process.communicate()


@pytest.fixture(scope="module")
def lab(programs: Mapping[str, Path]) -> Iterator[Lab]:
    with volumes("kafka", "root", policies=PAGE.policies(2), services=[KAFKA]) as found:
        yield from _served(Lab(found, (free_port(), free_port())), programs["jars"])


def _served(lab: Lab, jars: Path) -> Iterator[Lab]:
    (lab.folder / "hosts").write_text("127.0.0.1 localhost\n127.0.0.1 kafka.shop.svc\n")
    (lab.folder / "bin").mkdir()
    for name, program in COMMANDS.items():
        script = lab.folder / "bin" / name
        script.write_text(
            f"#!/bin/sh\n{JAVA} -Djdk.net.hosts.file={lab.folder}/hosts -cp '{jars}/*' {program} \"$@\"\n"
        )
        script.chmod(0o755)
    broker = lab.pod("kafka")
    (broker / "server.properties").write_text(lab.here(PAGE.block("process.roles="), broker))
    form, start = PAGE.block("kafka-storage.sh").splitlines()
    made = lab.run(form, broker)
    assert made.returncode == 0, made.stderr
    server = lab.shell(f"exec {start} >{lab.folder}/log 2>&1", broker)
    try:
        until = time.monotonic() + PATIENCE
        while not lab.serial():
            assert server.poll() is None, lab.log()
            assert time.monotonic() < until, lab.log()
        for grant in GRANTS:
            done = lab.run(f"{TO}\n{grant}", broker)
            assert done.returncode == 0, done.stdout + done.stderr + lab.log()
        yield lab
    finally:
        end(server)


def test_a_pod_is_its_principal_and_nobody_else(lab: Lab) -> None:
    billing, audit = lab.pod("billing"), lab.pod("audit")
    assert "ERROR" not in lab.run(f"{TO}\n{WRITE}", billing).stderr
    read = lab.run(f"{TO}\n{READ}", audit)
    assert (read.returncode, read.stdout) == (0, "paid\n"), read.stderr
    assert "Cluster authorization failed" in lab.run(f"{TO}\n{WRITE}", audit).stderr
    denied = lab.run(f"{TO}\n{READ} --timeout-ms 20000", billing)
    assert denied.stdout == ""
    assert "AuthorizationException" in denied.stderr
    # Of the same name elsewhere, and of the same namespace without a policy: who have certificates of the same CA.
    other, nobody = lab.pod("billing", "other"), lab.pod("web")
    assert "Not authorized to access topics: [orders]" in lab.run(f"{TO}\n{WRITE}", other).stderr
    assert "No rules apply to" not in lab.log()
    unanswered = lab.run(f"{TO}\nkafka-topics.sh $TO --list", nobody)
    assert unanswered.returncode == 1
    assert "Timed out waiting for a node assignment" in unanswered.stdout + unanswered.stderr
    assert "No rules apply to" in lab.log()
    # The quota is of that very principal.
    describe = "kafka-configs.sh $TO --describe --entity-type users --entity-name billing@shop"
    shown = lab.run(f"{TO}\n{describe}", lab.pod("kafka"))
    assert re.search(r"user-principal 'billing@shop' are producer_byte_rate=1048576", shown.stdout), shown.stdout


def test_a_client_takes_nobody_else_for_the_broker(lab: Lab) -> None:
    elsewhere = TO.replace("kafka.shop.svc", "localhost")
    refused = lab.run(f"{elsewhere}\nkafka-topics.sh $TO --list", lab.pod("billing"))
    assert refused.returncode == 1
    assert "No subject alternative DNS name matching localhost found" in refused.stdout + refused.stderr


def test_what_renews_is_shown_by_the_pages_loop_and_no_connection_is_lost(lab: Lab) -> None:
    billing, audit, broker = lab.pod("billing"), lab.pod("audit"), lab.pod("kafka")
    producer = lab.shell(f"{TO}\nkafka-console-producer.sh $TO --topic orders", billing)
    loop = lab.shell(f"{{ {PAGE.block('last=').replace('sleep 5', 'sleep 0.1')} }} >/dev/null 2>&1", broker)
    assert producer.stdin is not None
    try:
        seen = {lab.serial()}
        for number in range(3):
            # Another Service has led to it, too, and then no more.
            services = [KAFKA, replace(KAFKA, name="kafka-old")] if number == 0 else [KAFKA]
            volume = replace(lab.volumes, services=services).of("kafka")
            renewed = serial_of(certificates_from_pem((volume / "tls.crt").read_bytes())[0])
            until = time.monotonic() + PATIENCE
            while lab.serial() != renewed:
                assert loop.poll() is None
                assert time.monotonic() < until, lab.log()
            seen.add(renewed)
            producer.stdin.write(f"renewed {number}\n")
            producer.stdin.flush()
            listed = lab.run(f"{TO}\nkafka-topics.sh $TO --list", audit)
            assert (listed.returncode, listed.stdout) == (0, "orders\n"), listed.stderr
        assert len(seen) == 4
        _, err = producer.communicate(timeout=PATIENCE)
        assert producer.returncode == 0
        assert not re.search("ERROR|WARN", err), err
    finally:
        for process in (loop, producer):
            if process.poll() is None:
                end(process)
    read = lab.run(f"{TO}\n{READ.replace('--max-messages 1', '--timeout-ms 15000')}", audit)
    assert read.stdout.splitlines()[-3:] == [f"renewed {number}" for number in range(3)], read.stderr
