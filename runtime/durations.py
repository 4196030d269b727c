"""How long: the one grammar in which people write durations, here and to be read in every answer.

`[Nd][Nh][Nm][Ns]`: whole numbers of days, hours, minutes and seconds, in that order, at least one of them. Settings,
policies, volumeAttributes and flags are read by it; the schemas of the CRDs and of the chart have it as their pattern.
"""

import re
from datetime import timedelta

_SECONDS = {"d": 86400, "h": 3600, "m": 60, "s": 1}
# As a schema has it. It takes the empty text, too: MIN_LENGTH is not part of a regular expression without look-ahead.
PATTERN = "^" + "".join(f"([0-9]{{1,9}}{unit})?" for unit in _SECONDS) + "$"
MIN_LENGTH, MAX_LENGTH = 2, 24
# A century: what is longer is a mistake, and no instant could be reckoned with it.
MAX = timedelta(days=36500)
# What an SVID may live at all.
MIN_TTL, MAX_TTL = timedelta(seconds=2), timedelta(days=90)
_FORM = re.compile(PATTERN[1:-1], re.ASCII)


class InvalidDuration(ValueError):
    """A text is no duration, or one out of bounds; the message says what is accepted."""


def parse(text: str, least: timedelta = timedelta(0), most: timedelta = MAX) -> timedelta:
    """The duration that `text` says, of whole seconds. Raises InvalidDuration."""
    found = _FORM.fullmatch(text) if MIN_LENGTH <= len(text) <= MAX_LENGTH else None
    if found is None:
        raise InvalidDuration(accepted(least, most))
    numbers = (int(part[:-1]) if part else 0 for part in found.groups())
    seconds = sum(number * size for number, size in zip(numbers, _SECONDS.values(), strict=True))
    if not least.total_seconds() <= seconds <= most.total_seconds():
        raise InvalidDuration(accepted(least, most))
    return timedelta(seconds=seconds)


def accepted(least: timedelta = timedelta(0), most: timedelta = MAX) -> str:
    """What `parse` accepts, for people."""
    bounds = f" from {text(least)} to {text(most)}" if (least, most) != (timedelta(0), MAX) else ""
    return f"a duration{bounds}: whole numbers of d, h, m and s in this order, such as 90s, 1h30m or 7d"


def text(duration: timedelta) -> str:
    """`duration` as it is written, to the second; `parse` reads it again. None is negative."""
    left, parts = round(max(duration, timedelta(0)).total_seconds()), []
    for unit, size in _SECONDS.items():
        number, left = divmod(left, size)
        if number:
            parts.append(f"{number}{unit}")
    return "".join(parts) or "0s"


def about(seconds: float) -> str:
    """How long ago or until then, as one rounded number of the largest unit that says enough."""
    for unit, size in _SECONDS.items():
        if size > 1 and seconds >= 2 * size:
            return f"{seconds / size:.0f}{unit}"
    return f"{seconds:.0f}s"
