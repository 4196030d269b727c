"""What a command printed for programs, held against what the documentation says of it."""

import json
from typing import Any

from docs import shapes


def described(command: str, text: str) -> Any:
    """The document. Fails where it has another shape than docs/output.md says."""
    document = json.loads(text)
    assert list(shapes.of(command).faults(document, command)) == []
    return document
