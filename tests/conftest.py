"""What holds for all tests."""

import faulthandler
import os
import signal
from collections.abc import Generator

import pytest
from hypothesis import settings

# A property holds or does not; how long an example takes says something of the machine.
settings.register_profile("podsvid", deadline=None)
settings.load_profile("podsvid")

_STDERR = pytest.StashKey[int]()


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addini(
        "hung_after", "seconds that a test has after its timeout; then pytest prints all stacks and ends", default="90"
    )


def pytest_configure(config: pytest.Config) -> None:
    # A shell has its background jobs ignore this, and what they start inherits it: tests that interrupt would wait.
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)
    # Before anything is captured: what is said of a test that hangs must be seen.
    config.stash[_STDERR] = os.dup(2)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_protocol(item: pytest.Item) -> Generator[None, object, object]:
    # A timeout raises once: who then hangs while cleaning up, or in C code, would hang for ever and nobody knew where.
    limit = item.get_closest_marker("timeout")
    seconds = float(limit.args[0] if limit else item.config.getini("timeout")) + float(item.config.getini("hung_after"))
    faulthandler.dump_traceback_later(seconds, exit=True, file=item.config.stash[_STDERR])
    try:
        return (yield)
    finally:
        faulthandler.cancel_dump_traceback_later()
