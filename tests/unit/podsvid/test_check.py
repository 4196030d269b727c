"""`podsvid agent --check` and `signer --check`: all that is wrong with a configuration and its host, in one answer."""

import argparse
import os
import resource
import socket
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import wait
from contextlib import ExitStack
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
import yaml
from cryptography import x509
from cryptography.x509.oid import NameOID

from agent import check as agent_check
from agent import config as agent_config
from podsvid.cli import main
from runtime import host
from runtime.loading import Examined
from runtime.memory import MemoryUse
from signer import check as signer_check
from signer import config as signer_config
from signer.cluster.kube_client import KubeClient
from svid.authority import X509Authority
from svid.certificates import to_pem
from svid.keys import KeyAlgorithm, PrivateKey, key_to_pem, signature_hash
from svid.spiffeid import TrustDomain
from tests.support import ROOT

pytestmark = pytest.mark.timeout(60)
SECRET = "c2VjcmV0LXNlY3JldC1zZWNyZXQtc2VjcmV0LXNlYw"
S = "INVALID_SETTING"


@dataclass(frozen=True)
class Broken:
    """A configuration, with {places}, and all that is to be said of it: reason and a part of the text, in any order."""

    daemon: str
    yaml: str
    wanted: tuple[tuple[str, str], ...]
    flags: tuple[str, ...] = ()
    variables: tuple[tuple[str, str], ...] = ()

    @property
    def code(self) -> int:
        return 2 if any(reason == S for reason, _ in self.wanted) else 1


def agent(yaml: str, *wanted: tuple[str, str], flags: tuple[str, ...] = (), **variables: str) -> Broken:
    good = "kubelet_root: {kubelet}\nrun_dir: {run}\nstate_dir: {state}\nmetrics_listen: off\n"
    kept = "".join(each + "\n" for each in good.splitlines() if each.split(":")[0] + ":" not in yaml)
    return Broken("agent", kept + yaml, wanted, flags, tuple(variables.items()))


def signer(yaml: str, *wanted: tuple[str, str], flags: tuple[str, ...] = (), **variables: str) -> Broken:
    good = "kubeconfig: {kubeconfig}\nadmin_socket: {run}/admin.sock\nlisten: 127.0.0.1:0\nmetrics_listen: off\n"
    kept = "".join(each + "\n" for each in good.splitlines() if each.split(":")[0] + ":" not in yaml)
    return Broken("signer", kept + yaml, wanted, flags, tuple(variables.items()))


