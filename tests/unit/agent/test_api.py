"""The command line's view of a Workload API: addresses, answers that break the specification, waiting, arguments."""

import argparse
import asyncio
import random
from collections.abc import AsyncGenerator, Awaitable, Callable, Iterable
from datetime import UTC, datetime, timedelta
from typing import Any

import looptime
import pytest
from hypothesis import given
from hypothesis import strategies as st

from agent.errors import WorkloadApiError
from agent.pb import workload_pb2
from podsvid.api import command as api
from podsvid.api import rendering
from podsvid.api.address import target
from podsvid.api.answers import X509State
from podsvid.api.errors import InvalidAddress, Unreachable, UnusableAnswer
from podsvid.api.following import Backoff
from podsvid.api.watch import SUPERSEDED, watch
from podsvid.api.workload_client import WorkloadApiClient
from svid.spiffeid import SpiffeId, TrustDomain
from svid.x509svid import X509Svid
from tests.fake_workload_api import WEB, authority, entry, x509_answer, x509_svid

NOW = datetime(2026, 6, 1, 12, tzinfo=UTC)
OURS, OTHERS = authority(), authority("other.example")


class FixedClock:
    def __init__(self, at: datetime) -> None:
        self._at = at

    def now(self) -> datetime:
        return self._at

    def monotonic(self) -> float:
        return 0.0


def parse(data: bytes, at: datetime | None = None) -> X509State:
    return WorkloadApiClient("unix:/unused", FixedClock(at or datetime.now(UTC))).parse_x509(data)


# --- addresses


@pytest.mark.spec("EP-12", "EP-13", "EP-14", "C-22")
@pytest.mark.parametrize(
    ("address", "wanted"),
    [
        ("unix:///run/spire/x.sock", "unix:/run/spire/x.sock"),
        ("unix:/run/x.sock", "unix:/run/x.sock"),
        ("UNIX:///run/x.sock", "unix:/run/x.sock"),
        ("unix:///run/a%20b", "unix:/run/a%20b"),
        ("/run/x.sock", "unix:/run/x.sock"),
        ("/run/a b%20?#\u00fc", "unix:/run/a%20b%2520%3F%23%C3%BC"),
        ("tcp://127.0.0.1:8081", "ipv4:127.0.0.1:8081"),
        ("tcp://[::1]:8081", "ipv6:[::1]:8081"),
        ("tcp://10.0.0.1:65535", "ipv4:10.0.0.1:65535"),
    ],
)
def test_addresses_that_the_specification_allows(address: str, wanted: str) -> None:
    assert target(address) == wanted


@pytest.mark.spec("EP-12", "EP-13", "EP-14", "C-21")
@pytest.mark.parametrize(
    "address",
    [
        *("", "run/x.sock", "./x.sock", "x.sock", "http://127.0.0.1:80", "https:///run/x.sock", "dns:///localhost:80"),
        *("unix:", "unix://", "unix:///", "unix:rel", "unix://rel/path", "unix://localhost/run/x.sock"),
        *("unix:///a?b", "unix:///a?", "unix:///a#b", "unix:///a b", "unix:///a\n", " unix:///a", "unix:///a%"),
        *("unix:///a%00b", "unix:///\u00fc", "unix-abstract:x"),
        *("tcp://localhost:8081", "tcp://example.org:8081", "tcp://127.0.0.1", "tcp://127.0.0.1:", "tcp://:8081"),
        *("tcp://127.0.0.1:80/x", "tcp://127.0.0.1:80/", "tcp://127.0.0.1:80?x", "tcp://127.0.0.1:80#x"),
        *("tcp://u@127.0.0.1:80", "tcp://127.0.0.1:0", "tcp://127.0.0.1:65536", "tcp://127.1:80", "tcp:127.0.0.1:80"),
        *("tcp://::1:8081", "tcp://[127.0.0.1]:80", "tcp://[::1]", "tcp://[fe80::1%25eth0]:80", "tcp://0x7f000001:80"),
        *("tcp://127.0.0.1:\u0663", "tcp://127.0.0.1:80\n"),
    ],
)
def test_other_addresses_are_refused(address: str) -> None:
    with pytest.raises(InvalidAddress):
        target(address)


