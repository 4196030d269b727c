"""What somebody who reaches the signer's port could do to it, each kind in a process of its own and bounded in time.

    python -m bench.strangers --mix --minutes 10 [--json]
    python -m bench.strangers --seconds 5 [--from ADDRESS[/ADDRESSES]] KIND SITE

The first: all kinds at once against a signer in 1 GiB, while honest agents mint (bench.mix). The second: one of them;
SITE is what tests.signer_process wrote. Raw HTTP/2 over TLS, from one address after the other; `reports` by gRPC,
from one. Prints `attacking` when it begins and at its end a count of what it did. All kinds but the last two have no
token; those have the token of one node's agent.
"""

import argparse
import ipaddress
import itertools
import json
import random
import socket
import ssl
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any, Final

import grpc

from bench import mix
from bench.attacks import DATA, END_HEADERS, HEADERS, LARGE, PREFACE, SETTINGS, frame, large, literal, split
from signer.pb import signer_pb2
from svid.dnsnames import SIGNER_NAME

ACK = 1
SERVICE = b"/podsvid.signer.v1.Signer/"
MINT, WATCH = SERVICE + b"MintX509SVID", SERVICE + b"WatchTrust"
MB: Final = 1 << 20
# Connections that one attacker keeps open at once.
KEPT = 200
# How often one asks for eight streams on a connection that it has.
ROUNDS = 20
# Seconds that an attacker waits for the signer before it goes on elsewhere.
PATIENCE = 2.0
# Its last node is the attackers'; nobody measures what that one gets.
STOLEN = -1


@dataclass(frozen=True)
class Target:
    """The signer, the addresses that the attack comes from in turn, and what was stolen of one node."""

    address: tuple[str, int]
    sources: Iterator[str]
    token: bytes
    seconds: float
    roots: bytes

    def connect(self) -> socket.socket:
        """A TCP connection. Raises OSError."""
        return socket.create_connection(self.address, timeout=PATIENCE, source_address=(next(self.sources), 0))

    def speaking(self, *, acknowledge: bool = False) -> ssl.SSLSocket:
        """A connection that speaks HTTP/2, and acknowledges the signer's limits or never does. Raises OSError."""
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
        context.set_alpn_protocols(["h2"])
        raw = self.connect()
        try:
            found = context.wrap_socket(raw)
            found.sendall(PREFACE + frame(SETTINGS, 0, 0) + (frame(SETTINGS, ACK, 0) if acknowledge else b""))
        except OSError:
            raw.close()
            raise
        return found


def head(path: bytes, *more: tuple[bytes, bytes]) -> bytes:
    """A call's header block."""
    fields = [(b":path", path), (b":authority", b"x"), (b"te", b"trailers"), (b"content-type", b"application/grpc")]
    return b"\x83\x87" + b"".join(literal(*each) for each in (*fields, *more))


def bearer(token: bytes) -> tuple[bytes, bytes]:
    return b"authorization", b"Bearer " + token


def bad_token() -> bytes:
    """Of a service account token's form, another one each time."""
    return b"eyJhbGciOiJSUzI1NiIsImtpZCI6Im5vbmUifQ." + random.randbytes(200).hex().encode() + b".eHh4"


class Crowd:
    """Connections that are kept open, the newest so many of them."""

    def __init__(self) -> None:
        self._kept: list[socket.socket] = []

    def keep(self, found: socket.socket) -> None:
        self._kept.append(found)
        if len(self._kept) > KEPT:
            with suppress(OSError):
                self._kept.pop(0).close()


def until(seconds: float) -> Iterator[int]:
    """Numbers, until the time is over."""
    ends, number = time.monotonic() + seconds, 0
    while time.monotonic() < ends:
        yield number
        number += 1


def silent(target: Target) -> int:
    """Connections that say nothing."""
    crowd, done = Crowd(), 0
    for _ in until(target.seconds):
        with suppress(OSError):
            crowd.keep(target.connect())
            done += 1
    return done


def _calls(target: Target, blocks: Callable[[int], bytes], per: int = 1000) -> int:
    """Connections on which one call after the other is begun and never ended."""
    crowd, done = Crowd(), 0
    for _ in until(target.seconds):
        with suppress(OSError):
            found = target.speaking()
            crowd.keep(found)
            for number in range(per):
                found.sendall(blocks(2 * number + 1))
                done += 1
    return done


def headers(target: Target) -> int:
    """Calls of which only the headers come."""
    block = head(MINT)
    return _calls(target, lambda stream: frame(HEADERS, END_HEADERS, stream, block))


