"""What a run finds: the same rows at each size, with an empty cluster's beside them, and goals that are met or not."""

import json
import math
import statistics
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from types import MappingProxyType

HEADINGS = ("what", "unit", "value", "empty cluster", "ratio", "goal", "")
NOT_REPORTED = "not reported"
# What the chart gives a replica, 1 GiB, in MB.
REPLICA = 1073.0


@dataclass(frozen=True, slots=True)
class Goal:
    """The most that a value, or its ratio to the empty cluster's, should be."""

    most: float
    of_ratio: bool = False

    def __str__(self) -> str:
        if not self.most:
            return "none"
        return f"at most {self.most:g} times" if self.of_ratio else f"under {self.most:g}"


@dataclass(frozen=True, slots=True)
class Row:
    """One line before it is measured."""

    what: str
    unit: str
    goal: Goal | None = None


ROWS: Mapping[str, Row] = MappingProxyType(
    {
        "ready": Row("start to ready", "s"),
        "rss_peak": Row("resident memory, peak of the run", "MB", Goal(REPLICA)),
        "rss_start": Row("resident memory, most until all agents are connected", "MB", Goal(REPLICA)),
        "rss_steady": Row("resident memory, agents connected and pods changing", "MB"),
        "rss_mints": Row("resident memory, most while mints are measured", "MB", Goal(REPLICA)),
        "rss_rotation": Row("resident memory, most in a rotation", "MB", Goal(REPLICA)),
        "rss_restart": Row("resident memory, most after a restart", "MB", Goal(REPLICA)),
        "rss_reissue": Row("resident memory, most in a forced re-issue", "MB", Goal(REPLICA)),
        "background": Row("CPU while nothing is asked for", "% of a core"),
        "connected": Row("all agents connected for the first time", "s"),
        "mint_cpu": Row("CPU time of a mint", "ms", Goal(1.3, of_ratio=True)),
        "mint_cpu_all": Row("the same with what goes on beside it", "ms"),
        "mint_p50": Row("a mint, p50", "ms", Goal(1.3, of_ratio=True)),
        "mint_p99": Row("a mint, p99", "ms", Goal(1.3, of_ratio=True)),
        "mint_wait": Row("the signer's loop waited for a core while mints were timed", "% of the time"),
        "mint_p50_apart": Row("a mint with a core for the signers alone, p50", "ms"),
        "mint_p99_apart": Row("a mint with a core for the signers alone, p99", "ms"),
        "mint_failed": Row("mints that failed while these were measured", ""),
        "lag_p99": Row("lag of the event loop, p99 at most", "ms", Goal(50)),
        "lag_most": Row("lag of the event loop, longest at most", "ms"),
        "probe_p99": Row("/readyz, which waits for the loop, p99", "ms"),
        "probe_most": Row("/readyz, longest", "ms"),
        "rotation_acknowledged": Row("rotation: prepared to the last acknowledgement", "s"),
        "rotation_activated": Row("rotation: prepared to activated", "s"),
        "restart_ready": Row("restart: start to ready", "s"),
        "restart_connections": Row("restart: connections accepted, most in one second", "1/s"),
        "restart_mints": Row("restart: mints, most in one second", "1/s"),
        "restart_last": Row("restart: ready to the last agent served", "s"),
        "restart_failed": Row("restart: mints that failed and were tried again", ""),
        "reissue_peak": Row("forced re-issue: mints, most in one second", "1/s"),
        "reissue_mean": Row("forced re-issue: mints a second, from the first to the last", "1/s"),
        "reissue_asked": Row("forced re-issue: asked for to activated", "s"),
        "reissue_window": Row("forced re-issue: over how long the signer has it spread", "s"),
        "reissue_last": Row("forced re-issue: activated to the last SVID replaced", "s"),
        "reissue_failed": Row("forced re-issue: mints that failed and were tried again", ""),
        "renew_compressed": Row("renewals: an SVID's hour, compressed", "times"),
        "renew_done": Row("renewals", ""),
        "renew_mean": Row("renewals a second, from the first to the last", "1/s"),
        "renew_peak": Row("renewals, most in one second", "1/s"),
        "renew_late": Row("renewals late by more than a minute", "", Goal(0)),
        "renew_late_p99": Row("renewals: how late, p99", "s"),
        "renew_late_most": Row("renewals: how late, at most", "s"),
        "renew_failed": Row("renewals: attempts that failed and were repeated", ""),
        "renew_together": Row("renewals that were asked for with others in one call", "%"),
        "renew_idle": Row("CPU of a deciding process before the renewals, while pods change", "% of a core"),
        "renew_workers_idle": Row("CPU of its workers then", "% of a core"),
        "renew_cpu": Row("renewals: CPU of the processes that decide beyond that, each", "ms"),
        "renew_workers_cpu": Row("renewals: CPU of workers beyond that, each", "ms"),
        "renew_agents_cpu": Row("renewals: CPU of the processes that stand for agents, each", "ms"),
        "renew_cpu_most": Row("renewals: CPU of a deciding process, most in one second", "% of a core"),
        "renew_workers_cpu_most": Row("renewals: CPU of a replica's workers, most in one second", "% of a core"),
        "renew_rss": Row("renewals: resident memory of a replica with its workers, at most", "MB", Goal(REPLICA)),
        "renew_requests": Row("renewals: requests to the API server, each", ""),
        "rss_renewals": Row(
            "renewals: resident memory of the deciding process that stays, at most", "MB", Goal(REPLICA)
        ),
        "lag_renewals_p99": Row("renewals: lag of the event loop, p99 at most", "ms", Goal(50)),
        "lag_renewals": Row("renewals: longest lag of the event loop, at most", "ms"),
        "lost_agents": Row("a replica is lost: agents that it had", ""),
        "lost_back": Row("a replica is lost: until all agents are at the other one", "s"),
        "lag_rotation": Row("longest lag of the event loop in a rotation, at most", "ms"),
        "lag_restart": Row("longest lag of the event loop after a restart, at most", "ms"),
        "lag_reissue": Row("longest lag of the event loop in a forced re-issue, at most", "ms"),
        "lag_reissue_p99": Row("lag of the event loop in a forced re-issue, p99 at most", "ms", Goal(50)),
    }
)