TD = "trust_domain: a.test\n"
CONFIGURATIONS = (
    agent("x509_ttl: 1s\n", (S, "trust_domain is missing"), (S, "x509_ttl in {config}:5 is '1s'")),
    agent(
        f"{TD}signer_address: x:1\nsigner_bundle: /b\n",
        (S, "authority by default is 'embedded' and signer_address in {config}:6 is 'x:1': this node would have a CA"),
        (S, "authority by default is 'embedded' and signer_bundle in {config}:7 is '/b'"),
    ),
    agent(
        f"{TD}authority: file\nca_cert_file: {{pipe}}\nca_key_file: {{key}}\n"
        "federated_bundles: {{b.test: '{pipe}'}}\n",
        ("NO_ANSWER", "ca_cert_file in {config}:7 is '{pipe}'"),
        ("NO_ANSWER", "federated_bundles: b.test={pipe}: no answer within 2 s"),
    ),
    signer(
        f"{TD}state_key_file: {{pipe}}\nkubeconfig: {{absent}}\n",
        ("NO_ANSWER", "state_key_file in {config}:5 is '{pipe}'"),
        ("API_SERVER_UNAVAILABLE", "kubeconfig in {config}:6"),
    ),
    agent(
        f"{TD}authority: signer\nx509_ttl: 1h\nagent_token_file: {{absent}}\n",
        (S, "signer_address is not set"),
        (S, "signer_bundle is not set"),
        (S, "x509_ttl in {config}:7 is '1h': the signer decides that"),
        ("NOT_FOUND", "agent_token_file in {config}:8 is '{absent}': it cannot be read"),
    ),
    agent(
        f"{TD}authority: signer\nsigner_address: x:1\nsigner_bundle: {{garbage}}\nagent_token_file: {{folder}}\n",
        ("INVALID_TRUST_BUNDLE", "signer_bundle in {config}:8 is '{garbage}'"),
        ("FILE_UNUSABLE", "agent_token_file in {config}:9 is '{folder}': it cannot be read: Is a directory"),
    ),
    agent(
        f"{TD}x509_ttl: 2h\nx509_max_ttl: 1h\nx509_min_ttl: 3h\n",
        (S, "x509_min_ttl in {config}:8 is '3h' and x509_ttl in {config}:6 is '2h'"),
        (S, "x509_max_ttl in {config}:7 is '1h' and x509_ttl in {config}:6 is '2h'"),
        (S, "x509_max_ttl in {config}:7 is '1h' and x509_min_ttl in {config}:8 is '3h'"),
    ),
    agent(
        f"{TD}volumes: 5\nvolumes: 6\nvolume: 7\npod_volumes: many\n",
        (S, "'volumes' is in {config} twice, lines 6 and 7"),
        (S, "'volume' in {config}:8 is no setting; did you mean volumes?"),
        (S, "pod_volumes in {config}:9 is 'many'; accepted: a number from 1 to 65536"),
    ),
    agent(
        TD,
        (S, "PODSVID_X509_TLL is set and is no setting of this command; did you mean PODSVID_X509_TTL?"),
        (S, "x509_max_ttl in PODSVID_X509_MAX_TTL is 'long'"),
        (S, "jwt_ttl from --jwt-ttl is '5'"),
        flags=("--jwt-ttl", "5"),
        PODSVID_X509_TLL=SECRET,
        PODSVID_X509_MAX_TTL="long",
    ),
    agent(
        f"{TD}kubelet_root: {{folder}}\nmetrics_listen: 127.0.0.1:{{taken}}\nhealth_listen: 127.0.0.1:{{taken}}\n",
        ("NO_KUBELET", "kubelet_root in {config}:4 is '{folder}': it has no directory plugins_registry and pods"),
        (S, "metrics_listen in {config}:5 is '127.0.0.1:{taken}' and health_listen in {config}:6"),
        ("ADDRESS_IN_USE", "metrics_listen in {config}:5"),
        ("ADDRESS_IN_USE", "health_listen in {config}:6"),
    ),
    agent(
        f"{TD}run_dir: {{state}}\nstate_dir: {{run}}\n",
        ("KEPT_ON_DISK", "run_dir in {config}:4 is '{state}'"),
        ("NOT_KEPT", "state_dir in {config}:5 is '{run}'"),
    ),
    agent(
        f"{TD}run_dir: {{file}}\nstate_dir: {{file}}/state\nmetrics_listen: 192.0.2.1:9099\n",
        (S, "state_dir in {config}:4 is '{file}/state' and run_dir in {config}:3 is '{file}': a reboot empties"),
        ("IN_THE_WAY", "run_dir in {config}:3 is '{file}': {file} is no directory"),
        ("KEPT_ON_DISK", "run_dir in {config}:3"),
        ("IN_THE_WAY", "state_dir in {config}:4"),
        ("ADDRESS_NOT_HERE", "metrics_listen in {config}:5 is '192.0.2.1:9099': 192.0.2.1:9099 cannot be bound"),
    ),
    agent(
        f"{TD}authority: file\nca_cert_file: {{garbage}}\nca_key_file: {{garbage}}\njwt_bundle_file: /j\n",
        ("AUTHORITY_DAMAGED", "ca_cert_file in {config}:7 is '{garbage}' and ca_key_file in {config}:8"),
        (S, "jwt_bundle_file in {config}:9 is '/j' and jwt_key_file is not set"),
    ),
    agent(
        f"{TD}authority: file\nca_cert_file: {{cert}}\nca_key_file: {{other}}\njwt_key_file: {{cert}}\n",
        ("AUTHORITY_DAMAGED", "ca_cert_file in {config}:7 is '{cert}' and ca_key_file"),
        ("AUTHORITY_DAMAGED", "jwt_key_file in {config}:9"),
    ),
    agent(
        f"{TD}state_dir: {{damaged}}\nfederated_bundles: {{{{b.test: '{{absent}}', c.test: '{{garbage}}'}}}}\n",
        ("AUTHORITY_DAMAGED", "{damaged}/authority.pem is damaged"),
        ("AUTHORITY_DAMAGED", "{damaged}/jwt-authority.json is damaged"),
        ("NOT_FOUND", "federated_bundles: b.test={absent}"),
        ("INVALID_TRUST_BUNDLE", "federated_bundles: c.test={garbage}"),
    ),
    agent(
        f"{TD}authority: file\nca_cert_file: {{cert}}\nca_key_file: {{key}}\nca_bundle_file: {{root}}\nvolumes: x\n",
        ("AUTHORITY_DAMAGED", "ca_cert_file in {config}:7 is '{cert}' and ca_key_file in {config}:8"),
        (S, "volumes in {config}:10 is 'x'"),
    ),
    agent(
        f"{TD}authority: file\nca_key_file: {SECRET}\nca_cert_file: {{cert}}\ntracing_endpoint: http://u:{SECRET}@c:1\n",
        (S, "ca_key_file in {config}:7 is not shown"),
        (S, "tracing_endpoint in {config}:9 is not shown"),
    ),
    agent(
        f"{TD}driver_names: [a.test, a.test]\nsds_svid_name: ROOTCA\nsocket_rate: 010\nlog_level:\n",
        (S, "driver_names in {config}:6 is 'a.test,a.test': it has a name twice"),
        (S, "sds_svid_name in {config}:7 is 'ROOTCA' and sds_bundle_name by default is 'ROOTCA'"),
        (S, "socket_rate in {config}:8 is '010'; accepted: a number from 1 to 100000 in decimal digits"),
        (S, "log_level in {config}:9 is ''; accepted: a value"),
    ),
    signer(
        "jwt_ttl: 2h\n", (S, "trust_domain is missing"), (S, "jwt_ttl in {config}:5 is '2h' and jwt_max_ttl by default")
    ),
    signer(
        f"{TD}x509_ttl: 30m\nx509_min_ttl: 1h\nx509_max_ttl: 20m\nx509_pod_max_ttl: 25m\n",
        (S, "x509_ttl in {config}:6 is '30m' and x509_min_ttl in {config}:7 is '1h'"),
        (S, "x509_ttl in {config}:6 is '30m' and x509_max_ttl in {config}:8 is '20m'"),
        (S, "x509_pod_max_ttl in {config}:9 is '25m' and x509_ttl in {config}:6"),
        (S, "x509_pod_max_ttl in {config}:9 is '25m' and x509_max_ttl in {config}:8"),
    ),
    signer(
        f"{TD}x509_max_ttl: 10d\nlisten: off\n",
        (S, "authority_ttl by default is '30d' and x509_max_ttl in {config}:5 is '10d'"),
        (S, "listen in {config}:6 is 'off': agents need the signer's API"),
    ),
    signer(
        f"{TD}upstream_dir: {{folder}}\nupstream_cert_file: {{cert}}\n",
        (S, "upstream_dir in {config}:6 is '{folder}' and upstream_cert_file in {config}:7 is '{cert}'"),
        ("UPSTREAM_UNUSABLE", "upstream_dir in {config}:6 is '{folder}': {folder}/tls.crt cannot be read"),
    ),
    signer(
        f"{TD}upstream_bundle_file: {{cert}}\nkubeconfig: {{absent}}\n",
        (S, "upstream_bundle_file in {config}:5 is '{cert}': these are the roots of an upstream CA, and none is set"),
        ("API_SERVER_UNAVAILABLE", "kubeconfig in {config}:6 is '{absent}': kubeconfig {absent} cannot be used"),
    ),
    signer(
        f"{TD}upstream_cert_file: {{cert}}\nupstream_key_file: {{other}}\nstate_key_file: {{garbage}}\n",
        ("UPSTREAM_UNUSABLE", "upstream_cert_file in {config}:6 is '{cert}'"),
        ("AUTHORITY_DAMAGED", "state_key_file in {config}:8 is '{garbage}'"),
    ),
    signer(
        f"{TD}upstream_cert_file: {{above}}\nupstream_key_file: {{key}}\nx509_ttl: 8h\nlisten: localhost:7\n"
        "metrics_listen: 0.0.0.0:7\n",
        (S, "listen in {config}:7 is 'localhost:7' and metrics_listen in {config}:8 is '0.0.0.0:7': both are one port"),
        ("UPSTREAM_CERTIFICATE_REFUSED", "upstream_cert_file in {config}:4 is '{above}': the new authority cannot be"),
    ),
    signer(
        f"{TD}state_key_file: {SECRET}\nkubeconfig: {{garbage}}\n",
        (S, "state_key_file in {config}:5 is not shown"),
        ("API_SERVER_UNAVAILABLE", "kubeconfig in {config}:6"),
    ),
    signer(
        f"{TD}listen: 127.0.0.1:{{taken}}\nmetrics_listen: 127.0.0.1:{{taken}}\nhealth_listen: 9098\n",
        ("ADDRESS_IN_USE", "listen in {config}:4"),
        ("ADDRESS_IN_USE", "metrics_listen in {config}:5"),
        (S, "listen in {config}:4 is '127.0.0.1:{taken}' and metrics_listen in {config}:5"),
        (S, "health_listen in {config}:6 is '9098'; accepted: HOST:PORT"),
    ),
    signer(
        f"{TD}default_path: /{{{{pot}}}}\nadmin_socket: {{file}}/admin.sock\n"
        f"federated_bundles: {{{{a.test: {{garbage}}}}}}\n",
        (S, "default_path in {config}:5 is '/{{pot}}': '{{pot}}' is no placeholder"),
        ("IN_THE_WAY", "admin_socket in {config}:6 is '{file}/admin.sock': {file} is no directory"),
        (S, "federated_bundles in {config}:7 is 'a.test={garbage}' and trust_domain in {config}:4 is 'a.test'"),
        ("INVALID_TRUST_BUNDLE", "federated_bundles: a.test={garbage}"),
    ),
    signer(
        f"{TD}admin_socket: /{'a' * 100}/admin.sock\ndriver_names: ''\nrequire_policy: maybe\n",
        (S, "admin_socket in {config}:5"),
        (S, "driver_names in {config}:6 is '': driver_names is empty"),
        (S, "require_policy in {config}:7 is 'maybe'; accepted: true or false"),
    ),
    signer(
        f"{TD}kubelet_root: /k\njwt_algorithm: HS256\nfederated_bundles: [b.test=/b, b.test=/c]\n",
        (S, "'kubelet_root' in {config}:6 is no setting"),
        (S, "jwt_algorithm in {config}:7 is 'HS256'; accepted: one of RS256"),
        (S, "federated_bundles in {config}:8 is 'b.test=/b,b.test=/c': it has a trust domain twice"),
        ("NOT_FOUND", "federated_bundles: b.test=/b"),
        ("NOT_FOUND", "federated_bundles: b.test=/c"),
    ),
    Broken(
        "agent",
        "a\n  - b: [",
        ((S, "config file {config} is not YAML"), (S, "x509_ttl from --x509-ttl is '1'")),
        (
            *("--run-dir", "{run}", "--state-dir", "{state}", "--kubelet-root", "{kubelet}"),
            *("--metrics-listen", "off", "--x509-ttl", "1"),
        ),
    ),
)


