"""What a person sees while it goes on."""

import sys
import time


def say(message: str) -> None:
    """A line on stderr; the table alone is on stdout."""
    print(f"[peers {time.strftime('%H:%M:%S')}] {message}", file=sys.stderr, flush=True)
