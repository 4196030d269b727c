"""Ends processes that a test started: never waits for one longer than it may take."""

import signal
import subprocess

STOP_SECONDS = 20.0


def end(process: "subprocess.Popen[bytes]", number: signal.Signals = signal.SIGTERM) -> bool:
    """Send it that signal, and SIGKILL when it has not ended STOP_SECONDS later; whether it ended by itself.

    A program that others wrote may hang on its way out, and a run of all tests with it.
    """
    process.send_signal(number)
    try:
        process.wait(STOP_SECONDS)
    except subprocess.TimeoutExpired:
        return False
    finally:
        process.kill()
        process.wait()
    return True
