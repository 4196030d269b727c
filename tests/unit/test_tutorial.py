"""What is made of a page's commands, where no cluster is needed to see it."""

import pytest

from tests.cluster.tutorial import assigned


@pytest.mark.parametrize(
    ("typed", "name"),
    [
        ("POD=$(kubectl get pod -l app=web -o jsonpath='{.items[0].metadata.name}')", "POD"),
        ("A=$(echo $(date) 'a b')", "A"),
        ("A='a b'\"$B c\"d", "A"),
        ("A=b command", ""),
        ("A=$(b) command $(c)", ""),
        ("A=b; command", ""),
        ("kubectl get pods -l app=web", ""),
        ("curl https://a/?b=c", ""),
    ],
)
def test_a_variable_for_one_command_is_none_for_the_next(typed: str, name: str) -> None:
    assert assigned(typed) == name