def authority(name: str) -> X509Authority:
    now = datetime.now(UTC)
    return X509Authority.create(TrustDomain(name), algorithm=KeyAlgorithm.EC_P256, lifetime=timedelta(days=1), now=now)


def above(key: PrivateKey, lasts: timedelta) -> x509.Certificate:
    """A CA that certifies CAs."""
    name, now = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "above")]), datetime.now(UTC)
    builder = x509.CertificateBuilder(name, name, key.public_key(), 7, now - timedelta(hours=1), now + lasts)
    usage = x509.KeyUsage(False, False, False, False, False, True, True, False, False)
    builder = builder.add_extension(x509.BasicConstraints(True, None), True).add_extension(usage, True)
    return builder.sign(key, signature_hash(key))


@pytest.fixture
def places(monkeypatch: pytest.MonkeyPatch) -> Iterator[dict[str, str]]:
    """Files and directories of all kinds, on a host that lacks nothing else."""
    with ExitStack() as stack:
        # Short: sockets are below it.
        tmp_path = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="c")))
        for name in (
            "run",
            "state",
            "folder",
            "damaged",
            *(f"kubelet/{each}" for each in ("pods", "plugins_registry")),
        ):
            (tmp_path / name).mkdir(parents=True)
        (tmp_path / "file").write_text("")
        (tmp_path / "garbage").write_text(f"-----BEGIN {SECRET}")
        (tmp_path / "damaged" / "authority.pem").write_text(f"-----BEGIN {SECRET}")
        (tmp_path / "damaged" / "authority.pem").chmod(0o600)
        (tmp_path / "damaged" / "jwt-authority.json").write_text(f"{{{SECRET}")
        (tmp_path / "damaged" / "jwt-authority.json").chmod(0o600)
        given = authority("a.test")
        (tmp_path / "cert").write_bytes(to_pem(given.chain))
        (tmp_path / "key").write_bytes(key_to_pem(given.private_key))
        (tmp_path / "above").write_bytes(to_pem([above(given.private_key, timedelta(days=1))]))
        (tmp_path / "lasting").write_bytes(to_pem([above(given.private_key, timedelta(days=90))]))
        (tmp_path / "root").write_bytes(to_pem(authority("a.test").chain))
        (tmp_path / "other").write_bytes(key_to_pem(authority("a.test").private_key))
        (tmp_path / "kubeconfig").write_text(
            'apiVersion: v1\nkind: Config\nclusters: [{name: a, cluster: {server: "http://127.0.0.1:9"}}]\n'
            "contexts: [{name: a, context: {cluster: a, user: a}}]\nusers: [{name: a, user: {}}]\ncurrent-context: a\n"
        )
        os.mkfifo(tmp_path / "pipe")
        taken = stack.enter_context(socket.socket())
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        memory = str(tmp_path / "run")
        monkeypatch.setattr(host, "is_memory", lambda path: str(path).startswith(memory))
        monkeypatch.setattr(os, "geteuid", lambda: 0)
        monkeypatch.setattr(agent_check, "capabilities", lambda: -1)
        monkeypatch.setattr(agent_check, "refusal", lambda *_: "")
        monkeypatch.setattr(agent_check, "is_shared_at", lambda _: True)
        monkeypatch.setattr(agent_check, "is_mapped", lambda _: True)
        for name in [each for each in os.environ if each.startswith("PODSVID_")]:
            monkeypatch.delenv(name)
        found = {each.name: str(each) for each in tmp_path.iterdir()}
        yield {**found, "absent": str(tmp_path / "absent"), "taken": str(taken.getsockname()[1])}