def test_a_path_that_no_socket_can_have_is_refused_with_what_to_do() -> None:
    longest = "/" + "x" * 105 + "%"
    assert target(longest) == f"unix:{longest}25"
    for address in (f"{longest}y", f"unix://{longest}25y"):
        with pytest.raises(InvalidAddress, match="longer than a socket's 107 bytes: make a symbolic link to it"):
            target(address)


@given(st.text(), st.sampled_from(["", "unix:", "unix://", "unix:///", "tcp://", "tcp://127.0.0.1:", "tcp://[::1]:"]))
def test_an_address_is_a_grpc_target_of_ours_or_refused(text: str, before: str) -> None:
    try:
        found = target(before + text)
    except InvalidAddress as error:
        assert str(error).isascii()
        assert str(error).isprintable()
    else:
        assert found.startswith(("unix:/", "ipv4:", "ipv6:["))
        assert found.isascii()
        assert not set(found) & set("?# \n\x00")


# --- answers


def changed(change: Callable[[workload_pb2.X509SVIDResponse], object]) -> bytes:
    """A good answer, and then not."""
    answer = workload_pb2.X509SVIDResponse.FromString(
        x509_answer(OURS, x509_svid(OURS), x509_svid(OURS, hint="b"), federated=[OTHERS.bundle])
    )
    change(answer)
    return answer.SerializeToString()


def test_a_good_answer_keeps_its_order_and_everything_in_it() -> None:
    first, second = x509_svid(OURS, hint="x"), x509_svid(OURS, SpiffeId.parse("spiffe://example.org/second"))
    state = parse(x509_answer(OURS, first, second, federated=[OTHERS.bundle]))
    assert [held.svid.spiffe_id for held in state.svids] == [WEB, second.spiffe_id]
    assert [held.svid.chain for held in state.svids] == [first.chain, second.chain]
    assert state.svids[0].svid.hint == "x"
    assert {held.bundle.x509_authorities for held in state.svids} == {OURS.bundle.x509_authorities}
    assert [bundle.trust_domain for bundle in state.federated] == [TrustDomain("other.example")]


UNUSABLE: dict[str, Callable[[workload_pb2.X509SVIDResponse], object]] = {
    "no SVID": lambda a: a.ClearField("svids"),
    "no chain": lambda a: a.svids[0].ClearField("x509_svid"),
    "no key": lambda a: a.svids[0].ClearField("x509_svid_key"),
    "no bundle": lambda a: a.svids[0].ClearField("bundle"),
    "no ID": lambda a: a.svids[0].ClearField("spiffe_id"),
    "another's ID": lambda a: setattr(a.svids[1], "spiffe_id", "spiffe://example.org/root"),
    "another's key": lambda a: setattr(a.svids[0], "x509_svid_key", a.svids[1].x509_svid_key),
    "another's bundle": lambda a: setattr(a.svids[0], "bundle", OTHERS.bundle.to_der()),
    "a leaf as bundle": lambda a: setattr(a.svids[0], "bundle", a.svids[0].x509_svid),
    "PEM": lambda a: setattr(a.svids[0], "bundle", OURS.bundle.to_pem()),
    "a trailing byte": lambda a: setattr(a.svids[0], "x509_svid", a.svids[0].x509_svid + b"\0"),
    "a chain cut short": lambda a: setattr(a.svids[0], "x509_svid", a.svids[0].x509_svid[:-1]),
    "a bare trust domain": lambda a: a.federated_bundles.update({"third.example": OTHERS.bundle.to_der()}),
    "a trust domain with a slash": lambda a: a.federated_bundles.update({"spiffe://t/": OTHERS.bundle.to_der()}),
    "a workload's ID": lambda a: a.federated_bundles.update({"spiffe://t/a": OTHERS.bundle.to_der()}),
    "a way out": lambda a: a.federated_bundles.update({"spiffe://../../etc": OTHERS.bundle.to_der()}),
    "the own trust domain": lambda a: a.federated_bundles.update({"spiffe://example.org": OTHERS.bundle.to_der()}),
    "a broken bundle": lambda a: a.federated_bundles.update({"spiffe://t": b"0"}),
}


