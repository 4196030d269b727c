"""How commands lead to the documentation."""

import pytest

from podsvid import reading
from podsvid.cli import main

SITE = "https://docs.example.org/podsvid"


def test_of_what_is_allowed_nothing_is_to_be_read() -> None:
    assert reading.of_refusal("allowed") == []
    # As an older signer may say it.
    assert reading.of_refusal("refused: not here") == []


def test_a_refusal_leads_to_the_site_that_the_variable_names(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(reading.VARIABLE, raising=False)
    assert reading.of_refusal("refused: KEY_WEAK: no") == ["see docs/troubleshooting.md#key_weak"]
    monkeypatch.setenv(reading.VARIABLE, f"{SITE}/")
    assert reading.of_refusal("refused: KEY_WEAK: no") == [f"see {SITE}/troubleshooting.html#key_weak"]
    monkeypatch.setenv(reading.VARIABLE, "what is no address")
    assert reading.of_refusal("refused: KEY_WEAK: no") == ["see docs/troubleshooting.md#key_weak"]


@pytest.mark.parametrize(("site", "lines"), [("", 0), (SITE, 1)])
def test_an_error_is_one_line_and_where_the_site_is_known_another(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], site: str, lines: int
) -> None:
    monkeypatch.setenv(reading.VARIABLE, site)
    assert main(["explain", "of/no/pod"]) == 2
    first, *others = capsys.readouterr().err.splitlines()
    assert first.startswith("podsvid: WRONG_USAGE: ")
    assert others == [f"podsvid: see {SITE}/troubleshooting.html#wrong_usage"] * lines