@pytest.mark.parametrize("broken", CONFIGURATIONS, ids=[f"{n}-{each.daemon}" for n, each in enumerate(CONFIGURATIONS)])
def test_all_faults_are_in_one_answer(
    broken: Broken, places: dict[str, str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for name, value in broken.variables:
        monkeypatch.setenv(name, value)
    config = Path(places["folder"]).parent / "config.yaml"
    config.write_text(broken.yaml.format(**places) if "- b" not in broken.yaml else broken.yaml)
    flags = [each.format(**places) for each in broken.flags]
    code = main([broken.daemon, "--check", "--config", str(config), *flags])
    out, said = capsys.readouterr()
    assert SECRET not in out + said
    lines = said.splitlines()
    places = {**places, "config": str(config)}
    missing = [
        each
        for each in ((reason, text.format(**places)) for reason, text in broken.wanted)
        if not any(line.startswith(f"podsvid: {each[0]}: ") and each[1] in line for line in lines)
    ]
    assert missing == [], said
    assert len(lines) == len(broken.wanted), said
    assert (code, out) == (broken.code, "")


def test_there_are_as_many_as_promised_and_each_has_several_faults() -> None:
    assert len(CONFIGURATIONS) >= 25
    assert all(len(each.wanted) > 1 for each in CONFIGURATIONS)


@pytest.mark.parametrize(
    ("daemon", "more"),
    [
        ("agent", ""),
        ("signer", ""),
        ("signer", "upstream_cert_file: {lasting}\nupstream_key_file: {key}\nx509_ttl: 8h\n"),
        ("signer", "upstream_cert_file: {above}\nupstream_key_file: {key}\n"),
        ("signer", "listen: 127.0.0.1:7\nmetrics_listen: localhost:8\nhealth_listen: 127.0.0.1:0\n"),
    ],
)
def test_a_good_one_has_nothing(
    daemon: str, more: str, places: dict[str, str], capsys: pytest.CaptureFixture[str]
) -> None:
    config = Path(places["folder"]).parent / "config.yaml"
    made = agent(TD + more) if daemon == "agent" else signer(TD + more)
    config.write_text(made.yaml.format(**places))
    before = sorted(str(each) for each in config.parent.rglob("*"))
    assert main([daemon, "--check", "--config", str(config)]) == 0
    out, said = capsys.readouterr()
    assert (out, said) == ("nothing is wrong with the settings, and this host has what they need\n", "")
    assert sorted(str(each) for each in config.parent.rglob("*")) == before, "a check makes nothing"


def lacking(places: dict[str, str], *flags: str) -> Callable[..., list[host.Lack]]:
    parser = argparse.ArgumentParser()
    agent_config.add_arguments(parser)
    given = ("--trust-domain", "a.test", "--kubelet-root", places["kubelet"], "--run-dir", places["run"])
    more = ("--state-dir", places["state"], "--metrics-listen", "off")
    examined = agent_config.examine(parser.parse_args([*given, *more, *flags]), {})
    return lambda *arguments: agent_check.lacks(examined, *arguments)


def test_what_the_process_and_the_node_lack(places: dict[str, str], monkeypatch: pytest.MonkeyPatch) -> None:
    def reasons(*arguments: object, flags: tuple[str, ...] = ()) -> list[str]:
        return [each.reason for each in lacking(places, *flags)(*arguments)]

    assert reasons(lambda: None) == []
    assert reasons(lambda: None, 1000) == ["NOT_ROOT"]
    assert reasons(lambda: MemoryUse(600 << 20, 0, 0)) == ["MEMORY_LIMIT"]
    assert reasons(lambda: MemoryUse(824 << 20, 0, 0)) == []
    assert reasons(lambda: MemoryUse(824 << 20, 0, 0), flags=("--socket-memory", "300")) == ["MEMORY_LIMIT"]
    monkeypatch.setattr(resource, "getrlimit", lambda _: (1024, 1024))
    assert reasons(lambda: None) == ["FILES_LIMIT"]
    monkeypatch.undo()


def test_mounts_that_are_impossible_or_reach_nobody(places: dict[str, str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(agent_check, "refusal", lambda *_: "Permission denied")
    monkeypatch.setattr(agent_check, "is_shared_at", lambda _: False)
    monkeypatch.setattr(agent_check, "capabilities", lambda: 1 << 21)
    monkeypatch.setattr(agent_check, "_kubelet_is_beside", lambda: False)
    found = {each.reason: each.text for each in lacking(places)(lambda: None)}
    assert list(found) == ["CAPABILITIES_MISSING", "MOUNT_DENIED", "MOUNT_NOT_SHARED"]
    assert found["CAPABILITIES_MISSING"].startswith("CAP_CHOWN, CAP_DAC_OVERRIDE")
    assert "SYS_ADMIN" not in found["CAPABILITIES_MISSING"]
    monkeypatch.setattr(agent_check, "_kubelet_is_beside", lambda: True)
    assert "MOUNT_NOT_SHARED" not in [each.reason for each in lacking(places)(lambda: None)]


@pytest.fixture
def hangs(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[], None]]:
    """To be called on a thread of a look: does not return, and the look's time is over as soon as it is there."""
    go, there, real = threading.Event(), threading.Event(), wait

    def hang() -> None:
        there.set()
        assert go.wait(60)

    def over(futures: list[Any], _: float) -> object:
        while not there.is_set() and not real(futures, 0.01).done:
            pass
        there.clear()
        return real(futures, 0)

    monkeypatch.setattr(host, "wait", over)
    yield hang
    go.set()


def test_directories_that_hang_are_said_once_each_and_nothing_waits_for_them(
    places: dict[str, str],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    hangs: Callable[[], None],
) -> None:
    names = ("kubelet", "run", "state")
    real = {"exists": os.path.exists, "isdir": os.path.isdir}

    def looks(name: str) -> Callable[[Any], bool]:
        def look(path: Any) -> bool:
            if any(str(path).startswith(places[each]) for each in names):
                hangs()
            return real[name](path)

        return look

    for name in real:
        monkeypatch.setattr(os.path, name, looks(name))
    monkeypatch.setattr(host, "is_locked", lambda _: hangs())
    flags = ["--trust-domain", "a.test", "--kubelet-root", places["kubelet"], "--run-dir", places["run"]]
    flags += ["--state-dir", places["state"], "--metrics-listen", f"127.0.0.1:{places['taken']}"]
    assert main(["agent", "--check", *flags]) == 1
    lines = capsys.readouterr().err.splitlines()
    said = {name: [each for each in lines if places[name] in each] for name in names}
    assert [len(each) for each in said.values()] == [1, 1, 1], lines
    assert all(each[0].startswith("podsvid: NO_ANSWER: ") for each in said.values())
    assert len(lines) == 4
    assert any("ADDRESS_IN_USE" in each for each in lines), "what does answer is looked at all the same"


def test_kubelets_mounts_that_hang_are_said_once(
    places: dict[str, str], monkeypatch: pytest.MonkeyPatch, hangs: Callable[[], None]
) -> None:
    monkeypatch.setattr(agent_check, "refusal", lambda *_: hangs())
    monkeypatch.setattr(agent_check, "is_shared_at", lambda _: hangs())
    assert [each.reason for each in lacking(places)(lambda: None)] == ["NO_ANSWER"]
    monkeypatch.setattr(agent_check, "refusal", lambda *_: "")
    assert [each.reason for each in lacking(places)(lambda: None)] == ["NO_ANSWER"]


def test_a_login_has_time_and_one_that_does_not_end_is_called_by_its_name(
    places: dict[str, str],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    hangs: Callable[[], None],
) -> None:
    async def logs_in(_: object) -> None:
        hangs()

    monkeypatch.setattr(KubeClient, "connect", logs_in)
    flags = ["--trust-domain", "a.test", "--kubeconfig", places["kubeconfig"], "--listen", "127.0.0.1:0"]
    flags += ["--metrics-listen", "off", "--admin-socket", f"{places['run']}/admin.sock"]
    assert main(["signer", "--check", *flags]) == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("podsvid: NO_ANSWER: ")
    assert "no answer within 10 s; does the program that it logs in by end" in line


def test_ports_of_one_that_runs_are_its_own(
    places: dict[str, str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    flags = ["--trust-domain", "a.test", "--kubelet-root", places["kubelet"], "--run-dir", places["run"]]
    flags += ["--state-dir", places["state"], "--metrics-listen", f"127.0.0.1:{places['taken']}"]
    assert main(["agent", "--check", *flags]) == 1
    assert "ADDRESS_IN_USE" in capsys.readouterr().err
    monkeypatch.setattr(host, "is_locked", lambda path: path == Path(places["run"]) / "lock")
    assert main(["agent", "--check", *flags]) == 0
    assert "one with these settings is running" in capsys.readouterr().out
    path = f"{places['run']}/admin.sock"
    with socket.socket(socket.AF_UNIX) as listening:
        listening.bind(path)
        listening.listen()
        signing = ["--trust-domain", "a.test", "--kubeconfig", places["kubeconfig"], "--admin-socket", path]
        assert main(["signer", "--check", *signing, "--listen", f"127.0.0.1:{places['taken']}"]) == 0
    assert signer_check is sys.modules["signer.check"]


def test_a_lock_is_seen_while_another_process_holds_it(tmp_path: Path) -> None:
    from agent.process import LOCK, only_one

    assert not host.is_locked(tmp_path / LOCK)
    with only_one(tmp_path):
        assert host.is_locked(tmp_path / LOCK)
    assert not host.is_locked(tmp_path / LOCK)


@pytest.mark.parametrize("manifest", ["podsvid.yaml", "public/podsvid.yaml"])
@pytest.mark.parametrize("name", ["agent", "signer"])
def test_what_the_plain_manifests_set_is_right(name: str, manifest: str, tmp_path: Path) -> None:
    """As the container has it: the file, the arguments and the variables. The chart's: tests/cluster/test_chart.py."""
    documents = list(yaml.safe_load_all((ROOT / "deploy/manifests" / manifest).read_text(encoding="utf-8")))
    found = {(each["kind"], each["metadata"]["name"]): each for each in documents if each}
    kind = "DaemonSet" if name == "agent" else "Deployment"
    (container,) = found[kind, f"podsvid-{name}"]["spec"]["template"]["spec"]["containers"]
    file = tmp_path / f"{name}.yaml"
    file.write_text(found["ConfigMap", f"podsvid-{name}"]["data"][file.name])
    command, *arguments = [str(file) if each.startswith("/etc/podsvid/") else each for each in container["args"]]
    environment = {each["name"]: each.get("value", "a") for each in container["env"]}
    parser = argparse.ArgumentParser()
    (agent_config if name == "agent" else signer_config).add_arguments(parser)
    examined: Examined[Any] = (agent_config if name == "agent" else signer_config).examine(
        parser.parse_args(arguments), environment
    )
    assert (command, examined.faults) == (name, ())
