"""Which PodCertificateRequests are held: what had no room is read again once it may have some."""

import pytest

from signer.front.certificate_requests import Following
from tests.fake_kube import FakeKube
from tests.signer_rig import StepClock


@pytest.mark.parametrize(("put_off", "waiting", "again"), [(6, 0, True), (4, 3, True), (0, 4, False), (2, 4, False)])
def test_those_that_were_put_off_keep_nobody_out_for_as_long_as_they_wait(
    monkeypatch: pytest.MonkeyPatch, put_off: int, waiting: int, again: bool
) -> None:
    """Nothing has to give way where there is room; but nothing read it again where more than half were put off."""
    monkeypatch.setattr("signer.front.certificate_requests.MOST", 8)
    clock = StepClock()
    following = Following(FakeKube(clock), "v1beta1", clock)
    turns = following.turns
    for number in range(put_off + waiting):
        turns.add(str(number), f"node-{number}", f"pod-{number}", f"{number}")
    for _ in range(put_off):
        taken = turns.take(0.0)
        assert taken is not None
        turns.put_off(taken, 0.0, 1.0)
    assert turns.room("node", "pod")
    assert not following._may_have_room()
    following._left_out.add(("node", "pod"))
    assert following._may_have_room() == again
