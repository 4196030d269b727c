"""The rows of the table: what each is, its goals, and how far the two sides of it can be compared."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from bench.peers.side import EMBEDDED, PEER, SIGNER


@dataclass(frozen=True)
class Goal:
    """A bound, or where there is none the peer's own median in the same run."""

    bound: float | None = None

    def text(self) -> str:
        return "SPIRE's" if self.bound is None else f"{self.bound:g}"


@dataclass(frozen=True)
class Row:
    """`goals` by side; `note` is what a reader must know before comparing."""

    key: str
    what: str
    unit: str
    goals: Mapping[str, Goal]
    more_is_better: bool = False
    note: str = ""

    def met(self, values: Mapping[str, float]) -> Mapping[str, bool]:
        """Which sides' medians reach their goals, of those that have both."""
        found = {}
        for side, goal in self.goals.items():
            bound = values.get(PEER) if goal.bound is None else goal.bound
            if bound is not None and side in values:
                found[side] = values[side] >= bound if self.more_is_better else values[side] <= bound
        return found


@dataclass(frozen=True)
class Quoted:
    """A row that was measured elsewhere, by others' means or on another machine: nothing here can check it."""

    what: str
    peer: str
    ours: str
    goal: str
    source: str = field(default="the issue that asked for this bench: one real node, three rounds")


_PEERS = Goal()
_BOTH = {EMBEDDED: _PEERS, SIGNER: _PEERS}

_DUE = (
    "From SPIRE's agent's first line about a renewal, up to five seconds after the SVIDs were due (it looks as often); "
    "podsvid's from the instant at which they were due. SPIRE's SVIDs live 15 s here, so that its agent renews all at "
    "one look."
)
_FILES = "SPIRE writes no files."
_ROTATION = "CPU time of the agent alone, from just before to 0.3 s after; podsvid's writes files too, SPIRE's none."
_DISK = "SPIRE: its agent's program, stripped. podsvid: its image with Python, unpacked."
_RESIDENT = (
    "PSS of all the agent's processes: SPIRE's has one, podsvid's three, which share pages; one of them waits to take "
    "over."
)
_KEYS = "Of the process that has the keys: of the processes of podsvid's agent the one that mints."
_MINTS = (
    "Each asked in its own API over TLS. SPIRE signs for an administrator what that asks for; podsvid's signer checks "
    "an agent's and a pod's token, which an API server in memory reviews in 2 ms within the same process, decides by "
    "policy and writes an audit line."
)
_BATCH = "100 in a call of SPIRE, each of a registered entry, eight calls at once; podsvid as its agents ask."
_JWT = "Each by its default: SPIRE signs by ECDSA P-256, podsvid by RSA-2048, which clouds take and which costs more."
_JWT_ALIKE = (
    "Both sign by ECDSA P-256: podsvid has `jwt_algorithm: ES256` here, which not "
    "every cloud takes; SPIRE is as in `jwt-new`."
)

# By how many are due, or are there.
_DUE_GOALS = {100: (0.2, 0.25), 500: (0.5, 0.6)}
_ROTATION_GOALS = {100: 1.5, 500: 1.0}
_KEYS_GOALS = {100: 30, 500: 55}


def _each(goal: float) -> Mapping[str, Goal]:
    """The same for both of podsvid's sides."""
    return {EMBEDDED: Goal(goal), SIGNER: Goal(goal)}


def _due(number: int) -> Iterator[Row]:
    """Rows of a node whose SVIDs are all renewed at once."""
    embedded, signer = _DUE_GOALS[number]
    goals, what = {EMBEDDED: Goal(embedded), SIGNER: Goal(signer)}, f"{number} SVIDs due at once"
    yield Row(f"due-{number}", f"{what}, until the last stream is told", "s", goals, note=_DUE)
    yield Row(f"written-{number}", f"{what}, until the last files are written", "s", {}, note=_FILES)
    cpu = _each(_ROTATION_GOALS[number])
    yield Row(f"rotation-{number}", f"agent's CPU for one rotation, {number} at once", "ms", cpu, note=_ROTATION)


def _memory(number: int) -> Iterator[Row]:
    """Rows of what an agent with so many identities has in memory."""
    without = f"agent's RSS without streams, {number} identities"
    yield Row(f"resident-{number}", without, "MiB", _BOTH, note=_RESIDENT)
    keys, what = _each(_KEYS_GOALS[number]), "agent's anonymous memory"
    yield Row(f"anonymous-{number}", f"{what}, {number} streams", "MiB", keys, note=_KEYS)
    yield Row(f"anonymous-all-{number}", f"{what}, all its processes, {number} streams", "MiB", {})


ROWS: Sequence[Row] = (
    Row("first-8", "connect + first SVID, 8 at once, servers on one core", "1/s", _BOTH, True),
    Row("first-8-everywhere", "connect + first SVID, 8 at once, both sides on both cores", "1/s", _BOTH, True),
    Row("first-p50", "connect + first SVID, one, p50", "ms", _BOTH),
    Row("first-p99", "connect + first SVID, one, p99", "ms", _BOTH),
    Row("validate", "ValidateJWTSVID", "ms", _each(0.7), note=_JWT),
    Row("jwt-kept", "FetchJWTSVID, an audience of before", "ms", _BOTH),
    Row("jwt-new", "FetchJWTSVID, a new audience", "ms", {EMBEDDED: _PEERS, SIGNER: Goal(1.7)}, note=_JWT),
    Row("jwt-new-es256", "FetchJWTSVID, a new audience, both by ECDSA", "ms", _BOTH, note=_JWT_ALIKE),
    Row("mint-rate", "mints a second, one a call, 64 at once", "1/s", {SIGNER: Goal(1300)}, True, _MINTS),
    Row("mint-cpu", "CPU of each of these", "ms", {SIGNER: Goal(0.75)}, note=_MINTS),
    Row("batch-rate", "mints a second, as agents ask", "1/s", {SIGNER: Goal(2600)}, True, _BATCH),
    Row("batch-cpu", "CPU of each of these", "ms", {SIGNER: Goal(0.38)}, note=_BATCH),
    *_due(100),
    *_due(500),
    *_memory(100),
    *_memory(500),
    Row("idle", "agent's idle CPU, 100 identities with a stream each", "% of a core", _BOTH),
    Row("disk", "on the node's disk", "MiB", {SIGNER: Goal(120)}, note=_DISK),
)
BY_KEY: Mapping[str, Row] = {each.key: each for each in ROWS}

QUOTED: Sequence[Quoted] = (
    Quoted("20 pods at once until they run, p50 (without a volume 5.0 s)", "5.9 s", "5.0 s", "-"),
    Quoted("NodePublishVolume, of each of 20 pods", "1,417 ms", "203 ms", "-"),
    Quoted("API writes for a first certificate", "9", "0", "-"),
    Quoted(
        "CPU over 4.5 minutes with 63 certificates",
        "5.5 s",
        "15.7 s (agent 4.5, two signers 11.2) then; now: [beside.md](beside.md)",
        "theirs",
    ),
    Quoted("RSS on the node: driver, agent", "42 MiB", "64 MiB", "-"),
    Quoted("RSS of controller, webhook and approver; of two signers", "180 MiB", "186 MiB", "-"),
)
