"""A cloud's library in a process of its own: what it answers, how it fails, and when it is begun again."""

import json
import sys
from typing import Any

import pytest

from runtime.child import MAX_FRAME, ChildProcess, Gone, Late
from signer.clouds import child, process
from signer.clouds.child import Answers
from signer.clouds.process import CloudProcess, Failed, Service

SERVICE = Service("aws", "kms", "eu-west-1")
FINE: dict[str, Any] = {"answer": {}}


class Scripted:
    """Implements Child: says one thing after the other."""

    def __init__(self, *says: Any) -> None:
        self.says = list(says)
        self.asked: list[Any] = []
        self.ended = False

    def ask(self, message: bytes, seconds: float) -> bytes:
        assert not self.ended
        self.asked.append(json.loads(message))
        found = self.says.pop(0)
        if isinstance(found, BaseException):
            raise found
        return found if isinstance(found, bytes) else json.dumps(found).encode()

    def end(self) -> None:
        self.ended = True


class Seconds:
    def __init__(self) -> None:
        self.at = 1000.0

    def __call__(self) -> float:
        return self.at


def asked(*children: Scripted) -> tuple[CloudProcess, Seconds]:
    seconds, each = Seconds(), iter(children)
    return CloudProcess(SERVICE, seconds, lambda: next(each)), seconds


def failed(kind: str, code: str = "") -> dict[str, str]:
    return {"failed": kind, "code": code, "text": f"it is {kind}"}


def test_it_is_told_once_which_service_and_then_what_to_ask() -> None:
    one = Scripted(FINE, {"answer": {"a": 1}}, {"answer": {"b": 2}})
    cloud, _ = asked(one)
    assert cloud.ask("sign", {"Message": b"\0\xff"}) == {"a": 1}
    assert cloud.ask("sign", {}) == {"b": 2}
    assert one.asked[0] == {"cloud": "aws", "name": "kms", "region": "eu-west-1"}
    assert one.asked[1] == {"method": "sign", "parameters": {"Message": {"bytes": "00ff"}}, "seconds": 10.0}
    cloud.close()
    assert one.ended


@pytest.mark.parametrize(
    "end", [Late(), Gone("ended (status -9)"), b"", b"[]", b"7", b"\xff", b"[" * 10_000, {"failed": "x"}]
)
def test_a_process_that_hangs_ends_or_says_what_is_no_answer_is_away_and_another_one_comes(end: Any) -> None:
    one, other = Scripted(FINE, end), Scripted(FINE, {"answer": {"a": 1}})
    cloud, _ = asked(one, other)
    with pytest.raises(Failed) as caught:
        cloud.ask("sign", {})
    assert caught.value.kind == "unreached"
    assert one.ended
    assert cloud.ask("sign", {}) == {"a": 1}


@pytest.mark.parametrize("end", [failed("unreached"), failed("busy"), failed("refused"), b"7", KeyboardInterrupt()])
def test_a_process_whose_library_does_not_come_up_is_asked_nothing(end: Any) -> None:
    """It would take the next question for a service's name, and fail for ever."""
    one, other = Scripted(end), Scripted(FINE, {"answer": {"a": 1}})
    cloud, _ = asked(one, other)
    with pytest.raises(KeyboardInterrupt if isinstance(end, BaseException) else Failed):
        cloud.ask("sign", {})
    assert one.ended
    assert cloud.ask("sign", {}) == {"a": 1}
    assert len(one.asked) == 1


@pytest.mark.parametrize(
    ("kind", "stays"),
    [("busy", True), ("unreached", True), ("credentials", False), ("not-installed", False)],
)
def test_while_nothing_can_be_asked_it_is_asked_ever_more_rarely(kind: str, stays: bool) -> None:
    said = [failed(kind)] * 20
    one = Scripted(FINE, *said) if stays else None
    children = iter([one] if one else [Scripted(FINE, each) for each in said])
    seconds = Seconds()
    cloud = CloudProcess(SERVICE, seconds, lambda: next(children))
    for pause in (0.0, process.FIRST_PAUSE, 2 * process.FIRST_PAUSE, 4 * process.FIRST_PAUSE):
        with pytest.raises(Failed, match=rf"^it is {kind}$"):
            cloud.ask("sign", {})
        if pause:
            seconds.at += pause * 0.9
            with pytest.raises(Failed, match="asked again in") as caught:
                cloud.ask("sign", {})
            assert caught.value.kind == kind
        seconds.at += pause
    for _ in range(8):
        seconds.at += process.MOST_PAUSE
        with pytest.raises(Failed, match=rf"^it is {kind}$"):
            cloud.ask("sign", {})


