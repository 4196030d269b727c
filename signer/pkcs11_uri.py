"""Which private key of which PKCS#11 token the CA above has, as an URI (RFC 7512)."""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import quote, unquote_to_bytes

MAX_URI = 2048
# RFC 7512 2.3 pk11-pchar and pk11-qchar: what stands for itself, and what is written as %XX.
_PATH_VALUE = re.compile(r"(?:[A-Za-z0-9\-._~:\[\]@!$'()*+,=&]|%[0-9A-Fa-f]{2})*", re.ASCII)
_QUERY_VALUE = re.compile(r"(?:[A-Za-z0-9\-._~:\[\]@!$'()*+,=/?|]|%[0-9A-Fa-f]{2})*", re.ASCII)
_PATH_NAMES = ("token", "serial", "object", "id", "type")
_QUERY_NAMES = ("module-path", "pin-source")
_WANTED = "pkcs11:token=NAME;object=NAME?module-path=/PATH&pin-source=file:/PATH"


@dataclass(frozen=True, slots=True)
class KeyUri:
    """A private key in a token: by the token's label, serial number, or both, and by its own label, id, or both.

    `module` is the vendor's library, loaded by a process of its own; `pin_file` holds the user's PIN, and None is for a
    token that asks for none.
    """

    module: Path
    token: str
    serial: str
    label: str
    id: bytes
    pin_file: Path | None

    def __str__(self) -> str:
        named = {"token": self.token, "serial": self.serial, "object": self.label}
        parts = [f"{name}={quote(value, safe='')}" for name, value in named.items() if value]
        parts += [f"id={''.join(f'%{each:02X}' for each in self.id)}"] if self.id else []
        query = f"module-path={quote(str(self.module))}"
        pin = f"&pin-source=file:{quote(str(self.pin_file))}" if self.pin_file is not None else ""
        return f"pkcs11:{';'.join(parts)}?{query}{pin}"


def parse(text: str) -> KeyUri:
    """A pkcs11: URI, of whose attributes (2.3) those are known that name a key, its token, its module, a PIN's file.

    Others are refused, since a key that they would exclude must not be used. Raises ValueError, in whose text nothing
    of it is repeated: it may hold a PIN.
    """
    scheme, colon, rest = text.partition(":")
    if scheme != "pkcs11" or not colon or len(text) > MAX_URI:
        raise ValueError(_WANTED)
    path, _, query = rest.partition("?")
    named = _attributes(path, ";", _PATH_VALUE, _PATH_NAMES)
    asked = _attributes(query, "&", _QUERY_VALUE, _QUERY_NAMES)
    if named.get("type", b"private") != b"private":
        raise ValueError(f"{_WANTED}; type, where it is given, is private")
    found = KeyUri(
        module=_file(asked, "module-path"),
        token=_text(named, "token"),
        serial=_text(named, "serial"),
        label=_text(named, "object"),
        id=named.get("id", b""),
        pin_file=_file(asked, "pin-source") if "pin-source" in asked else None,
    )
    if not (found.token or found.serial):
        raise ValueError(f"{_WANTED}; it names no token: give token, serial, or both")
    if not (found.label or found.id):
        raise ValueError(f"{_WANTED}; it names no key: give object, id, or both")
    return found


def _attributes(text: str, between: str, form: re.Pattern[str], known: tuple[str, ...]) -> Mapping[str, bytes]:
    found: dict[str, bytes] = {}
    for each in text.split(between) if text else ():
        name, equals, value = each.partition("=")
        if name in ("pin-value", "module-name"):
            instead = "pin-source: a PIN belongs in a file" if name == "pin-value" else "module-path"
            raise ValueError(f"{_WANTED}; instead of {name} give {instead}")
        if name not in known or not equals or name in found or not form.fullmatch(value):
            raise ValueError(f"{_WANTED}, of {', '.join(known)} each once at most")
        found[name] = unquote_to_bytes(value)
    return found


def _text(found: Mapping[str, bytes], name: str) -> str:
    try:
        text = found.get(name, b"").decode()
    except UnicodeDecodeError:
        raise ValueError(f"{_WANTED}; {name} is not UTF-8") from None
    if not text.isprintable():
        raise ValueError(f"{_WANTED}; {name} has unprintable characters")
    return text


def _file(found: Mapping[str, bytes], name: str) -> Path:
    # 2.4: pin-source is an URI or a file's name.
    text = re.sub("^file:(//)?(?=/)", "", _text(found, name))
    if not text.startswith("/"):
        raise ValueError(f"{_WANTED}; {name} is an absolute path")
    return Path(text)
