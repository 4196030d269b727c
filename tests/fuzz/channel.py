"""The private channel's two ends, as functions of bytes: what came is refused whole, or is within its bounds."""

import logging
from collections.abc import Callable, Iterable
from typing import Any

from agent.channel import messages
from agent.channel.snapshots import Reader
from agent.metrics import Metrics
from agent.servers.reports import LOGGERS, Allowance, Log, Tally
from agent.servers.weights import Weights
from runtime.frames import LENGTH, BadFrame, Frames
from svid.errors import SvidError
from svid.jwtsvid import MAX_AUDIENCE_BYTES, MAX_AUDIENCES
from tests.fuzz.made import made

# The longest of a report's parts that becomes a line of the log, in characters.
_LINE = 512 + 16 * (128 + 16 * 1024)


def reports(data: bytes) -> None:
    """What the exposed process sends: the same however it is cut; labels and loggers stay those that there are."""
    found = read(lambda: Frames(messages.reports(), messages.MAX_REPORT), messages.Report, messages.MAX_REPORT, data)
    metrics, lines = Metrics(), Lines()
    tally, log = Tally(metrics, Allowance(1.0, 1000, lambda: 0.0)), Log(Allowance(1.0, 1000, lambda: 0.0))
    weights = Weights({0: "a", 1: "b"}.get, lambda: 0.0)
    root = logging.getLogger("podsvid")
    root.addHandler(lines)
    try:
        for report in found:
            match report:
                case messages.Counted():
                    tally.take(report)
                case messages.Said():
                    log.take(report)
                case messages.Wanted():
                    assert 0 < len(report.audiences) <= MAX_AUDIENCES
                    assert all(0 < len(each) <= MAX_AUDIENCE_BYTES for each in report.audiences)
                    assert 0 < len(report.spiffe_id) <= messages.MAX_ID_BYTES
                case messages.Seen():
                    assert len(report.calls) <= 1024
                    assert len(report.peers) <= 1024
                case messages.Ready():
                    assert len(report.lacking) <= 16
                case messages.Weighed():
                    assert len(report.volumes) <= messages.MOST_WEIGHED
                    weights.take(report)
                    assert set(weights.by_pod()) <= {"a", "b"}
                    assert all(0 <= weight < 1e12 for weight in weights.by_pod().values())
                case messages.Opened():
                    assert len(report.error) <= 16 * 1024
                    assert 0 <= report.volume < 2**53
                case messages.Closed():
                    assert 0 <= report.volume < 2**53
    finally:
        root.removeHandler(lines)
    for line in lines.found:
        assert line.name in (*LOGGERS, "podsvid.exposed")
        assert logging.DEBUG <= line.levelno <= logging.ERROR
        assert vars(line)["said_by"] == "exposed"
        assert sum(len(value) for value in vars(line).values() if isinstance(value, str)) <= _LINE + 4096
    labels = {sample.labels.get("method") for each in metrics.registry.collect() for sample in each.samples}
    assert labels <= {None, *messages.METHODS}


def orders(data: bytes) -> None:
    """What the exposed process is told: the same however it is cut; a snapshot is refused as an SVID is, or read."""
    reader = Reader()
    most = messages.MAX_SNAPSHOT
    for order in read(lambda: Frames(messages.orders(), most), messages.Order, most, data):
        snapshot = order.snapshot if isinstance(order, messages.Open | messages.Changed) else None
        if snapshot is not None:
            try:
                identity = reader.identity(snapshot)
            except SvidError as error:
                assert len(str(error)) < 4096
                continue
            assert len(identity.svids) == len(snapshot.svids)


class Lines(logging.Handler):
    """What was logged."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[logging.LogRecord] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.found.append(record)


def read(make: Callable[[], Frames[Any]], union: Any, most: int, data: bytes) -> list[Any]:
    """What there is in `data` as it comes, as one message with the length it has, and as what a message is made of."""
    body, kind, fits = made(union, data)
    built, refused = _fed(make(), [framed(body)])
    assert refused != (fits and len(body) <= most), f"{kind}: {'refused' if refused else 'taken'}"
    assert [str(each.__struct_config__.tag) for each in built] == ([] if refused else [kind])
    return [*_cut(make, data), *_fed(make(), [framed(data)])[0], *built]


def framed(body: bytes) -> bytes:
    """With its length before it."""
    return len(body).to_bytes(LENGTH, "big") + body


def _cut(make: Any, data: bytes) -> list[Any]:
    """The messages in `data`, which are the same whether it comes at once or byte by byte."""
    whole, ended = _fed(make(), [data])
    pieces, ended_too = _fed(make(), (data[at : at + 1] for at in range(len(data))))
    # Of what comes at once nothing is taken when a part of it is bad.
    assert ended == ended_too
    assert whole == pieces or (ended and whole == [])
    return pieces


def _fed(frames: Frames[Any], parts: Iterable[bytes]) -> tuple[list[Any], bool]:
    found = []
    for part in parts:
        try:
            found += frames.feed(part)
        except BadFrame as error:
            assert len(str(error)) < 4096
            return found, True
    return found, False
