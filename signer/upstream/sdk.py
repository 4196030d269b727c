"""The libraries with which clouds' CAs are asked: extras, looked for at the start and loaded by processes of
their own."""

import importlib.util

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
