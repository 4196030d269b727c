"""How the texts of the signer's own kinds of settings are read."""

import re
from pathlib import Path

from runtime.settings import matching
from svid.keys import KeyAlgorithm

name = matching(
    re.compile(r"[a-z0-9]([-a-z0-9.]{0,251}[a-z0-9])?", re.ASCII),
    "a Kubernetes name: lower-case letters, digits, dashes and dots",
)
namespace = matching(re.compile(r"[a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?", re.ASCII), "a namespace's name")
printable = matching(re.compile(r"[!-~]{1,256}"), "printable characters without spaces")
label_selector = matching(re.compile(r"[-A-Za-z0-9_./=!, ()]{0,1024}"), "a label selector")
_NAMESPACE_FILE = Path("/var/run/secrets/kubernetes.io/serviceaccount/namespace")


def own_namespace() -> str:
    """That of this pod; outside of one the usual one."""
    try:
        return _NAMESPACE_FILE.read_text(encoding="utf-8").strip()
    except OSError:
        return "podsvid"


def path_template(text: str) -> str:
    """A template of SPIFFE IDs' paths. Raises ValueError, as all of these do."""
    if not text.startswith("/") or len(text) > 1024:
        raise ValueError("a path such as /ns/{namespace}/sa/{service_account}")
    return text


def key_algorithm(text: str) -> KeyAlgorithm:
    """A key algorithm by its word."""
    try:
        return KeyAlgorithm(text)
    except ValueError:
        raise ValueError("one of " + ", ".join(KeyAlgorithm)) from None