# What a run without that step leaves out.
OF_RENEWALS = frozenset(key for key in ROWS if key.startswith(("renew_", "lost_")) or "_renewals" in key)


@dataclass(frozen=True, slots=True)
class Figure:
    """What was found: `value` None is not measured, and `note` says why."""

    value: float | None
    empty: float | None = None
    note: str = ""

    @property
    def ratio(self) -> float | None:
        """To the empty cluster's."""
        return self.value / self.empty if self.value is not None and self.empty else None


@dataclass
class Figures:
    """The rows of one run."""

    found: dict[str, Figure] = field(default_factory=dict)
    # What did not come about in its time, or why the run went no further.
    failure: str = ""

    def add(self, key: str, value: float | None, empty: float | None = None, note: str = "") -> None:
        """Raises KeyError for what is no row."""
        assert ROWS[key]
        self.found[key] = Figure(value, empty, note)

    def failed(self, what: str) -> None:
        """Something more that did not come about."""
        self.failure = "; ".join(filter(None, [self.failure, what]))

    def figure(self, key: str) -> Figure:
        """That row's."""
        return self.found.get(key) or Figure(None, note="not measured")

    def mark(self, key: str) -> str:
        """Whether the goal is met; empty where there is none, or nothing to compare."""
        goal, figure = ROWS[key].goal, self.figure(key)
        number = figure.ratio if goal and goal.of_ratio else figure.value
        if goal is None or number is None:
            return ""
        return "met" if number <= goal.most else "missed"

    @property
    def missed(self) -> list[str]:
        """The rows whose goals are missed."""
        return [row.what for key, row in ROWS.items() if self.mark(key) == "missed"]

    def cells(self, key: str) -> list[str]:
        """A line of the table."""
        row, figure = ROWS[key], self.figure(key)
        last = ", ".join(filter(None, [self.mark(key), figure.note]))
        return [row.what, row.unit, _shown(figure.value), _shown(figure.empty), _shown(figure.ratio, 3),
                str(row.goal or "-"), last.replace("\n", " ").replace("|", "/")]  # fmt: skip

    def table(self, keys: Collection[str] = ROWS) -> str:
        """These rows as Markdown, in their order."""
        lines = [HEADINGS, ("---",) * len(HEADINGS), *(self.cells(key) for key in ROWS if key in keys)]
        return "\n".join("| " + " | ".join(line) + " |" for line in lines) + "\n"

    def json(self, about: Mapping[str, str]) -> str:
        """All rows, one a line, and what the numbers depend on."""
        rows = []
        for key, row in ROWS.items():
            figure = self.figure(key)
            found = {**asdict(figure), "ratio": figure.ratio, "goal": str(row.goal or ""), "mark": self.mark(key)}
            rows.append(json.dumps({"key": key, "what": row.what, "unit": row.unit, **found}))
        head = f'{{"environment": {json.dumps(dict(about))},\n"failure": {json.dumps(self.failure)},\n"rows": [\n'
        return head + ",\n".join(rows) + "\n]}\n"


def _shown(number: float | None, digits: int = 4) -> str:
    return "-" if number is None else f"{number:.{digits}g}" if number < 10_000 else f"{number:.0f}"


def quantile(values: Sequence[float], part: float) -> float:
    """Nearest rank; of one value at least."""
    return sorted(values)[max(math.ceil(len(values) * part) - 1, 0)]


def middle(values: Sequence[float]) -> float:
    return statistics.median(values)


def most_in_a_second(times: Sequence[float]) -> float:
    """The fullest of the seconds that begin with one of these."""
    ordered, first, most = sorted(times), 0, 0
    for last, at in enumerate(ordered):
        while at - ordered[first] >= 1.0:
            first += 1
        most = max(most, last - first + 1)
    return float(most)


def histogram_quantile(before: Mapping[float, float], after: Mapping[float, float], part: float) -> float | None:
    """The bound below which that part of what came between two readings is; None when nothing came."""
    come = Counter({bound: count - before.get(bound, 0.0) for bound, count in after.items()})
    everything = max(come.values(), default=0)
    if everything <= 0:
        return None
    return min(bound for bound, count in come.items() if count >= everything * part)
