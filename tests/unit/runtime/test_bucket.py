"""So many at once, and so many more a second: never more, and never less."""

import pytest

from runtime.bucket import Bucket


def taken(bucket: Bucket, now: float, most: int = 100) -> int:
    return next((number for number in range(most) if not bucket.take(now)), most)


def test_there_are_so_many_at_once_and_so_many_more_a_second() -> None:
    bucket = Bucket(2.0, 3.0, 100.0)
    assert taken(bucket, 100.0) == 3
    # Half of one is none.
    assert taken(bucket, 100.25) == 0
    assert taken(bucket, 100.5) == 1
    assert taken(bucket, 101.5) == 2
    # No time counts twice.
    assert taken(bucket, 101.5) == 0
    # However long nobody takes any, it saves up no more.
    assert taken(bucket, 10_000.0) == 3


def test_one_that_takes_tells_how_long_to_wait_for_the_next() -> None:
    bucket = Bucket(2.0, 1.0, 0.0)
    assert bucket.wait(0.0) == 0.0
    assert bucket.take(0.0)
    assert bucket.wait(0.0) == 0.5
    assert bucket.wait(0.25) == pytest.approx(0.25)
    assert not bucket.take(0.49)
    assert bucket.take(0.5)


def test_what_is_owed_is_paid_first() -> None:
    bucket = Bucket(2.0, 1.0, 0.0)
    for _ in range(3):
        bucket.spend()
    assert bucket.left(0.0) == -2.0
    assert bucket.wait(0.0) == 1.5
    assert not bucket.take(1.0)
    assert bucket.take(1.5)


def test_what_comes_back_is_no_more_than_there_can_be() -> None:
    bucket = Bucket(1.0, 2.0, 0.0)
    bucket.give(5.0)
    assert bucket.left(0.0) == 2.0
    bucket.spend()
    bucket.give(0.5)
    assert bucket.left(0.0) == 1.5
