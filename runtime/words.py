"""Somebody else's words, as they may stand in logs, errors and answers to people."""

import json

MAX_TEXT = 300


def line(text: str) -> str:
    """In one line of printable ASCII, of MAX_TEXT characters at most."""
    return json.dumps(" ".join(text.split()), ensure_ascii=True)[1:-1][:MAX_TEXT]
