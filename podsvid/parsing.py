"""The command line's grammar: what argparse refuses is one line here, too."""

import argparse
import re
from typing import NoReturn

from podsvid.outcome import WrongUsage

_CHOICE = re.compile(r"invalid choice: '(.*)' \(choose from (.*)\)", re.DOTALL)
_LONGEST = 300


class Parser(argparse.ArgumentParser):
    """Raises WrongUsage where argparse prints its usage and ends the process."""

    def error(self, message: str) -> NoReturn:
        """Raise WrongUsage."""
        raise WrongUsage(f"{_told(message)}; see {self.prog} --help")


def _told(message: str) -> str:
    found = _CHOICE.search(message)
    if found is not None:
        from difflib import get_close_matches

        near = get_close_matches(found[1], re.findall(r"'([^']*)'", found[2]), 1)
        message = message.replace(found[1], _cut(found[1]), 1) + (f"; did you mean {near[0]}?" if near else "")
    return " ".join(_cut(message, 3 * _LONGEST).split())


def _cut(text: str, most: int = _LONGEST) -> str:
    return text if len(text) <= most else text[:most] + "…"
