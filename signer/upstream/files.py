"""Files that are needed to ask a CA elsewhere. Each read blocks, and raises UpstreamUnusable."""

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import TypeVar

from cryptography import x509

from runtime.bounded import Bounded, Unanswered
from signer.upstream.certify import UpstreamUnusable, read_bounded
from svid.certificates import certificates_from_pem
from svid.errors import SvidError

MAX_CREDENTIAL = 64 * 1024
_T = TypeVar("_T")


async def read(reader: Bounded, work: Callable[[], _T], whose: str) -> _T:
    """What `work` makes of files, which may hang. Raises UpstreamUnusable."""
    try:
        return await reader.do(work)
    except Unanswered:
        raise UpstreamUnusable(f"the files for {whose} were not read in time: their file system hangs") from None


def credential(path: Path | None) -> str:
    """What a file holds, to be sent along; nothing of it is repeated."""
    assert path is not None
    try:
        with path.open("rb") as file:
            data = file.read(MAX_CREDENTIAL + 1)
    except OSError as error:
        raise UpstreamUnusable(f"{path} cannot be read: {error.strerror}") from None
    text = data.decode("ascii", "replace").strip()
    if not text or len(data) > MAX_CREDENTIAL or not text.isascii() or any(not "!" <= each <= "~" for each in text):
        raise UpstreamUnusable(f"{path} holds no credential: one line of printable characters")
    return text


def readable(path: Path | None) -> None:
    """Whether it is."""
    assert path is not None
    try:
        with path.open("rb"):
            pass
    except OSError as error:
        raise UpstreamUnusable(f"{path} cannot be read: {error.strerror}") from None


async def given(reader: Bounded, path: Path | None, whose: str) -> tuple[x509.Certificate, ...]:
    """The roots that a file names for a CA; none without one. Raises UpstreamUnusable."""
    return () if path is None else await read(reader, partial(roots, path), whose)


def roots(path: Path) -> tuple[x509.Certificate, ...]:
    """Certificates in PEM."""
    try:
        return certificates_from_pem(read_bounded(path))
    except OSError as error:
        raise UpstreamUnusable(f"{path} cannot be read: {error.strerror}") from None
    except (SvidError, ValueError):
        raise UpstreamUnusable(f"{path} holds no PEM certificates") from None
