"""Mints at the signer take turns: what one pod asks for much of keeps no other's X.509-SVID or JWT-SVID waiting.

Nothing here is a duration: what is counted is what reached the signer, and how many of the offender's were answered
before another's one was. The signer answers as many calls as a test lets it.
"""

import asyncio
import random
from collections.abc import Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import Any

import grpc
import pytest

from agent import fairness
from agent.authority import calls
from agent.authority.protocol import JwtRequest
from agent.authority.signer import SignerAuthority
from agent.errors import AuthorityUnavailable
from agent.metrics import Metrics
from agent.workload import slow
from agent.workload.issuer import Issuer
from csi.model import JwtFile, PodRef, Volume, VolumeOptions
from csi.turns import turn_of
from runtime.blocking import Blocking
from runtime.turns import Turns, Who
from svid.spiffeid import SpiffeId
from tests.fake_authority import HOUR, SPIFFE_ID, FakeAuthority
from tests.fake_authority import StepClock as FakeClock
from tests.fake_signer import TRUST_DOMAIN, Refusal
from tests.unit.agent.signer_scene import Scene, on_stage
from tests.unit.agent.test_fairness import number, settings
from tests.workload_rig import rig, slow_work

SIGNER = ("--authority", "signer", "--signer-address", "x:1", "--signer-bundle", "/b", "--agent-token-file", "/t")
MOST_WAITING = 128


def pod_of(namespace: str, number: int = 1) -> PodRef:
    return PodRef(namespace, f"web-{number}", f"uid-{namespace}-{number}", "web")


def volume_of(pod: PodRef, *files: JwtFile) -> Volume:
    return Volume(f"csi-{pod.uid}", "/target", ("below",), pod, None, VolumeOptions(jwt_files=files))


EVIL, WORSE, OTHER, NEW = pod_of("evil"), pod_of("worse"), pod_of("other"), pod_of("new")


class Node:
    """Who mints for the pods of a node, as the agent makes it; what was answered, in order."""

    def __init__(self, at: Scene, metrics: Metrics, issuer: Issuer) -> None:
        self.at = at
        self.metrics = metrics
        self.issuer = issuer
        self.came: list[str] = []
        self.told: list[str] = []
        self.signer = at.signer
        self.turnstile = at.signer.mint.turnstile = asyncio.Semaphore(0)

    @property
    def reached(self) -> list[str]:
        """The namespaces whose JWT-SVIDs the signer was asked for."""
        return [each.pod.namespace for each in self.signer.jwts]

    def ask(self, pod: PodRef, times: int = 1) -> "list[asyncio.Task[None]]":
        """Have the pod ask for JWT-SVIDs for so many audiences."""
        return [asyncio.create_task(self._ask(pod, f"audience-{number}")) for number in range(times)]

    def publish(self, pod: PodRef, *files: JwtFile) -> "asyncio.Task[None]":
        """Have what a new pod's volume holds minted."""
        return asyncio.create_task(self._publish(pod, files))

    async def until_waiting(self, waiting: int) -> None:
        """So many JWT-SVIDs that pods asked for wait for their turn."""
        await self.at.until(lambda: number(self.metrics, "podsvid_queue_length", queue="jwt") == waiting)

    async def answer_until(self, done: "asyncio.Task[Any]") -> None:
        """Let the signer answer one call after the other until that is done."""
        while not done.done():
            before = len(self.signer.mints) + len(self.signer.jwts)
            self.turnstile.release()
            # Others wait: whatever is answered makes a place for the next.
            await self.at.until(lambda: done.done() or len(self.signer.mints) + len(self.signer.jwts) > before)  # noqa: B023
        await done

    async def _ask(self, pod: PodRef, audience: str) -> None:
        spiffe_id = SpiffeId.from_segments(TRUST_DOMAIN, "ns", pod.namespace, "sa", "web")
        try:
            await self.issuer.mint_jwt(volume_of(pod), self.at.token(), spiffe_id, (audience,), for_file=False)
        except AuthorityUnavailable as error:
            self.told.append(str(error))
        else:
            self.came.append(pod.namespace)

    async def _publish(self, pod: PodRef, files: tuple[JwtFile, ...]) -> None:
        volume = volume_of(pod, *files)
        await self.issuer.mint_all(volume, self.at.token(), await self.issuer.key(volume, renewal=False))
        self.came.append(pod.namespace)


