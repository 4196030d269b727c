"""The faults' order is the seed's alone, and each kind has something that does it."""

from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.chaos.faults import FAULTS
from tests.chaos.plan import EMBEDDED_FAULTS, SIGNER_FAULTS, WORKERS_FAULTS, plan


@given(st.integers(0, 2**32), st.integers(0, 200), st.sampled_from([EMBEDDED_FAULTS, SIGNER_FAULTS, WORKERS_FAULTS]))
def test_a_seed_brings_the_same_faults_and_every_kind(seed: int, count: int, weights: dict[str, int]) -> None:
    found = plan(seed, count, weights)
    assert found == plan(seed, count, weights)
    assert [each.number for each in found] == list(range(count))
    kinds = Counter(each.kind for each in found)
    assert set(kinds) <= set(weights)
    assert len(kinds) == len(weights) or count < len(weights)


def test_other_seeds_bring_other_faults() -> None:
    assert plan(1, 30, SIGNER_FAULTS) != plan(2, 30, SIGNER_FAULTS)


@pytest.mark.parametrize("weights", [EMBEDDED_FAULTS, SIGNER_FAULTS, WORKERS_FAULTS])
def test_every_kind_is_there(weights: dict[str, int]) -> None:
    assert set(weights) <= set(FAULTS)
    assert set(FAULTS) == {*EMBEDDED_FAULTS, *SIGNER_FAULTS, *WORKERS_FAULTS}
