"""One connection of a stranger, byte by byte: what it costs has a bound, and whatever it sends it ends well."""

import socket
import ssl
import subprocess
from datetime import UTC, datetime

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from signer.public import tls
from signer.public.answers import Answers
from signer.public.limits import GREETING, HEAD, MOST
from signer.public.shown import Page, Pair
from signer.public.talk import Stage, Talk
from tests.public_rig import PATIENCE, trusting, web_pair

PAIR = web_pair(datetime.now(UTC))
CONTEXT = tls.context(PAIR)
ANSWERS = Answers({"/": Page(b"{}", 60), "/not/yet": None})
ASK = b"GET / HTTP/1.1\r\nHost: a\r\n\r\n"


class Client:
    """A TLS client beside a Talk, without a network between. `piece`: bytes that are delivered at once."""

    def __init__(self, context: ssl.SSLContext | None = None, piece: int = 1 << 20) -> None:
        self.talk = Talk(CONTEXT, ANSWERS, lambda: "now")
        self._in, self._out = ssl.MemoryBIO(), ssl.MemoryBIO()
        self.tls = (context or trusting()).wrap_bio(self._in, self._out, server_hostname="oidc.example.org")
        self._piece = piece

    def deliver(self) -> None:
        data = self._out.read()
        for at in range(0, len(data), self._piece):
            self._in.write(self.talk.receive(data[at : at + self._piece]))

    def agree(self) -> None:
        for _ in range(6):
            try:
                self.tls.do_handshake()
                self.deliver()
                return
            except ssl.SSLWantReadError:
                self.deliver()
        raise AssertionError("they do not agree")

    def say(self, data: bytes) -> bytes:
        """What comes back."""
        self.tls.write(data)
        self.deliver()
        found = b""
        while True:
            try:
                more = self.tls.read(4096)
            except (ssl.SSLWantReadError, ssl.SSLZeroReturnError):
                return found
            if not more:
                return found
            found += more


@pytest.mark.parametrize("version", [ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3])
@pytest.mark.parametrize("piece", [1, 1 << 20])
@pytest.mark.spec("FED-11")
def test_a_request_is_answered_in_either_version_however_it_is_cut(version: ssl.TLSVersion, piece: int) -> None:
    context = trusting()
    context.minimum_version = context.maximum_version = version
    client = Client(context, piece)
    client.agree()
    assert client.say(ASK).startswith(b"HTTP/1.1 200 OK\r\n")
    assert (client.talk.answered, client.talk.over, client.talk.refused) == (200, True, "")
    assert client.talk.stage is Stage.LEAVING
    assert client.talk.receive(b"more") == b""


@pytest.mark.spec("FED-11")
def test_only_intermediate_suites_and_versions() -> None:
    offered = {each["name"] for each in CONTEXT.get_ciphers()}
    assert offered == set(tls.SUITES) | {
        "TLS_AES_128_GCM_SHA256",
        "TLS_AES_256_GCM_SHA384",
        "TLS_CHACHA20_POLY1305_SHA256",
    }
    assert CONTEXT.minimum_version is ssl.TLSVersion.TLSv1_2
    assert CONTEXT.maximum_version is ssl.TLSVersion.MAXIMUM_SUPPORTED
    old = trusting()
    old.set_ciphers("AES256-SHA")
    old.maximum_version = ssl.TLSVersion.TLSv1_2
    client = Client(old)
    with pytest.raises(ssl.SSLError):
        client.agree()
    assert client.talk.refused == "tls"


