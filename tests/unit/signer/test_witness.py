"""A leader whose time of day is wrong ends no trust, and no wait, by it: the API server is the witness."""

import argparse
import asyncio
import logging
from collections.abc import Awaitable, Callable
from contextlib import AsyncExitStack
from datetime import datetime, timedelta
from pathlib import Path

import pytest

from signer import config, daemon
from signer.authority.slots import Stage
from signer.cluster import kube_client
from signer.cluster.witness import CHANGE_SECONDS, COMPLAINT_SECONDS, TOLERANCE, Witness
from signer.errors import TransitionRefused
from tests.fake_kube import FakeKube
from tests.signer_rig import StepClock
from tests.unit.signer.said import says
from tests.unit.signer.test_acknowledgements import agent
from tests.unit.signer.test_lifecycle import POLICY
from tests.unit.signer.test_rotation import Cluster, Replica

DAY = timedelta(days=1)
SETTING = pytest.mark.parametrize("wrong", [DAY, -DAY], ids=["ahead", "behind"])


def test_what_the_two_clocks_differ_by() -> None:
    clock = StepClock()
    witness = Witness(clock)
    clock.set_by(days=3)
    assert (witness.ahead, witness.doubt) == (timedelta(0), ""), "of an API server that says nothing nothing is known"
    clock.set_by(days=-3)
    witness.heard(clock.at)
    clock.pass_by(hours=5)
    assert (witness.ahead, witness.doubt) == (timedelta(0), "")
    for wrong in (TOLERANCE, -TOLERANCE):
        clock.wrong = wrong
        assert (witness.ahead, witness.doubt) == (wrong, "")
    clock.wrong = DAY
    # Between two answers, too.
    assert witness.doubt.startswith("this signer's clock is 1 day, 0:00:00 ahead of the API server's: nothing is done")
    clock.wrong = -TOLERANCE - timedelta(seconds=1)
    assert witness.doubt.startswith("this signer's clock is 0:01:01 behind the API server's: ")
    # It is the API server's that is wrong; who of the two cannot be told.
    clock.wrong = timedelta(0)
    witness.heard(clock.at - DAY)
    assert "1 day, 0:00:00 ahead of" in witness.doubt
    witness.heard(clock.at)
    assert witness.doubt == ""


def test_the_api_servers_time_of_day() -> None:
    clock = StepClock()
    witness = Witness(clock)
    clock.set_by(days=3)
    assert witness.now() == clock.now(), "it has not said"
    witness.heard(clock.at)
    clock.pass_by(hours=5)
    clock.set_by(days=-7)
    assert (witness.now(), witness.monotonic()) == (clock.at, clock.monotonic())


def test_that_clocks_differ_is_said_now_and_then_and_that_they_agree_again(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "podsvid.signer")
    clock = StepClock()
    witness = Witness(clock)
    witness.heard(clock.at)
    assert not caplog.records
    clock.wrong = -DAY
    for _ in range(3):
        witness.heard(clock.at)
    (told,) = caplog.records
    assert told.levelname == "ERROR"
    assert told.getMessage() == "clocks differ; the authorities stay as they are, a rotation after a theft too"
    assert vars(told)["ahead"] == -86400
    assert vars(told)["error"] == witness.doubt
    clock.pass_by(seconds=COMPLAINT_SECONDS)
    witness.heard(clock.at)
    assert len(caplog.records) == 2
    clock.wrong = timedelta(0)
    for _ in range(3):
        witness.heard(clock.at)
    assert [each.getMessage() for each in caplog.records][2:] == ["clocks agree again"]


