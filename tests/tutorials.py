"""Pages of docs/tutorials that are typed without a cluster: their blocks and lines, and what their pods have."""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import yaml

from csi.keystore import keystore, truststore
from signer.cluster.objects import PolicyObject
from signer.model import LivePod
from signer.policy.policy import Policy, PolicySettings, decide, matching, read_policy
from signer.policy.services import Service
from svid.authority import X509Authority
from svid.certificates import certificates_from_pem, serial_of, to_pem
from svid.keys import KeyAlgorithm, key_to_pem
from svid.spiffeid import TrustDomain
from svid.x509svid import X509Svid
from tests.support import ROOT
from tests.typed import typed as typed_object

TD = TrustDomain("example.org")
HOUR = timedelta(hours=1)
# Of the keystores of every pod here.
PASSWORD = "a-password-of-a-volume"


@dataclass(frozen=True)
class Page:
    """One page's text."""

    text: str

    def line(self, about: str) -> str:
        """The one line to type with this in it. Raises ValueError unless there is just one."""
        (found,) = [each.strip() for each in self.text.splitlines() if each.startswith("    ") and about in each]
        return found

    def block(self, begin: str) -> str:
        """The block whose text begins so. Raises ValueError unless there is just one."""
        found = re.findall(r"(?:^(?: {4}.*)?\n)+", self.text, re.M)
        blocks = [re.sub(r"^ {4}", "", each, flags=re.M).strip("\n") for each in found]
        (one,) = [each for each in blocks if each.startswith(begin)]
        return one + "\n"

    def policies(self, count: int) -> list[Policy]:
        """Those that it has one write, and what a tenant of another namespace may write: the first of them there."""
        found = []
        for text in re.findall(r"(?:^ {4}.*\n)+", self.text, re.M):
            if text.strip().startswith("apiVersion"):
                body: dict[str, Any] = yaml.safe_load(text)
                body["metadata"] |= {"uid": body["metadata"]["name"], "creationTimestamp": "2030-01-01T00:00:00Z"}
                policy = read_policy(typed_object(PolicyObject, body))
                assert policy is not None
                found.append(policy)
        assert len(found) == count
        return [*found, replace(found[0], namespace="other", uid="of-another")]


def page(name: str) -> Page:
    """The file of docs/tutorials."""
    return Page((ROOT / "docs" / "tutorials" / name).read_text(encoding="utf-8"))


@dataclass(frozen=True)
class Volumes:
    """What pods find at /spiffe by a page's policies, below `folder`, as `owner`'s files."""

    folder: Path
    authority: X509Authority
    policies: Sequence[Policy]
    services: Sequence[Service]
    owner: str

    def of(self, account: str, namespace: str = "shop", ttl: timedelta = HOUR) -> Path:
        """Such a pod's; renewed with each call."""
        pod = LivePod(namespace, f"{account}-0", "uid", "node", account, {"app": account})
        found = decide(matching(self.policies, pod, {}), pod, tuple(self.services), PolicySettings(TD))
        key = KeyAlgorithm.EC_P256.generate()
        chain = self.authority.issue(
            *(key.public_key(), found.spiffe_id),
            ttl=ttl,
            now=datetime.now(UTC),
            dns_names=found.dns_names,
            common_name=found.common_name,
        )
        svid, bundle = X509Svid(found.spiffe_id, chain, key), self.authority.bundle
        there = self.folder / f"{account}-{namespace}"
        newest = there / f"..{serial_of(chain[0])}"
        newest.mkdir(parents=True)
        for name, content, mode in (
            ("tls.crt", to_pem(chain), 0o444),
            ("tls.key", key_to_pem(key), 0o600),
            ("ca.crt", bundle.to_pem(), 0o444),
            ("keystore.p12", keystore(svid, PASSWORD), 0o444),
            ("truststore.p12", truststore(bundle, PASSWORD), 0o444),
            ("keystore.password", PASSWORD.encode(), 0o444),
        ):
            (newest / name).write_bytes(content)
            (newest / name).chmod(mode)
            shutil.chown(newest / name, self.owner)
            if not (there / name).is_symlink():
                (there / name).symlink_to(f"..data/{name}")
        (there / "..new").symlink_to(newest.name)
        (there / "..new").rename(there / "..data")
        return there


@contextmanager
def volumes(name: str, owner: str, *, policies: Sequence[Policy], services: Sequence[Service]) -> Iterator[Volumes]:
    """Of an authority of their own, in a folder that `owner` may write to; it is removed at the end."""
    folder = Path(tempfile.mkdtemp(prefix=f"podsvid-{name}-"))
    try:
        shutil.chown(folder, owner)
        folder.chmod(0o755)
        now = datetime.now(UTC)
        authority = X509Authority.create(TD, algorithm=KeyAlgorithm.EC_P256, lifetime=24 * HOUR, now=now)
        yield Volumes(folder, authority, policies, services, owner)
    finally:
        shutil.rmtree(folder)


@contextmanager
def typed(text: str) -> Iterator["subprocess.Popen[str]"]:
    """Running while this is entered, with whatever it has started."""
    pipe = subprocess.PIPE
    process = subprocess.Popen(
        ["sh", "-ec", text], cwd=ROOT, stdin=subprocess.DEVNULL, stdout=pipe, stderr=pipe, text=True,
        start_new_session=True,
    )  # fmt: skip
    try:
        yield process
    finally:
        os.killpg(process.pid, signal.SIGTERM)
        process.communicate(timeout=60)


@contextmanager
def quickstart(of: Page, ttl: str) -> Iterator[tuple["subprocess.Popen[str]", dict[str, str]]]:
    """The page's, with a TTL of seconds; and what this run calls what the page names /tmp/lab and PID."""
    lab = Path(tempfile.mkdtemp(prefix="podsvid-lab-"))
    instead = {"/tmp/lab": str(lab)}
    own = {**instead, ".venv/bin/podsvid": f"{sys.executable} -m podsvid", "--ttl 20s": f"--ttl {ttl} --json"}
    try:
        with typed(f"exec {replaced(of.line('podsvid quickstart'), own)}") as running:
            published = json.loads(said(running))
            assert published["event"] == "published"
            number = re.sub(r"^/proc/(\d+)/.*", r"\1", published["socket"])
            assert published["socket"] == f"/proc/{number}/root{lab}/pod-1/socket"
            json.loads(said(running))
            yield running, {**instead, "PID": number}
    finally:
        shutil.rmtree(lab, ignore_errors=True)


def ended(process: "subprocess.Popen[str]") -> "subprocess.CompletedProcess[str]":
    """Once it has; within a minute."""
    out, err = process.communicate(timeout=60)
    return subprocess.CompletedProcess(process.args, process.returncode, out, err)


def shown_serial(port: int, protocol: str) -> str:
    """Of the certificate that a server here shows to who begins TLS by that protocol, as openssl calls it."""
    shown = subprocess.run(
        ["openssl", "s_client", "-starttls", protocol, "-connect", f"127.0.0.1:{port}"],
        input=b"",
        capture_output=True,
        check=False,
    )
    return serial_of(certificates_from_pem(shown.stdout[shown.stdout.index(b"-----BEGIN") :])[0])


def said(process: "subprocess.Popen[str]") -> str:
    """Its next line; empty when it has ended."""
    assert process.stdout is not None
    return process.stdout.readline().strip()


def replaced(text: str, instead: Mapping[str, str]) -> str:
    """With this run's names in place of the page's, of those that are there."""
    for old, new in instead.items():
        text = text.replace(old, new)
    return text
