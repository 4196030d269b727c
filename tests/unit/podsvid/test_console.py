"""The console's server: who is answered what, and who is not; what it asks its source, and when."""

import contextlib
import http.client
import json
import os
import socket
import threading
import time
import tomllib
from collections.abc import Iterator
from dataclasses import replace
from fnmatch import fnmatch
from pathlib import Path

import pytest

from podsvid.authority import CommandFailed
from podsvid.console.guard import Asked, Guard, is_name
from podsvid.console.picture import Picture
from podsvid.console.serving import MOST_CONNECTIONS, MOST_EXPLAINED, MOST_HEAD, Console, assets
from podsvid.console.watching import Watch
from podsvid.exec_room import ExecRoom
from podsvid.outcome import WrongUsage
from tests.console_rig import PATIENCE, Told, ask, picture, token_of, volume

ROOT = Path(__file__).resolve().parents[3]
PAGES = ("/", "/assets/app.js", "/assets/style.css", "/assets/icon.svg")


@pytest.fixture
def told() -> Told:
    return Told(picture(volume("cart-0")))


@pytest.fixture
def console(told: Told) -> Iterator[Console]:
    with Console(told) as made:
        yield made


def seen(console: Console, told: Told) -> None:
    """Until the first look has ended."""
    ask(console, "/data")
    assert told.looked.wait(PATIENCE)


def test_it_listens_on_loopback_only_at_a_port_of_the_kernels_choice(console: Console, told: Told) -> None:
    with Console(told) as other:
        assert console.port != other.port
        assert token_of(console) != token_of(other)
        assert len(token_of(console)) >= 43
    inodes = set()
    for each in Path("/proc/self/fd").iterdir():
        # Other threads close theirs meanwhile.
        with contextlib.suppress(OSError):
            inodes.add(os.readlink(each))
    listening = []
    for name in ("tcp", "tcp6"):
        for line in Path(f"/proc/self/net/{name}").read_text(encoding="ascii").splitlines()[1:]:
            parts = line.split()
            if parts[3] == "0A" and f"socket:[{parts[9]}]" in inodes:
                listening.append(parts[1])
    assert f"0100007F:{console.port:04X}" in listening
    assert [each for each in listening if each.endswith(f":{console.port:04X}")] == [f"0100007F:{console.port:04X}"]


@pytest.mark.parametrize("path", PAGES)
def test_the_page_itself_needs_no_token_and_names_nothing_elsewhere(console: Console, path: str) -> None:
    answer = ask(console, path, token=None)
    assert answer.status == 200
    assert b"http://" not in answer.body.replace(b"http://www.w3.org/2000/svg", b"")
    assert b"https://" not in answer.body


@pytest.mark.parametrize("path", ["/data", "/explain?namespace=shop&pod=cart-0"])
@pytest.mark.parametrize("token", [None, "x", "é"])
def test_data_needs_the_token(console: Console, told: Told, path: str, token: str | None) -> None:
    answer = ask(console, path, token=token)
    assert (answer.status, answer.json()["reason"]) == (401, "NO_TOKEN")
    assert (told.looks, told.asked) == (0, [])


def test_half_of_a_token_and_two_of_them_are_none() -> None:
    guard = Guard("secret", 80)
    right = Asked("GET", ("127.0.0.1:80",), ("Bearer secret",))
    assert guard.refuses(right) is None
    assert guard.refuses_data(right) is None
    for given in (
        (),
        ("Bearer secre",),
        ("Bearer secrett",),
        ("secret",),
        ("Bearer secret", "Bearer secret"),
        ("Bearer ",),
    ):
        assert guard.refuses_data(replace(right, authorizations=given)) is not None


