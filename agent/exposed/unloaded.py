"""What this process never loads: Python's TLS, and the copy of OpenSSL that only it and `hashlib` use.

No socket of a pod speaks TLS, and what verifies tokens and certificates brings an OpenSSL of its own. asyncio and
hashlib do without, as where Python is built without it; to them, and to whoever comes later, it is not there. It would
be five megabytes of a process of which a node has two, and one thing more in the process that pods can talk to.
"""

import sys
from importlib import import_module

# Python's own hashes, one of each line, by what they are called in 3.11 and since: some distributions leave out all or
# some. Where one is missing without OpenSSL's, `random` cannot be loaded, or hashlib complains at each start.
_OWN_HASHES = (
    (("_sha2",), ("_sha256", "_sha512")),
    (("_sha1",),),
    (("_sha3",),),
    (("_md5",),),
)


def _is_there(module: str) -> bool:
    try:
        import_module(module)
    except ImportError:
        return False
    return True


def _has_own_hashes() -> bool:
    return all(any(all(map(_is_there, modules)) for modules in ways) for ways in _OWN_HASHES)


for _name in ("_ssl", "ssl", *(["_hashlib"] if _has_own_hashes() else [])):
    # Where it is loaded already, this is another process's.
    if _name not in sys.modules:
        sys.modules[_name] = None  # type: ignore[assignment]