def on_node(base: Path, play: Callable[[Node], Awaitable[None]]) -> None:
    async def at_scene(at: Scene) -> None:
        metrics, chosen = Metrics(), settings(*SIGNER)
        with fairness.threads(chosen) as threads:
            work = fairness.slow_work(chosen, threads, metrics)
            await play(Node(at, metrics, Issuer(at.authority, work, at.clock, random.Random(1), metrics)))

    on_stage(base, at_scene)


def test_a_pod_that_asks_for_a_thousand_audiences_keeps_no_other_waiting(tmp_path: Path) -> None:
    async def play(node: Node) -> None:
        evil = node.ask(EVIL, 1000)
        await node.until_waiting(MOST_WAITING)
        await node.at.until(lambda: len(node.reached) == 4)
        # As many as may wait do, and the others are told so at once.
        await node.at.until(lambda: len(node.told) == 1000 - 4 - MOST_WAITING)
        assert number(node.metrics, "podsvid_queue_refusals_total", queue="jwt", why="full") == len(node.told)
        (why,) = set(node.told)
        assert why.startswith("JWT_BUSY: pod evil/web-1 has as many JWT-SVIDs waiting to be minted as one pod may have")
        # There is a place at the signer for another's, and for a pod that starts, whatever is not answered.
        node.ask(OTHER)
        new = node.publish(NEW)
        await node.at.until(lambda: node.reached.count("other") == 1 and node.signer.mints)
        assert not node.came
        node.signer.mint.turnstile = None
        for _ in range(6):
            node.turnstile.release()
        await asyncio.gather(*evil, new)
        await node.at.until(lambda: len(node.came) == 4 + MOST_WAITING + 2)
        assert number(node.metrics, "podsvid_queue_length", queue="jwt") == 0

    on_node(tmp_path, play)


def test_where_every_place_is_taken_others_come_after_one_of_each_that_wait(tmp_path: Path) -> None:
    async def play(node: Node) -> None:
        crowd = [*node.ask(EVIL, 100), *node.ask(WORSE, 100)]
        await node.at.until(lambda: len(node.reached) == 8)
        await node.until_waiting(200 - 8)
        assert sorted(node.reached) == ["evil"] * 4 + ["worse"] * 4
        (other,) = node.ask(OTHER)
        await node.until_waiting(200 - 8 + 1)
        # An X.509-SVID does not wait, nor do the files of that volume after it.
        new = node.publish(NEW, JwtFile("token", ("api",)))
        await node.at.until(lambda: node.signer.mints)
        await node.answer_until(other)
        # Those that were there already, and one of each of the two before.
        assert node.came.index("other") <= 8 + 2
        node.signer.mint.turnstile = None
        for _ in range(20):
            node.turnstile.release()
        await asyncio.gather(new, *crowd)
        assert node.reached.count("new") == 1

    on_node(tmp_path, play)


def test_a_namespaces_many_pods_are_no_more_than_anothers_one(tmp_path: Path) -> None:
    async def play(node: Node) -> None:
        crowd = [task for each in range(50) for task in node.ask(pod_of("evil", each), 4)]
        await node.until_waiting(200 - 4)
        others = [*node.ask(OTHER), *node.ask(pod_of("third"))]
        await node.at.until(lambda: {"other", "third"} <= set(node.reached))
        assert not node.came
        node.signer.mint.turnstile = None
        for _ in range(20):
            node.turnstile.release()
        await asyncio.gather(*crowd, *others)

    on_node(tmp_path, play)


