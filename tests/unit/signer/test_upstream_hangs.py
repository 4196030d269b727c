"""U4: files of a CA above that hang are waited for a bounded time, by one thread, and the process ends all the same."""

import asyncio
import gc
import os
import subprocess
import sys
import threading
from datetime import timedelta
from pathlib import Path

import pytest

from runtime import bounded
from runtime.bounded import DEADLINE_SECONDS, Bounded, Unanswered
from signer.upstream.certify import FileUpstream, UpstreamUnusable
from tests.signer_rig import START
from tests.unit.signer.test_lifecycle import TD
from tests.unit.signer.test_store import upstream_files
from tests.unit.signer.test_upstream import AUTHORITY_KEY

DAY = timedelta(days=1)


def readers() -> set[threading.Thread]:
    return {each for each in threading.enumerate() if each.name == "files"}


def test_a_pipe_in_a_files_place_is_given_up_and_read_by_one_thread(tmp_path: Path) -> None:
    """Each attempt took another thread of the event loop's few, and the leader waited for it for ever."""
    _, usual = upstream_files(tmp_path)
    os.mkfifo(tmp_path / "roots.pem")
    above = FileUpstream(usual.certificate, usual.key, tmp_path / "roots.pem", reader=Bounded(0.05))
    # Other tests of this process may have left one that hangs.
    others = readers()

    async def run() -> None:
        for _ in range(5):
            with pytest.raises(UpstreamUnusable, match=r"could not be read within 0\.05 s; is it on a file system"):
                await above.certify(TD, AUTHORITY_KEY, DAY, START)
            assert len(readers() - others) == 1
        # Once it answers, the next attempt is as any other.
        pipe = os.open(tmp_path / "roots.pem", os.O_WRONLY)
        (tmp_path / "other").write_bytes(usual.certificate.read_bytes())
        os.rename(tmp_path / "other", tmp_path / "roots.pem")
        os.close(pipe)
        above.reader.seconds = 30.0
        assert (await above.certify(TD, AUTHORITY_KEY, DAY, START)).private_key is AUTHORITY_KEY

    assert FileUpstream(usual.certificate, usual.key).reader.seconds == DEADLINE_SECONDS == 30

    async def bounded_run() -> None:
        async with asyncio.timeout(60):
            await run()

    asyncio.run(bounded_run())


def test_two_who_ask_at_once_both_get_an_answer_one_after_the_other() -> None:
    async def run() -> None:
        above, busy, most = Bounded(30), [0], [0]
        gate = threading.Event()

        def work() -> int:
            busy[0] += 1
            most[0] = max(most[0], busy[0])
            gate.wait(30)
            busy[0] -= 1
            return 7

        tasks = [asyncio.create_task(above.do(work)) for _ in range(4)]
        while not busy[0]:
            await asyncio.sleep(0)
        gate.set()
        assert await asyncio.gather(*tasks) == [7] * 4
        assert most == [1]

    asyncio.run(run())


def test_what_it_raises_is_raised_once_and_nobody_else_hears_of_it() -> None:
    complaints: list[object] = []

    def fail() -> None:
        raise ValueError("no")

    async def run() -> None:
        asyncio.get_running_loop().set_exception_handler(lambda _, context: complaints.append(context))
        above = Bounded(30)
        found = await asyncio.gather(*(above.do(fail) for _ in range(3)), return_exceptions=True)
        assert [type(each) for each in found] == [ValueError] * 3
        del found
        gc.collect()

    asyncio.run(run())
    assert complaints == []


def test_without_a_thread_to_be_had_it_is_not_answered(monkeypatch: pytest.MonkeyPatch) -> None:
    class Full:
        def __init__(self, **_: object) -> None: ...

        def start(self) -> None:
            raise RuntimeError("can't start new thread")

    with monkeypatch.context() as changed, pytest.raises(Unanswered):
        changed.setattr(bounded, "Thread", Full)
        above = Bounded(30)
        asyncio.run(above.do(lambda: 7))
    assert asyncio.run(above.do(lambda: 7)) == 7


def test_the_process_ends_while_a_file_hangs(tmp_path: Path) -> None:
    """A thread of the event loop's own is waited for at the end, and so the signer would be killed at each stop."""
    os.mkfifo(tmp_path / "pipe")
    program = (
        "import asyncio, pathlib, sys\n"
        "from runtime.bounded import Bounded, Unanswered\n"
        "try: asyncio.run(Bounded(0.05).do(pathlib.Path(sys.argv[1]).read_bytes))\n"
        "except Unanswered: print('given up')\n"
    )
    found = subprocess.run(
        [sys.executable, "-c", program, tmp_path / "pipe"], capture_output=True, text=True, timeout=60, check=True
    )
    assert found.stdout == "given up\n"