@pytest.mark.parametrize(
    "host", ["evil.example", "evil.example:{port}", "127.0.0.1", "127.0.0.1:1", "[::1]:{port}", "0.0.0.0:{port}"]
)
@pytest.mark.parametrize("path", ["/", "/data"])
def test_a_name_that_somebody_made_lead_here_is_refused(console: Console, told: Told, host: str, path: str) -> None:
    answer = ask(console, path, host=host.format(port=console.port))
    assert (answer.status, answer.json()["reason"]) == (421, "WRONG_HOST")
    assert told.looks == 0


def test_localhost_is_this_host_and_two_hosts_are_none(console: Console) -> None:
    assert ask(console, "/data", host=f"localhost:{console.port}").status == 200
    guard = Guard("t", 80)
    assert guard.refuses(Asked("GET", ())) is not None
    assert guard.refuses(Asked("GET", ("127.0.0.1:80", "127.0.0.1:80"))) is not None


@pytest.mark.parametrize("method", ["POST", "PUT", "DELETE", "PATCH", "OPTIONS", "HEAD", "TRACE", "NONSENSE"])
def test_nothing_but_get_is_taken(console: Console, told: Told, method: str) -> None:
    answer = ask(console, "/data", method)
    assert answer.status == 405
    assert "access-control-allow-origin" not in answer.headers
    assert told.looks == 0


@pytest.mark.parametrize("path", [*PAGES, "/data", "/nothing", "/explain?namespace=..&pod=x", "//[x"])
def test_every_answer_lets_the_browser_do_nothing_more(console: Console, path: str) -> None:
    headers = ask(console, path).headers
    policy = dict(each.strip().split(" ", 1) for each in headers["content-security-policy"].split(";"))
    assert policy["default-src"] == "'none'"
    assert {each for value in policy.values() for each in value.split()} == {"'none'", "'self'", "'script'"}
    assert policy["frame-ancestors"] == "'none'"
    assert policy["require-trusted-types-for"] == "'script'"
    assert headers["cache-control"] == "no-store"
    assert headers["x-content-type-options"] == "nosniff"
    assert headers["referrer-policy"] == "no-referrer"
    assert headers["cross-origin-resource-policy"] == "same-origin"


@pytest.mark.parametrize(
    "path",
    [
        "/assets/",
        "/assets/../guard.py",
        "/assets/%2e%2e/guard.py",
        "/index.html",
        "/assets//etc/passwd",
        "/assets/__init__.py",
    ],
)
def test_no_other_file_is_served(console: Console, path: str) -> None:
    assert ask(console, path).status == 404


def test_the_pages_code_puts_no_markup_anywhere() -> None:
    code = b"".join(body for name, body in assets().items() if name.endswith((".js", ".html")))
    for word in (
        b"innerHTML",
        b"outerHTML",
        b"insertAdjacentHTML",
        b"document.write",
        b"eval(",
        b"new Function",
        b"<style",
        b" style=",
        b"onclick=",
    ):
        assert word not in code


def test_the_page_is_part_of_the_package() -> None:
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["tool"]["setuptools"]
    patterns = settings["package-data"]["podsvid.console"]
    folder = ROOT / "podsvid" / "console"
    files = [str(each.relative_to(folder)) for each in (folder / "assets").iterdir()]
    assert {"assets/index.html", "assets/app.js", "assets/style.css"} <= set(files)
    assert [each for each in files if not any(fnmatch(each, pattern) for pattern in patterns)] == []
    assert sorted(assets()) == sorted(each.partition("/")[2] for each in files)


def test_data_is_what_the_source_knows_and_is_sent_once(console: Console, told: Told) -> None:
    seen(console, told)
    first = ask(console, "/data")
    assert first.status == 200
    assert first.json() == {
        "kind": "cluster",
        "name": "https://there:6443",
        "looked": True,
        "nodes": [
            {
                "node": "node-1",
                "volumes": [volume("cart-0")],
                "missing": "",
                "seen_at": "2026-06-01T00:00:00Z",
                "left_out": 0,
            }
        ],
        "authority": None,
        "missing": {},
        "authority_at": "",
        "federations": [],
        "federations_at": "",
        "findings": [],
    }
    again = ask(console, "/data", tag=first.headers["etag"])
    assert (again.status, again.body) == (304, b"")
    told.picture = picture(volume("cart-1"))
    deadline = time.monotonic() + PATIENCE
    while (other := ask(console, "/data", tag=first.headers["etag"])).status == 304:
        assert time.monotonic() < deadline
    assert [each["pod"] for each in other.json()["nodes"][0]["volumes"]] == ["cart-1"]
    assert other.headers["etag"] != first.headers["etag"]