@pytest.mark.spec("WL-14", "WL-20", "WL-21", "WL-22", "WL-23", "WL-24", "WL-27", "WL-28")
@pytest.mark.parametrize("change", UNUSABLE.values(), ids=UNUSABLE)
def test_an_answer_with_anything_wrong_in_it_is_refused_whole(
    change: Callable[[workload_pb2.X509SVIDResponse], object],
) -> None:
    with pytest.raises(UnusableAnswer):
        parse(changed(change))


def test_an_expired_svid_and_one_of_the_future_are_refused() -> None:
    svid = x509_svid(OURS, now=datetime.now(UTC))
    for at in (svid.not_after + timedelta(seconds=1), svid.not_before - timedelta(seconds=1)):
        with pytest.raises(UnusableAnswer):
            parse(x509_answer(OURS, svid), at)


@pytest.mark.spec("C-40")
def test_an_empty_foreign_bundle_counts_as_none_and_costs_nothing_else() -> None:
    state = parse(changed(lambda a: a.federated_bundles.update({"spiffe://third.example": b""})))
    assert [str(bundle.trust_domain) for bundle in state.federated] == ["other.example"]


@given(st.binary(max_size=200))
def test_garbage_is_an_unusable_answer_and_nothing_else(data: bytes) -> None:
    with pytest.raises(UnusableAnswer):
        parse(data)


@given(st.data())
def test_a_flipped_byte_is_refused_or_changes_nothing_that_is_written(data: st.DataObject) -> None:
    good = x509_answer(OURS, SVID, federated=[OTHERS.bundle])
    at = data.draw(st.integers(0, len(good) - 1))
    bad = bytearray(good)
    bad[at] ^= data.draw(st.integers(1, 255))
    try:
        state = parse(bytes(bad))
    except UnusableAnswer:
        return
    for held in state.svids:
        held.svid.check(held.bundle, datetime.now(UTC))


SVID: X509Svid = x509_svid(OURS)


def test_what_a_server_calls_things_cannot_reach_the_terminal_raw() -> None:
    state = parse(x509_answer(OURS, x509_svid(OURS, hint="\x1b[2J\n\u202e")))
    rendered = rendering.x509(state)
    assert "\x1b" not in rendered.text + rendered.output("json") + rendered.output("pem")
    wrong = workload_pb2.X509SVIDResponse(svids=[entry(SVID, OURS.bundle)])
    wrong.svids[0].spiffe_id = "\x1b[2J" + "x" * 5000
    with pytest.raises(UnusableAnswer) as caught:
        parse(wrong.SerializeToString())
    assert "\x1b" not in str(caught.value)
    assert len(str(caught.value)) < 500


def test_no_form_of_output_holds_a_private_key_and_no_repr_does() -> None:
    state = parse(x509_answer(OURS, SVID))
    rendered = rendering.x509(state)
    key = SVID.key_pem().decode().splitlines()[1]
    assert key in rendered.files["svid.0.key"].content.decode()
    for text in (*map(rendered.output, ("text", "json", "pem")), repr(rendered), repr(rendered.files), repr(state)):
        assert key not in text
        assert "PRIVATE" not in text


# --- waiting


class Middle(random.Random):
    def uniform(self, a: float, b: float) -> float:
        return (a + b) / 2


def test_the_backoff_doubles_to_its_end_is_jittered_and_starts_over_after_a_success() -> None:
    backoff = Backoff(Middle(), first=1, most=20)
    assert [backoff.draw() for _ in range(7)] == [0.75, 1.5, 3, 6, 12, 15, 15]
    backoff.reset()
    assert backoff.draw() == 0.75
    drawn = {Backoff(random.Random(seed), first=1, most=20).draw() for seed in range(50)}
    assert len(drawn) == 50
    assert all(0.5 <= wait <= 1 for wait in drawn)


