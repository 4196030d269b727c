"""Where what was said is explained."""

import re
from pathlib import Path

import grpc
import pytest

from runtime import advice

ROOT = Path(__file__).parents[3]
SITE = "https://docs.example.org/podsvid"


@pytest.mark.parametrize(
    ("text", "exact"),
    [
        ("the volume is gone", "IDENTITY_DENIED"),
        ("POLICY_DENIED: policy x denies it", "POLICY_DENIED"),
        ("SIGNER_UNREACHABLE: TLS_FAILED: handshake", "TLS_FAILED"),
        # What something else than the signer answered has no reason of podsvid's.
        ("UNAVAILABLE: connection refused", "IDENTITY_DENIED"),
        ("SIGNER_UNREACHABLE: UNAVAILABLE: connection refused", "SIGNER_UNREACHABLE"),
        # As somebody may have named a policy.
        ("policy KEY_WEAK: denies", "IDENTITY_DENIED"),
    ],
)
def test_the_most_exact_reason_is_explained(text: str, exact: str) -> None:
    assert advice.exact("IDENTITY_DENIED", text) == exact


@pytest.mark.parametrize("status", [each.name for each in grpc.StatusCode if each is not grpc.StatusCode.OK])
def test_a_status_is_no_reason(status: str) -> None:
    assert advice.exact("IDENTITY_UNAVAILABLE", f"{status}: it failed") == "IDENTITY_UNAVAILABLE"


def test_it_leads_to_the_site_or_to_the_page_of_a_checkout() -> None:
    assert advice.link("KEY_WEAK", SITE) == f"{SITE}/troubleshooting.html#key_weak"
    page, _, anchor = advice.link("KEY_WEAK").partition("#")
    assert f"\n### `{anchor.upper()}`\n" in (ROOT / page).read_text(encoding="utf-8")


def test_of_a_long_text_the_end_is_left_out_and_not_where_to_read() -> None:
    said = advice.explained("x" * 5000, "KEY_WEAK", SITE, 300)
    assert len(said) == 300
    assert said.endswith(f"xxx (see {SITE}/troubleshooting.html#key_weak)")


def test_what_is_long_is_counted_in_bytes_as_the_api_server_does() -> None:
    said = advice.explained("\u00e9\udc80" * 5000, "KEY_WEAK", SITE, 300)
    assert 297 < len(said.encode()) <= 300
    assert said.endswith(f" (see {SITE}/troubleshooting.html#key_weak)")


def test_an_address_is_of_a_folder_and_short() -> None:
    assert advice.address("") == ""
    assert advice.address(f"{SITE}/") == SITE
    assert advice.address("http://docs.example") == "http://docs.example"
    longest = "https://" + "a" * (advice.MOST_URL - len("https://"))
    assert advice.address(longest) == longest


@pytest.mark.parametrize(
    "text",
    [
        *(
            "docs.example.org",
            "file:///docs",
            "https://",
            "https://a b",
            "https://a\nb",
            "https://a/x#y",
            "https://a?x=y",
            "https:///",
            "https://user:password@a",
            "https://{{a}}",
        ),
        *("https://a)", "https://a'b", "https://" + "a" * advice.MOST_URL, "https://é"),
    ],
)
def test_what_is_no_such_address_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match=re.escape("https://docs.example.org/podsvid")):
        advice.address(text)
