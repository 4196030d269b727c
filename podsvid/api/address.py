"""Where a Workload API is: addresses as people and SPIFFE_ENDPOINT_SOCKET give them, checked."""

import re

from podsvid.api.errors import InvalidAddress, shown

# RFC 3986 section 3.3, one segment or more.
_URI_PATH = re.compile(r"/(?:[A-Za-z0-9._~!$&'()*+,;=:@/-]|%(?!00)[0-9A-Fa-f]{2})+", re.ASCII)
# Of a socket's address (sun_path), without the zero at its end.
_LONGEST = 107
_TCP = re.compile(r"//(?:\[([0-9A-Fa-f:.]+)\]|([0-9.]+)):([0-9]{1,5})", re.ASCII)


def target(address: str) -> str:
    """A gRPC target from a Workload Endpoint address (section 4), or from an absolute path. Raises InvalidAddress.

    Parsed by hand: URL libraries strip and complete what the specification refuses.
    """
    if address.startswith("/"):
        return _socket(address, _quoted(address))
    scheme, _, rest = address.partition(":")
    if scheme.lower() == "unix":
        path = rest.removeprefix("//")
        if _URI_PATH.fullmatch(path):
            return _socket(address, path)
        raise InvalidAddress(f"{shown(address)} is not unix:///PATH: an absolute path, without host, query or fragment")
    if scheme.lower() == "tcp":
        found = _tcp(rest)
        if found is not None:
            return found
        raise InvalidAddress(f"{shown(address)} is not tcp://IP:PORT: an IP address, never a name, and nothing else")
    raise InvalidAddress(f"{shown(address)} is not unix:///PATH, tcp://IP:PORT or an absolute path")


def _socket(address: str, path: str) -> str:
    if len(re.sub("%..", "_", path)) > _LONGEST:
        raise InvalidAddress(f"{shown(address)} is longer than a socket's {_LONGEST} bytes: make a symbolic link to it")
    return f"unix:{path}"


def _quoted(path: str) -> str:
    # gRPC decodes a target as a URI; a path given as such means what it says.
    octets = path.encode("utf-8", "surrogateescape").decode("latin-1")
    return "".join(c if _URI_PATH.fullmatch(f"/{c}") else f"%{ord(c):02X}" for c in octets)


def _tcp(rest: str) -> str | None:
    match = _TCP.fullmatch(rest)
    if match is None or not 1 <= int(match[3]) <= 65535:
        return None
    from ipaddress import ip_address

    try:
        ip = ip_address(match[1] or match[2])
    except ValueError:
        return None
    if (ip.version == 6) != bool(match[1]):
        return None
    return f"ipv6:[{ip}]:{match[3]}" if ip.version == 6 else f"ipv4:{ip}:{match[3]}"
