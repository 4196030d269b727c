"""What a migration has made, and its report: for people, and for programs."""

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from podsvid import outcome
from podsvid.interrupts import unwinding
from podsvid.migrate.fields import Finding, Verdict
from podsvid.options import as_yaml
from podsvid.outcome import CommandError
from runtime.terminal import printable

# Findings with one advice that are told to people; the forms for programs have all.
MAX_ALIKE = 20
_HEADS = {
    Verdict.LEFT_OUT: "not written",
    Verdict.DIFFERS: "not quite the same",
    Verdict.OVERLAPS: "more than one for a pod",
    Verdict.NEEDLESS: "nothing to write",
}


class InTheWay(CommandError):
    """Where files are to be written there are some."""

    reason = "IN_THE_WAY"


@dataclass(frozen=True, slots=True)
class Report:
    """`read`: how many objects there were; `notes`: what holds for all of them."""

    read: int
    written: int
    findings: tuple[Finding, ...] = ()
    notes: tuple[str, ...] = ()

    @property
    def code(self) -> int:
        """The exit code: done, or something is not carried over as it was."""
        return outcome.NOT_NOW if any(each.verdict is not Verdict.NEEDLESS for each in self.findings) else outcome.DONE

    def lines(self) -> list[str]:
        """For people."""
        found = [f"{self.read} read, {self.written} written"]
        for verdict, head in _HEADS.items():
            mine = [each for each in self.findings if each.verdict is verdict]
            found += ["", f"{head} ({len(mine)}):"] if mine else []
            alike = Counter[str]()
            for each in mine:
                alike[each.to_do] += 1
                if alike[each.to_do] <= MAX_ALIKE:
                    found += [f"  {each.source}", f"    why: {each.why}"]
                    found += [f"    do:  {each.to_do}"] if each.to_do else []
            for to_do, number in alike.items():
                if number > MAX_ALIKE:
                    found += [f"  and {number - MAX_ALIKE} more (-o json has all)", f"    do:  {to_do}"]
        if self.notes:
            found += ["", "for all of it:", *(f"  - {each}" for each in self.notes)]
        return [printable(each) for each in found]

    def members(self) -> dict[str, Any]:
        """For programs."""
        return {
            "read": self.read,
            "written": self.written,
            "findings": [
                {"verdict": str(each.verdict), "source": each.source, "why": each.why, "to_do": each.to_do}
                for each in self.findings
            ],
            "notes": list(self.notes),
        }


def as_document(form: str, made: Mapping[str, Any], report: Report) -> str:
    """All of it as one document, json or yaml."""
    text = json.dumps({**made, **report.members()}, indent=2)
    return text if form == "json" else as_yaml(text).rstrip()


def write(folder: Path, files: Sequence[tuple[str, str]]) -> None:
    """All of them (name, text) or none, into `folder`, which is new or empty. Raises InTheWay, OSError."""
    with unwinding():
        folder.mkdir(exist_ok=True)
        if any(folder.iterdir()):
            raise InTheWay(
                f"{folder} has files already, which `kubectl apply -f {folder}` would take as well: empty it, or "
                "name another directory"
            )
        made: list[Path] = []
        try:
            for name, text in files:
                made.append(folder / name)
                made[-1].write_text(text, encoding="utf-8")
        except BaseException:
            for path in made:
                path.unlink(missing_ok=True)
            raise
