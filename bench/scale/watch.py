"""What holds a program's event loop: `python -m bench.scale.watch FILE COMMAND ...` is `podsvid COMMAND ...`, watched.

A second thread looks at the loop's thread every few milliseconds. While one turn of the loop takes longer than it
should it notes where that is; the collector's pauses are noted by themselves. At the end, and each half minute, FILE
says how often which place was seen, and the longest turns: by the time of a processor that they took, which others on
the machine change little, and by the clock.
"""

import asyncio
import gc
import heapq
import selectors
import sys
import threading
import time
import traceback
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from types import FrameType
from typing import Any

# Seconds: a turn that takes longer is looked at; between two looks; between two reports.
HELD, LOOK, REPORT = 0.005, 0.002, 30.0
# Milliseconds of a processor, by which turns are counted.
BOUNDS = (2, 5, 10, 20, 50, 100)
DEPTH, SHOWN = 6, 40
OLDEST = 2


class Watch:
    """The loop's turns, told by its selector, and what was seen of the long ones."""

    def __init__(self, file: Path) -> None:
        self._file = file
        self._main = threading.get_ident()
        self._since: float | None = None
        self._places: Counter[str] = Counter()
        # Seconds of a processor and of the clock.
        self._longest: list[tuple[float, float, str]] = []
        self._turns, self._longer = 0, Counter[int]()
        self._used = 0.0
        # Of each half minute.
        self._periods: list[str] = []
        self._first = ""
        self._collecting = 0.0
        self._pauses: Counter[int] = Counter()
        self._pause_micros: Counter[int] = Counter()
        self._longest_pause = 0.0
        self._begun = time.monotonic()
        # Of the oldest generation: seconds since the start, those of a processor that it took, and what it left out.
        self._processor = 0.0
        self._oldest: list[tuple[float, float, int]] = []

    @property
    def is_main(self) -> bool:
        """Whether the thread that asks is the one that is watched."""
        return threading.get_ident() == self._main

    def idle(self) -> None:
        """A turn is over."""
        since, self._since = self._since, None
        if since is not None:
            took, used = time.monotonic() - since, time.thread_time() - self._used
            self._turns += 1
            self._longer.update(each for each in BOUNDS if used * 1000 > each)
            if took > HELD:
                heapq.heappush(self._longest, (used, took, self._first))
                if len(self._longest) > SHOWN:
                    heapq.heappop(self._longest)
        self._first = ""

    def busy(self) -> None:
        """The next one begins."""
        self._used = time.thread_time()
        self._since = time.monotonic()

    def collected(self, phase: str, info: Mapping[str, Any]) -> None:
        """For gc.callbacks."""
        if phase == "start":
            self._collecting, self._processor = time.monotonic(), time.thread_time()
            return
        took, generation = time.monotonic() - self._collecting, int(info["generation"])
        self._pauses[generation] += 1
        self._pause_micros[generation] += round(took * 1e6)
        self._longest_pause = max(self._longest_pause, took)
        if generation == OLDEST:
            used = time.thread_time() - self._processor
            self._oldest.append((self._collecting - self._begun, used, gc.get_freeze_count()))

    def look(self) -> None:
        """For ever."""
        told = time.monotonic()
        while True:
            time.sleep(LOOK)
            since, now = self._since, time.monotonic()
            if since is not None and now - since > HELD:
                frame = sys._current_frames().get(self._main)
                place = _place(frame)
                self._places[place] += 1
                self._first = self._first or place
            if now - told > REPORT:
                told = now
                self._end_period()
                self.write()

    def _end_period(self) -> None:
        """What was counted since the last one."""
        longer = ", ".join(f"{self._longer[each]} above {each} ms" for each in BOUNDS)
        self._periods.append(
            f"until {time.monotonic() - self._begun:.0f} s {self._turns} turns, of a processor's time {longer}"
        )
        self._turns, self._longer = 0, Counter()

    def finish(self) -> None:
        """At the end."""
        self._end_period()
        self.write()

    def write(self) -> None:
        """What is known so far."""
        lines = [f"collector: {dict(self._pauses)} times, microseconds {dict(self._pause_micros)}"]
        lines.append(f"collector's longest pause: {self._longest_pause * 1000:.0f} ms")
        lines += [f"oldest: at {at:.1f} s {used * 1000:.0f} ms, {out} left out" for at, used, out in self._oldest]
        lines += self._periods
        lines += [
            f"{used * 1000:.0f} ms ({took * 1000:.0f} by the clock): {place}"
            for used, took, place in sorted(self._longest, reverse=True)
        ]
        lines += [f"{count} times: {place}" for place, count in self._places.most_common(SHOWN)]
        self._file.write_text("\n".join(lines) + "\n", encoding="utf-8")


def _place(frame: FrameType | None) -> str:
    found = traceback.extract_stack(frame)[-DEPTH:] if frame else []
    return " < ".join(f"{Path(each.filename).name}:{each.lineno} {each.name}" for each in reversed(found))


class Selector(selectors.DefaultSelector):
    """Says when the loop waits."""

    watch: Watch

    def select(self, timeout: float | None = None) -> Any:
        if not self.watch.is_main:
            # Another thread's loop: it holds nobody up.
            return super().select(timeout)
        self.watch.idle()
        try:
            return super().select(timeout)
        finally:
            self.watch.busy()


class Policy(asyncio.DefaultEventLoopPolicy):
    """Each loop is watched."""

    def new_event_loop(self) -> asyncio.AbstractEventLoop:
        return asyncio.SelectorEventLoop(Selector())


def main() -> int:
    from podsvid.cli import main as podsvid

    Selector.watch = watch = Watch(Path(sys.argv.pop(1)))
    gc.callbacks.append(watch.collected)
    asyncio.set_event_loop_policy(Policy())
    threading.Thread(target=watch.look, daemon=True).start()
    try:
        return podsvid()
    finally:
        watch.finish()


if __name__ == "__main__":
    sys.exit(main())
