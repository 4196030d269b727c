"""Workloads go from SPIRE to podsvid one by one, and back, as docs/migration.md says, under handshakes of all."""

import asyncio
import re
import tempfile
from collections.abc import AsyncIterator, Mapping
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from cryptography import x509

from svid.certificates import certificates_from_pem
from tests.interop.rig import LOOK_SECONDS, Cluster, cluster, ran
from tests.interop.spire import page
from tests.interop.spire.above import above
from tests.interop.spire.moving import GROUPS, Fleet, fleet
from tests.interop.spire.spire import OURS, Spire, admitted, configured, joined, on_disk, serving
from tests.interop.spire.test_upstream import flags
from tests.interop.spire.workload import ACCOUNTS
from tests.ports import free_port
from tests.support import DEADLINE

WORKLOADS = 6
# Seconds: each workload is renewed while it shakes hands, by both sides.
SPIRES_LIFE = 20
QUICK = (
    *("--upstream-root-interval", "1s", "--x509-min-ttl", "2s", "--x509-ttl", "20s", "--x509-max-ttl", "20s"),
    *("--outage-limit", "6s", "--forced-reissue-over", "2s"),
)


@dataclass
class Site:
    """SPIRE with an entry for each workload, its server running, and the folder that commands are typed in."""

    spire: Spire
    folder: Path
    running: AsyncExitStack = field(default_factory=AsyncExitStack)

    async def type(self, heading: str, begin: str, **instead: str) -> str:
        """What the page has there; what it printed."""
        text = page.block(heading, begin, page.MIGRATION)
        for old, new in instead.items():
            assert old in text
            text = text.replace(old, new)
        return await ran("sh", "-ec", f'cd {self.folder}\nPATH="{self.spire.folder}/bin:$PATH"\n{text}')

    async def roots(self) -> set[str]:
        """SPIRE's bundle, by serial numbers."""
        return serials((await self.spire.server("bundle", "show", format="pem")).encode())

    async def until_roots(self, wanted: set[str]) -> None:
        """Wait until SPIRE's bundle is these: its server keeps one for a second."""
        async with asyncio.timeout(DEADLINE):
            while await self.roots() != wanted:
                await asyncio.sleep(LOOK_SECONDS)

    async def restart(self, upstream: str) -> None:
        """SPIRE's server, with that in its `plugins`."""
        await self.running.aclose()
        file = self.spire.folder / "server.conf"
        text = file.read_text()
        assert "UpstreamAuthority" not in text
        file.write_text(text.replace("plugins {", f"plugins {{\n{upstream}", 1))
        await self.running.enter_async_context(serving(self.spire))


def serials(pem: bytes) -> set[str]:
    return {f"{each.serial_number:x}" for each in certificates_from_pem(pem)}


@asynccontextmanager
async def site(programs: Mapping[str, Path], folder: Path, upstream: str = "") -> AsyncIterator[Site]:
    """Server and agent run, and have an entry for each workload."""
    with tempfile.TemporaryDirectory(prefix="sp", dir="/tmp") as name:
        own, port = Path(name), free_port()
        values = {"port": port, "folder": own, "trust_domain": OURS, **on_disk(own), "upstream": upstream}
        found = Site(configured(programs, own, values), folder)
        command = own / "bin" / "spire-server"
        command.parent.mkdir()
        command.write_text(f'#!/bin/sh\nexec {programs["spire-server"]} "$@" -socketPath {own}/server.sock\n')
        command.chmod(0o700)
        async with found.running:
            await found.running.enter_async_context(serving(found.spire))
            await entries(found.spire, await admitted(found.spire, values))
            async with joined(found.spire):
                yield found


async def entries(spire: Spire, parent: str) -> None:
    """One for each workload, with the ID that podsvid gives it."""
    for number in range(WORKLOADS):
        await spire.server(
            *("entry", "create"),
            spiffeID=f"{ACCOUNTS}account-{number}",
            parentID=parent,
            selector=f"unix:gid:{GROUPS + number}",
            x509SVIDTTL=str(SPIRES_LIFE),
        )