def test_nobody_is_asked_while_nobody_looks(told: Told) -> None:
    told.every = 0.0
    watch = Watch(told)
    watch.start()
    watch.newest()
    assert told.looked.wait(PATIENCE)
    # Long enough for very many looks, were there any.
    other = Watch(Told())
    for _ in range(20_000):
        other.look()
    assert told.looks == 1
    told.looked.clear()
    watch.newest()
    assert told.looked.wait(PATIENCE)
    watch.close()


def test_a_source_that_fails_is_said_beside_what_was_seen_before(told: Told) -> None:
    watch = Watch(told)
    watch.look()
    told.fails = WrongUsage("the agent went away")
    watch.look()
    newest = watch.newest().body.decode()
    assert "cart-0" in newest
    assert "WRONG_USAGE: the agent went away" in newest
    # What was seen before does not pass for what is.
    (node,) = json.loads(newest)["nodes"]
    assert (node["missing"], node["seen_at"]) == ("WRONG_USAGE: the agent went away", "2026-06-01T00:00:00Z")
    told.fails = ValueError("a bug")
    watch.look()
    assert "INTERNAL" in watch.newest().body.decode()
    told.fails = None
    watch.look()
    assert "INTERNAL" not in watch.newest().body.decode()


def test_one_pod_is_explained_by_the_source(console: Console, told: Told) -> None:
    answer = ask(console, "/explain?namespace=shop&pod=cart-0")
    assert (answer.status, answer.json()) == (200, {"pod": "shop/cart-0"})

    def refused(namespace: str, pod: str) -> dict[str, object]:
        raise WrongUsage("no such pod")

    told.explained = refused
    answer = ask(console, "/explain?namespace=shop&pod=cart-0")
    assert (answer.status, answer.json()) == (502, {"reason": "WRONG_USAGE", "text": "no such pod"})


@pytest.mark.parametrize(
    "query",
    [
        "",
        "namespace=shop",
        "namespace=&pod=a",
        "namespace=..&pod=a",
        "namespace=a%2fb&pod=a",
        "namespace=a&pod=--all",
        "namespace=a&pod=a%0a",
        "namespace=A&pod=a",
        "namespace=a&pod=a&x=1",
        "namespace=a&pod=" + "a" * 300,
    ],
)
def test_what_is_no_pods_name_reaches_no_command(console: Console, told: Told, query: str) -> None:
    assert ask(console, f"/explain?{query}").status == 400
    assert told.asked == []


def test_names_are_those_that_kubernetes_has() -> None:
    assert all(map(is_name, ("a", "cart-0", "a.b", "a" * 253)))
    assert not any(map(is_name, ("", "-a", "a-", ".", "..", "a/b", "a b", "é", "a\n", "a" * 254)))


def test_explanations_at_once_are_bounded(console: Console, told: Told) -> None:
    begun, go_on = threading.Semaphore(0), threading.Event()

    def slow(namespace: str, pod: str) -> dict[str, object]:
        begun.release()
        assert go_on.wait(PATIENCE)
        return {}

    told.explained = slow
    path = "/explain?namespace=shop&pod=cart-0"
    asking = [threading.Thread(target=ask, args=(console, path)) for _ in range(MOST_EXPLAINED)]
    try:
        for each in asking:
            each.start()
        for _ in asking:
            assert begun.acquire(timeout=PATIENCE)
        assert ask(console, path).json()["reason"] == "TOO_MANY"
        # The page goes on meanwhile.
        assert ask(console, "/data").status == 200
    finally:
        go_on.set()
        for each in asking:
            each.join(PATIENCE)
    assert ask(console, path).status == 200