def test_one_answer_that_was_late_is_not_the_last_word_about_clocks_that_differ(
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level(logging.INFO, "podsvid.signer")
    clock = StepClock()
    witness = Witness(clock)
    clock.wrong = -DAY

    def said() -> list[str]:
        witness.heard(clock.at)
        return [each.getMessage()[:12] for each in caplog.records]

    assert said() == ["clocks diffe"]
    clock.wrong = timedelta(0)
    assert said() == ["clocks diffe", "clocks agree"]
    clock.wrong = -DAY
    # Nor does an API server that answers with one time and another fill the log.
    clock.pass_by(seconds=CHANGE_SECONDS - 1)
    assert said() == ["clocks diffe", "clocks agree"]
    clock.pass_by(seconds=1)
    assert said() == ["clocks diffe", "clocks agree", "clocks diffe"]
    clock.pass_by(seconds=COMPLAINT_SECONDS - 1)
    assert len(said()) == 3
    clock.pass_by(seconds=1)
    assert len(said()) == 4
    assert CHANGE_SECONDS <= 60


class Scene:
    """One leader, one node, whose agent says nothing unless told; the API server's time is right."""

    def __init__(self) -> None:
        self.cluster = Cluster()
        self.clock = self.cluster.clock
        self.cluster.live = frozenset({"a"})
        self.replica = Replica(self.cluster, "one")
        self.rotation = self.replica.rotation

    async def begin(self) -> None:
        self.replica.witness.heard(self.clock.at)
        await self.replica.open()
        await self.replica.leader.attempt()
        self.replica.agents.connect(agent("a"))
        self.clock.pass_by(minutes=2)

    async def go_on(self) -> None:
        """What is due is done, as often as the leader looks."""
        for _ in range(6):
            self.cluster.monotonic += 1
            await self.replica.leader.attempt()
            await self.rotation._advance()

    def acknowledge(self) -> None:
        says(self.replica.agents, "a", self.cluster.stored.sequence, {}, self.cluster.stored.digest)

    def stages(self, kind: str = "x509") -> list[str]:
        return [slot.stage.value for slot in self.cluster.stored.slots(kind)]

    def set_wrong(self, wrong: timedelta) -> None:
        self.clock.wrong = wrong

    async def held(self, wrong: timedelta) -> None:
        """With that clock nothing is done, and it is said why."""
        self.set_wrong(wrong)
        before, writes = self.cluster.stored, len(self.cluster.writes())
        await self.go_on()
        assert self.cluster.stored.sequence == before.sequence
        assert len(self.cluster.writes()) == writes
        state = self.rotation.state
        assert state is not None
        assert self.rotation.next_steps(state)[0].startswith("held: this signer's clock is 1 day")
        for action in ("rotate", "prepare", "activate", "revoke"):
            with pytest.raises(TransitionRefused, match="this signer's clock is 1 day"):
                await self.rotation.step(action, "x509", before.x509[0].id, forced=False)
        self.set_wrong(timedelta(0))
        assert not self.rotation.next_steps(state)[0].startswith("held: ")


def on_stage(play: Callable[[Scene], Awaitable[None]]) -> None:
    async def run() -> None:
        scene = Scene()
        await scene.begin()
        await play(scene)

    asyncio.run(run())


@SETTING
def test_a_new_authority_signs_no_sooner_than_agents_have_it_or_their_time_is_over(wrong: timedelta) -> None:
    async def play(at: Scene) -> None:
        await at.rotation.step("rotate", "x509", "", forced=False)
        await at.held(wrong)
        await at.go_on()
        assert at.stages() == ["active", "prepared"]
        await at.held(wrong)
        # Nor once it is right again: nothing of the wrong time was recorded.
        at.clock.pass_by(seconds=POLICY.ack_bound.total_seconds() - 1)
        await at.go_on()
        assert at.stages() == ["active", "prepared"]
        at.clock.pass_by(seconds=1)
        await at.go_on()
        assert at.stages() == ["old", "active"]

    on_stage(play)


@SETTING
@pytest.mark.parametrize("kind", ["x509", "jwt"])
def test_an_old_authority_is_trusted_as_long_as_its_svids_live(kind: str, wrong: timedelta) -> None:
    async def play(at: Scene) -> None:
        await at.rotation.step("rotate", kind, "", forced=False)
        await at.go_on()
        at.acknowledge()
        await at.go_on()
        assert at.stages(kind) == ["old", "active"]
        ends = at.cluster.stored.slots(kind)[0].ends_at
        assert ends is not None
        await at.held(wrong)
        at.clock.pass_by(seconds=(ends - at.clock.at).total_seconds() - 1)
        await at.go_on()
        assert at.stages(kind) == ["old", "active"]
        await at.held(wrong)
        at.clock.pass_by(seconds=1)
        await at.go_on()
        assert at.stages(kind) == ["active"]

    on_stage(play)


@SETTING
def test_a_stolen_one_is_no_longer_trusted_once_its_svids_are_replaced_and_not_sooner(wrong: timedelta) -> None:
    async def play(at: Scene) -> None:
        stolen = at.cluster.stored.active_x509_id
        # What a person forces is noted, whatever the time is.
        at.set_wrong(wrong)
        await at.rotation.step("rotate", "x509", "", forced=True)
        await at.held(wrong)
        await at.go_on()
        at.acknowledge()
        await at.go_on()
        assert at.stages() == ["tainted", "active"]
        says(at.replica.agents, "a", at.cluster.stored.sequence, {stolen: 3}, at.cluster.stored.digest)
        await at.held(wrong)
        await at.go_on()
        assert at.stages() == ["tainted", "active"]
        says(at.replica.agents, "a", at.cluster.stored.sequence, {}, at.cluster.stored.digest)
        await at.held(wrong)
        await at.go_on()
        assert at.stages() == ["active"]

    on_stage(play)


@SETTING
def test_what_a_person_forces_is_done_whatever_the_time_is(wrong: timedelta) -> None:
    async def play(at: Scene) -> None:
        at.set_wrong(wrong)
        await at.rotation.step("prepare", "x509", "", forced=True)
        await at.rotation.step("activate", "x509", "", forced=True)
        assert at.stages() == ["old", "active"]
        (old,) = (slot.id for slot in at.cluster.stored.x509 if slot.stage is Stage.OLD)
        await at.rotation.step("revoke", "x509", old, forced=True)
        assert at.stages() == ["active"]

    on_stage(play)


class Client(FakeKube):
    """The API server of a process, whose time is told with each answer."""

    def __init__(self) -> None:
        super().__init__(StepClock())
        self.dated: Callable[[datetime], None] | None = None

    async def close(self) -> None: ...


def test_a_signer_asks_the_api_server_what_time_it_is_and_says_how_far_off_it_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    client, seen = Client(), list[daemon.Replica]()

    async def connect(kubeconfig: Path | None) -> Client:
        return client

    async def run(replica: daemon.Replica, stopping: asyncio.Event, services: AsyncExitStack) -> None:
        seen.append(replica)

    monkeypatch.setattr(kube_client.KubeClient, "connect", connect)
    monkeypatch.setattr(daemon.Replica, "run", run)
    monkeypatch.setattr("signer.process.prepare", lambda: None)
    parser = argparse.ArgumentParser()
    config.add_arguments(parser)
    flags = ["--trust-domain", "example.org", "--namespace", "podsvid", "--identity", "signer-1"]
    flags += ["--admin-socket", str(tmp_path / "a.sock")]
    asyncio.run(daemon.run_signer(config.load(parser.parse_args(flags), {})))
    (replica,) = seen
    assert client.dated is not None
    client.dated(replica._clock.now() - DAY)
    assert replica.witness.doubt
    assert replica._rotation._knowledge._sources.untimely() == replica.witness.doubt
    assert replica._leader.unfit()
    # What the API server dates is judged by its time.
    front = replica._service
    assert {front._clock, front._mints._attestor._clock, front._mints._attestor._reviews._clock} == {replica.witness}
    assert front._mints._attestor._offline._clock is replica.witness
    client.dated(replica._clock.now())
    assert not replica._leader.unfit()
    client.dated(replica._clock.now() - DAY)
    replica.metrics.refresh()
    ahead = replica.metrics.registry.get_sample_value("podsvid_signer_clock_ahead_seconds")
    assert ahead == pytest.approx(DAY.total_seconds(), abs=60)
