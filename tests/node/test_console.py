"""`podsvid console` as a person starts it: with a real agent, and with the API server of a kubeconfig."""

import asyncio
import http.client
import json
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest

from agent.pb import node_admin_pb2
from podsvid.by_kubeconfig import KubeconfigCluster, NotAllowed
from podsvid.output import to_json
from signer.pb import admin_pb2
from tests.node.test_explain import Cluster, podsvid_pod, serving
from tests.node.test_quickstart import Quickstart
from tests.processes import end
from tests.shapes import described
from tests.support import DEADLINE, IS_ROOT, ROOT, VOLUME, node, pod, serial

pytestmark = pytest.mark.timeout(180)


@contextmanager
def console(*arguments: str) -> Iterator[tuple[str, "subprocess.Popen[bytes]"]]:
    """Its URL, as it prints it, and the process."""
    command = [sys.executable, "-m", "podsvid", "console", *arguments]
    process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    try:
        assert process.stdout is not None
        assert process.stderr is not None
        line = process.stdout.readline().decode()
        found = re.fullmatch(r"open (http://127\.0\.0\.1:\d+/#token=[\w-]{43})\n", line)
        assert found, line + process.stderr.read().decode()
        yield found[1], process
    finally:
        process.kill()
        process.communicate()


def ask(url: str, path: str) -> Any:
    parts = urlsplit(url)
    assert parts.port is not None
    connection = http.client.HTTPConnection("127.0.0.1", parts.port, timeout=DEADLINE)
    connection.request("GET", path, headers={"Authorization": f"Bearer {parts.fragment.removeprefix('token=')}"})
    answer = connection.getresponse()
    assert answer.status == 200, answer.read()
    return json.loads(answer.read())


def until(url: str, there: Callable[[Any], bool] = lambda found: bool(found["looked"])) -> Any:
    """What it knows, when it is `there`. It is asked now and then: each time costs who is waited for a processor."""
    deadline, rest = time.monotonic() + DEADLINE, threading.Event()
    while not there(found := ask(url, "/data")):
        assert time.monotonic() < deadline, found
        rest.wait(0.1)
    return found


def serial_in(found: Any) -> str:
    """Of the first volume."""
    return next((str(each["serial"]) for node in found["nodes"] for each in node["volumes"]), "")


@pytest.mark.skipif(not IS_ROOT, reason="the agent mounts: run as root")
def test_a_nodes_console_shows_its_volumes_and_each_renewal() -> None:
    async def run() -> None:
        async with node() as (here, kubelet):
            target = await kubelet.publish(pod("one"), VOLUME)
            with console("--socket", str(here.base / "r" / "admin.sock")) as (url, process):
                found = await asyncio.to_thread(until, url)
                (shown,) = found["nodes"]
                described("node ls", json.dumps({"volumes": shown["volumes"]}))
                (volume,) = shown["volumes"]
                before = serial(target)
                assert (volume["pod"], volume["serial"], volume["state"]) == ("one", before, "ok")
                assert "kubeconfig" in found["missing"]["authority"]
                explained = described("explain", json.dumps(ask(url, "/explain?namespace=default&pod=one")))
                assert explained["on_node"]["volumes"][0]["directory"] == str(target)
                line = ["node", "rotate", "default/one", "--socket", str(here.base / "r" / "admin.sock")]
                await asyncio.to_thread(
                    subprocess.run, [sys.executable, "-m", "podsvid", *line], cwd=ROOT, check=True, capture_output=True
                )
                after = serial(target)
                assert after != before
                await asyncio.to_thread(until, url, lambda found: serial_in(found) == after)
                # Without an agent what it said last is still shown, beside the reason.
                here.kill()
                gone = await asyncio.to_thread(until, url, lambda found: bool(found["missing"].get("nodes")))
                assert gone["missing"]["nodes"].startswith("NOBODY_LISTENS: nobody listens at")
                assert serial_in(gone) == after
                assert gone["nodes"][0]["missing"] == gone["missing"]["nodes"]
                assert gone["nodes"][0]["seen_at"]
                assert end(process, signal.SIGINT)
                assert process.returncode == 0

    asyncio.run(run())


