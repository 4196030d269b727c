"""`podsvid explain` from anywhere, against an API server that answers as Kubernetes does, exec included."""

import base64
import hashlib
import json
import subprocess
import threading
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from io import StringIO
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

import pytest

from agent.pb import node_admin_pb2
from podsvid import by_kubeconfig
from podsvid.by_kubeconfig import EVENTS_AT_ONCE, MOST_PAGES, KubeconfigCluster, NotTold
from podsvid.cli import main
from podsvid.output import to_json
from signer.pb import admin_pb2
from tests.shapes import described

UID = "0b6a9a4e-6a8e-4c1c-9f3c-111111111111"
IDENTITY = "spiffe://example.org/ns/shop/sa/cart"
CORE = "/api/v1/namespaces"
_MAGIC = "258EAFA5-E914-47DA-95CA-C5AB0DC85B11"


def policy() -> str:
    return to_json(
        admin_pb2.ExplainResponse(
            outcome="allowed",
            policy="cluster/shop",
            spiffe_id=IDENTITY,
            matched=["cluster/shop", "cluster/all"],
            not_matched=[admin_pb2.NotMatched(policy="cluster/other", because="its namespaceSelector does not match")],
        )
    )


def on_node(state: str = "ok") -> str:
    volume = node_admin_pb2.Volume(
        namespace="shop", pod="cart-0", pod_uid=UID, state=state, spiffe_id=IDENTITY, serial="5e", authority_id="a1"
    )
    return to_json(node_admin_pb2.ExplainResponse(volumes=[volume], authority="the signer at x:1, which answers"))


def podsvid_pod(name: str, component: str, node: str, ready: str = "True", phase: str = "Running") -> dict[str, Any]:
    labels = {"app.kubernetes.io/name": "podsvid", "app.kubernetes.io/component": component}
    return {
        "metadata": {"name": name, "labels": labels},
        "spec": {"nodeName": node, "containers": []},
        "status": {"phase": phase, "conditions": [{"type": "Ready", "status": ready}]},
    }


def workload() -> dict[str, Any]:
    volumes = [{"name": "spiffe", "csi": {"driver": "csi.podsvid.io", "readOnly": True}}]
    return {
        "metadata": {"name": "cart-0", "namespace": "shop", "uid": UID},
        "spec": {"nodeName": "n1", "containers": [], "volumes": volumes},
        "status": {"phase": "Running"},
    }


def event(reason: str, message: str, component: str, at: str) -> dict[str, Any]:
    return {
        "metadata": {"name": reason.lower()},
        "involvedObject": {"uid": UID},
        "reason": reason,
        "message": message,
        "reportingComponent": component,
        "lastTimestamp": at,
        "count": 2,
    }


def answers() -> dict[str, tuple[str, str]]:
    return {"signer": (policy(), ""), "agent": (on_node(), "")}


@dataclass
class Cluster:
    """What the API server has. `execs` answers by container name: what it prints to stdout and to stderr."""

    pod: dict[str, Any] | None = field(default_factory=workload)
    podsvid: list[dict[str, Any]] = field(
        default_factory=lambda: [
            podsvid_pod("signer-0", "signer", "n9", ready="False"),
            podsvid_pod("signer-1", "signer", "n1"),
            podsvid_pod("agent-n2", "agent", "n2"),
            podsvid_pod("agent-n1", "agent", "n1"),
        ]
    )
    events: list[dict[str, Any]] = field(default_factory=list)
    execs: dict[str, tuple[str, str]] = field(
        default_factory=lambda: {"signer": (policy(), ""), "agent": (on_node(), "")}
    )
    forbidden: tuple[str, ...] = ()
    bodies: dict[str, bytes] = field(default_factory=dict)
    seen: list[tuple[str, str, list[str]]] = field(default_factory=list)
    paths: list[str] = field(default_factory=list)
    methods: set[str] = field(default_factory=set)
    credentials: set[str | None] = field(default_factory=set)