async def sockets(here: Cluster) -> list[Path]:
    """Pods' sockets, one for each workload."""
    return [here.host.short(await here.publish(number)) / "socket" for number in range(WORKLOADS)]


async def there_and_back(workloads: Fleet, spire: Spire, theirs: list[Path]) -> None:
    """Each to podsvid, one after another, and each back; who signs for it is another one each time."""
    begun = workloads.authorities
    for number, socket in enumerate(theirs):
        await workloads.move(number, socket)
    moved = workloads.authorities
    assert not set(begun) & set(moved)
    for number in range(WORKLOADS):
        await workloads.move(number, spire.socket)
    assert not set(workloads.authorities) & set(moved)


def shown(workloads: Fleet, recipe: str) -> None:
    """That none failed, and that each went there and back among all others."""
    print(f"{recipe}: {workloads.made} handshakes of {WORKLOADS} workloads, {len(workloads.failed)} failed")
    assert workloads.failed == []
    # A round of all is 30; each move has two or more.
    assert workloads.made > 30 * 2 * 2 * WORKLOADS


async def until_trusted(folder: Path, wanted: set[str]) -> None:
    """Wait until all that run have these roots, each by its own Workload API or volume."""
    async with asyncio.timeout(DEADLINE):
        while not all(serials((each / "..data" / "ca.crt").read_bytes()) == wanted for each in folder.iterdir()):
            await asyncio.sleep(LOOK_SECONDS)


async def until_acknowledged(podsvid: Cluster, roots: int) -> None:
    """Wait until `authority show` names so many roots of the CA above, and its one agent has acknowledged them."""
    async with asyncio.timeout(DEADLINE):
        while True:
            said = await podsvid.authority("show")
            if said.count("root of the CA above") == roots and "agents: 1 of 1 have acknowledged" in said:
                return
            await asyncio.sleep(LOOK_SECONDS)


async def cannot_take_out(here: Site, root: Path) -> None:
    """The page says so: whoever goes back has that root until it ends."""
    (found,) = certificates_from_pem(root.read_bytes())
    name = found.extensions.get_extension_for_class(x509.SubjectKeyIdentifier).value.digest.hex()
    for action in ("taint", "revoke"):
        with pytest.raises(AssertionError, match="upstream authority didn't sign the old local authority"):
            await here.spire.server("upstreamauthority", action, subjectKeyID=name)


def disk(folder: Path) -> str:
    """SPIRE's UpstreamAuthority, as the page has it, of the files in that folder."""
    return page.block("A common root", 'UpstreamAuthority "disk"', page.MIGRATION).replace("/run/spire/ca", str(folder))


def upstream(folder: Path) -> tuple[str, ...]:
    """A signer's flags for that folder, which has what the page's Secret has."""
    return ("--upstream-dir", str(folder), "--reissue-over", "2s", "--retire-after", "1s", "--authority-ttl", "4d")


@pytest.mark.timeout(300)
def test_below_spire_all_go_there_and_back(programs: Mapping[str, Path], tmp_path: Path) -> None:
    async def run() -> None:
        async with above(programs) as spire, cluster(*flags(spire), *QUICK, pods=WORKLOADS) as here:
            await entries(spire.spire, spire.parent)
            theirs = await sockets(here)
            async with fleet(tmp_path, WORKLOADS, lambda _: spire.spire.socket) as workloads:
                await there_and_back(workloads, spire.spire, theirs)
            shown(workloads, "below SPIRE")

    asyncio.run(run())


