"""Owns how commands lead to the documentation: to the site that PODSVID_DOCS_URL names, as agents and signers do."""

import os
from contextlib import suppress
from typing import Final

from runtime import advice

VARIABLE: Final = "PODSVID_DOCS_URL"
# What the line after an error begins with.
SEE: Final = "podsvid: see "


def site() -> str:
    """Where the site is; empty where nobody says it, or says what is no address."""
    with suppress(ValueError):
        return advice.address(os.environ.get(VARIABLE, ""))
    return ""


def where(code: str) -> str:
    """Where `code`, of a reason, is explained."""
    return advice.link(code, site())


def of_refusal(outcome: str) -> list[str]:
    """The line that leads on from what a signer made of a pod, where that is `refused: REASON: text`."""
    before, refused, text = outcome.partition("refused: ")
    code = advice.exact("", text) if refused and not before else ""
    return [f"see {where(code)}"] if code else []
