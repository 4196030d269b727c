"""The process that serves strangers, as seen from the signer: kept running, told what to show, asked for nothing."""

import asyncio
import json
import logging
import socket
from collections.abc import Callable, Mapping, Sequence

from runtime.distrusted import begun, put_down
from runtime.stderr import hand_on
from runtime.stopping import side_by_side
from signer.public.confinement import NO_CALLS, NO_FILES
from signer.public.shown import HEAD_BYTES, Shown, encode, framed

_log = logging.getLogger("podsvid.public")
# Seconds until another is started: the double each time, up to the most, until one has served for so long; and that one
# gets to end by itself.
AGAIN, AGAIN_MOST, SETTLED, END = 1.0, 60.0, 60.0, 1.0
# Seconds that it gets to say that it shows what it was given, and when it is to start for that.
TAKES, STARTS = 10.0, 60.0
# Of what it says: counts by a few names.
MAX_REPORT = 16 * 1024
# Of a second, and far more: what is greater would be no number to the metrics.
MAX_COUNT = 10**9
STATUSES = ("200", "304", "400", "404", "405", "431", "503")
REASONS = ("address", "bytes", "certificate", "crowded", "deadline", "head", "leave", "rate", "tls")
LACKING = (NO_FILES, NO_CALLS)
# Told listener, kind (answered or refused), which (a status or a reason), and how often.
Counted = Callable[[str, str, str, int], None]


class PublicProcess:
    """Shows what it was last given on `sockets`, by the listeners' names. They are bound, and stay so when it ends."""

    def __init__(self, sockets: Mapping[str, Sequence[socket.socket]], counted: Counted) -> None:
        self._sockets = sockets
        self._counted = counted
        self._shown: Shown | None = None
        self._changed = asyncio.Event()
        self._taken = asyncio.Event()
        self._since: float | None = None
        self._lacking: list[str] = []

    @property
    def serving(self) -> bool:
        """Whether there is one that shows something."""
        return self._since is not None

    def show(self, shown: Shown) -> None:
        """This from now on."""
        if shown != self._shown:
            self._shown = shown
            self._changed.set()

    async def run(self) -> None:
        """Keep it running, for ever."""
        loop = asyncio.get_running_loop()
        pause, said = AGAIN, ""
        while True:
            # Nothing to show yet: it would refuse everybody.
            await self._changed.wait()
            why = ""
            try:
                why = await self._once()
            except OSError as error:
                why = error.strerror or type(error).__name__
            finally:
                since, self._since = self._since, None
            if since is not None and loop.time() - since >= SETTLED:
                pause, said = AGAIN, ""
            if why != said:
                _log.error("the process of the public listeners ended; another is started", extra={"error": why})
            said = why
            self._changed.set()
            await asyncio.sleep(pause)
            pause = min(pause * 2, AGAIN_MOST)

    async def _once(self) -> str:
        """One process, from start to end; how it ended. Raises OSError."""
        listeners = {name: [each.fileno() for each in sockets] for name, sockets in self._sockets.items()}
        process, ours = await begun(
            "signer.public.child",
            *(f"{name}={','.join(map(str, numbers))}" for name, numbers in listeners.items()),
            passed=[number for numbers in listeners.values() for number in numbers],
        )
        assert process.stderr is not None
        handing_on = asyncio.get_running_loop().create_task(
            hand_on(process.stderr, _wrote), name="public process's stderr"
        )
        reader, writer = await asyncio.open_connection(sock=ours)
        why = ""
        try:
            await side_by_side(self._tell(writer), self._hear(reader))
        except TimeoutError:
            why = "it does not say in time that it shows what it was given"
        except ValueError as error:
            why = str(error)
        except (asyncio.IncompleteReadError, OSError):
            pass
        finally:
            writer.close()
            how = await put_down(process, handing_on, END)
        return why or how

    async def _tell(self, writer: asyncio.StreamWriter) -> None:
        """Raises TimeoutError where it hangs: it would show what was revoked for ever."""
        seconds = STARTS
        while True:
            await self._changed.wait()
            self._changed.clear()
            self._taken.clear()
            assert self._shown is not None
            async with asyncio.timeout(seconds):
                writer.write(framed(encode(self._shown)))
                await writer.drain()
                await self._taken.wait()
            seconds = TAKES

    async def _hear(self, reader: asyncio.StreamReader) -> None:
        """Raises IncompleteReadError at its end, ValueError where it says what it should not."""
        while True:
            size = int.from_bytes(await reader.readexactly(HEAD_BYTES), "big")
            if size > MAX_REPORT:
                raise ValueError("it says too much")
            said = _read(await reader.readexactly(size))
            if said == {"shown": True}:
                self._taken.set()
                if self._since is None:
                    self._since = asyncio.get_running_loop().time()
                continue
            if isinstance(said, dict) and "lacking" in said:
                self._lacks(said["lacking"])
                continue
            for name, number in _counts(said):
                listener, kind, which = name
                if listener not in self._sockets or which not in (STATUSES if kind == "answered" else REASONS):
                    raise ValueError("it counts what there is not")
                self._counted(listener, kind, which, number)

    def _lacks(self, names: object) -> None:
        """Raises ValueError."""
        if not isinstance(names, list) or not all(each in LACKING for each in names):
            raise ValueError("it lacks what there is not")
        new = [each for each in LACKING if each in names and each not in self._lacking]
        if new:
            self._lacking += new
            _log.warning(
                "the host does not let the process of the public listeners give up what it should: whoever takes it "
                "over may read what the signer may",
                extra={"lacking": new},
            )


def _wrote(line: str, more: Mapping[str, int]) -> None:
    _log.warning("the process of the public listeners wrote", extra={"line": line, "said_by": "public", **more})


def _read(said: bytes) -> object:
    """Raises ValueError, whose text has nothing of what it says."""
    try:
        return json.loads(said)
    except (ValueError, RecursionError):
        raise ValueError("it says what is no report") from None


def _counts(said: object) -> list[tuple[tuple[str, str, str], int]]:
    """Raises ValueError: strangers may have got into it, and names become labels."""
    counts = said.get("counts") if isinstance(said, dict) else None
    if not isinstance(counts, dict):
        raise ValueError("it says what is no report")
    found = []
    for name, number in counts.items():
        listener, kind, which = name.split(" ")
        whole = isinstance(number, int) and not isinstance(number, bool)
        if kind not in ("answered", "refused") or not whole or not 0 <= number <= MAX_COUNT:
            raise ValueError("it says what is no count")
        found.append(((listener, kind, which), number))
    return found
