"""The audit log: every SVID has its line, and refusals without end do not fill a disk."""

import logging
from typing import Any

import pytest

from signer.errors import Reason
from signer.front.audit import MAX_REFUSALS, Audit
from signer.model import Agent
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
    clock.pass_by(days=-1)
    audit.refused("x509", NODE, None, Reason.POLICY_DENIED, "denied", 0.0)
    assert len(_lines(caplog, "mint refused")) == MAX_REFUSALS + 1
