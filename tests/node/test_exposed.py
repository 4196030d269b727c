"""The process that serves pods' sockets: what the kernel says of it, what it can do when somebody else runs in it, and
what its end costs the pods."""

import asyncio
import fcntl
import json
import os
import resource
import select
import signal
import socket
import sys
import termios
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Any

import grpc
import grpc.aio
import pytest

from agent import budget
from agent.daemon import GIVES_WAY
from agent.exposed.confinement import readable
from agent.exposed.server import UNCOUNTED_CONNECTIONS
from agent.socket.connections import POD, UNREAD
from csi.room import MIB, Bounds
from podsvid.quickstart.errors import PublishFailed
from podsvid.quickstart.kubelet import StandInKubelet
from tests.mounted import mount_lines, mount_points
from tests.support import DEADLINE, DRIVER, IS_ROOT, ROOT, VOLUME, Host, first, host, node, pod, svid_stream

pytestmark = pytest.mark.skipif(not IS_ROOT, reason="only root has something to give up")
USER = "2100000000"
# Runs in the exposed process before it serves anything, as whoever took it over would: by itself, and all of it.
PLANTED = """
import sys
if "agent.exposed" in sys.orig_argv:
    import asyncio, ctypes, json, mmap, os, signal, socket
    serve = asyncio.run
    libc = ctypes.CDLL(None, use_errno=True)

    def call(name, *arguments):
        if getattr(libc, name)(*arguments) < 0:
            raise OSError(ctypes.get_errno(), name)

    def dial(family, address, kind=socket.SOCK_STREAM):
        with socket.socket(family, kind) as end:
            end.settimeout(2)
            end.connect(address)

    def bind(path):
        with socket.socket(socket.AF_UNIX) as end:
            end.bind(path)

    def write(path):
        os.close(os.open(path, os.O_WRONLY | os.O_CREAT))

    def forked():
        if os.fork() == 0:
            os._exit(0)

    places = json.loads(PLACES)
    parent = os.getppid()
    tries = {
        **{f"read {path}": lambda path=path: open(path, "rb").read() for path in places["files"]},
        **{f"list {path}": lambda path=path: os.listdir(path) for path in places["folders"]},
        **{f"a handle of {path}": lambda path=path: os.open(path, os.O_PATH) for path in places["folders"]},
        "a handle, by openat2": lambda: call("syscall", 437, -100, b"/", (ctypes.c_uint64 * 3)(os.O_PATH), 24),
        **{f"a library folder {path}": lambda path=path: os.open(path, os.O_RDONLY) for path in places["libraries"]},
        **{f"connect {path}": lambda path=path: dial(socket.AF_UNIX, path) for path in places["sockets"]},
        **{f"see {path}": lambda path=path: os.stat(path) for path in places["files"] + places["processes"]},
        **{f"go to {path}": lambda path=path: os.chdir(path) for path in places["open"]},
        **{f"leave a socket in {path}": lambda path=path: bind(path + "/planted") for path in places["open"]},
        "write a file": lambda: write("/tmp/planted"),
        "write into a volume": lambda: write(places["folders"][0] + "/planted"),
        # Where it would harm nobody, should it succeed.
        "mount": lambda: call("mount", b"x", places["folders"][2].encode(), b"tmpfs", 0, None),
        "unmount": lambda: call("umount2", places["folders"][0].encode(), 2),
        "a namespace": lambda: call("unshare", 0x10000000),
        "join a namespace": lambda: call("setns", 0, 0x40000000),
        "trace the agent": lambda: call("ptrace", 16, parent, 0, 0),
        "the agent's memory": lambda: open(f"/proc/{parent}/mem", "rb").close(),
        "the agent's descriptors": lambda: os.listdir(f"/proc/{parent}/fd"),
        "signal the agent": lambda: os.kill(parent, 0),
        "connect by an abstract name": lambda: dial(socket.AF_UNIX, places["abstract"]),
        "connect out": lambda: dial(socket.AF_INET, ("127.0.0.1", places["port"])),
        "connect out, IPv6": lambda: dial(socket.AF_INET6, ("::1", places["port"])),
        "a datagram": lambda: dial(socket.AF_UNIX, "/dev/log", socket.SOCK_DGRAM),
        "a datagram, of a pair": lambda: socket.socketpair(type=socket.SOCK_DGRAM)[0].sendto(b"x", places["datagrams"]),
        "shared memory": lambda: mmap.mmap(-1, 300 << 20, mmap.MAP_SHARED | mmap.MAP_ANONYMOUS),
        "memory as a stack": lambda: mmap.mmap(-1, 300 << 20, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | 0x100),
        "more memory than it may have": lambda: mmap.mmap(-1, 300 << 20, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS),
        "a segment of memory": lambda: call("shmget", 0, 300 << 20, 0o1600),
        "a queue of messages": lambda: call("msgget", 0, 0o1600),
        "a raw socket": lambda: socket.socket(socket.AF_PACKET, socket.SOCK_RAW),
        "a process": forked,
        "a program": lambda: os.execv("/bin/true", ["true"]),
        "be root": lambda: os.setuid(0),
        "a device": lambda: os.mknod("/tmp/planted", 0o20666, os.makedev(1, 1)),
        "a keyring": lambda: call("syscall", 250, 0, -3, 1),
        "bpf": lambda: call("syscall", 321, 0, 0, 0),
        "io_uring": lambda: call("syscall", 425, 1, 0),
    }

    told = []

    def planted(main):
        if os.getuid() != USER:
            # Not confined: it could do all of this, to this host.
            return serve(main)
        # Confined by now, and nothing was served yet.
        for name, attempt in tries.items():
            try:
                attempt()
                done = "DONE"
            except OSError as error:
                done = os.strerror(error.errno or 0)
            told.append(f"{done}: {name}")
        # Of a few lines the agent logs all.
        for at in range(0, len(told), 5):
            os.write(2, " | ".join(told[at : at + 5]).encode() + b"\\n")
        return serve(main)

    move = os.fchdir

    def kept(directory):
        os.write(2, f"kept {os.getpid()} {os.dup(directory)}\\n".encode())
        move(directory)

    asyncio.run, os.fchdir = planted, kept
"""


