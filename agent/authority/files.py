"""Secrets in files: written whole or not at all, readable by their owner only."""

import os
from pathlib import Path

from agent.errors import AuthorityDamaged


def write_secret(path: Path, content: bytes) -> None:
    """Replace `path` (0600), on the disk before this returns. Raises OSError and leaves the old content then."""
    temporary = path.with_name(f".{path.name}.new")
    temporary.unlink(missing_ok=True)
    descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    with os.fdopen(descriptor, "wb") as file:
        file.write(content)
        file.flush()
        os.fsync(descriptor)
    os.rename(temporary, path)
    directory = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(directory)
    finally:
        os.close(directory)


def read_secret(path: Path) -> bytes:
    """The content of `path`. Raises AuthorityDamaged when others could have read it, OSError."""
    data = path.read_bytes()
    if path.stat().st_mode & 0o077:
        raise AuthorityDamaged(f"{path} can be read by others; if nobody did, run: chmod 600 {path}")
    return data