def answering(cluster: Cluster) -> type[BaseHTTPRequestHandler]:
    class Answering(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def log_message(self, format: str, *args: Any) -> None:  # noqa: A002 - http.server calls it so
            pass

        def parse_request(self) -> bool:
            # Of those too that are none of an API server's.
            found = super().parse_request()
            cluster.methods.add(self.command)
            return found

        def do_GET(self) -> None:
            url = urlsplit(self.path)
            query = parse_qs(url.query)
            cluster.paths.append(url.path)
            cluster.credentials.add(self.headers["Authorization"])
            if any(url.path.endswith(each) for each in cluster.forbidden):
                return self.say(403, {"kind": "Status", "message": f'User "jo\'e" cannot do that to {url.path}'})
            for path, body in cluster.bodies.items():
                if url.path.endswith(path):
                    return self.send(200, body)
            if url.path == f"{CORE}/shop/pods/cart-0" and cluster.pod is not None:
                return self.say(200, cluster.pod)
            if url.path == f"{CORE}/podsvid/pods":
                return self.say(200, {"items": [each for each in cluster.podsvid if selected(each, query)]})
            if url.path == f"{CORE}/shop/events":
                begin = int(query.get("continue", ["0"])[0])
                end = begin + int(query["limit"][0])
                more = str(end) if end < len(cluster.events) else ""
                return self.say(200, {"items": cluster.events[begin:end], "metadata": {"continue": more}})
            if url.path.endswith("/exec"):
                return self.exec(url.path.split("/")[-2], query)
            return self.say(404, {"kind": "Status", "message": "not found"})

        def say(self, status: int, body: dict[str, Any]) -> None:
            self.send(status, json.dumps(body).encode())

        def send(self, status: int, text: bytes) -> None:
            self.send_response(status)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(text)))
            self.end_headers()
            self.wfile.write(text)

        def exec(self, pod: str, query: dict[str, list[str]]) -> None:
            container = query["container"][0]
            cluster.seen.append((pod, container, query["command"]))
            key = self.headers["Sec-WebSocket-Key"] + _MAGIC
            self.send_response(101)
            self.send_header("Upgrade", "websocket")
            self.send_header("Connection", "Upgrade")
            self.send_header("Sec-WebSocket-Accept", base64.b64encode(hashlib.sha1(key.encode()).digest()).decode())
            self.send_header("Sec-WebSocket-Protocol", "v4.channel.k8s.io")
            self.end_headers()
            for channel, text in enumerate(cluster.execs[container], start=1):
                # In pieces, as a pipe gives them.
                for start in range(0, len(text), 100):
                    self.frame(2, bytes([channel]) + text[start : start + 100].encode())
            self.frame(2, b'\x03{"status":"Success"}')
            self.frame(8, (1000).to_bytes(2, "big"))
            self.close_connection = True

        def frame(self, opcode: int, payload: bytes) -> None:
            self.wfile.write(bytes([0x80 | opcode, len(payload)]) + payload)

    return Answering


def selected(pod: dict[str, Any], query: dict[str, list[str]]) -> bool:
    labels = dict(part.split("=") for part in query["labelSelector"][0].split(","))
    node = query.get("fieldSelector", [""])[0].removeprefix("spec.nodeName=")
    return labels.items() <= pod["metadata"]["labels"].items() and node in ("", pod["spec"]["nodeName"])