@pytest.mark.parametrize("group", ["ffdhe2048", "ffdhe8192", "X448", "P-521"])
def test_no_key_is_agreed_on_that_costs_a_server_much(group: str) -> None:
    """Python's client cannot be told groups of finite fields."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        server.settimeout(PATIENCE)
        line = ("openssl", "s_client", "-connect", f"127.0.0.1:{server.getsockname()[1]}", "-groups", group)
        with subprocess.Popen(line, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL):
            peer, _ = server.accept()
            talk = Talk(CONTEXT, ANSWERS, lambda: "now")
            with peer:
                peer.settimeout(PATIENCE)
                while not talk.over and (data := peer.recv(4096)):
                    peer.sendall(talk.receive(data))
    assert talk.refused == "tls"


@pytest.mark.spec("FED-25", "FED-45")
def test_no_client_is_asked_who_it_is() -> None:
    assert CONTEXT.verify_mode is ssl.CERT_NONE
    client = Client()
    client.agree()
    assert client.say(ASK).startswith(b"HTTP/1.1 200")


def test_a_head_is_bounded() -> None:
    client = Client()
    client.agree()
    found = client.say(b"GET / HTTP/1.1\r\nHost: a\r\nX: " + b"x" * (2 * HEAD))
    assert found.startswith(b"HTTP/1.1 431 ")
    assert (client.talk.answered, client.talk.refused) == (431, "head")


def test_a_head_of_just_the_bound_is_taken() -> None:
    client = Client()
    client.agree()
    start = b"GET / HTTP/1.1\r\nHost: a\r\nX: "
    assert client.say(start + b"x" * (HEAD - len(start)) + b"\r\n\r\n").startswith(b"HTTP/1.1 200")


@pytest.mark.parametrize(
    ("rest", "status"),
    [
        (b" / HTTP/1.1\r\nHost: a\r\n\r\n", 200),
        (b" /other HTTP/1.1\r\nHost: a\r\n\r\n", 404),
        (b" /not/yet HTTP/1.1\r\nHost: a\r\n\r\n", 503),
        (b" / HTTP/1.1\r\n\r\n", 400),
        (b" / HTTP/9\r\n\r\n", 400),
        (b" / HTTP/1.1\r\nHost: a\r\nX: " + b"x" * (2 * HEAD), 431),
    ],
)
def test_head_is_get_without_its_body_whatever_comes_of_it(rest: bytes, status: int) -> None:
    answers = {}
    for method in (b"GET", b"HEAD"):
        client = Client()
        client.agree()
        head, _, body = client.say(method + rest).partition(b"\r\n\r\n")
        assert client.talk.answered == status
        answers[method] = head, body
    assert answers[b"HEAD"] == (answers[b"GET"][0], b"")
    assert answers[b"GET"][1]


def test_what_comes_after_a_request_is_nobodys() -> None:
    client = Client()
    client.agree()
    found = client.say(ASK * 3)
    assert found.count(b"HTTP/1.1 ") == 1


def test_who_says_nothing_and_leaves_is_no_trouble() -> None:
    client = Client()
    client.agree()
    try:
        client.tls.unwrap()
    except ssl.SSLError:
        client.deliver()
    assert (client.talk.over, client.talk.refused, client.talk.answered) == (True, "", None)


def test_an_endless_greeting_ends() -> None:
    """A ClientHello that says that it has 64 KiB, in records as TLS has them."""
    talk = Talk(CONTEXT, ANSWERS, lambda: "now")
    hello = b"\x01\x00\xff\xff\x03\x03" + bytes(64 * 1024)
    for at in range(0, len(hello), 1024):
        part = hello[at : at + 1024]
        talk.receive(b"\x16\x03\x01" + len(part).to_bytes(2, "big") + part)
        if talk.over:
            break
    assert talk.refused == "tls"
    assert GREETING - 2048 < at < GREETING, "the record after which it has more"


def test_endless_records_of_nothing_end() -> None:
    client = Client()
    client.agree()
    sent = 0
    while not client.talk.over:
        client.tls.write(b"x" if sent % 64 else b"GET")
        client.deliver()
        sent += 1
        assert sent < MOST
    assert client.talk.refused in ("bytes", "head")


@pytest.mark.parametrize(
    "data",
    [
        b"GET / HTTP/1.1\r\nHost: a\r\n\r\n",
        b"GET /\r\n",
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
        b"\x00" * 64,
        b"\x80\x2e\x01\x03\x01" + b"\x00" * 60,
        b"\x15\x03\x03\x00\x02\x02\x28",
    ],
)
def test_what_is_no_tls_is_ended(data: bytes) -> None:
    talk = Talk(CONTEXT, ANSWERS, lambda: "now")
    talk.receive(data)
    assert (talk.over, talk.refused) == (True, "tls")


@settings(max_examples=200)
@given(st.lists(st.binary(min_size=1, max_size=300), max_size=8), st.booleans())
def test_whatever_is_sent(pieces: list[bytes], hello: bool) -> None:
    client = Client()
    talk = client.talk
    if hello:
        with pytest.raises(ssl.SSLWantReadError):
            client.tls.do_handshake()
        client.deliver()
    for each in pieces:
        assert len(talk.receive(each)) < 64 * 1024
    assert talk.answered is None
    assert talk.refused in ("", "tls")


def test_a_key_that_does_not_fit_or_is_encrypted_is_no_pair() -> None:
    now = datetime.now(UTC)
    with pytest.raises(OSError):
        tls.context(Pair(PAIR.chain, web_pair(now).key))
    with pytest.raises((OSError, ValueError)):
        tls.context(web_pair(now, password=b"x"))
    with pytest.raises(OSError):
        tls.context(Pair(b"", b""))