def on_node(main: Callable[[Host, StandInKubelet], Awaitable[None]], *flags: str) -> None:
    async def run() -> None:
        async with node(*flags) as (here, kubelet):
            await main(here, kubelet)

    asyncio.run(run())


def exposed(here: Host) -> int:
    return here.processes()[1]


async def replaced(here: Host, before: int) -> int:
    """The process that came for `before`."""
    async with asyncio.timeout(DEADLINE):
        while len(found := here.processes()) < 2 or found[1] == before:
            await asyncio.sleep(0.01)
    return found[1]


async def waiting(here: Host) -> int:
    """The process that comes next."""
    async with asyncio.timeout(DEADLINE):
        while len(found := here.processes()) < 3:
            await asyncio.sleep(0.01)
    return found[2]


async def answered(socket: Path) -> str:
    """The SPIFFE ID that the socket answers with, as soon as it does."""
    async with asyncio.timeout(DEADLINE):
        while True:
            try:
                return str((await first(socket)).svids[0].spiffe_id)
            except grpc.aio.AioRpcError as error:
                assert error.code() == grpc.StatusCode.UNAVAILABLE, error
                await asyncio.sleep(0.02)


def status(process: int) -> dict[str, list[str]]:
    lines = Path(f"/proc/{process}/status").read_text(encoding="ascii").splitlines()
    return {name: value.split() for name, _, value in (line.partition(":") for line in lines)}


