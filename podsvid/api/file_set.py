"""Files of one set in an ordinary directory, replaced as one, as in a volume.

A set is a link such as `..data` to the directory of the current generation, and one link beside it for each file:
`svid.0.pem` is `..data/svid.0.pem`. The rename of `..data` is what replaces all files. Several sets share a directory
when their names differ. Whatever else is in the directory is left alone.
"""

import contextlib
import fcntl
import os
import re
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from agent.errors import AgentError

_CREATE = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
_LOCK_WAIT = 5.0
_SWITCH = ".new"
_SECRET, _PUBLIC, _DIRECTORY = 0o600, 0o644, 0o755


class NotOurs(AgentError):
    """Something that is in the way was not made by podsvid, or belongs to another set."""

    reason = "FILE_NOT_OURS"


class DirectoryInUse(AgentError):
    """Somebody else holds the directory's lock."""

    reason = "DIRECTORY_IN_USE"


@dataclass(frozen=True, slots=True)
class SetFile:
    """The content of one file; a secret one can be read by its owner only (0600, else 0644)."""

    content: bytes = field(repr=False)
    secret: bool = False


class FileSet:
    """The set called `name` in `directory`, which is made when it is first written."""

    def __init__(self, directory: Path, name: str) -> None:
        self.directory = directory
        self._data = f"..{name}"
        self._prefix = f"..podsvid.{name}."
        self._generation = re.compile(rf"{re.escape(self._prefix)}[0-9a-f]{{16}}")

    def write(self, files: Mapping[str, SetFile]) -> None:
        """Replace the set, all at once and on the disk; files of it that are not in `files` any more vanish.

        The generation before stays for readers that have it open. Nothing has changed when this raises NotOurs,
        DirectoryInUse or OSError.
        """
        self.directory.mkdir(mode=_DIRECTORY, parents=True, exist_ok=True)
        folder = os.open(self.directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            self._lock(folder)
            self._replace(folder, files)
        finally:
            os.close(folder)

    def sweep(self) -> None:
        """Remove what was replaced, whoever reads it still. Raises NotOurs, DirectoryInUse, OSError."""
        folder = os.open(self.directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            self._lock(folder)
            self._remove_generations(folder, (self._current(folder),))
        finally:
            os.close(folder)

    def _lock(self, folder: int) -> None:
        deadline = time.monotonic() + _LOCK_WAIT
        while True:
            try:
                fcntl.flock(folder, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                if time.monotonic() >= deadline:
                    raise DirectoryInUse(f"another process keeps {self.directory} locked") from None
                time.sleep(0.02)
            else:
                return

    def _replace(self, folder: int, files: Mapping[str, SetFile]) -> None:
        before = self._current(folder)
        fresh = [name for name in files if not self._is_linked(folder, name)]
        generation = f"{self._prefix}{os.urandom(8).hex()}"
        made: list[str] = []
        try:
            self._fill(folder, generation, files)
            # Before the switch, so that it makes all files appear at once: until then these lead nowhere.
            for name in fresh:
                os.symlink(f"{self._data}/{name}", name, dir_fd=folder)
                made.append(name)
            self._switch(folder, generation)
        except BaseException:
            for name in made:
                _remove(folder, name)
            _remove_directory(folder, generation)
            raise
        with contextlib.suppress(OSError):  # the files are replaced, whatever the disk says now
            os.fsync(folder)
        self._clean(folder, files, (before, generation))

    def _clean(self, folder: int, files: Mapping[str, SetFile], kept: tuple[str | None, str]) -> None:
        self._remove_generations(folder, kept)
        for name in os.listdir(folder):
            if name not in files and self._is_stale(folder, name):
                _remove(folder, name)

    def _remove_generations(self, folder: int, kept: tuple[str | None, ...]) -> None:
        for name in os.listdir(folder):
            if self._generation.fullmatch(name.removesuffix(_SWITCH)) and name not in kept:
                _remove(folder, name)
                _remove_directory(folder, name)

    def _fill(self, folder: int, generation: str, files: Mapping[str, SetFile]) -> None:
        os.mkdir(generation, 0o700, dir_fd=folder)
        directory = os.open(generation, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=folder)
        try:
            for name, each in files.items():
                descriptor = os.open(name, _CREATE, _SECRET, dir_fd=directory)
                with os.fdopen(descriptor, "wb") as file:
                    file.write(each.content)
                    file.flush()
                    os.fchmod(descriptor, _SECRET if each.secret else _PUBLIC)
                    os.fsync(descriptor)
            os.fchmod(directory, _DIRECTORY)
            os.fsync(directory)
        finally:
            os.close(directory)

    def _switch(self, folder: int, generation: str) -> None:
        temporary = f"{generation}{_SWITCH}"
        os.symlink(generation, temporary, dir_fd=folder)
        try:
            os.rename(temporary, self._data, src_dir_fd=folder, dst_dir_fd=folder)
        except BaseException:
            _remove(folder, temporary)
            raise

    def _current(self, folder: int) -> str | None:
        """The generation that `..data` leads to, None before the first. Raises NotOurs."""
        found = _link(folder, self._data)
        if found is None:
            return None
        if not self._generation.fullmatch(found):
            raise self._not_ours(self._data)
        return found

    def _is_linked(self, folder: int, name: str) -> bool:
        found = _link(folder, name)
        if found is not None and found != f"{self._data}/{name}":
            raise self._not_ours(name)
        return found is not None

    def _is_stale(self, folder: int, name: str) -> bool:
        try:
            return os.readlink(name, dir_fd=folder) == f"{self._data}/{name}"
        except OSError:
            return False

    def _not_ours(self, name: str) -> NotOurs:
        return NotOurs(
            f"{self.directory / name} is in the way and was not made by this command: move it, or choose another "
            "directory"
        )


def _link(folder: int, name: str) -> str | None:
    """Where the link `name` leads; None where nothing is, an empty text for what is no link."""
    try:
        return os.readlink(name, dir_fd=folder)
    except FileNotFoundError:
        return None
    except OSError:
        os.stat(name, dir_fd=folder, follow_symlinks=False)
        return ""


def _remove(folder: int, name: str) -> None:
    with contextlib.suppress(OSError):
        os.unlink(name, dir_fd=folder)


def _remove_directory(folder: int, name: str) -> None:
    # A directory of plain files; what somebody else put into it keeps it there.
    with contextlib.suppress(OSError):
        directory = os.open(name, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=folder)
        try:
            for each in os.listdir(directory):
                _remove(directory, each)
        finally:
            os.close(directory)
        os.rmdir(name, dir_fd=folder)