def test_x509_svids_come_before_jwt_svids_and_no_namespace_has_all_of_the_places(tmp_path: Path) -> None:
    """The calls themselves: what pods may start and renew at once is bounded above them."""

    async def play(at: Scene) -> None:
        turnstile = at.signer.mint.turnstile = asyncio.Semaphore(0)

        def x509(pod: PodRef, times: int = 1) -> "list[asyncio.Task[Any]]":
            wanted = replace(at.request(), pod=pod)
            return [asyncio.create_task(at.authority.mint_x509(wanted)) for _ in range(times)]

        def jwt(pod: PodRef, *, for_file: bool = False) -> "asyncio.Task[Any]":
            spiffe_id = SpiffeId.from_segments(TRUST_DOMAIN, "ns", pod.namespace, "sa", "web")
            return asyncio.create_task(at.authority.mint_jwt(JwtRequest(pod, at.token(), spiffe_id, ("a",), for_file)))

        tasks = x509(EVIL, 20)
        await at.until(lambda: len(at.signer.mints) == calls.OF_ONE)
        tasks += x509(WORSE, 20)
        await at.until(lambda: len(at.signer.mints) == calls.AT_ONCE)
        assert at.authority.waiting == 40 - calls.AT_ONCE
        later = jwt(OTHER)
        await at.until(lambda: at.authority.waiting == 28 + 1)
        new, file = x509(NEW), jwt(pod_of("file"), for_file=True)
        await at.until(lambda: at.authority.waiting == 28 + 3)
        reached: list[str] = []
        for count in range(1, 6):
            turnstile.release()
            await at.until(lambda: len(at.signer.mints) + len(at.signer.jwts) == calls.AT_ONCE + count)  # noqa: B023
            x509s = [each.pod.namespace for each in at.signer.mints[calls.AT_ONCE :]]
            reached = x509s + [each.pod.namespace for each in at.signer.jwts]
            # Every fourth turn is of those that come later: they come.
            assert ("other" in reached) is (count >= 4)
            # Those that came before are two namespaces; a file waits for no more than an X.509-SVID does.
            assert ("new" in reached) is (count >= 3)
            assert ("file" in reached) is (count >= 5)
        at.signer.mint.turnstile = None
        for _ in range(60):
            turnstile.release()
        await asyncio.gather(*tasks, later, file, *new)
        assert at.authority.waiting == 0

    on_stage(tmp_path, play)


def test_what_pods_ask_for_is_asked_again_more_rarely_than_an_x509_svid(tmp_path: Path) -> None:
    """The node's rate at the signer is one: who comes again the soonest gets what is left of it."""

    async def play(at: Scene) -> None:
        spiffe_id = SpiffeId.from_segments(TRUST_DOMAIN, "ns", "default", "sa", "web")
        slower = Refusal(grpc.StatusCode.RESOURCE_EXHAUSTED, "RATE_LIMITED", "slower", timedelta(microseconds=1))
        slept: dict[str, float] = {}
        for name, ask in (
            ("x509", lambda: at.authority.mint_x509(at.request())),
            ("file", lambda: at.authority.mint_jwt(JwtRequest(EVIL, at.token(), spiffe_id, ("a",), True))),
            ("jwt", lambda: at.authority.mint_jwt(JwtRequest(EVIL, at.token(), spiffe_id, ("a",)))),
        ):
            at.signer.mint.refusals = [slower]
            at.signer.arrivals.clear()
            await ask()
            first, second = at.signer.arrivals
            slept[name] = second - first
        assert slept["jwt"] >= calls.LEAST_WAIT_LATER
        assert calls.LEAST_WAIT_LATER > 2 * calls.LEAST_WAIT

    on_stage(tmp_path, play)


def test_a_call_that_gets_no_turn_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(calls, "CALL_SECONDS", 1.0)

    async def play(at: Scene) -> None:
        turns = at.authority._calls._turns = Turns(1)
        async with turns.turn(Who("held", "held")):
            with pytest.raises(AuthorityUnavailable, match=r"^SIGNER_UNREACHABLE: no turn to ask the signer at 127"):
                await at.authority.mint_x509(at.request())
        # One that the signer put off before is told that.
        slower = Refusal(grpc.StatusCode.RESOURCE_EXHAUSTED, "RATE_LIMITED", "slower", timedelta(microseconds=1))
        at.signer.mint.refusals = [slower]
        minting = asyncio.create_task(at.authority.mint_x509(at.request()))
        await at.until(lambda: not at.signer.mint.refusals and not turns._running)
        async with turns.turn(Who("held", "held")):
            with pytest.raises(AuthorityUnavailable, match=r"^RATE_LIMITED: slower$"):
                await minting
        assert turns.waiting == 0

    on_stage(tmp_path, play)


