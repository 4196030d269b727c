"""The libraries with which clouds' CAs are asked: extras, looked for at the start and loaded when they are used."""

import importlib.util
import logging

from signer.upstream.certify import UpstreamUnusable


class NotInstalled(UpstreamUnusable):
    """The extra that this kind of CA takes is not there."""

    reason = "NOT_INSTALLED"


def check_installed(module: str, library: str, extra: str) -> None:
    """Raises NotInstalled."""
    try:
        found = importlib.util.find_spec(module)
    except ImportError:  # what it is a part of
        found = None
    if found is None:
        raise NotInstalled(f"{library} is not installed: pip install 'podsvid[{extra}]'")


def silence(*loggers: str) -> None:
    """Keep a library's own lines out of the log: they have what is sent and answered, credentials in it."""
    for each in loggers:
        logging.getLogger(each).setLevel(logging.CRITICAL)