def has_nothing(process: int, agent: int, memory: int, descriptors: int) -> dict[str, list[str]]:
    """Of one that serves, waits, or is for quarantine, as docs/threat-model.md has it; answers its limits."""
    found = status(process)
    for name in ("CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb"):
        assert found[name] == ["0" * 16], name
    assert found["Uid"] == found["Gid"] == [USER] * 4
    assert found["Groups"] == []
    assert (found["NoNewPrivs"], found["Seccomp"]) == (["1"], ["2"])
    for namespace in ("net", "ipc", "mnt"):
        own, agents = (os.readlink(f"/proc/{each}/ns/{namespace}") for each in (process, agent))
        assert own != agents, namespace
    assert Path(f"/proc/{process}/oom_score_adj").read_text(encoding="ascii") == "500\n"
    limits = Path(f"/proc/{process}/limits").read_text(encoding="ascii")
    rows = {line[:26].strip(): line[26:].split()[:2] for line in limits.splitlines()}
    assert rows["Max core file size"] == rows["Max file size"] == ["0", "0"]
    assert rows["Max data size"] == [str(memory)] * 2
    assert rows["Max open files"] == [str(descriptors)] * 2
    return rows


def test_it_has_nothing_that_it_does_not_need(tmp_path: Path) -> None:
    async def main(here: Host, kubelet: StandInKubelet) -> None:
        await kubelet.publish(pod(), VOLUME)
        process = exposed(here)
        rows = has_nothing(process, here.processes()[0], 96 * MIB, budget.descriptors(100))
        # A pod that runs as the same user would have its share of those.
        agents = Path(f"/proc/{here.processes()[0]}/limits").read_text(encoding="ascii")
        _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
        assert f"Max open files            {most:<20} {most:<20}" in agents
        assert rows["Max processes"] == next(
            line[26:].split()[:2] for line in agents.splitlines() if line.startswith("Max processes")
        )
        assert Path(f"/proc/{process}/environ").stat().st_uid == 0, "others of its user may look into it"
        environment = {line.partition(b"=")[0] for line in Path(f"/proc/{process}/environ").read_bytes().split(b"\0")}
        assert environment - {b"LC_CTYPE"} == {
            b"PYTHONPATH",
            b"PYTHONDONTWRITEBYTECODE",
            b"MALLOC_ARENA_MAX",
            b"LC_ALL",
            b"",
        }
        kinds = {
            os.readlink(f"/proc/{process}/fd/{each}").partition(":")[0] for each in os.listdir(f"/proc/{process}/fd")
        }
        assert kinds <= {"socket", "pipe", "anon_inode", "/dev/null"}, kinds

    on_node(main, "--socket-memory", "96", "--volumes", "100")


def test_the_agent_goes_before_it_on_a_busy_node_and_is_ended_after_it() -> None:
    async def main(here: Host, kubelet: StandInKubelet) -> None:
        await kubelet.publish(pod(), VOLUME)
        agent = here.processes()[0]
        own, scores = priorities(agent), []
        assert len(own) == 1
        for process in (exposed(here), await waiting(here)):
            await confined(process)
            # Of all its threads.
            assert priorities(process) == {own.copy().pop() + GIVES_WAY}
            scores.append(int(Path(f"/proc/{process}/oom_score_adj").read_text(encoding="ascii")))
        assert min(scores) > int(Path(f"/proc/{agent}/oom_score_adj").read_text(encoding="ascii"))

    on_node(main)


def priorities(process: int) -> set[int]:
    return {os.getpriority(os.PRIO_PROCESS, int(each)) for each in os.listdir(f"/proc/{process}/task")}


def test_there_is_nothing_in_its_root_but_its_program_and_nothing_to_write() -> None:
    async def main(here: Host, kubelet: StandInKubelet) -> None:
        target = await kubelet.publish(pod(), VOLUME)
        own = [*readable(), *(str(ROOT / name) for name in ("agent", "csi", "runtime", "svid"))]
        # And links.
        first_of = {each.split("/")[1] for each in (*own, "/lib", "/lib64", sys.prefix, os.__file__)}
        for process in (exposed(here), await waiting(here)):
            await confined(process)
            assert set(os.listdir(f"/proc/{process}/root")) <= first_of
            lines = mount_lines(process)
            places = mount_points(process)
            assert "/" in places
            assert set(places) <= {"/", *own}, places
            assert [line for line in lines if "ro" not in line.split(" ")[5].split(",")] == []
            # One that was shared would take what the agent mounts next, and give it what is taken away here.
            assert [line for line in lines if "shared:" in line or "master:" in line] == []
        # No copy of it keeps the volume.
        assert str(target) in here.mounts()
        assert await answered(here.short(target) / "socket")

    on_node(main)


