"""volumeAttributes: the one table of what a pod's author may choose, and the parser that reads it.

Everything here is hostile input, and nothing here decides who the pod is. docs/volumes.md is generated from the table.
"""

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, TypeAlias

from csi import layout
from csi.errors import InvalidRequest
from csi.model import JwtFile, VolumeOptions
from csi.profile import FS_GROUP_OF_CERT_MANAGER, PROFILES, Profile
from runtime import durations
from runtime.terminal import shown
from svid.authority import is_dns_name
from svid.jwtsvid import MAX_AUDIENCE_BYTES
from svid.keys import KeyAlgorithm

# The fields of VolumeOptions that a value sets. A ValueError's text says what is accepted.
_Parse: TypeAlias = Callable[[str], dict[str, Any]]
MAX_ID = 2**31 - 1
MAX_JWT_FILES = 8
# Of all of them together: a token for many lets each of these act as the pod towards the others.
MAX_JWT_AUDIENCES = 12
MAX_DNS_NAMES = 16
MODES = ("0400", "0440", "0444", "0600", "0640", "0644")
KEYSTORE_ALGORITHMS = (
    KeyAlgorithm.EC_P256,
    KeyAlgorithm.EC_P384,
    KeyAlgorithm.RSA_2048,
    KeyAlgorithm.RSA_3072,
    KeyAlgorithm.RSA_4096,
)
_FILE_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,62}", re.ASCII)
# Of a wish; what is granted of it is the authority's to say.
_MIN_TTL, _MAX_TTL = timedelta(seconds=1), timedelta(days=366)
# Characters of a value, which is kept as long as the volume, also in the journal: twice what the longest list needs.
MAX_LENGTH = 8192
# What may stand around a part of a list, as YAML folds lines.
_BLANK = " \t\r\n"
_PASSWORD = re.compile(r"[!-~]{6,128}", re.ASCII)


@dataclass(frozen=True, slots=True)
class Attribute:
    """One key of volumeAttributes: what it is for, what it accepts, what holds without it."""

    name: str
    help: str
    accepted: str
    default: str
    parse: _Parse


def parse_attributes(given: Mapping[str, str], profile: Profile = PROFILES["podsvid"]) -> VolumeOptions:
    """The options of a volume of a driver with `profile`. Raises InvalidRequest naming what is accepted."""
    accepted = {each.name: each for each in ATTRIBUTES} | {
        each.name: each for each in FOREIGN_ATTRIBUTES if each.name in profile.attributes
    }
    fields: dict[str, Any] = {"layout": profile.layout, "profile": profile.name}
    # A foreign attribute wins over podsvid's own: it stands in a manifest that was written for that driver.
    for name in sorted(given, key=lambda name: (name in profile.attributes, name)):
        if name not in accepted:
            raise InvalidRequest(f"volumeAttributes has unknown {shown(name)}; accepted: {', '.join(accepted)}")
        if len(given[name]) > MAX_LENGTH:
            raise InvalidRequest(
                f"volumeAttributes {name} has {len(given[name])} characters; at most {MAX_LENGTH} are accepted"
            )
        try:
            found = accepted[name].parse(given[name])
        except ValueError:
            raise InvalidRequest(
                f"volumeAttributes {name} {shown(given[name])} is not accepted; give {accepted[name].accepted}"
            ) from None
        names = {**fields.get("file_names", {}), **found.pop("file_names", {})}
        fields |= found
        if names:
            fields["file_names"] = names
    fields["file_names"] = tuple(sorted(fields.get("file_names", {}).items()))
    options = VolumeOptions(given=tuple(sorted(given.items())), **fields)
    _check_together(options)
    return options


def _check_together(options: VolumeOptions) -> None:
    roles = layout.LAYOUTS[options.layout].roles
    for role, name in options.file_names:
        if role not in roles:
            raise InvalidRequest(
                f"volumeAttributes {_ATTRIBUTE_OF_ROLE[role]}: layout {options.layout} has no such file ({shown(name)})"
            )
    names = layout.file_names(options)
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise InvalidRequest(f"volumeAttributes make two files of one name: {', '.join(map(shown, twice))}")
    if options.has_keystores and options.key_algorithm not in KEYSTORE_ALGORITHMS:
        raise InvalidRequest(
            f"keystores cannot hold keyAlgorithm {options.key_algorithm}; choose one of "
            + ", ".join(KEYSTORE_ALGORITHMS)
        )
    if options.keystore_password is not None and not options.has_keystores:
        raise InvalidRequest("volumeAttributes keystorePassword is given, but the volume has no keystores")


def _one_of(field: str, *values: str) -> _Parse:
    def parse(text: str) -> dict[str, Any]:
        if text not in values:
            raise ValueError
        return {field: text}

    return parse


def _ttl(text: str) -> dict[str, Any]:
    return {"ttl": durations.parse(text, _MIN_TTL, _MAX_TTL)}


def _dns_names(text: str) -> dict[str, Any]:
    names = tuple(dict.fromkeys(name.strip(_BLANK) for name in text.split(",", MAX_DNS_NAMES)))
    if len(names) > MAX_DNS_NAMES or not all(map(is_dns_name, names)):
        raise ValueError
    return {"dns_names": names}