def test_the_quickstart_has_a_page_of_its_pods() -> None:
    with Quickstart("--web", "--without-mounts", directory=None) as quickstart:
        told = quickstart.next_event()
        assert set(told) == {"event", "url"}
        quickstart.next_event()
        found = until(told["url"], lambda found: bool(serial_in(found)))
        assert (found["kind"], found["name"]) == ("quickstart", "quickstart")
        (volume,) = found["nodes"][0]["volumes"]
        assert (volume["namespace"], volume["pod"]) == ("demo", "pod-1")
        # The authority that signed it, from the bundle that its peers have.
        (own,) = until(told["url"], lambda found: bool(found["authority"]))["authority"]["authorities"]
        assert (own["id"], own["stage"], own["svids"]) == (volume["authority_id"], "active", 1)
        assert own["not_after"] > own["activated_at"]
        # Which serial is there by now is not known: they live for seconds.
        until(told["url"], lambda again: serial_in(again) != volume["serial"])
        assert end(quickstart.process, signal.SIGINT)
        assert quickstart.process.returncode == 0


def test_a_clusters_console_asks_by_exec_with_the_rights_of_explain(tmp_path: Path) -> None:
    cluster = Cluster()
    volume = node_admin_pb2.Volume(namespace="shop", pod="cart-0", state="ok", serial="5e")
    cluster.execs = {
        "agent": (to_json(node_admin_pb2.ListResponse(volumes=[volume])), ""),
        "signer": (to_json(admin_pb2.AuthorityStatus(trust_domain="example.org", agents=2)), ""),
    }
    # Of a node's pods the one that runs is asked; where none does, that is said.
    cluster.podsvid += [
        podsvid_pod("agent-n2-before", "agent", "n2", phase="Failed"),
        podsvid_pod("agent-n3", "agent", "n3", phase="Pending"),
    ]
    with serving(cluster, tmp_path) as config, console("--kubeconfig", str(config)) as (url, process):
        found = until(url)
        assert [each["node"] for each in found["nodes"]] == ["n1", "n2", "n3"]
        assert [[volume["pod"] for volume in each["volumes"]] for each in found["nodes"]] == [
            ["cart-0"],
            ["cart-0"],
            [],
        ]
        assert "pod agent-n3 does not run (Pending)" in found["nodes"][2]["missing"]
        assert described("authority show", json.dumps(found["authority"]))["trust_domain"] == "example.org"
        assert found["missing"] == {}
        core = "/api/v1/namespaces/podsvid/pods"
        execs = {f"{core}/{name}/exec" for name in ("signer-1", "agent-n1", "agent-n2")}
        assert set(cluster.paths) == {core, *execs, "/apis/podsvid.io/v1alpha1/federatedtrustdomains"}
        ask(url, "/explain?namespace=shop&pod=cart-0")
        # Nothing is written: neither by the API server nor by what is run in podsvid's pods.
        assert cluster.methods == {"GET"}
        assert {" ".join(command).partition(" --")[0] for _, _, command in cluster.seen} == {
            "podsvid node ls",
            "podsvid authority show",
            "podsvid explain shop/cart-0",
            "podsvid node explain shop/cart-0",
        }
        assert end(process)
        assert process.returncode == 0


def test_who_may_not_exec_is_known_from_what_the_api_server_says(tmp_path: Path) -> None:
    cluster = Cluster(forbidden=("/exec",))
    with serving(cluster, tmp_path) as config, pytest.raises(NotAllowed, match="cannot do that"):
        KubeconfigCluster(str(config), None, "podsvid").run("agent-n1", "agent", ["podsvid", "node", "ls"])


def test_what_cannot_be_shown_is_an_error_and_no_page(tmp_path: Path) -> None:
    for line, reason, code in (
        (("--socket", str(tmp_path / "absent")), "NO_SOCKET", 1),
        (("--kubeconfig", str(tmp_path / "absent")), "API_SERVER_UNAVAILABLE", 1),
        (("--every", "1s", "--kubeconfig", str(tmp_path)), "WRONG_USAGE", 2),
    ):
        command = [sys.executable, "-m", "podsvid", "console", *line]
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=60, check=False)
        assert (done.returncode, done.stdout) == (code, ""), done.stderr
        assert done.stderr.startswith(f"podsvid: {reason}: ")
        # What a signer's pod can be asked: there is no agent in it.
        assert "node ls" not in done.stderr
