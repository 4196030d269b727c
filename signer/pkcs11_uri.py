"""Which PKCS#11 token, and which private key in it, an URI (RFC 7512) names: the CA's above, or the signer's own."""

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
_TOKEN_NAMES = ("token", "serial")
_QUERY_NAMES = ("module-path", "pin-source")
_WANTED = "pkcs11:token=NAME;object=NAME?module-path=/PATH&pin-source=file:/PATH"
_WANTED_TOKEN = "pkcs11:token=NAME?module-path=/PATH&pin-source=file:/PATH"


@dataclass(frozen=True, slots=True)
class TokenUri:
    """A token, as `KeyUri` names it."""

    module: Path
    token: str
    serial: str
    pin_file: Path | None

    def __str__(self) -> str:
        return _written({"token": self.token, "serial": self.serial}, b"", self.module, self.pin_file)


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
        return _written(named, self.id, self.module, self.pin_file)


def parse(text: str) -> KeyUri:
    """A pkcs11: URI, of whose attributes (2.3) those are known that name a key, its token, its module, a PIN's file.

    Others are refused, since a key that they would exclude must not be used. Raises ValueError, in whose text nothing
    of it is repeated: it may hold a PIN.
    """
    named, asked = _halves(text, _PATH_NAMES, _WANTED)
    if named.get("type", b"private") != b"private":
        raise ValueError(f"{_WANTED}; type, where it is given, is private")
    token = _token(named, asked, _WANTED)
    label, number = _text(named, "object", _WANTED), named.get("id", b"")
    if not (label or number):
        raise ValueError(f"{_WANTED}; it names no key: give object, id, or both")
    return KeyUri(token.module, token.token, token.serial, label, number, token.pin_file)


def parse_token(text: str) -> TokenUri:
    """The same of a token without a key: those are made there, and get their names. Raises ValueError."""
    named, asked = _halves(text, _TOKEN_NAMES, _WANTED_TOKEN)
    return _token(named, asked, _WANTED_TOKEN)


def _halves(text: str, known: tuple[str, ...], wanted: str) -> tuple[Mapping[str, bytes], Mapping[str, bytes]]:
    scheme, colon, rest = text.partition(":")
    if scheme != "pkcs11" or not colon or len(text) > MAX_URI:
        raise ValueError(wanted)
    path, _, query = rest.partition("?")
    named = _attributes(path, ";", _PATH_VALUE, known, wanted)
    return named, _attributes(query, "&", _QUERY_VALUE, _QUERY_NAMES, wanted)


def _token(named: Mapping[str, bytes], asked: Mapping[str, bytes], wanted: str) -> TokenUri:
    found = TokenUri(
        module=_file(asked, "module-path", wanted),
        token=_text(named, "token", wanted),
        serial=_text(named, "serial", wanted),
        pin_file=_file(asked, "pin-source", wanted) if "pin-source" in asked else None,
    )
    if not (found.token or found.serial):
        raise ValueError(f"{wanted}; it names no token: give token, serial, or both")
    return found


def _written(named: Mapping[str, str], number: bytes, module: Path, pin_file: Path | None) -> str:
    parts = [f"{name}={quote(value, safe='')}" for name, value in named.items() if value]
    parts += [f"id={''.join(f'%{each:02X}' for each in number)}"] if number else []
    pin = f"&pin-source=file:{quote(str(pin_file))}" if pin_file is not None else ""
    return f"pkcs11:{';'.join(parts)}?module-path={quote(str(module))}{pin}"


def _attributes(
    text: str, between: str, form: re.Pattern[str], known: tuple[str, ...], wanted: str
) -> Mapping[str, bytes]:
    found: dict[str, bytes] = {}
    for each in text.split(between) if text else ():
        name, equals, value = each.partition("=")
        if name in ("pin-value", "module-name"):
            instead = "pin-source: a PIN belongs in a file" if name == "pin-value" else "module-path"
            raise ValueError(f"{wanted}; instead of {name} give {instead}")
        if name not in known or not equals or name in found or not form.fullmatch(value):
            raise ValueError(f"{wanted}, of {', '.join(known)} each once at most")
        found[name] = unquote_to_bytes(value)
    return found


def _text(found: Mapping[str, bytes], name: str, wanted: str) -> str:
    try:
        text = found.get(name, b"").decode()
    except UnicodeDecodeError:
        raise ValueError(f"{wanted}; {name} is not UTF-8") from None
    if not text.isprintable():
        raise ValueError(f"{wanted}; {name} has unprintable characters")
    return text


def _file(found: Mapping[str, bytes], name: str, wanted: str) -> Path:
    # 2.4: pin-source is an URI or a file's name.
    text = re.sub("^file:(//)?(?=/)", "", _text(found, name, wanted))
    if not text.startswith("/"):
        raise ValueError(f"{wanted}; {name} is an absolute path")
    return Path(text)
