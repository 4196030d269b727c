"""What holds for all tests."""

import signal

from hypothesis import settings

# A property holds or does not; how long an example takes says something of the machine.
settings.register_profile("podsvid", deadline=None)
settings.load_profile("podsvid")


def pytest_configure() -> None:
    # A shell has its background jobs ignore this, and what they start inherits it: tests that interrupt would wait.
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)