def test_what_it_takes_away_from_itself_stays_with_the_agent_where_mounts_are_shared() -> None:
    async def run() -> None:
        with host() as here:
            # As on a node, where the agent's mounts are to reach the pods.
            here.start(within=lambda *command: ["unshare", "--mount", "--propagation", "shared", *command])
            agent = here.processes()[0]
            async with StandInKubelet(here.kubelet_root) as kubelet:
                await kubelet.wait_registered(DRIVER)

                def own() -> list[str]:
                    # Other tests' mounts come and go.
                    temporary = f"{here.base.parent}/"
                    found = mount_points(agent)
                    return [each for each in found if each.startswith(str(here.base)) or not each.startswith(temporary)]

                before = own()
                target = await kubelet.publish(pod(), VOLUME)
                for _ in range(2):
                    process = exposed(here)
                    os.kill(process, signal.SIGKILL)
                    await confined(await replaced(here, process))
                    assert own() == [*before, str(target)]
                assert await answered(here.short(Path(f"/proc/{agent}/root{target}")) / "socket")
                assert str(target) not in mount_points(exposed(here))

    asyncio.run(run())


async def confined(process: int) -> None:
    async with asyncio.timeout(DEADLINE):
        while status(process).get("Seccomp") != ["2"]:
            await asyncio.sleep(0.01)


def flood(path: Path, pings: int) -> socket.socket:
    """A connection that sends pings and reads no answer."""
    end = socket.socket(socket.AF_UNIX)
    end.settimeout(DEADLINE)
    end.connect(str(path))
    settings, ping = b"\0\0\0\4\0\0\0\0\0", b"\0\0\x08\6\0\0\0\0\0" + b"x" * 8
    with suppress(OSError):
        end.sendall(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + settings + b"\0\0\0\4\1\0\0\0\0" + pings * ping)
    return end


def test_what_a_pod_does_not_read_stays_small() -> None:
    async def main(here: Host, kubelet: StandInKubelet) -> None:
        path = here.short(await kubelet.publish(pod(), VOLUME)) / "socket"
        with flood(path, 6000) as end:
            for _ in range(20):
                await answered(path)
            await began(end)
            assert unread(end) <= UNREAD

    on_node(main)


def header(name: bytes, value: bytes) -> bytes:
    """As HPACK writes one that is in no table, of at most 126 bytes."""
    return b"\0" + bytes([len(name)]) + name + bytes([len(value)]) + value


def test_a_header_that_is_no_utf8_is_not_logged() -> None:
    """gRPC for Python would write it whole, with its traceback."""
    block = b"".join(
        header(name, value)
        for name, value in (
            (b":method", b"POST"),
            (b":scheme", b"http"),
            (b":path", b"/SpiffeWorkloadAPI/FetchX509SVID"),
            (b":authority", b"localhost"),
            (b"te", b"trailers"),
            (b"content-type", b"application/grpc"),
            (b"workload.spiffe.io", b"true"),
            (b"authorization", b"Bearer secret\xff"),
        )
    )
    call = len(block).to_bytes(3, "big") + b"\x01\x04" + (1).to_bytes(4, "big") + block
    empty = b"\0\0\x05\0\x01\0\0\0\x01" + bytes(5)

    async def main(here: Host, kubelet: StandInKubelet) -> None:
        path = here.short(await kubelet.publish(pod(), VOLUME)) / "socket"
        with flood(path, 1) as end:
            end.sendall(call + empty)
            found = b""
            # What is answered has the pod's SPIFFE ID in it.
            while b"spiffe://" not in found:
                found += await asyncio.to_thread(end.recv, 65536)
        assert await answered(path)
        assert "secret" not in here.log.read_text()

    on_node(main)


