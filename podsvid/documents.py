"""`podsvid bundle` and `podsvid oidc`: what verifiers without an agent fetch, to be looked at, or for any web server.

Inside a signer's pod that signer's admin socket is asked; from anywhere else, by a kubeconfig, one of its pods by exec.
"""

import argparse
import contextlib
import fcntl
import json
import os
import secrets
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from podsvid.asked import check_discoverable, signer_of
from podsvid.authority import CommandFailed, here
from podsvid.interrupts import unwinding
from podsvid.options import add_cluster, add_output, add_timeout, as_yaml
from podsvid.output import to_json
from podsvid.waiting import Waiting
from runtime.terminal import printable
from signer.pb import admin_pb2

FORMATS = ("spiffe", "pem")
_EXAMPLE = "bundle show"
_DISCOVERY = Path(".well-known", "openid-configuration")
_KEYS = Path("keys")
_MODE, _FOLDER_MODE = 0o644, 0o755


class OlderDocument(CommandFailed):
    """What is there already is newer than what was to be written."""

    reason = "OLDER_DOCUMENT"


def add_bundle_arguments(parser: argparse.ArgumentParser) -> None:
    """The subcommands of `podsvid bundle`, and their flags."""
    commands = parser.add_subparsers(dest="action", required=True, metavar="ACTION")
    text = "print the trust bundle of the trust domain"
    show = commands.add_parser("show", help=text, description=text)
    text = "write the trust bundle into a file, for a web server; whoever reads it sees the one before, or all of it"
    export = commands.add_parser("export", help=text, description=text)
    export.add_argument("path", metavar="FILE", type=Path, help="the file, in a directory that there is")
    for each in (show, export):
        each.add_argument(
            "--format",
            choices=FORMATS,
            default=FORMATS[0],
            help="spiffe: the document that other trust domains fetch; pem: its X.509 authorities (default: spiffe)",
        )
        _add_common(each)
    add_output(show)


def add_oidc_arguments(parser: argparse.ArgumentParser) -> None:
    """The subcommands of `podsvid oidc`, and their flags."""
    # Not above: `bundle show` answers by exec, and what compares keys takes as long to load as everything else.
    from podsvid import probe

    commands = parser.add_subparsers(dest="action", required=True, metavar="ACTION")
    text = "write the discovery document and the keys of JWT-SVIDs below a directory, for a web server"
    export = commands.add_parser("export", help=text, description=text)
    export.add_argument(
        "path", metavar="DIRECTORY", type=Path, help="what is served at the issuer's URL; made where there is none"
    )
    _add_common(export)
    text = (
        "read the two documents where verifiers outside do, and say which keys these still have or lack; 3 is the exit "
        "code where it is not what the signer publishes"
    )
    probe.add_arguments(commands.add_parser("probe", help=text, description=text))


def _add_common(parser: argparse.ArgumentParser) -> None:
    add_cluster(parser, here())
    add_timeout(parser)


def run_bundle(parsed: argparse.Namespace) -> int:
    """Print or write it; the exit code. Raises SignerError, OSError."""
    found = _asked(parsed)
    text: str = found.spiffe if parsed.format == "spiffe" else found.pem
    if parsed.action == "export":
        with unwinding(), _alone(parsed.path.parent):
            if parsed.format == "spiffe":
                _not_older(parsed.path, found.sequence, lambda path: json.loads(path.read_bytes())["spiffe_sequence"])
            else:
                _follow(parsed.path, found.sequence)
            _write(parsed.path, text)
        _said(f"{parsed.path}: trust bundle of {found.trust_domain}, sequence {found.sequence}")
    elif parsed.output == "text":
        print(text, end="")
    else:
        document = to_json(found)
        print(document if parsed.output == "json" else as_yaml(document).rstrip())
    return 0


def run_oidc(parsed: argparse.Namespace) -> int:
    """Write or probe them; the exit code. Raises SignerError, OSError."""
    if parsed.action == "probe":
        from podsvid import probe

        return probe.run(parsed)
    found = _asked(parsed)
    check_discoverable(found)
    folder: Path = parsed.path
    with unwinding():
        _make((folder / _DISCOVERY).parent)
        with _alone(folder):
            _follow(folder / _KEYS, found.sequence)
            # Keys first: nobody is led to some that are not there.
            _write(folder / _KEYS, found.jwks)
            _write(folder / _DISCOVERY, found.openid_configuration)
    _said(f"{folder / _KEYS}: for {found.jwks_uri}")
    _said(f"{folder / _DISCOVERY}: for {found.issuer.removesuffix('/')}/{_DISCOVERY}")
    return 0


def _asked(parsed: argparse.Namespace) -> admin_pb2.PublishResponse:
    with unwinding():
        return signer_of(parsed, Waiting(parsed.timeout), _EXAMPLE).published()


def _not_older(path: Path, sequence: int, read: Callable[[Path], Any]) -> None:
    """A replica may be behind, and partners are not to be sent back. Raises OlderDocument."""
    with contextlib.suppress(OSError, ValueError, KeyError, TypeError):
        there = read(path)
        if isinstance(there, int) and there > sequence:
            raise OlderDocument(
                f"{path} has sequence {there}, and the signer that was asked {sequence}: ask again, or remove the file "
                "where it is of something else"
            )


def _follow(path: Path, sequence: int) -> None:
    """The same of a document that says no sequence: it is in a file beside, and there before the document is, so that
    no older one comes between. Raises OlderDocument, OSError."""
    noted = path.with_name(f".{path.name}.sequence")
    if path.exists():
        _not_older(path, sequence, lambda _: int(noted.read_text(encoding="utf-8")))
    _write(noted, f"{sequence}\n")


@contextlib.contextmanager
def _alone(folder: Path) -> Iterator[None]:
    """One export at a time: what one has looked at, another may be replacing by a newer one. Raises OSError."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        # Some file systems of other hosts have no locks.
        with contextlib.suppress(OSError):
            fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


def _make(folder: Path) -> None:
    """Make it and what is missing above it, for a web server to enter, whatever the umask is. Raises OSError."""
    for each in (*reversed(folder.parents), folder):
        if not each.is_dir():
            each.mkdir()
            each.chmod(_FOLDER_MODE)


def _write(path: Path, text: str) -> None:
    """All of it or nothing, on the disk and under its name. Raises OSError."""
    # Not by a number of a process: in a container each has the same, and one that was killed leaves its file.
    unfinished = path.with_name(f".{path.name}.{secrets.token_hex(8)}")
    descriptor = os.open(unfinished, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, _MODE)
    try:
        with open(descriptor, "w", encoding="utf-8") as file:
            # Whatever the umask is: a web server reads it, and it is no secret.
            os.fchmod(file.fileno(), _MODE)
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        os.replace(unfinished, path)
    except BaseException:
        with contextlib.suppress(OSError):
            unfinished.unlink()
        raise
    folder = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        with contextlib.suppress(OSError):
            os.fsync(folder)
    finally:
        os.close(folder)


def _said(line: str) -> None:
    print(printable(line))
