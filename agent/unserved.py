"""What the agent does not load: Python's web servers and clients, and with them its mail.

Of prometheus_client the agent takes numbers and their text. It also has servers and a client of gateways, made of
these when it is loaded, which nobody here uses: they would be two megabytes of the process that has the keys. It is
loaded with empty classes in their place; whoever comes later finds the real ones.
"""

import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from importlib import import_module
from types import ModuleType

_PACKAGE = "prometheus_client"
# What it takes of each when it is loaded. Another version may take more: then it gets the real ones.
_STAND_INS = {
    "http.server": ("BaseHTTPRequestHandler",),
    "urllib.request": (
        "BaseHandler",
        "HTTPHandler",
        "HTTPRedirectHandler",
        "HTTPSHandler",
        "Request",
        "build_opener",
    ),
    "wsgiref.simple_server": ("WSGIRequestHandler", "WSGIServer", "make_server"),
}


@contextmanager
def _stand_ins() -> Iterator[None]:
    # What is loaded already is somebody's.
    made = {name: ModuleType(name) for name in _STAND_INS if name not in sys.modules}
    for name, module in made.items():
        vars(module).update({each: type(each, (), {}) for each in _STAND_INS[name]})
    sys.modules.update(made)
    try:
        yield
    finally:
        for name in made:
            del sys.modules[name]


def load() -> None:
    """Load prometheus_client so, unless it is there."""
    if _PACKAGE in sys.modules:
        return
    with suppress(Exception), _stand_ins():  # whatever it made of them
        import_module(_PACKAGE)
        return
    for name in [each for each in sys.modules if each.partition(".")[0] == _PACKAGE]:
        del sys.modules[name]
