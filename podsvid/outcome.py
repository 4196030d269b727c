"""How a command ends: one table of exit codes, and one line for each error, `podsvid: REASON: text`."""

import errno
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from types import MappingProxyType
from typing import Final

DONE, FAILED, WRONG_USAGE, NOT_NOW, NO_IDENTITY, TOKEN_INVALID, COMMAND_NOT_STARTED = range(7)
# As shells have it: what a signal ended is 128 and its number, SIGPIPE's is that nobody reads the output any more.
SIGNALLED, NOBODY_READS = 128, 141

MEANINGS: Final[Mapping[str, str]] = MappingProxyType(
    {
        "0": "done; what runs until it is told to stop: stopped by a signal",
        "1": "failed; the message says why. uninstall-check: pods use podsvid; --check: the host lacks something",
        "2": "wrong usage, address or setting",
        "3": "api: nobody answers, later may help; node, explain: the pod is refused, or a volume of it is not "
        "ok; oidc probe, doctor: something was found; migrate: not all is carried over as it was",
        "4": "api: the server has no identity for this caller",
        "5": "api validate: the token is not valid",
        "6": "api watch: the command of --exec cannot be started",
        "129, 130, 143": "ended by SIGHUP, by Ctrl-C, by SIGTERM",
        "141": "nobody reads the output any more (a closed pipe)",
    }
)
_CODES: Final[Mapping[str, int]] = MappingProxyType(
    {
        "WRONG_USAGE": WRONG_USAGE,
        "INVALID_SETTING": WRONG_USAGE,
        "INVALID_WORKLOAD_API_ADDRESS": WRONG_USAGE,
        "WORKLOAD_API_UNREACHABLE": NOT_NOW,
        "NO_IDENTITY": NO_IDENTITY,
        "TOKEN_INVALID": TOKEN_INVALID,
        "COMMAND_NOT_STARTED": COMMAND_NOT_STARTED,
    }
)
_SYSTEM: Final[Mapping[int, str]] = MappingProxyType(
    {
        errno.EADDRINUSE: "ADDRESS_IN_USE",
        errno.EADDRNOTAVAIL: "ADDRESS_NOT_HERE",
        errno.EACCES: "PERMISSION_DENIED",
        errno.EPERM: "PERMISSION_DENIED",
        errno.EROFS: "READ_ONLY",
        errno.ENOENT: "NOT_FOUND",
        errno.ENOSPC: "NO_SPACE",
        errno.EDQUOT: "NO_SPACE",
        errno.EEXIST: "IN_THE_WAY",
        errno.ENOTDIR: "IN_THE_WAY",
        errno.EISDIR: "IN_THE_WAY",
    }
)
_OURS = Path(__file__).resolve().parents[1]
_LONGEST = 1500


@dataclass(frozen=True, slots=True)
class Outcome:
    """An error as a command ends with it: a stable reason, a text for a person (of several `lines`), the exit code.

    `more`: what else is wrong, each with a reason of its own.
    """

    reason: str
    text: str
    code: int = FAILED
    lines: bool = False
    more: tuple["Outcome", ...] = ()

    def line(self) -> str:
        """For the standard error: nothing that a terminal would obey, and one line, unless several are meant."""
        # What a peer says is in it, too: a second line of it could pass for the command's own.
        text = self.text if self.lines else " ".join(self.text.split())
        shown = "".join(each if each.isprintable() or each == "\n" else "\ufffd" for each in text[:_LONGEST])
        line = f"podsvid: {self.reason}: {shown}{'…' if len(text) > _LONGEST else ''}"
        return "\n".join([line, *(each.line() for each in self.more)])


class CommandError(Exception):
    """A command cannot be carried out."""

    reason = "COMMAND_FAILED"


class WrongUsage(CommandError):
    """The command line means nothing."""

    reason = "WRONG_USAGE"


class OutputFailed(OSError):
    """The standard output takes no more."""

    @property
    def nobody_reads(self) -> bool:
        """Whether who was to read has gone: no error, `head` does so."""
        return self.errno == errno.EPIPE


