"""Text that others wrote, on its way to a person: in a message, or on a terminal."""

MAX_SHOWN = 1000
# Of one value in a message.
_VALUE = 80


def shown(value: str) -> str:
    """`value` as it may stand in a message: quoted, escaped and cut, since a pod's author may have written it."""
    return ascii(value if len(value) <= _VALUE else value[:_VALUE] + "…")


def printable(text: str) -> str:
    """`text` without what a terminal would obey instead of showing, on one line, and cut.

    A pod names its own processes, and anybody may write an event: neither is to draw on an administrator's screen.
    """
    shown = "".join(each if each.isprintable() else "\ufffd" for each in text[:MAX_SHOWN])
    return shown if len(text) <= MAX_SHOWN else f"{shown}…"