def partial(target: Target) -> int:
    """Calls with 60 kB of a message of 1 MB, and never the rest."""
    block, body = head(MINT), b"\0" + MB.to_bytes(4, "big") + bytes(60_000)
    parts = [body[at : at + 16_000] for at in range(0, len(body), 16_000)]

    def call(stream: int) -> bytes:
        return frame(HEADERS, END_HEADERS, stream, block) + b"".join(frame(DATA, 0, stream, each) for each in parts)

    return _calls(target, call)


def big(target: Target) -> int:
    """Calls with 15 MB of headers."""
    block = head(MINT, *large(LARGE))
    return _calls(target, lambda stream: split(stream, block), per=4)


def indexed(target: Target) -> int:
    """Calls with as many headers as there is room for, of one byte each, and a token that has to be looked at."""

    def call(stream: int) -> bytes:
        return split(stream, head(MINT, bearer(bad_token())) + b"\x8f" * 3_000)

    return _calls(target, call, per=8)


def tokens(target: Target) -> int:
    """Calls with bad tokens, another one in each."""

    def call(stream: int) -> bytes:
        return frame(HEADERS, END_HEADERS, stream, head(MINT, bearer(bad_token())))

    return _calls(target, call, per=8)


def reports(target: Target) -> int:
    """An agent's trust streams, eight of them, with messages of 1 MB, by a client that keeps to all rules of HTTP/2."""
    uses = [signer_pb2.AuthorityUse(authority_id=f"{number:040x}", svids=1) for number in range(MB // 46)]
    body = signer_pb2.WatchTrustRequest(acknowledged_sequence=1, in_use=uses).SerializeToString()
    credentials = grpc.ssl_channel_credentials(target.roots)
    options = (("grpc.default_authority", SIGNER_NAME), ("grpc.ssl_target_name_override", SIGNER_NAME))
    metadata, done, ends = (("authorization", f"Bearer {target.token.decode()}"),), 0, time.monotonic() + target.seconds

    def messages() -> Iterator[bytes]:
        nonlocal done
        while time.monotonic() < ends:
            done += 1
            yield body

    def connected(channel: grpc.Channel) -> None:
        watch = channel.stream_stream(WATCH.decode(), request_serializer=bytes, response_deserializer=bytes)
        # Known by one call alone: what several bring at once is more than a stranger may send.
        next(iter(watch(iter((b"",)), metadata=metadata, timeout=PATIENCE)))
        for _ in range(ROUNDS):
            streams = [watch(messages(), metadata=metadata, timeout=PATIENCE) for _ in range(8)]
            for each in streams:
                with suppress(grpc.RpcError):
                    for _ in each:
                        pass

    for _ in until(target.seconds):
        with (
            suppress(grpc.RpcError, StopIteration),
            grpc.secure_channel("{}:{}".format(*target.address), credentials, options) as channel,
        ):
            connected(channel)
    return done


def stolen(target: Target) -> int:
    """An agent's mints that never get their message."""
    block = head(MINT, bearer(target.token))
    return _calls(target, lambda stream: frame(HEADERS, END_HEADERS, stream, block) + frame(DATA, 0, stream, bytes(3)))


KINDS: Mapping[str, Callable[[Target], int]] = MappingProxyType(
    {each.__name__: each for each in (silent, headers, partial, big, indexed, tokens, reports, stolen)}
)


def target(site: Mapping[str, Any], source: str, seconds: float) -> Target:
    """As the signer's own file says."""
    host, _, port = site["address"].rpartition(":")
    token = site["agents"][STOLEN].encode()
    return Target((host, int(port)), itertools.cycle(addresses(source)), token, seconds, mix.roots(site))


def addresses(source: str) -> list[str]:
    """`127.8.0.1/3` are that address and the two after it. Raises ValueError."""
    first, _, number = source.partition("/")
    return [str(ipaddress.ip_address(first) + more) for more in range(int(number or 1))]


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m bench.strangers", description=__doc__)
    parser.add_argument("--seconds", type=float, default=5.0)
    parser.add_argument("--from", dest="source", default="127.0.0.1")
    mix.add_arguments(parser)
    parser.add_argument("kind", nargs="?", choices=KINDS)
    parser.add_argument("site", nargs="?", type=Path)
    arguments = parser.parse_args()
    if arguments.mix:
        return mix.main(arguments, list(KINDS))
    if arguments.site is None:
        parser.error("name a kind and a site, or --mix")
    found = target(json.loads(arguments.site.read_text()), arguments.source, arguments.seconds)
    print("attacking", flush=True)
    print(KINDS[arguments.kind](found))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
