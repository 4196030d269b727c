"""The audit log: every SVID has its line, and refusals without end do not fill a disk."""

import logging
from datetime import timedelta
from typing import Any

import pytest

from signer.errors import Reason
from signer.front.audit import MAX_REFUSALS, REFUSAL_WINDOW, Audit
from signer.model import Agent, AttestedPod, Entitlement, LivePod, PodClaim
from svid.spiffeid import SpiffeId
from tests.signer_rig import START, StepClock

NODE = Agent("node-a", "uid-a", "agent-1", "pod-uid", START)


def _lines(caplog: pytest.LogCaptureFixture, event: str) -> list[dict[str, Any]]:
    return [vars(each) for each in caplog.records if each.name == "podsvid.audit" and each.getMessage() == event]


def test_refusals_of_one_caller_are_counted_after_a_while_and_another_ones_are_written(
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level(logging.INFO, "podsvid.audit")
    clock = StepClock()
    audit = Audit(clock)
    for _ in range(MAX_REFUSALS + 7):
        audit.refused("x509", None, None, Reason.AGENT_TOKEN_MISSING, "no token", 0.0)
    (told,) = _lines(caplog, "mint refusals are only counted")
    assert (told["node"], told["reason"]) == ("", "AGENT_TOKEN_MISSING")
    # Neither another caller nor another reason is hidden by them.
    audit.refused("x509", NODE, None, Reason.AGENT_TOKEN_MISSING, "no token", 0.0)
    audit.refused("trust", None, None, Reason.AGENT_TOKEN_INVALID, "no good", 0.0)
    assert len(_lines(caplog, "mint refused")) == MAX_REFUSALS + 2
    assert _lines(caplog, "mint refused")[-2]["node"] == "node-a"
    assert _lines(caplog, "mint refusals were only counted") == []
    clock.pass_by(minutes=1)
    audit.refused("x509", None, None, Reason.AGENT_TOKEN_MISSING, "no token", 0.0)
    (summary,) = _lines(caplog, "mint refusals were only counted")
    assert (summary["node"], summary["reason"], summary["count"]) == ("", "AGENT_TOKEN_MISSING", 7)
    assert len(_lines(caplog, "mint refused")) == MAX_REFUSALS + 3


def test_a_clock_that_is_set_back_holds_no_window_open(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "podsvid.audit")
    clock = StepClock()
    audit = Audit(clock)
    for _ in range(MAX_REFUSALS):
        audit.refused("x509", NODE, None, Reason.POLICY_DENIED, "denied", 0.0)
    clock.set_by(days=-1)
    clock.pass_by(seconds=REFUSAL_WINDOW)
    audit.refused("x509", NODE, None, Reason.POLICY_DENIED, "denied", 0.0)
    assert len(_lines(caplog, "mint refused")) == MAX_REFUSALS + 1


def test_what_a_caller_sends_is_quoted_only_so_far(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "podsvid.audit")
    claim = PodClaim("n" * 100_000, "p" * 100_000, "u" * 100_000)
    Audit(StepClock()).refused("x509", NODE, claim, Reason.POD_TOKEN_REPLAYED, "w" * 100_000, 0.5)
    (line,) = _lines(caplog, "mint refused")
    assert len(line["claimed_pod"]) == 506
    assert len(line["claimed_pod_uid"]) == 253
    assert len(line["why"]) == 1024
    assert (line["seconds"], line["node"], line["agent_pod_uid"]) == (0.5, "node-a", "pod-uid")


def test_a_line_ends_its_window_and_not_one_moment_later(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "podsvid.audit")
    clock = StepClock()
    audit = Audit(clock)
    for _ in range(MAX_REFUSALS + 1):
        audit.refused("x509", NODE, None, Reason.POLICY_DENIED, "denied", 0.0)
    clock.pass_by(seconds=59.999)
    audit.refused("x509", NODE, None, Reason.POLICY_DENIED, "denied", 0.0)
    assert len(_lines(caplog, "mint refused")) == MAX_REFUSALS
    (told,) = _lines(caplog, "mint refusals are only counted")
    assert told["until"] == (START + timedelta(seconds=REFUSAL_WINDOW)).isoformat()
    clock.pass_by(seconds=0.001)
    audit.refused("x509", NODE, None, Reason.POLICY_DENIED, "denied", 0.0)
    assert len(_lines(caplog, "mint refused")) == MAX_REFUSALS + 1
    assert [each["count"] for each in _lines(caplog, "mint refusals were only counted")] == [2]


def test_what_is_allowed_is_written_however_often_it_comes(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "podsvid.audit")
    audit = Audit(StepClock())
    pod = LivePod("default", "web", "uid", "node-a", "web")
    given = Entitlement(SpiffeId.parse("spiffe://example.org/ns/default/sa/web"))
    for number in range(3 * MAX_REFUSALS):
        audit.allowed("x509", AttestedPod(pod, NODE), given, {"serial": f"{number:x}"}, 0.1)
    found = _lines(caplog, "mint allowed")
    assert [each["serial"] for each in found] == [f"{number:x}" for number in range(3 * MAX_REFUSALS)]
    assert {each.levelno for each in caplog.records} == {logging.INFO}


def test_windows_of_ever_new_nodes_do_not_pile_up() -> None:
    audit = Audit(StepClock())
    for number in range(20_100):
        node = Agent(f"node-{number}", "u", "p", "p", START)
        audit.refused("x509", node, None, Reason.POLICY_DENIED, "denied", 0.0)
    assert len(audit._windows) <= 20_000
