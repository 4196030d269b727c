"""The audit names what was abandoned, whoever wrote it and whether or not its writer heard of it."""

import asyncio
import logging
from typing import Any

import pytest

from signer.authority.slots import BOTH
from signer.cluster.kube import Object
from signer.errors import ApiUnavailable
from signer.front.audit import Audit
from tests.unit.signer.test_rotation import PATH, Cluster, Replica, said


def audited(cluster: Cluster, name: str) -> Replica:
    one = Replica(cluster, name)
    one.rotation.heard = Audit(cluster.clock).authorities
    return one


def abandoned(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [str(vars(each)["authority"]) for each in said(caplog, "authority abandoned")]


def test_a_theft_whose_write_arrived_and_whose_answer_was_lost_is_in_the_audit(
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level(logging.INFO)

    async def run() -> None:
        cluster = Cluster()
        one = audited(cluster, "one")
        await one.open()
        stolen = [slot.id for kind in ("x509", "jwt") for slot in cluster.stored.slots(kind)]
        plain = cluster.kube.replace

        async def lost(path: str, body: Object) -> Any:
            done = await plain(path, body)
            if path == PATH:
                cluster.kube.replace = plain  # type: ignore[method-assign]
                raise ApiUnavailable("connection reset")
            return done

        cluster.kube.replace = lost  # type: ignore[method-assign]
        with pytest.raises(ApiUnavailable):
            await one.rotation.step("rotate", BOTH, "", forced=True)
        assert [each.authority_id for each in cluster.stored.abandoned] == stolen
        assert abandoned(caplog) == []
        assert "under way already" in await one.rotation.step("rotate", BOTH, "", forced=True)
        assert abandoned(caplog) == stolen
        await one.rotation._loaded()
        assert abandoned(caplog) == stolen, "once"

    asyncio.run(run())


def test_where_the_writer_died_the_others_have_it_in_theirs(caplog: pytest.LogCaptureFixture) -> None:
    async def run() -> None:
        cluster = Cluster()
        dies, other = Replica(cluster, "dies"), audited(cluster, "other")
        await dies.open()
        await other.open()
        stolen = [slot.id for kind in ("x509", "jwt") for slot in cluster.stored.slots(kind)]
        await dies.rotation.step("rotate", BOTH, "", forced=True)
        other.rotation.see(cluster.stored)
        assert abandoned(caplog) == stolen
        other.rotation.see(cluster.stored)
        # One that starts afterwards has no news of it.
        await audited(cluster, "starts").open()
        assert abandoned(caplog) == stolen

    asyncio.run(run())


def test_what_one_writes_itself_is_in_its_audit_once(caplog: pytest.LogCaptureFixture) -> None:
    async def run() -> None:
        cluster = Cluster()
        one = audited(cluster, "one")
        await one.open()
        stolen = [slot.id for slot in cluster.stored.x509]
        await one.rotation.step("rotate", "x509", "", forced=True)
        one.rotation.see(cluster.stored)
        assert abandoned(caplog) == stolen

    asyncio.run(run())
