"""Options that several commands have, each with one spelling and one meaning."""

import argparse

from podsvid.waiting import GIVEN_UP
from runtime import durations

_MOST = 86400.0 * 365


def seconds(text: str) -> float:
    """A duration such as 10s or 1m30s; a number alone is seconds. For argparse."""
    try:
        return durations.parse(text).total_seconds() or _refused(text)
    except durations.InvalidDuration:
        pass
    try:
        value = float(text)
    except ValueError:
        value = 0.0
    return value if 0 < value < _MOST else _refused(text)


def _refused(text: str) -> float:
    raise argparse.ArgumentTypeError(
        f"{text[:40]!r} is no time to wait: give whole numbers of d, h, m and s, such as 10s or 1m30s, or seconds"
    )


def add_timeout(parser: argparse.ArgumentParser, default: float | None = GIVEN_UP, what: str = "all in all") -> None:
    """--timeout, after which a command gives up."""
    shown = "waits for ever" if default is None else f"{default:g}s"
    parser.add_argument(
        "--timeout",
        type=seconds,
        default=default,
        metavar="DURATION",
        help=f"give up after this, {what}, such as 10s or 1m (default: {shown})",
    )