def _jwt_audiences(text: str) -> dict[str, Any]:
    files: dict[str, list[str]] = {}
    parts = text.split(",", MAX_JWT_AUDIENCES)
    if len(parts) > MAX_JWT_AUDIENCES:
        raise ValueError
    for part in parts:
        part = part.strip(_BLANK)
        name, equals, audience = part.partition("=")
        if not (equals and _FILE_NAME.fullmatch(name)):
            # Only what could be a file name is split off: an audience may hold a `=` of its own.
            name, audience = f"{part}.jwt", part
        printable = audience.isprintable() and not audience.isspace()
        if not audience or not printable or len(audience.encode()) > MAX_AUDIENCE_BYTES:
            raise ValueError
        if not _FILE_NAME.fullmatch(name):
            raise ValueError
        audiences = files.setdefault(name, [])
        if audience in audiences:
            raise ValueError
        audiences.append(audience)
    if len(files) > MAX_JWT_FILES:
        raise ValueError
    return {"jwt_files": tuple(JwtFile(name, tuple(sorted(audiences))) for name, audiences in files.items())}


def _file_name(role: str) -> _Parse:
    def parse(text: str) -> dict[str, Any]:
        if not _FILE_NAME.fullmatch(text):
            raise ValueError
        return {"file_names": {role: text}}

    return parse


def _mode(field: str) -> _Parse:
    def parse(text: str) -> dict[str, Any]:
        if text not in MODES:
            raise ValueError
        return {field: int(text, 8)}

    return parse


def _id(field: str, lowest: int = 0, highest: int = MAX_ID) -> _Parse:
    def parse(text: str) -> dict[str, Any]:
        if not (text.isascii() and text.isdigit()) or len(text) > 10 or not lowest <= int(text) <= highest:
            raise ValueError
        return {field: int(text)}

    return parse


def _password(text: str) -> dict[str, Any]:
    if not _PASSWORD.fullmatch(text):
        raise ValueError
    return {"keystore_password": text}


def _key_algorithm(text: str) -> dict[str, Any]:
    return {"key_algorithm": KeyAlgorithm(text)}


_FILE_NAME_RULE = "a name of at most 63 letters, digits, `.`, `_`, `-`, beginning with a letter or digit"
_ROLES = {
    "certificateFile": ("certificate", "the chain's file"),
    "keyFile": ("key", "the private key's file"),
    "bundleFile": ("bundle", "the file of the trust bundle's certificates"),
    "combinedFile": ("combined", "the file that holds key and chain together"),
}
_ATTRIBUTE_OF_ROLE = {role: name for name, (role, _) in _ROLES.items()}
ATTRIBUTES = (
    Attribute(
        "layout",
        "which files the volume holds",
        "one of " + ", ".join(layout.LAYOUTS),
        "the driver's own",
        _one_of("layout", *layout.LAYOUTS),
    ),
    Attribute(
        "keyAlgorithm", "kind of the private key", "one of " + ", ".join(KeyAlgorithm), "ec-p256", _key_algorithm
    ),
    Attribute(
        "ttl",
        "lifetime of the X.509-SVID; the authority may bring it into its bounds and logs that",
        durations.accepted(_MIN_TTL, _MAX_TTL),
        "the authority's",
        _ttl,
    ),
    Attribute(
        "dnsNames",
        "DNS names beside the SPIFFE ID; refused unless the operator allows them",
        f"at most {MAX_DNS_NAMES} DNS names in lower case, comma-separated",
        "none",
        _dns_names,
    ),
    Attribute(
        "jwt-audiences",
        "JWT-SVIDs to keep as files, one for each audience, or one for all audiences that name the same file",
        f"at most {MAX_JWT_AUDIENCES} of AUDIENCE (file AUDIENCE.jwt, when that is a file name) or FILE=AUDIENCE, "
        f"comma-separated, in at most {MAX_JWT_FILES} files, none twice in one",
        "none",
        _jwt_audiences,
    ),
    *(
        Attribute(name, f"name of {what}", _FILE_NAME_RULE, "the layout's", _file_name(role))
        for name, (role, what) in _ROLES.items()
    ),
    Attribute(
        "fileMode",
        "mode of the files that hold no secret",
        "one of " + ", ".join(MODES),
        "0444, or 0440 with an fsGroup",
        _mode("file_mode"),
    ),
    Attribute(
        "keyMode",
        "mode of the files that hold a private key, a JWT-SVID or a password",
        "one of " + ", ".join(MODES),
        "0444, or 0440 with an fsGroup",
        _mode("key_mode"),
    ),
    Attribute(
        "fileOwner",
        "uid that owns the files, for programs that want a key of their own (PostgreSQL)",
        f"a uid from 0 to {MAX_ID}",
        "0",
        _id("owner"),
    ),
    Attribute("fsGroup", "gid that owns the volume", f"a gid from 0 to {MAX_ID}", "the pod's fsGroup", _id("group")),
    Attribute(
        "keystores",
        "adds keystore.p12, truststore.p12 and keystore.password",
        "pkcs12 or none",
        "none",
        _one_of("keystores", "pkcs12", "none"),
    ),
    Attribute(
        "keystorePassword",
        "password of the keystores; no secret, since it stands in the pod's spec",
        "6 to 128 printable ASCII characters without spaces",
        "made once for the volume",
        _password,
    ),
)
FOREIGN_ATTRIBUTES = (
    Attribute(
        FS_GROUP_OF_CERT_MANAGER,
        "as fsGroup, over which it wins",
        f"a gid from 1 to {MAX_ID}",
        "the pod's fsGroup",
        _id("group", lowest=1),
    ),
)
