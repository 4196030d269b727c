"""The signer asks a SPIRE server of its own trust domain for its authorities, and lives with what becomes of that."""

import asyncio
import json
from collections.abc import Mapping
from pathlib import Path

import pytest

from svid.certificates import certificates_from_pem, to_pem
from tests import spire_contract as contract
from tests.interop.rig import Cluster, authorities, cluster, openssl, spiffe_ids, until
from tests.interop.spire.above import SIGNER, WORKLOAD, WORKLOAD_GROUP, Above, above
from tests.interop.spire.spire import OURS
from tests.interop.spire.talk import Peer, talk
from tests.interop.traffic import Traffic

QUICK = (
    *("--upstream-root-interval", "1s", "--x509-min-ttl", "2s", "--x509-ttl", "6s", "--x509-max-ttl", "6s"),
    *("--outage-limit", "6s", "--forced-reissue-over", "2s"),
)


def test_it_is_what_the_stand_in_of_the_unit_tests_is(programs: Mapping[str, Path], tmp_path: Path) -> None:
    """One server for all of it: its start takes longer than they do."""

    async def run() -> None:
        async with above(programs) as spire:
            for check in contract.CHECKS:
                await check(spire, tmp_path)

    asyncio.run(run())


def flags(spire: Above, ttl: str = "4d") -> tuple[str, ...]:
    """A signer's."""
    return (
        *("--upstream", "spire", "--spire-address", spire.address, "--spire-agent-socket", str(spire.agent_socket)),
        *("--spire-spiffe-id", SIGNER),
        *("--authority-ttl", ttl, "--reissue-over", "2s", "--retire-after", "1s"),
    )


async def bundle(spire: Above, folder: Path) -> Path:
    """SPIRE's, by its own word."""
    file = folder / "spire.pem"
    file.write_bytes(to_pem(await spire.authorities()))
    return file


async def until_said(here: Cluster, text: str) -> None:
    async with asyncio.timeout(60):
        while text not in await here.authority("show"):
            await asyncio.sleep(0.2)


def above_leaf(volume: Path) -> bytes:
    """The authority that comes along with a volume's SVID."""
    return to_pem(certificates_from_pem((volume / "tls.crt").read_bytes())[1:])


def test_pods_and_spires_workloads_take_each_other_over_rotations(programs: Mapping[str, Path], tmp_path: Path) -> None:
    """Both authorities below one SPIRE CA have one name."""

    async def run() -> None:
        async with above(programs) as spire, cluster(*flags(spire)) as here:
            root = await bundle(spire, tmp_path)
            target = await here.publish(0)
            own = f"spiffe://{OURS}/ns/default/sa/account-0"
            ours = Peer(own, here.host.short(target) / "socket")
            theirs = Peer(WORKLOAD, spire.spire.socket, WORKLOAD_GROUP)
            for _ in range(3):
                assert (openssl(target, root), spiffe_ids(target)) == ("OK", [own])
                assert (target / "ca.crt").read_bytes() == root.read_bytes()
                for server, client in ((ours, theirs), (theirs, ours)):
                    found = await talk(programs["go-client"], server=server, client=client)
                    assert isinstance(found, dict), found
                held = above_leaf(target)
                await here.authority("rotate", "--no-wait")
                await until(lambda held=held: above_leaf(target) != held)  # type: ignore[misc]

    asyncio.run(run())


def test_spires_ca_is_replaced_under_traffic_and_nobody_fails(programs: Mapping[str, Path], tmp_path: Path) -> None:
    """Trusted before anything is below it, used when all have it, and the one before is gone in the end."""

    async def run() -> None:
        async with above(programs) as spire, cluster(*flags(spire), *QUICK) as here:
            first = await bundle(spire, tmp_path)
            first = first.rename(tmp_path / "first.pem")
            targets = [await here.publish(0), await here.publish(1)]
            traffic = Traffic(*targets)
            talking = asyncio.create_task(traffic.run())
            try:
                name = await spire.prepare()
                await until(lambda: [authorities(each) for each in targets] == [2, 2])
                assert [openssl(each, first) for each in targets] == ["OK", "OK"]
                (old,) = certificates_from_pem(first.read_bytes())
                only_new = tmp_path / "new.pem"
                only_new.write_bytes(to_pem([each for each in await spire.authorities() if each != old]))
                assert "OK" not in [openssl(each, only_new) for each in targets]
                await spire.activate(name)
                await here.authority("rotate", "--no-wait")
                await until(lambda: [openssl(each, only_new) for each in targets] == ["OK", "OK"])
                await spire.drop_the_old_ca()
                await until(lambda: [authorities(each) for each in targets] == [1, 1])
                assert [openssl(each, only_new) for each in targets] == ["OK", "OK"]
            finally:
                talking.cancel()
            assert traffic.failed == []
            assert traffic.done > 100

    asyncio.run(run())


@pytest.mark.timeout(400)
def test_with_a_short_ca_ttl_both_rotate_of_themselves_and_nobody_fails(
    programs: Mapping[str, Path], tmp_path: Path
) -> None:
    """`authority_ttl` is below a sixth of `ca_ttl`, as the documentation wants it: nothing is asked for in vain."""

    async def run() -> None:
        async with (
            above(programs, ca_ttl="3m") as spire,
            cluster(*flags(spire, "25s"), *QUICK, "--acknowledge-within", "5s") as here,
        ):
            targets = [await here.publish(0), await here.publish(1)]
            traffic = Traffic(*targets)
            talking = asyncio.create_task(traffic.run())
            seen: set[bytes] = set()
            (old,) = await spire.authorities()
            only_new = tmp_path / "new.pem"
            try:
                async with asyncio.timeout(300):
                    while len(seen) < 3 or not only_new.exists() or openssl(targets[0], only_new) != "OK":
                        seen.add(above_leaf(targets[0]))
                        found = [each for each in await spire.authorities() if each != old]
                        if found:
                            only_new.write_bytes(to_pem(found))
                        await asyncio.sleep(0.5)
            finally:
                talking.cancel()
            assert traffic.failed == []
            assert traffic.done > 100

    asyncio.run(run())


def test_a_server_that_is_away_holds_up_no_pod_and_is_asked_when_it_is_back(
    programs: Mapping[str, Path], tmp_path: Path
) -> None:
    async def run() -> None:
        async with above(programs) as spire, cluster(*flags(spire)) as here:
            root = await bundle(spire, tmp_path)
            target = await here.publish(0)
            held = above_leaf(target)
            await spire.stop()
            await here.authority("rotate", "--no-wait")
            await until_said(here, "cannot be reached")
            told = json.loads(await here.authority("show", "--output", "json"))
            assert told["requested_x509"]["at"] == f"SPIRE server {spire.address}"
            # Nobody waits: the authority of before signs on.
            assert above_leaf(await here.publish(1)) == held
            await spire.start()
            await until(lambda: above_leaf(target) != held)
            assert openssl(target, root) == "OK"

    asyncio.run(run())


def test_without_its_entry_the_signer_is_refused_and_says_why(programs: Mapping[str, Path], tmp_path: Path) -> None:
    async def run() -> None:
        async with above(programs) as spire, cluster(*flags(spire)) as here:
            target = await here.publish(0)
            held = above_leaf(target)
            await spire.forget()
            await here.authority("rotate", "--no-wait")
            await until_said(here, "is there a registration entry")
            assert above_leaf(await here.publish(1)) == held
            await spire.register("-downstream")
            await until(lambda: above_leaf(target) != held)

    asyncio.run(run())
