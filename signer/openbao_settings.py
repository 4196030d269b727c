"""Where an OpenBao (or Vault) is that certifies the authorities, who the signer is there, and what contradicts that."""

import ipaddress
import re
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

from runtime.settings import Conflict

METHODS = ("kubernetes", "token", "approle", "cert")
_PATH = re.compile(r"[A-Za-z0-9_.-]{1,64}(/[A-Za-z0-9_.-]{1,64}){0,7}", re.ASCII)
# What each way of logging in cannot do without, and what is for it alone.
_NEEDS = {
    "kubernetes": ("openbao_role", "openbao_token_file"),
    "token": ("openbao_token_file",),
    "approle": ("openbao_role_id", "openbao_secret_id_file"),
    "cert": ("openbao_cert_file", "openbao_key_file"),
}
_MAY = {"cert": ("openbao_role",)}


def address(text: str) -> str:
    """An URL without a path. Raises ValueError."""
    wanted = "https://HOST:PORT; http:// only on the loopback"
    try:
        found = urlsplit(text)
        host, _ = found.hostname, found.port
    except ValueError:
        raise ValueError(wanted) from None
    plain = found.scheme == "http" and host is not None and _is_loopback(host)
    rest = found.path.strip("/") or found.query or found.fragment or "@" in found.netloc
    if not host or rest or not text.isascii() or len(text) > 512 or (found.scheme != "https" and not plain):
        raise ValueError(wanted)
    return f"{found.scheme}://{found.netloc}"


def path(text: str) -> str:
    """A mount, a namespace or an issuer, as it stands in URLs. Raises ValueError."""
    bare = text.strip("/")
    if not _PATH.fullmatch(bare) or any(set(part) <= {"."} for part in bare.split("/")):
        raise ValueError("a path such as pki or team/pki: letters, digits, ., _ and -")
    return bare


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


@dataclass(frozen=True, slots=True)
class OpenBaoSettings:
    """As the settings `openbao_*` have them; `roots` is upstream_bundle_file."""

    address: str | None
    mount: str
    issuer: str | None
    namespace: str | None
    ca_file: Path | None
    auth: str
    auth_mount: str | None
    role: str | None
    token_file: Path | None
    role_id: str | None
    secret_id_file: Path | None
    cert_file: Path | None
    key_file: Path | None
    roots: Path | None

    def conflicts(self, given: Collection[str]) -> Iterator[Conflict]:
        """What keeps these from being used; `given` are the settings that somebody said."""
        if self.address is None:
            yield Conflict(
                ("upstream", "openbao_address"), "say where OpenBao is, such as https://openbao.example:8200"
            )
        elif self.address.startswith("https://") and self.ca_file is None:
            yield Conflict(
                ("openbao_address", "openbao_ca_file"),
                "without the CA of its server certificate nobody knows whom the token is sent to; give its PEM file",
            )
        elif self.address.startswith("http://"):
            for name, wanted in (("openbao_ca_file", self.ca_file is not None), ("openbao_auth", self.auth == "cert")):
                if wanted:
                    yield Conflict(
                        ("openbao_address", name), "http:// has no certificates, neither its nor the signer's"
                    )
        needed = _NEEDS[self.auth]
        missing = [name for name in needed if getattr(self, name.removeprefix("openbao_")) is None]
        if missing:
            yield Conflict(("openbao_auth", *missing), f"login by {self.auth} needs {' and '.join(needed)}")
        all_of_them = {name for names in _NEEDS.values() for name in names}
        idle = sorted((all_of_them - {*needed, *_MAY.get(self.auth, ())}) & set(given))
        if idle:
            yield Conflict(
                ("openbao_auth", *idle), f"login by {self.auth} does not use {' and '.join(idle)}; leave it out"
            )
        if self.auth == "token" and self.auth_mount is not None:
            yield Conflict(
                ("openbao_auth", "openbao_auth_mount"), "a token is used as it is, there is no login; leave it out"
            )