def test_what_is_waited_for_at_the_signer_is_counted(tmp_path: Path) -> None:
    async def play(at: Scene) -> None:
        metrics = Metrics()
        authority = SignerAuthority(at.authority._settings, at.clock, at.rng, seen=metrics.queue("mint"))
        authority.load()
        running = asyncio.create_task(authority.run())
        await authority.wait_answered()
        await authority.mint_x509(at.request())
        assert number(metrics, "podsvid_queue_wait_seconds_count", queue="mint") == 1
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)

    on_stage(tmp_path, play)


def test_on_this_node_one_jwt_svid_is_signed_at_a_time() -> None:
    """Each takes a millisecond of everybody's: a thousand at once would be a second in which nothing else is done."""

    async def main() -> None:
        clock = FakeClock()
        authority, metrics, chosen = FakeAuthority(clock), Metrics(), settings("--jwt-queue", "3")
        authority.go_on.clear()
        with fairness.threads(chosen) as threads:
            work = fairness.slow_work(chosen, threads, metrics)
            issuer = Issuer(authority, work, clock, random.Random(1), metrics)

            async def ask(pod: PodRef) -> None:
                spiffe_id = SpiffeId.from_segments(TRUST_DOMAIN, "ns", pod.namespace, "sa", "web")
                await issuer.mint_jwt(volume_of(pod), None, spiffe_id, ("a",), for_file=False)

            tasks = [asyncio.create_task(ask(EVIL)) for _ in range(10)] + [asyncio.create_task(ask(OTHER))]
            for _ in range(10):
                await asyncio.sleep(0)
            assert [each.pod.namespace for each in authority.asked_jwt] == ["evil"]
            assert number(metrics, "podsvid_queue_refusals_total", queue="jwt", why="full") == 10 - 1 - 3
            authority.go_on.set()
            answers = await asyncio.gather(*tasks, return_exceptions=True)
        assert [each.pod.namespace for each in authority.asked_jwt] == ["evil", "evil", "other", "evil", "evil"]
        assert sum(isinstance(each, AuthorityUnavailable) for each in answers) == 6

    asyncio.run(main())


def test_a_jwt_svid_that_gets_no_turn_in_time_is_a_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(slow, "JWT_SECONDS", 0.01)

    async def main() -> None:
        turns = Turns(1)
        with ThreadPoolExecutor(1) as executor:
            work = slow_work(Blocking(executor), jwt=turns)
            async with turns.turn(turn_of(EVIL)):
                with pytest.raises(
                    AuthorityUnavailable, match=r"^JWT_BUSY: no turn for a JWT-SVID within 0.01 s: 0 oth"
                ):
                    async with work.jwt(OTHER):
                        pass
        assert turns.waiting == 0

    asyncio.run(main())


def test_a_volumes_files_are_renewed_while_its_pod_has_as_many_waiting_as_it_may(tmp_path: Path) -> None:
    """Renewals have few places: who fills its own line must not hold them."""

    async def main() -> None:
        turns = Turns(1, most_waiting=2)
        with ThreadPoolExecutor(1) as executor:
            work = slow_work(Blocking(executor), jwt=turns)
            async with rig(tmp_path, slow=work) as at, turns.turn(Who("held", "held")):
                workload = await at.open(at.volume("spiffe", JwtFile("token", ("api",))))
                before = workload.jwt_files["token"].svid.token
                at.clock.at += HOUR * 0.6
                asked = [asyncio.create_task(workload._jwt_svids.get(SPIFFE_ID, [name])) for name in ("api", "db")]
                await at.until(lambda: turns.waiting == 2)
                await workload.renew()
                assert workload.jwt_files["token"].svid.token != before
                assert turns.waiting == 2
                for each in asked:
                    each.cancel()
                await asyncio.gather(*asked, return_exceptions=True)

    asyncio.run(main())