def test_connections_at_once_are_bounded_and_given_back(console: Console) -> None:
    with contextlib.ExitStack() as open_ones:
        for _ in range(MOST_CONNECTIONS):
            made = open_ones.enter_context(socket.create_connection(("127.0.0.1", console.port), PATIENCE))
            made.sendall(b"GET / HT")
        with pytest.raises((http.client.HTTPException, OSError)):
            ask(console, "/")
    deadline = time.monotonic() + PATIENCE
    while time.monotonic() < deadline:
        with contextlib.suppress(http.client.HTTPException, OSError):
            assert ask(console, "/").status == 200
            return
    pytest.fail("no place was given back")


@pytest.mark.parametrize(
    "head",
    [
        b"GET /" + b"a" * MOST_HEAD + b" HTTP/1.1\r\n\r\n",
        b"GET / HTTP/1.1\r\n" + b"X: " + b"a" * MOST_HEAD + b"\r\n\r\n",
        b"GET / HTTP/1.1\r\n" + b"".join(b"X-%d: %s\r\n" % (each, b"a" * (MOST_HEAD // 50)) for each in range(60)),
    ],
    ids=["line", "header", "headers"],
)
def test_a_head_that_is_no_end_is_refused(console: Console, head: bytes) -> None:
    with socket.create_connection(("127.0.0.1", console.port), PATIENCE) as made:
        made.sendall(head)
        assert b" 431 " in made.recv(200)


def test_who_sends_a_request_byte_by_byte_has_the_time_of_one(told: Told) -> None:
    with (
        Console(told, patience=0.2) as console,
        socket.create_connection(("127.0.0.1", console.port), PATIENCE) as made,
    ):
        made.sendall(b"GET / HTTP/1.1\r\nX: ")
        # More often than the patience with one byte.
        made.settimeout(0.02)
        deadline = time.monotonic() + PATIENCE
        with contextlib.suppress(ConnectionError):
            while True:
                assert time.monotonic() < deadline, "it may go on for ever"
                with contextlib.suppress(TimeoutError):
                    assert made.recv(1) == b""
                    break
                made.sendall(b"a")


def test_a_request_that_is_read_is_answered_however_long_that_takes(told: Told) -> None:
    go_on = threading.Event()

    def slow(namespace: str, pod: str) -> dict[str, object]:
        assert not go_on.wait(0.5)
        return {"pod": pod}

    told.explained = slow
    with Console(told, patience=0.1) as console:
        assert ask(console, "/explain?namespace=shop&pod=cart-0").json() == {"pod": "cart-0"}


def test_a_connection_without_a_thread_gives_its_place_back(console: Console, monkeypatch: pytest.MonkeyPatch) -> None:
    def none(thread: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    with monkeypatch.context() as patched:
        patched.setattr(threading.Thread, "start", none)
        for _ in range(MOST_CONNECTIONS):
            with (
                socket.create_connection(("127.0.0.1", console.port), PATIENCE) as made,
                contextlib.suppress(ConnectionError),
            ):
                assert made.recv(1) == b""
    assert ask(console, "/").status == 200


def test_commands_that_hang_keep_their_places() -> None:
    room = ExecRoom(2)
    with room.taken():
        with room.taken(), pytest.raises(CommandFailed, match="2 commands in podsvid's pods have not ended"):
            room.taken().__enter__()
        with room.taken():
            pass


def test_before_the_first_look_nothing_is_known_and_that_is_said(told: Told) -> None:
    told.looked.set()
    assert Watch(told).newest().body == (
        b'{"kind":"cluster","name":"https://there:6443","looked":false,"nodes":[],"authority":null,"missing":{},"authority_at":"","federations":[],"federations_at":"","findings":[]}'
    )
    assert Picture("node", "x").to_json()["looked"] is False
