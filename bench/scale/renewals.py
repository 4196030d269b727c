"""Renewals of all agents by the clock, with SVIDs of a shorter life, through two replicas of which one is lost.

An hour's SVIDs are renewed every 27 minutes in the mean; here each is due again after the same part of a life that is
as much shorter as renewals are wanted more often. Late is what is renewed after it was due, in true seconds.
"""

import asyncio
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from bench.scale.children import Fleets, NotMeasured, Site, until
from bench.scale.figures import Figures, most_in_a_second, quantile
from bench.scale.population import Cluster

# A renewal is due after this part of a life in the mean: as docs/sizing.py has it.
RENEWED = 0.45
HOUR = 3600.0
LATE = 60.0
# Seconds: a replica that is gone is taken out of the Service after so long; kubelet looks every 5.
TAKEN_OUT = 10.0
LOOK = 1.0
# What is waited for after the last one was due.
AFTER = LATE + 5.0


@dataclass(frozen=True, slots=True)
class Renewing:
    """How many, how many a second, and after which part of them a replica is lost."""

    count: int = 40_000
    rate: float = 80.0
    lost_after: float = 0.5
    # Seconds, as what they are without these: for a test.
    taken_out: float = TAKEN_OUT
    after: float = AFTER

    @property
    def seconds(self) -> float:
        """How long they take."""
        return self.count / self.rate

    def life(self, svids: int) -> float:
        """Seconds that so many SVIDs live for that many of them to be due a second."""
        return svids / self.rate / RENEWED


@dataclass
class Watched:
    """What the replicas take, second by second; first while nothing is renewed (`idle`), which goes on beside it."""

    sites: Sequence[Site]
    # By site: of its deciding process and of its workers, percent of a core in each second.
    shares: dict[str, list[tuple[float, float]]] = field(default_factory=dict)
    idle: dict[str, tuple[float, float]] = field(default_factory=dict)
    memory: dict[str, float] = field(default_factory=dict)
    # Seconds of a processor beyond what goes on anyway, of all that decide and of all workers.
    used: tuple[float, float] = (0.0, 0.0)

    async def rest(self, seconds: float) -> None:
        """Look for so long at what goes on anyway."""
        before, at = {site.name: site.used() for site in self.sites}, time.perf_counter()
        await asyncio.sleep(seconds)
        for site in self.sites:
            self.idle[site.name] = _share(before[site.name], site.used(), time.perf_counter() - at)

    async def run(self) -> None:
        """For ever."""
        before, at = {site.name: site.used() for site in self.sites}, time.perf_counter()
        while True:
            await asyncio.sleep(LOOK)
            passed, at = time.perf_counter() - at, time.perf_counter()
            for site in self.sites:
                if not site.runs:
                    continue
                found = site.used()
                share = _share(before[site.name], found, passed)
                before[site.name] = found
                self.shares.setdefault(site.name, []).append(share)
                beyond = [(each - idle) * passed / 100 for each, idle in zip(share, self.idle[site.name], strict=True)]
                self.used = (self.used[0] + beyond[0], self.used[1] + beyond[1])
                self.memory[site.name] = max(self.memory.get(site.name, 0.0), site.resident_in_all())


def _share(before: tuple[float, float], after: tuple[float, float], seconds: float) -> tuple[float, float]:
    """Percent of a core. A worker that ended has taken its time along."""
    first, second = (max(now - was, 0.0) / seconds * 100 for was, now in zip(before, after, strict=True))
    return first, second