@contextmanager
def serving(cluster: Cluster, folder: Path) -> Iterator[Path]:
    """The kubeconfig of an API server in a thread."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), answering(cluster))
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield kubeconfig(folder, server.server_port)
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def kubeconfig(folder: Path, port: int) -> Path:
    path = folder / "kubeconfig"
    text = {
        "clusters": [{"name": "c", "cluster": {"server": f"http://127.0.0.1:{port}"}}],
        "users": [{"name": "u", "user": {}}],
        "contexts": [{"name": "there", "context": {"cluster": "c", "user": "u"}}],
        "current-context": "there",
    }
    path.write_text(json.dumps(text))
    return path


def explain(config: Path, *flags: str, what: str = "shop/cart-0") -> subprocess.CompletedProcess[str]:
    """In this process: a new one takes seconds to import the client."""
    line = ["explain", what, "--kubeconfig", str(config), *flags]
    with redirect_stdout(StringIO()) as out, redirect_stderr(StringIO()) as said:
        code = main(line)
    return subprocess.CompletedProcess(line, code, out.getvalue(), said.getvalue())


def test_a_pods_author_who_makes_very_many_events_hides_none_and_fills_no_memory(tmp_path: Path) -> None:
    of = "IdentityRefused", "podsvid.io/signer"
    many = [event(of[0], f"told {each}", of[1], f"2026-11-24T12:{each:02}:00Z") for each in range(12)]
    own = [event("Mine", "x" * 999, "shop/cart", "2026-11-24T13:00:00Z")] * (3 * EVENTS_AT_ONCE)
    cluster = Cluster(events=[*many[:6], *own, *many[6:]])
    with serving(cluster, tmp_path) as config:
        found = KubeconfigCluster(str(config), None, "podsvid")
        seen = found.events(found.pod("shop", "cart-0"))
        assert [each["message"] for each in seen] == [f"told {each}" for each in range(2, 12)]
        # There is an end to it.
        cluster.events, cluster.paths = own * (MOST_PAGES // 2), []
        assert found.events(found.pod("shop", "cart-0")) == []
    assert cluster.paths.count(f"{CORE}/shop/events") == MOST_PAGES


def test_a_pod_that_prints_without_end_is_given_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(by_kubeconfig, "MOST_PRINTED", 5_000)
    cluster = Cluster(execs={"agent": ("x" * 50_000, "")})
    with serving(cluster, tmp_path) as config, pytest.raises(NotTold, match="answered more than"):
        KubeconfigCluster(str(config), None, "podsvid").run("agent-n1", "agent", ["podsvid", "node", "ls"])


@pytest.mark.parametrize("printed", ["[" * 200_000, "[" * 900 + "]" * 900, '{"volumes": [{"failures": NaN}]}'])
def test_what_no_browser_could_be_told_is_no_answer(tmp_path: Path, printed: str) -> None:
    with serving(Cluster(execs={"agent": (printed, "")}), tmp_path) as config, pytest.raises(NotTold, match="answered"):
        KubeconfigCluster(str(config), None, "podsvid").run("agent-n1", "agent", ["podsvid", "node", "ls"])


def test_what_a_command_in_a_pod_says_while_it_waits_is_no_reason(tmp_path: Path) -> None:
    said = "podsvid: waiting for the agent at x, 8 s at most\npodsvid: TIMED_OUT: no answer from the agent\n"
    with serving(Cluster(execs={"agent": ("", said)}), tmp_path) as config, pytest.raises(NotTold) as raised:
        KubeconfigCluster(str(config), None, "podsvid").run("agent-n1", "agent", ["podsvid", "node", "ls"])
    assert str(raised.value) == "TIMED_OUT: no answer from the agent"


def test_it_asks_a_ready_signer_and_the_agent_of_the_pods_node_and_puts_both_together(tmp_path: Path) -> None:
    cluster = Cluster()
    cluster.events = [
        event("FailedMount", "newer", "kubelet", "2026-11-24T12:00:02Z"),
        event("IdentityRefused", "older", "podsvid.io/signer", "2026-11-24T12:00:01Z"),
        event("Pulled", "nothing of podsvid", "kubelet", "2026-11-24T12:00:03Z"),
    ]
    with serving(cluster, tmp_path) as config:
        told, made = explain(config), explain(config, "--output", "json")
    assert told.returncode == 0, told.stderr
    assert sorted(cluster.seen[:2], reverse=True) == [
        (
            "signer-1",
            "signer",
            ["podsvid", "explain", "shop/cart-0", "--socket", "/run/podsvid-signer/admin.sock", "--output", "json"],
        ),
        ("agent-n1", "agent", ["podsvid", "node", "explain", "shop/cart-0", "--output", "json"]),
    ]
    lines = told.stdout.splitlines()
    assert lines[0] == f"pod shop/cart-0: {IDENTITY}"
    assert "does not match: cluster/other: its namespaceSelector does not match" in lines
    assert "on node n1:" in lines
    assert "authority: the signer at x:1, which answers" in lines
    assert lines[-3:] == [
        "events:",
        "  2026-11-24T12:00:01Z IdentityRefused (x2): older",
        "  2026-11-24T12:00:02Z FailedMount (x2): newer",
    ]
    found = described("explain", made.stdout)
    assert set(found) == {"pod", "node", "policy", "on_node", "events", "notes", "missing"}
    assert found["notes"] == []
    assert found["policy"] == json.loads(policy())
    assert found["on_node"] == json.loads(on_node())
    assert found["missing"] == {}
    # What docs/explain.md says that it takes: no more.
    assert set(cluster.paths) == {
        f"{CORE}/shop/pods/cart-0",
        f"{CORE}/shop/events",
        f"{CORE}/podsvid/pods",
        f"{CORE}/podsvid/pods/signer-1/exec",
        f"{CORE}/podsvid/pods/agent-n1/exec",
    }


def test_the_kubeconfigs_token_comes_with_each_request(tmp_path: Path) -> None:
    cluster = Cluster()
    with serving(cluster, tmp_path) as config:
        with_user(config, token="of-a-person")
        assert explain(config).returncode == 0
    assert len(cluster.paths) == 6
    assert cluster.credentials == {"Bearer of-a-person"}


def with_user(config: Path, **user: object) -> None:
    text = json.loads(config.read_text())
    text["users"][0]["user"] = user
    config.write_text(json.dumps(text))


def login(folder: Path, token: str) -> dict[str, object]:
    """The settings of a login program that gives this token."""
    given = {"apiVersion": "client.authentication.k8s.io/v1", "kind": "ExecCredential", "status": {"token": token}}
    (folder / "given").write_text(json.dumps(given))
    return {"apiVersion": given["apiVersion"], "command": "cat", "args": [str(folder / "given")]}


@pytest.mark.parametrize("way", ["token", "tokenFile", "exec"])
def test_a_token_may_end_with_its_line(tmp_path: Path, way: str) -> None:
    """It was printed, as the bug that it is no header's value."""
    cluster, token = Cluster(), "of-a-person\n"
    (tmp_path / "file").write_text(token)
    ways = {"token": token, "tokenFile": str(tmp_path / "file"), "exec": login(tmp_path, token)}
    with serving(cluster, tmp_path) as config:
        with_user(config, **{way: ways[way]})
        told = explain(config)
    assert told.returncode == 0, told.stderr
    assert len(cluster.paths) == 6
    assert cluster.credentials == {"Bearer of-a-person"}


