"""Listening on IPv4, IPv6 and both: real sockets of the loopback, and kernels without IPv6."""

from __future__ import annotations

import errno
import socket
from contextlib import ExitStack

import pytest

from runtime import http, listening, pages
from runtime.http import Answer


def has_ipv6() -> bool:
    try:
        with socket.socket(socket.AF_INET6, socket.SOCK_STREAM) as probe:
            probe.bind(("::1", 0))
    except OSError:
        return False
    return True


ipv6 = pytest.mark.skipif(not has_ipv6(), reason="this host has no IPv6 on its loopback")


async def page(accept: str) -> Answer:
    return Answer(200, b"here\n")


def answers(host: str, port: int) -> bool:
    try:
        with socket.create_connection((host, port), timeout=30) as peer:
            peer.sendall(b"GET /page HTTP/1.1\r\n\r\n")
            return peer.makefile("rb").read().endswith(b"here\n")
    except ConnectionRefusedError:
        return False


@ipv6
@pytest.mark.parametrize(
    ("host", "reached"),
    [
        ("::", {"127.0.0.1", "::1"}),
        ("0.0.0.0", {"127.0.0.1"}),
        ("::1", {"::1"}),
        ("127.0.0.1", {"127.0.0.1"}),
    ],
)
def test_who_reaches_it(host: str, reached: set[str]) -> None:
    with http.serving((host, 0), {"/page": page}, pages.METRICS_LIMITS) as (_, port):
        assert {each for each in ("127.0.0.1", "::1") if answers(each, port)} == reached


def test_a_name_has_all_of_its_addresses_with_one_port(monkeypatch: pytest.MonkeyPatch) -> None:
    found = [(socket.AF_INET, socket.SOCK_STREAM, 6, "", (host, 0)) for host in ("127.0.0.1", "127.0.0.2")]
    monkeypatch.setattr(socket, "getaddrinfo", lambda *_, **__: found)
    with ExitStack() as stack:
        made = [stack.enter_context(each) for each in listening.bound(("a-name", 0))]
        assert [each.getsockname()[0] for each in made] == ["127.0.0.1", "127.0.0.2"]
        assert len({each.getsockname()[1] for each in made}) == 1


@pytest.mark.parametrize("number", [errno.EAFNOSUPPORT, errno.EPROTONOSUPPORT, errno.EADDRNOTAVAIL])
def test_everywhere_is_ipv4_where_the_kernel_has_no_ipv6(number: int) -> None:
    def make(family: socket.AddressFamily) -> socket.socket:
        if family == socket.AF_INET6:
            raise OSError(number, "none here")
        return socket.socket(family, socket.SOCK_STREAM)

    (found,) = listening.bound(("::", 0), make=make)
    with found:
        assert found.family == socket.AF_INET
        assert found.getsockname()[0] == "0.0.0.0"


def test_another_trouble_with_ipv6_is_an_error() -> None:
    def make(family: socket.AddressFamily) -> socket.socket:
        raise OSError(errno.EMFILE, "too many files")

    with pytest.raises(OSError, match="too many"):
        listening.bound(("::", 0), make=make)


def test_an_address_that_is_taken_is_named() -> None:
    with ExitStack() as stack:
        (taken,) = listening.bound(("127.0.0.1", 0))
        stack.enter_context(taken)
        taken.listen()
        port = taken.getsockname()[1]
        with pytest.raises(OSError, match=rf"127\.0\.0\.1:{port} cannot be bound") as raised:
            listening.bound(("127.0.0.1", port))
        assert raised.value.errno == errno.EADDRINUSE


@pytest.mark.parametrize(("host", "text"), [("::", "[::]:1"), ("127.0.0.1", "127.0.0.1:1"), ("name", "name:1")])
def test_shown_as_it_is_written(host: str, text: str) -> None:
    assert listening.shown(host, 1) == text


@pytest.mark.parametrize(
    ("host", "counted"),
    [
        ("192.0.2.1", "192.0.2.1"),
        ("::ffff:192.0.2.1", "192.0.2.1"),
        ("2001:db8:1:2:3::4", "2001:db8:1:2::/64"),
        ("2001:db8:1:2:ffff::", "2001:db8:1:2::/64"),
        ("2001:db8::1", "2001:db8::/64"),
        ("2001:db8:0:1::1", "2001:db8:0:1::/64"),
        ("fe80::1%eth0", "fe80::/64"),
        ("no address", "no address"),
    ],
)
def test_by_whom_an_address_is_counted(host: str, counted: str) -> None:
    assert listening.whose(host) == counted


@pytest.mark.parametrize(
    ("host", "spelt"),
    [
        ("10.0.0.7", "10.0.0.7"),
        ("::ffff:10.0.0.7", "10.0.0.7"),
        ("FE80:0::0:7%eth0", "fe80::7"),
        ("somewhere", "somewhere"),
    ],
)
def test_an_address_has_one_spelling(host: str, spelt: str) -> None:
    assert listening.exact(host) == spelt


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("127.0.0.1", "127.0.0.1"),
        ("127.0.0.1", "localhost"),
        ("::1", "LocalHost."),
        ("127.0.0.1", "a.localhost"),
        ("127.0.0.1", "127.1"),
        ("127.0.0.1", "::ffff:127.0.0.1"),
        ("a.test", "A.TEST."),
        ("0.0.0.0", "127.0.0.1"),
        ("0.0.0.0", "localhost"),
        ("0.0.0.0", "a.test"),
        ("0", "10.0.0.7"),
        ("::ffff:0.0.0.0", "10.0.0.7"),
        ("::", "10.0.0.7"),
        ("::", "0.0.0.0"),
        ("::", "fd00::1"),
        ("::", "a.test"),
    ],
)
def test_hosts_that_share_an_address(one: str, other: str) -> None:
    assert listening.overlap(one, other)
    assert listening.overlap(other, one)


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("127.0.0.1", "127.0.0.2"),
        ("127.0.0.1", "::1"),
        ("0.0.0.0", "::1"),
        ("0.0.0.0", "fd00::1"),
        ("localhost", "10.0.0.7"),
        ("notlocalhost", "127.0.0.1"),
        ("a.test", "b.test"),
    ],
)
def test_hosts_that_share_none_as_far_as_nobody_is_asked(one: str, other: str) -> None:
    assert not listening.overlap(one, other)
    assert not listening.overlap(other, one)
