"""The run: an empty cluster and the large one side by side, then what befalls the large one. Each step fills rows."""

import asyncio
import os
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

from bench.scale.children import Fleets, NotMeasured, Site, Timed, raise_limits, until
from bench.scale.cores import apart
from bench.scale.figures import NOT_REPORTED, Figures, histogram_quantile, middle, most_in_a_second, quantile
from bench.scale.population import Cluster, Tokens
from bench.scale.renewals import Renewals, Renewing

# Nodes whose agents mint while that is timed, in a process of their own at either site.
MINTERS = 16
PROBE_EVERY = 0.25
# What befalls the large cluster, in this order. The forced re-issue before the rotation: in a real cluster an agent's
# connection is of after the last rotation, as its stream ended since. The restart last: not all may come back from it.
STEPS = ("mints", "reissue", "rotation", "restart")
# By itself: with two replicas, of which one is lost.
RENEWALS = "renewals"
Say = Callable[[str], None]


@dataclass(frozen=True, slots=True)
class Limits:
    """Seconds that each step may take; one that takes longer says how far it came, and the run goes on.

    `reissue` is beyond the window that the signer gives.
    """

    start: float = 300.0
    connect: float = 240.0
    rotation: float = 180.0
    restart: float = 240.0
    reissue: float = 240.0


@dataclass(frozen=True, slots=True)
class Plan:
    """How large, and how long things may take. `changes`: the part of the pods that change a minute.

    `burst` mints, `at_once`, show what CPU time one takes; `paced` ones at `rate` a second how long one takes; each in
    `rounds`, in turn with the empty cluster. `flags`: of the large cluster's signer. Of each node at most `held` SVIDs
    are re-issued. `steps`: which of STEPS there are.
    """

    cluster: Cluster
    fleets: int
    changes: float = 0.01
    quiet_seconds: float = 20.0
    rounds: int = 3
    burst: int = 1000
    at_once: int = 16
    paced: int = 500
    rate: float = 50.0
    flags: Sequence[str] = ()
    held: int = 1000
    # As many a second as the processes of thousands of agents can: beyond that all time goes to attempts in vain.
    connect_rate: float = 60.0
    limits: Limits = Limits()
    steps: Sequence[str] = STEPS
    # Of each signer.
    workers: int = 1
    renewing: Renewing = Renewing()


