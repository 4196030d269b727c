"""The libraries with which clouds' CAs are asked: extras, looked for at the start and loaded by processes of
their own."""

import importlib.util
import time
from collections.abc import Callable
from typing import TypeAlias

from runtime.extras import not_installed
from signer.clouds.process import Cloud, CloudProcess, Service
from signer.upstream.certify import UpstreamUnusable

# With what a cloud is asked, as long as one call takes.
Begin: TypeAlias = Callable[[Service], Cloud]


def begun(service: Service) -> Cloud:
    """By a process of its own: certificates are asked for once in weeks, and nothing of it runs between."""
    return CloudProcess(service, time.monotonic)


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
        raise NotInstalled(not_installed(library, extra))
