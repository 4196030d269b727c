"""The console's page in a real browser: until something is on the screen, until all is there, and what it takes.

    python -m bench.console [--rounds N]

A console of made-up clusters of ten nodes, in a process of its own; Debian's headless Chromium on the same host.
Records bench/results/console.md.
"""

import argparse
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from statistics import median

from bench import markdown
from bench.report import RESULTS, environment
from podsvid.console.picture import NodeLook, Picture
from podsvid.console.serving import Console
from tests.browser import Page, browser
from tests.console_rig import Told, volume

IDENTITIES = (1_000, 10_000, 40_000)
NODES, ROUNDS = 10, 7
COUNT = "document.querySelector('.tools .hint')?.textContent"
PAINTED = "performance.getEntriesByName('first-contentful-paint')[0]?.startTime"
HEAP = "performance.memory.usedJSHeapSize"
# From the top of all rows to their end, by so many frames: the longest of them, in milliseconds.
SCROLLED = """new Promise((done) => {
  const rows = document.querySelector('.rows'), frames = 120;
  let worst = 0, last = performance.now(), number = 0;
  const step = () => {
    const now = performance.now();
    worst = Math.max(worst, now - last);
    last = now;
    rows.scrollTop = number * rows.scrollHeight / frames;
    if (number++ < frames) requestAnimationFrame(step); else done(worst);
  };
  requestAnimationFrame(step);
})"""


@dataclass(frozen=True)
class Seen:
    """One opening of the page. `painted` and `there` in seconds from the opening, `frame` in milliseconds.

    `painted`: something of it is on the screen, before the data has come. `heap`, of the page, in bytes.
    """

    painted: float
    there: float
    frame: float
    heap: float


def serve(identities: int) -> None:
    """A console of so many, until its standard input ends."""
    names = range(identities // NODES)
    nodes = tuple(
        NodeLook(f"node-{node}", tuple(volume(f"cart-{node}-{each}", state="ok") for each in names))
        for node in range(NODES)
    )
    with Console(Told(Picture("cluster", "there", True, nodes), every=60.0)) as console:
        print(console.url, flush=True)
        sys.stdin.read()


@contextmanager
def console(identities: int) -> Iterator[str]:
    """Its URL."""
    command = [sys.executable, "-m", "bench.console", "--serve", str(identities)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        yield process.stdout.readline().strip()
        process.stdin.close()


def opened(page: Page, url: str, identities: int) -> Seen:
    """The page, opened once from nothing."""
    page.open("about:blank")
    began = time.monotonic()
    page.open(url)
    page.until(f"{COUNT} === '{identities:,} identities'")
    there = time.monotonic() - began
    frame, heap = float(page.value(SCROLLED)), float(page.value(HEAP))
    return Seen(float(page.value(PAINTED)) / 1000, there, frame, heap)


def run(rounds: int) -> Mapping[int, Sequence[Seen]]:
    """All sizes, in turn."""
    found: dict[int, list[Seen]] = {each: [] for each in IDENTITIES}
    with browser() as page:
        page.size(1440, 900)
        for number in range(rounds):
            print(f"round {number + 1} of {rounds}", file=sys.stderr, flush=True)
            for identities, seen in found.items():
                with console(identities) as url:
                    seen.append(opened(page, url, identities))
    return found


def report(found: Mapping[int, Sequence[Seen]], about: Mapping[str, str]) -> str:
    """What is recorded."""
    rounds = len(next(iter(found.values())))

    def line(identities: int) -> str:
        seen = found[identities]
        there = [each.there for each in seen]
        cells = (
            f"{identities:,}",
            f"{median(each.painted for each in seen):.2f}",
            f"{median(there):.2f} ({min(there):.2f} to {max(there):.2f})",
            f"{median(each.frame for each in seen):.0f}",
            f"{median(each.heap for each in seen) / 1e6:.0f}",
        )
        return markdown.row(cells)

    heads = (
        "identities",
        "first paint, s",
        "all there, s",
        "longest frame, ms",
        "page's heap, MB",
    )
    return "\n".join(
        [
            "# The console in a browser",
            "",
            ", ".join(f"{key} {each}" for key, each in about.items()),
            "",
            f"`python -m bench.console`: ten nodes, {rounds} openings of each from nothing, in turn; the middle one's,",
            "in brackets from and to. First paint: something is on the screen. All there: identities are counted, and",
            "their first rows drawn. The longest frame is that while all rows are scrolled through. Headless Chromium,",
            "which draws without a graphics card, on the same processors as the console.",
            "",
            *markdown.table(heads, map(line, found)),
            "",
        ]
    )


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m bench.console", description=__doc__)
    parser.add_argument("--rounds", type=int, default=ROUNDS)
    parser.add_argument("--serve", type=int, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.serve:
        serve(arguments.serve)
        return 0
    about = environment()
    text = report(run(arguments.rounds), about)
    (RESULTS / "console.md").write_text(text, encoding="utf-8")
    print(text)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