def sized(agents: int) -> Cluster:
    """As much of everything as so many nodes have at full size."""
    return Cluster(agents, 30 * agents, 2 * agents // 5, 4 * agents, max(agents // 10, 1))


FULL = Plan(sized(5_000), fleets=2)
QUICK = Plan(
    sized(500),
    fleets=1,
    quiet_seconds=2.0,
    burst=200,
    paced=100,
    rate=100.0,
    # A part of the SVIDs in a window that is as much shorter: as many a second are due as at full size.
    flags=("--forced-reissue-over", "3s", "--reissue-rate", "2000"),
    held=4,
    limits=Limits(start=60.0, connect=30.0, rotation=30.0, restart=30.0, reissue=30.0),
)


class Run:
    """One run in a folder of its own."""

    def __init__(self, plan: Plan, folder: Path, say: Say, watch: Path | None = None) -> None:
        self._plan = plan
        self._say = say
        cluster = plan.cluster
        minters = min(MINTERS, cluster.nodes // 2)
        workers = ("--workers", str(plan.workers))
        self._large = Site("large", cluster, folder, (*plan.flags, *workers), watch=watch)
        few = Cluster(minters, minters * cluster.pods // cluster.nodes, 0, 0, 1)
        self._empty = Site("empty", few, folder, workers)
        # It leads, as it begins first; a row says whether it still did when it was lost.
        self._second = self._large.another()
        self._minters = minters
        self._folder = folder
        self.figures = Figures()

    async def run(self) -> Figures:
        """All steps; where one does not come to its end, its rows say how far it came."""
        fleets: list[Fleets] = []
        try:
            # While trust changes an agent has two connections.
            raise_limits(2 * self._plan.cluster.nodes)
            Tokens.write_key(self._folder / "cluster.key")
            await self._steps(fleets)
        except NotMeasured as error:
            self.figures.failed(str(error))
            self._say(f"stopped: {error}")
        finally:
            for each in fleets:
                each.stop()
            for site in (self._second, self._large, self._empty):
                site.stop()
            if self._large.peak:
                self.figures.add("rss_peak", self._large.peak, self._empty.peak or None)
        return self.figures

    async def _steps(self, fleets: list[Fleets]) -> None:
        plan, large, empty = self._plan, self._large, self._empty
        self._say(f"making {plan.cluster}")
        # Both at once: one of them is nearly nothing.
        await asyncio.gather(empty.start_api(plan.limits.start), large.start_api(plan.limits.start))
        self._say("the API servers serve; starting the signers")
        begun = await empty.start_signer(plan.limits.start)
        if RENEWALS in plan.steps:
            await self._second.start_signer(plan.limits.start)
        self._add("ready", await large.start_signer(plan.limits.start), begun)
        few, all_of_them = Fleets(empty, self._minters, 0), Fleets(large, self._minters, plan.fleets)
        fleets += [few, all_of_them]
        await few.do("load", bundle=str(await empty.bundle(plan.limits.start)))
        await all_of_them.do("load", bundle=str(await large.bundle(plan.limits.start)))
        if RENEWALS in plan.steps:
            await all_of_them.do("service", ports=[large.port, self._second.port])
        await few.do("connect", spread=0.0)
        async with self._step("connecting", "rss_start"):
            await self._connected(all_of_them)
        if "mints" in plan.steps:
            async with self._step("mints", "rss_mints"):
                await self._steady(all_of_them, few)
        few.stop()
        empty.stop()
        if RENEWALS in plan.steps:
            await large.churn(plan.cluster.pods * plan.changes)
            async with self._step("the renewals", "rss_renewals", "lag_renewals", "lag_renewals_p99"):
                renewals = Renewals(plan.renewing, plan.quiet_seconds, plan.cluster, self.figures, self._say)
                await renewals.run(all_of_them, large, self._second)
        if "reissue" in plan.steps:
            async with self._step("the forced re-issue", "rss_reissue", "lag_reissue", "lag_reissue_p99"):
                await self._reissue(all_of_them)
        if "rotation" in plan.steps:
            async with self._step("the rotation", "rss_rotation", "lag_rotation"):
                await self._rotation(all_of_them)
        if "restart" in plan.steps:
            # What begins anew has no peak to forget, and no lag.
            async with self._step("the restart", "rss_restart", "lag_restart", anew=True):
                await self._restart(all_of_them)

    @asynccontextmanager
    async def _step(
        self, what: str, rss: str, lag: str = "", lag_p99: str = "", *, anew: bool = False
    ) -> AsyncIterator[None]:
        """One that does not come to its end is told of; what the signer needed for it is a row in any case."""
        large = self._large
        large.forget_peak()
        before = {} if anew else await large.lag()
        try:
            yield
        except NotMeasured as error:
            self.figures.failed(f"{what}: {error}")
            self._say(f"{what}: {error}")
        self._add(rss, large.resident("VmHWM"))
        after = await large.lag()
        for key, part in ((lag, 1.0), (lag_p99, 0.99)):
            if key:
                self._add_lag(key, before, after, part)

    def _add_lag(
        self, key: str, before: Mapping[float, float] | None, after: Mapping[float, float] | None, part: float
    ) -> None:
        found = histogram_quantile(before or {}, after, part) if after is not None else None
        self._add(key, found * 1000 if found is not None else None, note="" if found is not None else NOT_REPORTED)

    async def _connected(self, fleets: Fleets) -> None:
        begun = time.time()
        self._say(f"connecting {fleets.agents} agents")
        await fleets.do("connect", spread=fleets.agents / self._plan.connect_rate / (self._plan.fleets + 1))
        try:
            await self._until(fleets, "connected", fleets.agents, self._plan.limits.connect)
            self._add("connected", time.time() - begun)
        except NotMeasured:
            self._add("connected", None, note=await self._part(fleets, "connected", fleets.agents))
            raise
        finally:
            active = await self._large.active()
            await fleets.do("hold", authority=active, most=self._plan.held)

    async def _steady(self, fleets: Fleets, few: Fleets) -> None:
        """Pods change; then mints, here and at the empty cluster in turn."""
        plan, large, empty = self._plan, self._large, self._empty
        await large.churn(plan.cluster.pods * plan.changes)
        lag = await large.lag()
        async with self._probing():
            used, begun = [sum(each.used()) for each in (large, empty)], time.perf_counter()
            await asyncio.sleep(plan.quiet_seconds)
            passed = time.perf_counter() - begun
            shares = [(sum(site.used()) - was) / passed * 100 for site, was in zip((large, empty), used, strict=True)]
            self._add("background", shares[0], shares[1])
            self._add("rss_steady", large.resident("VmRSS"), empty.resident("VmRSS"))
            await self._mints(fleets, few, dict(zip((large.name, empty.name), shares, strict=True)))
        after = await large.lag()
        for key, part in (("lag_p99", 0.99), ("lag_most", 1.0)):
            self._add_lag(key, lag, after, part)

    async def _mints(self, fleets: Fleets, few: Fleets, background: Mapping[str, float]) -> None:
        """`background`: by site, % of a core that goes on beside mints."""
        plan = self._plan
        sites = ((self._empty, few), (self._large, fleets))
        cpu: dict[str, list[float]] = {site.name: [] for site, _ in sites}
        alone: dict[str, list[float]] = {site.name: [] for site, _ in sites}
        timed, by_itself = Timed(), Timed()
        failed = 0
        for number in range(plan.rounds):
            for site, minting in sites:
                used, begun = sum(site.used()), time.perf_counter()
                found = await minting.mint(plan.burst, plan.at_once)
                done = len(found["seconds"])
                if done:
                    used, passed = sum(site.used()) - used, time.perf_counter() - begun
                    cpu[site.name].append(used / done * 1000)
                    alone[site.name].append((used - passed * background[site.name] / 100) / done * 1000)
                failed += sum(found["failed"].values()) + await timed.mint(site, minting, plan.paced, plan.rate)
            self._say(f"mints, round {number + 1} of {plan.rounds}: CPU {cpu} ms")
        if not all(cpu.values()) or not all(timed.seconds.values()):
            raise NotMeasured("no mint was answered")
        with apart([pid for site, _ in sites for pid in site.pids], self._others(fleets, few)) as there:
            for _ in range(plan.rounds if there else 0):
                for site, minting in sites:
                    await by_itself.mint(site, minting, plan.paced, plan.rate)
        self._add("mint_cpu", middle(alone["large"]), middle(alone["empty"]))
        self._add("mint_cpu_all", middle(cpu["large"]), middle(cpu["empty"]))
        self._add("mint_wait", middle(timed.shares["large"]), middle(timed.shares["empty"]))
        for which, suffix in ((timed, ""), (by_itself, "_apart")):
            for key, part in (("mint_p50", 0.5), ("mint_p99", 0.99)):
                if which.seconds and all(which.seconds.values()):
                    large, empty = (quantile(which.seconds[name], part) * 1000 for name in ("large", "empty"))
                    self._add(key + suffix, large, empty)
        self._add("mint_failed", failed)

    def _others(self, *fleets: Fleets) -> list[int]:
        """The processes that are no signer."""
        servers = [site.api.running.pid for site in (self._large, self._empty) if site.api is not None]
        return [*servers, *(pid for each in fleets for pid in each.pids), os.getpid()]

    async def _rotation(self, fleets: Fleets) -> None:
        large, limit = self._large, self._plan.limits.rotation
        self._say("an ordinary rotation")
        since = large.logged()
        await large.rotate(forced=False)
        await until(lambda: large.stepped(since, "prepare"), "a prepared authority", limit)
        prepared = large.stepped(since, "prepare")
        assert prepared is not None
        at, sequence = prepared

        async def acknowledged() -> bool:
            return len(await fleets.times("acknowledged", sequence=sequence)) == fleets.agents

        try:
            await until(acknowledged, "acknowledgements of all agents", limit, every=0.5)
            self._add("rotation_acknowledged", (await fleets.times("acknowledged", sequence=sequence))[-1] - at)
        except NotMeasured:
            found = len(await fleets.times("acknowledged", sequence=sequence))
            self._add("rotation_acknowledged", None, note=f"{found} of {fleets.agents} within {limit:g} s")
            raise
        await until(lambda: large.stepped(since, "activate"), "the activation", limit)
        activated = large.stepped(since, "activate")
        assert activated is not None
        self._add("rotation_activated", activated[0] - at)

    async def _restart(self, fleets: Fleets) -> None:
        large, plan = self._large, self._plan
        self._say("a restart")
        failed = await self._failed(fleets)
        large.stop_signer()
        await fleets.do("restart")
        begun = time.time()
        took = await large.start_signer(plan.limits.start)
        self._add("restart_ready", took)
        try:
            await self._until(fleets, "served", fleets.agents, plan.limits.restart)
            last = (await fleets.times("returned", "served"))[-1]
            self._add("restart_last", last - begun - took)
        except NotMeasured:
            self._add("restart_last", None, note=await self._part(fleets, "served", fleets.agents))
            raise
        finally:
            connected, served = await fleets.times("returned", "connected"), await fleets.times("returned", "served")
            self._add("restart_connections", most_in_a_second(connected))
            self._add("restart_mints", most_in_a_second(served))
            self._add("restart_failed", await self._failed(fleets) - failed)

    async def _reissue(self, fleets: Fleets) -> None:
        large, plan = self._large, self._plan
        active = await large.active()
        # That they renew after the ordinary rotation is left out: all hold SVIDs of what signs now, they say.
        await fleets.do("hold", authority=active, most=plan.held)
        failed = await self._failed(fleets)
        pods = sum(min(len(plan.cluster.mounted(node)), plan.held) for node in range(plan.cluster.nodes))
        await fleets.do("reissue")
        since, asked = large.logged(), time.time()
        await large.rotate(forced=True)
        await until(lambda: large.stepped(since, "activate"), "the forced activation", plan.limits.reissue)
        activated = large.stepped(since, "activate")
        assert activated is not None
        self._add("reissue_asked", activated[0] - asked)
        await until(lambda: self._window(fleets), "word of the re-issue at the agents", plan.limits.reissue)
        window = await self._window(fleets)
        self._add("reissue_window", window)
        self._say(f"a forced rotation: {pods} SVIDs over {window:g} s")
        times: list[float] = []
        try:
            await self._until(fleets, "reissued", pods, window + plan.limits.reissue)
            times = await fleets.times("reissued")
            self._add("reissue_last", times[-1] - activated[0])
        except NotMeasured:
            self._add("reissue_last", None, note=await self._part(fleets, "reissued", pods))
            raise
        finally:
            # As far as it came, where it did not come to its end.
            times = times or await fleets.times("reissued")
            if times:
                self._add("reissue_peak", most_in_a_second(times))
                note = f"{len(times)} of {pods} SVIDs"
                self._add("reissue_mean", len(times) / max(times[-1] - times[0], 1.0), note=note)
            self._add("reissue_failed", await self._failed(fleets) - failed)

    async def _window(self, fleets: Fleets) -> float:
        return max(float(each["seconds"]) for each in await fleets.do("window"))

    async def _failed(self, fleets: Fleets) -> int:
        found = sum((Counter(each) for each in await fleets.do("failures")), Counter[str]())
        for text, count in found.most_common(6):
            self._say(f"failed so far: {count} times {text}")
        return found.total()

    async def _part(self, fleets: Fleets, name: str, wanted: int) -> str:
        return f"{await fleets.count(name)} of {wanted} in the time that it may take"

    async def _until(self, fleets: Fleets, name: str, wanted: int, limit: float) -> None:
        """Wait until that number of their state is as wanted, and say how far it is."""
        said = time.monotonic()

        async def enough() -> bool:
            nonlocal said
            found = await fleets.count(name)
            if time.monotonic() - said > 5:
                said = time.monotonic()
                self._say(f"{name}: {found} of {wanted}")
            return found >= wanted

        try:
            await until(enough, f"{wanted} {name}", limit, every=0.25)
        except NotMeasured as error:
            raise NotMeasured(f"{error}; failed mints: {await fleets.do('failures')}") from None

    @asynccontextmanager
    async def _probing(self) -> AsyncIterator[None]:
        """Ask /readyz all the while."""
        seconds: list[float] = []

        async def probe() -> None:
            while True:
                begun = time.perf_counter()
                # It gives up before the loop answers: one that is held for longer takes several.
                while not (await self._large.probe()):
                    pass
                seconds.append((time.perf_counter() - begun) * 1000)
                await asyncio.sleep(PROBE_EVERY)

        probing = asyncio.create_task(probe())
        try:
            yield
        finally:
            probing.cancel()
            await asyncio.gather(probing, return_exceptions=True)
        if seconds:
            self._add("probe_p99", quantile(seconds, 0.99))
            self._add("probe_most", max(seconds))

    def _add(self, key: str, value: float | None, empty: float | None = None, note: str = "") -> None:
        self.figures.add(key, value, empty, note)
        self._say("  ".join(self.figures.cells(key)))
