"""Said at once, and then not again for a while, however often it is asked."""

from runtime.seldom import Seldom


def test_it_is_due_at_once_and_again_after_its_time() -> None:
    now = -50.0
    seldom = Seldom(10.0, lambda: now)
    assert [seldom.due, seldom.due] == [True, False]
    now += 9.9
    assert not seldom.due
    now += 0.1
    assert [seldom.due, seldom.due] == [True, False]