def test_what_a_pod_does_not_read_counts_when_its_connections_are_closed() -> None:
    async def main(here: Host, kubelet: StandInKubelet) -> None:
        path = here.short(await kubelet.publish(pod(), VOLUME)) / "socket"
        other = here.short(await kubelet.publish(pod("two", "other"), VOLUME)) / "socket"
        ends = []
        for _ in range(POD + 8):
            end = flood(path, 10)
            with suppress(OSError):
                end.sendall(b"\xff" * 64)  # no frame: it is closed
            await asyncio.to_thread(hung_up, end)
            ends.append(end)
        assert [unread(each) > 0 for each in ends].count(False) >= 8
        await answered(other)
        for each in ends:
            each.close()
        await answered(path)

    on_node(main)


def unread(end: socket.socket) -> int:
    return int.from_bytes(fcntl.ioctl(end, termios.FIONREAD, b"\0" * 4), sys.byteorder)


async def began(end: socket.socket) -> None:
    async with asyncio.timeout(DEADLINE):
        while not unread(end):
            await asyncio.sleep(0.01)


def hung_up(end: socket.socket) -> None:
    watch = select.poll()
    watch.register(end, select.POLLRDHUP)
    assert watch.poll(DEADLINE * 1000)


def test_who_runs_in_it_reaches_nothing_but_its_sockets(tmp_path: Path) -> None:
    (tmp_path / "planted").mkdir()

    async def attack(here: Host, kubelet: StandInKubelet) -> list[str]:
        target = await kubelet.publish(pod("one"), VOLUME)
        await kubelet.publish(pod("two", "other"), VOLUME)
        token = here.base / "token"
        token.write_text("the signer's token", encoding="ascii")
        token.chmod(0o444)
        places = {
            "files": [str(target / "tls.key"), str(target / "tls.crt"), str(token), "/etc/passwd", "/proc/self/status"]
            + [str(path) for path in (here.base / "s").iterdir()]
            + [str(path) for path in (here.base / "r" / "journal").iterdir()],
            "folders": [str(target), str(here.kubelet_root), str(here.base / "r"), "/", "/proc", "/tmp"],
            "sockets": [str(here.base / "r" / "admin.sock"), str(target / "socket")],
            "open": [str(here.base / "open"), *(each for each in ("/tmp", "/run", "/dev/shm") if os.path.isdir(each))],
            "processes": ["/proc/1", "/proc/self", f"/proc/{here.processes()[0]}"],
            "libraries": ["/usr/lib", os.path.dirname(os.__file__), os.path.join(ROOT, "agent")],
            "datagrams": str(here.base / "log"),
            "abstract": f"\0{here.base}",
            "port": 9,
        }
        (here.base / "open").mkdir()
        (here.base / "open").chmod(0o1777)
        log = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        log.bind(str(here.base / "log"))
        (here.base / "log").chmod(0o666)
        # A name that is no path, as a host's daemons may have.
        daemon = socket.socket(socket.AF_UNIX)
        daemon.bind(f"\0{here.base}")
        daemon.listen()
        program = PLANTED.replace("PLACES", repr(json.dumps(places))).replace("USER", USER)
        (tmp_path / "planted" / "sitecustomize.py").write_text(program, encoding="utf-8")
        before = exposed(here)
        os.kill(before, signal.SIGKILL)
        await replaced(here, before)
        assert await answered(here.short(target) / "socket") == "spiffe://example.org/ns/default/sa/web"
        fresh = await kubelet.publish(pod("fresh", "third"), VOLUME)
        assert await answered(here.short(fresh) / "socket") == "spiffe://example.org/ns/default/sa/third"
        lines = [each["line"] for each in here.events() if each["event"] == "the exposed process wrote"]
        places_kept = [line.split()[1:] for line in lines if line.startswith("kept")]
        assert len(places_kept) >= 3, lines
        for process, number in places_kept:
            # What whoever is sent this descriptor finds above it.
            assert os.listdir(f"/proc/{process}/fd/{number}/..") == []
        log.close()
        daemon.close()
        return [each for line in lines if not line.startswith("kept") for each in line.split(" | ")]

    async def run() -> None:
        # The files of a host are below a folder that others may enter: nothing but the process itself is in the way.
        async with planted_node(tmp_path / "planted") as (here, kubelet):
            here.base.chmod(0o755)
            tries = await attack(here, kubelet)
        assert tries[-1].endswith("io_uring"), tries
        assert len(tries) > 50, tries
        done = [each for each in tries if each.startswith("DONE")]
        assert done == [], "\n".join(tries)

    asyncio.run(run())


