"""What is remembered has a bound, and the newest stays."""

from collections import OrderedDict

from runtime.newest import keep


def test_what_was_kept_longest_ago_gives_way() -> None:
    those: OrderedDict[str, int] = OrderedDict()
    for number, key in enumerate("abcad"):
        keep(those, key, number, 3)
    # Kept again, the first was not the oldest any more; and has what it was kept with then.
    assert list(those.items()) == [("c", 2), ("a", 3), ("d", 4)]
    keep(those, "e", 5, 1)
    assert list(those) == ["e"]