@pytest.mark.parametrize("kind", ["refused", "missing", "there"])
def test_what_is_answered_of_one_key_takes_the_cloud_from_no_other(kind: str) -> None:
    one = Scripted(FINE, failed(kind, "Code"), failed(kind, "Code"), failed(kind, "Code"), {"answer": {"a": 1}})
    cloud, _ = asked(one)
    for _ in range(3):
        with pytest.raises(Failed) as caught:
            cloud.ask("sign", {})
        assert (caught.value.kind, caught.value.code) == (kind, "Code")
    assert cloud.ask("sign", {}) == {"a": 1}


def test_what_its_process_prints_reaches_nobody(capfd: pytest.CaptureFixture[str]) -> None:
    """A library's own log has what is sent and answered, credentials in it."""
    told = CloudProcess(SERVICE, Seconds(), lambda: ChildProcess("no_module_of_that_name"))
    with pytest.raises(Failed, match=r"ended \(status 1\)"):
        told.ask("sign", {})
    assert "".join(capfd.readouterr()) == ""


def test_where_no_process_can_be_begun_it_is_away() -> None:
    def fails() -> Scripted:
        raise OSError(11, "Resource temporarily unavailable")

    with pytest.raises(Failed, match="no process can be started to ask it: Resource temporarily"):
        CloudProcess(SERVICE, Seconds(), fails).ask("sign", {})


def test_what_is_too_long_is_not_sent_and_ends_nothing() -> None:
    one = Scripted(FINE, {"answer": {}})
    cloud, _ = asked(one)
    with pytest.raises(Failed, match="too long"):
        cloud.ask("sign", {"Message": bytes(MAX_FRAME)})
    cloud.ask("sign", {})


def test_who_is_interrupted_leaves_no_process_that_is_a_frame_behind() -> None:
    one, other = Scripted(FINE, KeyboardInterrupt()), Scripted(FINE, {"answer": {"a": 1}})
    cloud, _ = asked(one, other)
    with pytest.raises(KeyboardInterrupt):
        cloud.ask("sign", {})
    assert one.ended
    assert cloud.ask("sign", {}) == {"a": 1}


# In that process.


class Library:
    def __init__(self, service: str, region: str) -> None:
        assert (service, region) == ("kms", "eu-west-1")

    def ask(self, method: str, parameters: Any, seconds: float) -> Any:
        if method == "refuse":
            raise Failed("refused", "why not", "Code")
        if method == "crash":
            raise ValueError("session-token-0123456789")
        return {"got": parameters["Message"], "at": Seconds}


@pytest.fixture
def answers() -> Answers:
    found = Answers({"aws": Library})
    assert json.loads(found.of(b'{"cloud": "aws", "name": "kms", "region": "eu-west-1"}')) == {"answer": {}}
    return found


def test_bytes_come_through(answers: Answers) -> None:
    found = json.loads(answers.of(b'{"method": "a", "parameters": {"Message": {"bytes": "00ff"}}, "seconds": 5}'))
    assert found["answer"]["got"] == {"bytes": "00ff"}


def test_what_fails_is_told_without_what_was_sent(answers: Answers) -> None:
    said = json.loads(answers.of(b'{"method": "refuse", "parameters": {}, "seconds": 5}'))
    assert said == {"failed": "refused", "code": "Code", "text": "why not"}
    crashed = answers.of(b'{"method": "crash", "parameters": {}, "seconds": 5}')
    assert json.loads(crashed)["failed"] == "unreached"
    assert b"session-token" not in crashed


@pytest.mark.parametrize(("cloud", "extra"), [("aws", "aws"), ("google", "google")])
def test_without_the_library_it_says_what_to_install(cloud: str, extra: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("boto3", "google.api_core.exceptions", "google.cloud.kms_v1"):
        monkeypatch.setitem(sys.modules, name, None)
    asked = json.dumps({"cloud": cloud, "name": "kms", "region": "a-b-1"}).encode()
    said = json.loads(Answers(child.LIBRARIES).of(asked))
    assert said["failed"] == "not-installed"
    assert f"podsvid[{extra}]" in said["text"]