def test_without_a_network_of_its_own_it_serves_fewer_connections_and_says_so(tmp_path: Path) -> None:
    program = """
import sys
if "agent.exposed" in sys.orig_argv:
    from agent.exposed import server
    run = server.run
    server.run = lambda channel, lacking, alone: run(channel, (*lacking, "no network"), alone=False)
"""
    (tmp_path / "sitecustomize.py").write_text(program, encoding="utf-8")

    async def run() -> None:
        async with planted_node(tmp_path) as (here, kubelet):
            path = here.short(await kubelet.publish(pod(), VOLUME)) / "socket"
            process = exposed(here)
            assert await answered(path) == "spiffe://example.org/ns/default/sa/web"
            watch = select.poll()
            ends = [flood(path, 0) for _ in range(30)]
            for end in ends:
                watch.register(end, select.POLLRDHUP)
            async with asyncio.timeout(DEADLINE):
                while len(watch.poll(0)) < len(ends) - UNCOUNTED_CONNECTIONS:
                    await asyncio.sleep(0.01)
            for end in ends:
                end.close()
            await answered(path)
            assert exposed(here) == process
            assert status(process)["Seccomp"] == ["2"]
            assert any("no network or root of its own" in each["event"] for each in here.events())

    asyncio.run(run())


@asynccontextmanager
async def planted_node(folder: Path) -> AsyncIterator[tuple[Host, StandInKubelet]]:
    """As tests.support.node, with `folder` before all that Python finds modules in."""
    with host() as found:
        found.environment = {"PYTHONPATH": f"{folder}{os.pathsep}{ROOT}"}
        found.start()
        async with StandInKubelet(found.kubelet_root) as kubelet:
            await kubelet.wait_registered(DRIVER)
            yield found, kubelet


def held(targets: Sequence[Path], here: Host) -> Any:
    """What may not change when the process ends: files, and when they are renewed."""
    return [(target / "tls.crt").read_bytes() for target in targets], here.renewals()


def test_its_end_mints_nothing_and_its_sockets_come_back(tmp_path: Path) -> None:
    async def main(here: Host, kubelet: StandInKubelet) -> None:
        targets = [await kubelet.publish(pod(f"p{each}", f"sa{each}"), VOLUME) for each in range(12)]
        sockets = [here.short(target) / "socket" for target in targets]
        before, agent = held(targets, here), here.processes()[0]
        async with svid_stream(sockets[0]) as stream:
            streamed = aiter(stream)
            serial_before = (await anext(streamed)).svids[0].x509_svid
            for _ in range(3):
                process = exposed(here)
                os.kill(process, signal.SIGKILL)
                await replaced(here, process)
            with pytest.raises(grpc.aio.AioRpcError) as ended:
                await anext(streamed)
        assert ended.value.code() == grpc.StatusCode.UNAVAILABLE
        ids = [await answered(each) for each in sockets]
        assert ids == [f"spiffe://example.org/ns/default/sa/sa{each}" for each in range(12)]
        assert (await first(sockets[0])).svids[0].x509_svid == serial_before
        assert held(targets, here) == before
        assert here.processes()[0] == agent
        # A socket answers a moment before the place where it was bound is cleared away.
        async with asyncio.timeout(DEADLINE):
            while any((target / "..socket").exists() for target in targets):
                await asyncio.sleep(0.02)

    on_node(main)


def test_one_that_waits_takes_over_and_has_as_little(tmp_path: Path) -> None:
    async def main(here: Host, kubelet: StandInKubelet) -> None:
        target = await kubelet.publish(pod("staying", "staying"), VOLUME)
        socket = here.short(target) / "socket"
        process, next_one = exposed(here), await waiting(here)
        await confined(next_one)
        has_nothing(next_one, here.processes()[0], budget.SOCKETS, budget.descriptors(Bounds().volumes))
        os.kill(process, signal.SIGKILL)
        assert await replaced(here, process) == next_one
        assert await answered(socket) == "spiffe://example.org/ns/default/sa/staying"
        after = await waiting(here)
        assert here.stop() == 0
        assert not any(Path(f"/proc/{each}").exists() for each in (next_one, after))

    on_node(main)