def on_fake_time(main: Callable[[], Awaitable[Any]]) -> None:
    loop = looptime.new_event_loop(start=0)
    try:
        loop.run_until_complete(main())
    finally:
        loop.close()


async def timed(moments: Iterable[tuple[float, str]]) -> AsyncGenerator[str, None]:
    """States by the second at which they come; then nothing more."""
    loop = asyncio.get_running_loop()
    for at, state in moments:
        await asyncio.sleep(at - loop.time())
        yield state
    await asyncio.Event().wait()


class Recorder:
    """Writes and handles states, slowly or with trouble as a test wants, and notes at which second."""

    def __init__(self, *, busy: float = 0, failing: Iterable[int] = (), unswept: Iterable[int] = ()) -> None:
        self.swept: list[float] = []
        self._unswept = set(unswept)
        self.seen: list[tuple[str, str, float]] = []
        self.reports: list[str] = []
        self.stop = asyncio.Event()
        self._busy = busy
        self._failing = set(failing)
        self._writes = 0

    def write(self, state: str) -> None:
        self._writes += 1
        if self._writes in self._failing:
            raise OSError("no space left")
        self._note("write", state)

    async def then(self, state: str) -> None:
        self._note("then", state)
        await asyncio.sleep(self._busy)

    def sweep(self) -> None:
        now = asyncio.get_running_loop().time()
        self.swept.append(now)
        if len(self.swept) in self._unswept:
            raise OSError("device is busy")

    async def run(self, states: AsyncGenerator[str, None], seconds: float, first_within: float | None = None) -> None:
        asyncio.get_running_loop().call_later(seconds, self.stop.set)
        await watch(
            states,
            self.write,
            self.then,
            self.sweep,
            stop=self.stop,
            first_within=first_within,
            backoff=Backoff(Middle(), first=4, most=4),
            report=self.reports.append,
        )

    def _note(self, what: str, state: str) -> None:
        self.seen.append((what, state, asyncio.get_running_loop().time()))


def test_states_that_come_during_a_run_become_one_more_run_and_are_not_written_before_it() -> None:
    async def main() -> None:
        found = Recorder(busy=10)
        await found.run(timed([(0, "a"), (1, "b"), (2, "c"), (3, "d"), (40, "e")]), 100)
        assert found.seen == [
            *[("write", "a", 0), ("then", "a", 0)],
            *[("write", "d", 10), ("then", "d", 10)],
            *[("write", "e", 40), ("then", "e", 40)],
        ]

    on_fake_time(main)


def test_what_was_replaced_goes_seconds_after_the_last_of_several_states_and_trouble_is_said() -> None:
    async def main() -> None:
        found = Recorder(busy=1, unswept=[2])
        await found.run(timed([(0, "a"), (2, "b"), (3.5, "c"), (20, "d"), (40, "e")]), 100)
        # A run takes a second, and a state that comes within three more makes them begin anew.
        assert found.swept == [4.5 + SUPERSEDED, 21 + SUPERSEDED, 41 + SUPERSEDED]
        assert found.reports == ["the files before cannot be removed: device is busy"]

    on_fake_time(main)


def test_a_state_that_equals_the_one_before_is_no_change() -> None:
    async def main() -> None:
        found = Recorder()
        await found.run(timed([(0, "a"), (1, "a"), (2, "b"), (3, "b"), (4, "a")]), 10)
        assert [state for what, state, _ in found.seen if what == "then"] == ["a", "b", "a"]

    on_fake_time(main)


def test_a_failing_write_is_repeated_and_overtaken_by_a_newer_state() -> None:
    async def main() -> None:
        found = Recorder(failing=[2, 3, 5])
        await found.run(timed([(0, "a"), (10, "b"), (20, "c"), (21, "d")]), 50)
        # b at 10 and 13 in vain; c at 20, in vain, and d comes before it is tried again.
        assert [seen for seen in found.seen if seen[0] == "then"] == [
            ("then", "a", 0),
            ("then", "b", 16),
            ("then", "d", 21),
        ]
        assert len(found.reports) == 3
        assert all("no space left; trying again in 3.0 s" in report for report in found.reports)

    on_fake_time(main)