class Renewals:
    """The step: agents are connected to both replicas; it ends with one."""

    def __init__(
        self, plan: Renewing, quiet: float, cluster: Cluster, figures: Figures, say: Callable[[str], None]
    ) -> None:
        self._plan = plan
        self._quiet = quiet
        self._cluster = cluster
        self._figures = figures
        self._say = say

    async def run(self, fleets: Fleets, kept: Site, lost: Site) -> None:
        """Raises NotMeasured."""
        plan = self._plan
        svids = sum(len(self._cluster.mounted(node)) for node in range(self._cluster.nodes))
        life = plan.life(svids)
        self._say(f"{svids} SVIDs, renewed every {life * RENEWED:.0f} s in the mean: an hour in {life:.0f} s")
        self._figures.add("renew_compressed", HOUR / life)
        watched = Watched((kept, lost))
        await watched.rest(self._quiet)
        asked_before, spent_before = await kept.api_counts(), fleets.used()
        begun = time.time()
        watching = asyncio.create_task(watched.run())
        try:
            await fleets.do("renew", life=life, seconds=plan.seconds)
            await self._wait(fleets, begun + plan.seconds * plan.lost_after)
            await self._lose(fleets, kept, lost)
            await self._wait(fleets, begun + plan.seconds + plan.after)
        finally:
            watching.cancel()
            await asyncio.wait((watching,))
        if not watching.cancelled():
            # Without it what the replicas took would be too little.
            raise NotMeasured(f"what the replicas take was not seen to the end: {watching.exception()}")
        found = await fleets.do("renewed")
        self._fill(found, watched, await kept.api_counts() - asked_before, fleets.used() - spent_before)

    async def _wait(self, fleets: Fleets, end: float) -> None:
        while (left := end - time.time()) > 0:
            await asyncio.sleep(min(left, 10.0))
            self._say(f"renewed: {await fleets.count('renewed')}")

    async def _lose(self, fleets: Fleets, kept: Site, lost: Site) -> None:
        self._say(f"the replica {lost.name} is killed; agents: {await lost.agents():.0f}, {await kept.agents():.0f}")
        who = "the leader" if await lost.leads() else "which did not lead"
        self._figures.add("lost_agents", await lost.agents(), note=who)
        lost.kill()
        at = time.time()
        await asyncio.sleep(self._plan.taken_out)
        await fleets.do("service", ports=[kept.port])

        async def all_there() -> bool:
            return await kept.agents() >= fleets.agents

        try:
            back = await until(all_there, "all agents at the other replica", 240.0, every=0.5)
            self._figures.add("lost_back", back - at)
        except NotMeasured:
            self._figures.add("lost_back", None, note=f"{await kept.agents():.0f} of {fleets.agents} after 240 s")

    def _fill(
        self, found: Sequence[Mapping[str, Any]], watched: Watched, asked: Counter[str], agents_used: float
    ) -> None:
        add = self._figures.add
        late = [each for one in found for each in one["late"]]
        times = [each for one in found for each in one["times"]]
        failed = sum((Counter(one["failed"]) for one in found), Counter[str]())
        overdue = [each for one in found for each in one["overdue"]]
        sizes = sum(
            (Counter({int(size): many for size, many in one["batches"].items()}) for one in found), Counter[int]()
        )
        if not late:
            raise NotMeasured(f"no SVID was renewed: {dict(failed)}")
        number = len(late)
        add("renew_done", number)
        add("renew_mean", number / max(max(times) - min(times), 1.0))
        add("renew_peak", most_in_a_second(times))
        add(
            "renew_late",
            sum(each > LATE for each in late) + len(overdue),
            note=f"{len(overdue)} of them never" if overdue else "",
        )
        # What never came is as late as it was at the end, at least.
        add("renew_late_p99", quantile([*late, *overdue], 0.99))
        add("renew_late_most", max(*late, *overdue, 0.0))
        texts = ", ".join(f"{count} times {text}" for text, count in failed.most_common(2))
        add("renew_failed", failed.total(), note=texts)
        together = sum(size * many for size, many in sizes.items() if size > 1)
        add("renew_together", together / number * 100, note=f"the largest {max(sizes, default=0)}")
        add("renew_idle", max(share for share, _ in watched.idle.values()))
        add("renew_workers_idle", max(share for _, share in watched.idle.values()))
        for key, seconds in zip(("renew_cpu", "renew_workers_cpu"), watched.used, strict=True):
            add(key, seconds / number * 1000)
        add("renew_agents_cpu", agents_used / number * 1000)
        for key, which in (("renew_cpu_most", 0), ("renew_workers_cpu_most", 1)):
            add(key, max(share[which] for shares in watched.shares.values() for share in shares))
        add("renew_rss", max(watched.memory.values(), default=0.0))
        add(
            "renew_requests",
            asked.total() / number,
            note=", ".join(f"{what} {many}" for what, many in asked.most_common()),
        )