def test_kubelets_calls_go_on_while_it_is_away(tmp_path: Path) -> None:
    async def main(here: Host, kubelet: StandInKubelet) -> None:
        staying, leaving = pod("staying", "staying"), pod("leaving", "leaving")
        target = await kubelet.publish(staying, VOLUME)
        await kubelet.publish(leaving, VOLUME)
        process = exposed(here)
        os.kill(process, signal.SIGKILL)
        # At once: a repeated publish, an unpublish, and one that needs a socket.
        await kubelet.publish(staying, VOLUME)
        await kubelet.unpublish(leaving, VOLUME)
        fresh = await kubelet.publish(pod("fresh", "fresh"), VOLUME)
        assert await answered(here.short(fresh) / "socket") == "spiffe://example.org/ns/default/sa/fresh"
        assert await answered(here.short(target) / "socket") == "spiffe://example.org/ns/default/sa/staying"
        assert len(here.journal()) == 2

    on_node(main)


def test_one_that_hangs_is_replaced_while_a_publish_waits(tmp_path: Path) -> None:
    async def main(here: Host, kubelet: StandInKubelet) -> None:
        await kubelet.publish(pod("first"), VOLUME)
        process = exposed(here)
        os.kill(process, signal.SIGSTOP)
        target = await kubelet.publish(pod("fresh", "fresh"), VOLUME)
        assert exposed(here) != process
        assert await answered(here.short(target) / "socket") == "spiffe://example.org/ns/default/sa/fresh"
        assert len(here.journal()) == 2

    on_node(main)


def test_it_ends_with_the_agent_however_that_ends(tmp_path: Path) -> None:
    async def main(here: Host, kubelet: StandInKubelet) -> None:
        process = exposed(here)
        await confined(process)
        # It cannot see that the channel has ended.
        os.kill(process, signal.SIGSTOP)
        here.kill()
        async with asyncio.timeout(DEADLINE):
            while Path(f"/proc/{process}").exists() and status(process)["State"][0] != "Z":
                await asyncio.sleep(0.01)
        here.start()
        async with asyncio.timeout(DEADLINE):
            while len(here.processes()) < 2:
                await asyncio.sleep(0.01)
        process = exposed(here)
        assert here.stop() == 0
        assert not Path(f"/proc/{process}").exists()

    on_node(main)


def test_while_none_lives_publishes_are_unavailable_and_starts_pause(tmp_path: Path) -> None:
    (tmp_path / "planted").mkdir()

    async def run() -> None:
        async with planted_node(tmp_path / "planted") as (here, kubelet):
            target = await kubelet.publish(pod(), VOLUME)
            broken = tmp_path / "planted" / "sitecustomize.py"
            broken.write_text("import os, sys\nif 'agent.exposed' in sys.orig_argv: os._exit(3)\n", encoding="utf-8")
            for each in here.processes()[1:]:
                os.kill(each, signal.SIGKILL)
            event = "the process that serves pods' sockets ended; it is started again"
            async with asyncio.timeout(DEADLINE):
                while len(ends := [each for each in here.events() if each["event"] == event]) < 5:
                    await asyncio.sleep(0.05)
            before = here.journal(), here.mounts()
            with pytest.raises(PublishFailed) as refused:
                await kubelet.publish(pod("other"), VOLUME)
            assert "UNAVAILABLE" in str(refused.value)
            assert "SOCKET_UNAVAILABLE" in str(refused.value)
            assert (here.journal(), here.mounts()) == before, "something is left of what was refused"
            pauses = [each["pause_seconds"] for each in ends[1:5]]
            assert pauses == sorted(pauses)
            assert pauses[-1] > pauses[0] > 0
            broken.unlink()
            assert await answered(here.short(target) / "socket") == "spiffe://example.org/ns/default/sa/web"

    asyncio.run(run())