def test_the_first_write_that_fails_ends_the_watch() -> None:
    async def main() -> None:
        with pytest.raises(OSError, match="no space left"):
            await Recorder(failing=[1]).run(timed([(0, "a")]), 50)

    on_fake_time(main)


def test_without_a_first_state_in_time_the_watch_ends_and_later_silence_is_none() -> None:
    async def main() -> None:
        with pytest.raises(Unreachable, match="no answer within 5 s"):
            await Recorder().run(timed([(6, "a")]), 50, first_within=5)
        assert asyncio.get_running_loop().time() == 5
        found = Recorder()
        await found.run(timed([(6, "a"), (30, "b")]), 50, first_within=5)
        assert [state for what, state, _ in found.seen if what == "then"] == ["a", "b"]

    on_fake_time(main)


def test_stop_ends_the_watch_in_the_midst_of_a_run() -> None:
    async def main() -> None:
        await Recorder(busy=1000).run(timed([(0, "a")]), 5)
        assert asyncio.get_running_loop().time() == 5

    on_fake_time(main)


def test_what_ends_the_states_ends_the_watch() -> None:
    async def broken() -> AsyncGenerator[str, None]:
        yield "a"
        raise WorkloadApiError("that was all")

    async def main() -> None:
        with pytest.raises(WorkloadApiError, match="that was all"):
            await Recorder().run(broken(), 50)

    on_fake_time(main)


# --- arguments


def parsed(*arguments: str) -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    api.add_arguments(parser)
    return parser.parse_args(arguments)


@pytest.mark.parametrize(
    "arguments",
    [
        [],
        ["fetch"],
        ["fetch", "x509", "--output", "token"],
        ["fetch", "x509", "--timeout", "0"],
        ["fetch", "x509", "--timeout", "nan"],
        ["fetch", "x509", "--timeout", "-1"],
        ["fetch", "jwt"],
        ["fetch", "jwt", "--audience", ""],
        ["fetch", "jwt", "--audience", "\udcff"],
        ["fetch", "jwt", "--audience", "a", "--spiffe-id", "example.org/a"],
        ["fetch", "jwt", "--audience", "a", "--output", "pem"],
        ["validate", "jwt", "--audience", "a"],
        ["validate", "jwt", "--svid", "t"],
        ["validate", "jwt", "--audience", "a", "--svid", "t", "--svid-file", "f"],
        ["watch", "--signal", "0"],
        ["watch", "--signal", "-1"],
        ["watch", "--signal", "-1:HUP"],
        ["watch", "--signal", "+5"],
        ["watch", "--signal", "99999999999"],
        ["watch", "--signal", "\u0665"],
        ["watch", "--signal", "12:NOPE"],
        ["watch", "--signal", ":HUP"],
        ["watch", "--exec-timeout", "0"],
    ],
    ids=ascii,
)
def test_wrong_arguments_are_usage_errors(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        parsed(*arguments)
    assert caught.value.code == 2
    assert "usage:" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("text", "pid", "name"), [("12", 12, "SIGHUP"), ("12:USR1", 12, "SIGUSR1"), ("1:sigterm", 1, "SIGTERM")]
)
def test_signals(text: str, pid: int, name: str) -> None:
    found_pid, found = parsed("watch", "--signal", text).signal
    assert (found_pid, found.name) == (pid, name)


@pytest.mark.parametrize(
    ("behind", "command"),
    [
        (["--exec", "cmd", "--output", "-x", "--s", "--", "--exec"], ["cmd", "--output", "-x", "--s", "--", "--exec"]),
        (["--exec", "--", "cmd", "--"], ["cmd", "--"]),
        (["--exec"], []),
        ([], []),
    ],
)
def test_all_that_follows_exec_is_the_command(behind: list[str], command: list[str]) -> None:
    given, found = api.split_command(["api", "watch", "--output", "json", *behind])
    assert found == command
    assert parsed(*given[1:]).exec is bool(behind)


def test_exec_means_nothing_elsewhere() -> None:
    given = ["api", "validate", "jwt", "--svid", "--exec", "x"]
    assert api.split_command(given) == (given, [])