@pytest.mark.parametrize("way", ["token", "tokenFile", "exec"])
@pytest.mark.parametrize("token", ["SECRET\nTOKEN", "SECRET\x00TOKEN", "SECRET\u20acTOKEN", "SECRET\x7f"])
def test_a_token_that_is_no_headers_value_is_not_repeated(tmp_path: Path, way: str, token: str) -> None:
    cluster = Cluster()
    (tmp_path / "file").write_text(token)
    ways = {"token": token, "tokenFile": str(tmp_path / "file"), "exec": login(tmp_path, token)}
    with serving(cluster, tmp_path) as config:
        with_user(config, **{way: ways[way]})
        told = explain(config)
    assert "SECRET" not in told.stdout + told.stderr
    assert told.stderr == (
        "podsvid: API_SERVER_UNAVAILABLE: the kubeconfig's token is no single line of ASCII; "
        "look at its token, tokenFile or login program\n"
    )
    assert cluster.paths == []


@pytest.mark.parametrize(
    "error", [ValueError("header b'SECRET'"), UnicodeEncodeError("latin-1", "SECRET", 0, 1, "SECRET")]
)
def test_what_a_package_says_of_a_value_is_not_repeated(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    def fails(*_: object, **__: object) -> None:
        raise error

    monkeypatch.setattr("kubernetes.client.rest.RESTClientObject.request", fails)
    told = explain(kubeconfig(tmp_path, 1))
    assert "SECRET" not in told.stdout + told.stderr
    assert f"cannot be asked: {type(error).__name__}" in told.stderr
    monkeypatch.setattr("kubernetes.client.configuration.Configuration.auth_settings", fails)
    told = explain(kubeconfig(tmp_path, 1))
    assert "SECRET" not in told.stdout + told.stderr
    assert f"credentials cannot be renewed: {type(error).__name__}; log in again" in told.stderr


def test_what_the_client_of_exec_says_of_a_value_is_not_repeated(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails(*_: object, **__: object) -> None:
        raise ValueError("header b'SECRET'")

    monkeypatch.setattr("kubernetes.stream.ws_client.WSClient", fails)
    with serving(Cluster(), tmp_path) as config:
        told = explain(config)
    assert "SECRET" not in told.stdout + told.stderr
    assert "the signer's view is missing: ValueError" in told.stdout


@pytest.mark.parametrize(
    "body", [b"{}", b'{"metadata": {}}', b'{"kind": "Status"}', b'{"metadata": {"name": "\xff"}}', b"\xff", b"[]"]
)
def test_what_is_no_pod_is_not_taken_for_one(tmp_path: Path, body: bytes) -> None:
    cluster = Cluster(bodies={"/pods/cart-0": body})
    with serving(cluster, tmp_path) as config:
        told = explain(config)
    assert told.returncode == 1
    assert "answers with no pod" in told.stderr
    assert "is it an API server? look at the context" in told.stderr


@pytest.mark.parametrize("body", [b"{}", b'{"items": [{}]}', b'{"items": [{"metadata": {}}]}', b'{"items": "\xff"}'])
def test_what_is_no_list_is_not_taken_for_an_empty_one(tmp_path: Path, body: bytes) -> None:
    cluster = Cluster(bodies={"/shop/events": body, "/podsvid/pods": body})
    with serving(cluster, tmp_path) as config:
        missing = json.loads(explain(config, "--output", "json").stdout)["missing"]
    assert set(missing) == {"policy", "on_node", "events"}
    assert "no signer runs" not in missing["policy"]


@pytest.mark.parametrize("what", ["../cart-0", "shop/..", "./cart-0", "shop/."])
def test_a_path_is_no_pod(tmp_path: Path, what: str) -> None:
    told = explain(kubeconfig(tmp_path, 1), what=what)
    assert told.returncode == 2
    assert "say which pod as NAMESPACE/POD" in told.stderr


def test_what_others_wrote_is_shown_as_they_wrote_it(tmp_path: Path) -> None:
    said = "port :bomb: [bold]closed[/bold] " + "a" * 300
    cluster = Cluster(events=[event("FailedMount", said, "podsvid", "2026-11-24T12:00:02Z")])
    cluster.execs["agent"] = (on_node().replace("answers", "has :bomb:"), "")
    with serving(cluster, tmp_path) as config:
        told = explain(config).stdout
    assert told.splitlines()[-1] == f"  2026-11-24T12:00:02Z FailedMount (x2): {said}"
    assert "which has :bomb:" in told


def test_a_volume_that_is_not_well_is_exit_code_3(tmp_path: Path) -> None:
    cluster = Cluster()
    cluster.execs["agent"] = (on_node("retrying"), "")
    with serving(cluster, tmp_path) as config:
        assert explain(config).returncode == 3


def test_an_identity_that_policy_no_longer_gives_is_pointed_at(tmp_path: Path) -> None:
    cluster = Cluster()
    cluster.execs["agent"] = (on_node().replace(IDENTITY, "spiffe://example.org/old"), "")
    with serving(cluster, tmp_path) as config:
        told = explain(config)
    assert "note: the node has an SVID for spiffe://example.org/old, minted before policies" in told.stdout
    assert f"the next renewal brings {IDENTITY}" in told.stdout
    assert told.returncode == 0
    refused = admin_pb2.ExplainResponse(outcome="refused: POD_DENIED: by policy", policy="no")
    cluster.execs["signer"] = (to_json(refused), "")
    with serving(cluster, tmp_path) as config:
        told = explain(config)
    assert "its renewal will be refused" in told.stdout
    assert told.returncode == 3


def test_the_identity_of_a_pod_of_which_one_volume_is_refused_is_no_old_one(tmp_path: Path) -> None:
    """Its other volumes are renewed: the note said that they would be refused."""
    cluster = Cluster()
    why = "refused: KEY_ALGORITHM_DENIED: volume tls: policy own wants keys of rsa-2048"
    refused = admin_pb2.ExplainResponse(outcome=why, policy="own", entitled=IDENTITY)
    cluster.execs["signer"] = (to_json(refused), "")
    with serving(cluster, tmp_path) as config:
        told = explain(config)
    lines = told.stdout.splitlines()
    assert lines[0] == f"pod shop/cart-0: {why}"
    assert lines[3] == f"its identity: {IDENTITY}, for volumes that ask for no more than the policy gives"
    assert "note:" not in told.stdout
    assert told.returncode == 3


def test_an_event_cannot_draw_on_the_terminal(tmp_path: Path) -> None:
    cluster = Cluster(events=[event("FailedMount", "\x1b[2Jall is well\r\x9b", "podsvid", "2026-11-24T12:00:02Z")])
    cluster.execs["agent"] = ("", "podsvid: NODE_COMMAND_FAILED: \x1b]0;title\x07")
    with serving(cluster, tmp_path) as config:
        told = explain(config)
    assert "[2Jall is well" in told.stdout
    assert "NODE_COMMAND_FAILED: " in told.stdout
    assert all(each.isprintable() for each in told.stdout if each != "\n")


def test_of_a_pod_that_failed_the_error_is_told_and_not_where_it_is_explained(tmp_path: Path) -> None:
    """Pods of a chart with docsURL say that as well, in a line after the error."""
    cluster = Cluster()
    where = "podsvid: see https://docs.example.org/troubleshooting.html#no_agent"
    cluster.execs["agent"] = ("", f"podsvid: NO_AGENT: no agent listens at y\n{where}\n")
    with serving(cluster, tmp_path) as config:
        told = explain(config)
    assert "NO_AGENT: no agent listens at y\n" in told.stdout
    assert "docs.example.org" not in told.stdout


@pytest.mark.parametrize(
    ("change", "title", "said"),
    [
        (lambda c: c.podsvid.clear(), "policy", "--podsvid-namespace where podsvid is installed"),
        (lambda c: c.podsvid.pop(), "on_node", "no agent runs on node n1; look at the DaemonSet podsvid-agent"),
        (lambda c: c.podsvid[3]["status"].update(phase="Pending"), "on_node", "no agent runs on node n1"),
        (
            lambda c: c.pod["spec"].update(nodeName=None),
            "on_node",
            "not scheduled to a node yet; kubectl -n shop describe",
        ),
        (lambda c: c.pod["spec"].update(volumes=[]), "on_node", "the pod has no csi volume; add one"),
        (lambda c: c.pod["status"].update(phase="Succeeded"), "on_node", "the pod has finished (Succeeded)"),
        (lambda c: c.execs.update(agent=("", "podsvid: X: no agent listens at y\n")), "on_node", "X: no agent listens"),
        (
            lambda c: c.execs.update(agent=("Traceback", "")),
            "on_node",
            "answered no JSON; is its podsvid of this version",
        ),
        (lambda c: c.execs.update(signer=("", "")), "policy", "pod signer-1 answered nothing; look at its log"),
        (lambda c: setattr(c, "forbidden", ("/events",)), "events", "list on events of the pod's namespace"),
        (lambda c: setattr(c, "forbidden", ("/exec",)), "policy", 'User "jo\'e" cannot do that'),
        (lambda c: setattr(c, "forbidden", ("/exec",)), "on_node", "pods/exec of podsvid's"),
    ],
)
def test_a_part_that_cannot_be_had_says_why_and_what_to_do_and_the_rest_is_told(
    tmp_path: Path, change: Any, title: str, said: str
) -> None:
    cluster = Cluster()
    change(cluster)
    with serving(cluster, tmp_path) as config:
        told = explain(config, "--output", "json")
    assert told.returncode in (0, 3), told.stderr
    assert told.returncode == (0 if title == "events" else 3)
    found = described("explain", told.stdout)
    assert said in found["missing"][title]
    assert "Handshake" not in found["missing"][title]
    assert found[title] in (None, [])


def test_where_nothing_can_be_told_it_says_what_to_do(tmp_path: Path) -> None:
    none = explain(tmp_path / "none")
    assert none.returncode == 1
    assert "no usable kubeconfig" in none.stderr
    assert "kubectl -n podsvid exec deploy/podsvid-signer" in none.stderr
    garbled = tmp_path / "garbled"
    for text in ("{]", "[]", "a word", "", "clusters: {}", "current-context: a\ncontexts: [7]"):
        garbled.write_text(text)
        told = explain(garbled).stderr
        assert told.startswith("podsvid: API_SERVER_UNAVAILABLE: no usable kubeconfig"), text + told
    with serving(Cluster(pod=None), tmp_path) as config:
        absent = "podsvid: POD_NOT_FOUND: pod shop/cart-0 does not exist (any more); is --context the right cluster?\n"
        assert explain(config).stderr == absent
        assert "no usable kubeconfig" in explain(config, "--context", "elsewhere").stderr
        assert "NAMESPACE/POD" in explain(config, what="cart-0").stderr
    refused = explain(kubeconfig(tmp_path, 1))
    assert "the API server http://127.0.0.1:1 cannot be reached" in refused.stderr
    with serving(Cluster(forbidden=("/cart-0",)), tmp_path) as config:
        assert "get on pods" in explain(config).stderr