@pytest.mark.timeout(300)
def test_below_a_common_root_all_go_there_and_back(programs: Mapping[str, Path], tmp_path: Path) -> None:
    """SPIRE begins with its own CA, and gets the root while its workloads shake hands."""

    async def run() -> None:
        typed, shaking = places(tmp_path)
        async with site(programs, typed) as here, fleet(shaking, WORKLOADS, lambda _: here.spire.socket) as workloads:
            before = workloads.authorities
            (old,) = await here.roots()
            await here.type("A common root", "openssl req")
            (root,) = serials((typed / "root.crt").read_bytes())
            await here.restart(disk(typed / "spire"))
            said = await here.type("A common root", "spire-server localauthority x509 prepare")
            await here.until_roots({old, root})
            await until_trusted(workloads.own, {old, root})
            (name,) = re.findall(r"Authority ID: (\w+)", said)
            await here.type("A common root", "spire-server localauthority x509 activate", **{"AUTHORITY-ID": name})
            await workloads.until(lambda: not set(before) & set(workloads.authorities))
            async with cluster(*upstream(typed / "podsvid"), *QUICK, pods=WORKLOADS) as podsvid:
                theirs = await sockets(podsvid)
                await there_and_back(workloads, here.spire, theirs)
        shown(workloads, "a common root")

    asyncio.run(run())


@asynccontextmanager
async def two_roots(programs: Mapping[str, Path], folder: Path) -> AsyncIterator[tuple[Site, Cluster]]:
    """SPIRE and podsvid, each below a root of its own, of which the other knows nothing."""
    for side in ("spire", "podsvid"):
        own = folder / side
        own.mkdir()
        text = page.block("A common root", "openssl req", page.MIGRATION)
        await ran("sh", "-ec", f"cd {own}\n{text}\ncp root.crt ../{side}-root.crt\nmv {side}/* .")
    async with (
        site(programs, folder, disk(folder / "spire")) as here,
        cluster(*upstream(folder / "podsvid"), *QUICK, pods=WORKLOADS) as podsvid,
    ):
        yield here, podsvid


@pytest.mark.timeout(300)
def test_with_both_roots_in_both_bundles_all_go_there_and_back(programs: Mapping[str, Path], tmp_path: Path) -> None:
    async def run() -> None:
        typed, shaking = places(tmp_path)
        async with two_roots(programs, typed) as (here, podsvid):
            theirs = await sockets(podsvid)
            async with fleet(shaking, WORKLOADS, lambda _: here.spire.socket) as workloads:
                await here.type("Both roots", "cat spire-root.crt")
                both = serials((typed / "roots.crt").read_bytes())
                replaced(typed / "roots.crt", typed / "spire" / "ca.crt")
                await here.type("Both roots", "spire-server localauthority x509 prepare")
                await here.until_roots(both)
                await until_trusted(workloads.own, both)
                replaced(typed / "roots.crt", typed / "podsvid" / "ca.crt")
                await until_acknowledged(podsvid, 2)
                await there_and_back(workloads, here.spire, theirs)
            shown(workloads, "both roots")

    asyncio.run(run())


@pytest.mark.timeout(200)
def test_with_a_root_that_is_missing_it_fails(programs: Mapping[str, Path], tmp_path: Path) -> None:
    """SPIRE has both, podsvid its own alone: whoever is moved first takes nobody."""

    async def run() -> None:
        typed, shaking = places(tmp_path)
        async with two_roots(programs, typed) as (here, podsvid):
            theirs = await sockets(podsvid)
            async with fleet(shaking, 2, lambda _: here.spire.socket) as workloads:
                await here.type("Both roots", "cat spire-root.crt")
                replaced(typed / "roots.crt", typed / "spire" / "ca.crt")
                await here.type("Both roots", "spire-server localauthority x509 prepare")
                await until_trusted(workloads.own, serials((typed / "roots.crt").read_bytes()))
                assert workloads.failed == []
                await cannot_take_out(here, typed / "podsvid-root.crt")
                await workloads.move(0, theirs[0])
                assert any("account-0 calls account-1" in each for each in workloads.failed)

    asyncio.run(run())


def places(folder: Path) -> tuple[Path, Path]:
    """Where the page's commands are typed, and where workloads have their files."""
    found = folder / "typed", folder / "shaking"
    for each in found:
        each.mkdir()
    return found


def replaced(file: Path, other: Path) -> None:
    """`other` has what `file` has, all at once."""
    new = other.with_suffix(".new")
    new.write_bytes(file.read_bytes())
    new.replace(other)