def of(error: Exception, settings: object = None) -> Outcome:
    """What to say of `error`. `settings`: those of the command, of which one may be named."""
    # One cause says it all; a group is what tasks that ran side by side leave.
    while isinstance(error, ExceptionGroup):
        error = error.exceptions[0]
    reason = getattr(error, "reason", None)
    # On the class: other people's errors have a `reason` of their own, each with another meaning.
    if isinstance(getattr(type(error), "reason", None), str):
        faults = getattr(error, "faults", ())
        if len(faults) > 1:
            return together([(str(reason), each) for each in faults])
        lines = getattr(type(error), "lines", False) is True
        return Outcome(str(reason), str(error), _CODES.get(str(reason), FAILED), lines)
    if isinstance(error, OutputFailed):
        code = NOBODY_READS if error.nobody_reads else FAILED
        return Outcome("OUTPUT_FAILED", f"the standard output cannot be written: {error.strerror}", code)
    if isinstance(error, OSError):
        # TLS has numbers of its own.
        number = 0 if type(error).__module__ == "ssl" else error.errno or 0
        return Outcome(_SYSTEM.get(number, "SYSTEM_ERROR"), _system(error) + _setting(error, settings))
    cause = _cause(error)
    why = "" if cause is error else f" by {_one_line(cause)}"
    return Outcome(
        "INTERNAL", f"{_one_line(error)}{why}; this is a bug, please report it with this line{_where(cause)}"
    )


def together(faults: Sequence[tuple[str, str]]) -> Outcome:
    """All of what is wrong, as (reason, text); its code is that of the worst: wrong usage before everything else."""
    found = [Outcome(reason, text, _CODES.get(reason, FAILED)) for reason, text in faults]
    code = WRONG_USAGE if any(each.code == WRONG_USAGE for each in found) else found[0].code
    return replace(found[0], code=code, more=tuple(found[1:]))


def epilog() -> str:
    """The exit codes for a --help of 80 columns."""
    import textwrap

    lines = ["exit codes:"]
    for codes, meaning in MEANINGS.items():
        first, *more = textwrap.wrap(meaning, 58)
        lines += [f"  {codes:<15}{first}", *(f"{'':17}{each}" for each in more)]
    return "\n".join(lines)


def _system(error: OSError) -> str:
    why = error.strerror or _one_line(error)
    paths = [str(each) for each in (error.filename, error.filename2) if each is not None]
    return f"{' and '.join(paths)}: {why}" if paths else why


def _setting(error: OSError, settings: object) -> str:
    """Which setting has the path or the address that the error is about."""
    import re
    from dataclasses import fields, is_dataclass

    if settings is None or not is_dataclass(settings):
        return ""
    from runtime.listening import shown

    text, path = _system(error), str(error.filename or "")
    found = []
    for each in fields(settings):
        value = getattr(settings, each.name)
        if isinstance(value, Path) and path and (path == str(value) or path.startswith(f"{value}/")):
            found.append((len(str(value)), each.name))
        if (
            isinstance(value, tuple)
            and len(value) == 2
            and isinstance(value[1], int)
            and re.search(rf"(?<![\w.:]){re.escape(shown(*value))}(?!\w)", text)
        ):
            found.append((0, each.name))
    if not found:
        return ""
    name = max(found)[1]
    return f" (setting {name}: --{name.replace('_', '-')}, PODSVID_{name.upper()})"


def _cause(error: BaseException) -> BaseException:
    """What began it: where a loop of a daemon ended, what ended it."""
    seen: set[int] = set()
    while id(error) not in seen:
        seen.add(id(error))
        error = (error.exceptions[0] if isinstance(error, BaseExceptionGroup) else error.__cause__) or error
    return error


def _one_line(error: BaseException) -> str:
    if isinstance(error, ValueError | TypeError | LookupError) and _in_a_package(error):
        # Such a text quotes the value that was wrong: it may be a token, or a key.
        return type(error).__name__
    return " ".join(f"{type(error).__name__}: {error}".split()).removesuffix(":")


def _in_a_package(error: BaseException) -> bool:
    """Whether it was raised in somebody else's code."""
    at = error.__traceback__
    while at is not None and at.tb_next is not None:
        at = at.tb_next
    return at is not None and not Path(at.tb_frame.f_code.co_filename).is_relative_to(_OURS)


def _where(error: BaseException) -> str:
    import traceback

    frames = [each for each in traceback.extract_tb(error.__traceback__) if Path(each.filename).is_relative_to(_OURS)]
    places = (f"{Path(each.filename).relative_to(_OURS)}:{each.lineno}" for each in reversed(frames))
    told = " < ".join(list(places)[:4])
    return f" ({told})" if told else ""
