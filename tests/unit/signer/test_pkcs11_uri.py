"""RFC 7512 as far as podsvid takes it: what names a key, and that everything else is refused without being repeated."""

import argparse
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from signer import config
from signer.pkcs11_uri import MAX_URI, KeyUri, parse

NAMES = st.text(st.characters(codec="utf-8", exclude_categories=("C", "Z")), max_size=40)
PATHS = NAMES.map(lambda each: Path("/") / each.replace("/", "_"))


@given(token=NAMES, serial=NAMES, label=NAMES, number=st.binary(max_size=20), module=PATHS, pin=st.none() | PATHS)
def test_what_is_printed_is_read_again(
    token: str, serial: str, label: str, number: bytes, module: Path, pin: Path | None
) -> None:
    found = KeyUri(module, token, serial, label, number, pin)
    if len(str(found)) <= MAX_URI and (token or serial) and (label or number):
        assert parse(str(found)) == found


@given(st.text(max_size=200) | st.text("pkcs11:token=abj%;?&/-0159", max_size=200).map("pkcs11:".__add__))
def test_no_text_ends_in_anything_but_a_key_or_a_refusal(text: str) -> None:
    try:
        found = parse(text)
    except ValueError:
        return
    assert found.module.is_absolute()
    assert parse(str(found)) == found


def test_rfc_7512_examples_as_far_as_they_name_what_is_needed() -> None:
    found = parse(
        "pkcs11:token=The%20Software%20PKCS%2311%20Softtoken;serial=4D2A;object=my-ca;type=private;id=%69%95%3E%5C"
        "?module-path=/usr/lib/p11.so&pin-source=file:/etc/token"
    )
    assert found == KeyUri(
        Path("/usr/lib/p11.so"),
        "The Software PKCS#11 Softtoken",
        "4D2A",
        "my-ca",
        b"\x69\x95\x3e\x5c",
        Path("/etc/token"),
    )
    for source in ("/etc/token", "file:/etc/token", "file:///etc/token"):
        assert parse(f"pkcs11:token=a;object=b?module-path=/m&pin-source={source}").pin_file == Path("/etc/token")


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("", "pkcs11:token=NAME"),
        ("pkcs11:", "module-path is an absolute path"),
        ("token=a;object=b?module-path=/m", "pkcs11:token=NAME"),
        ("pkcs11:object=b?module-path=/m", "it names no token"),
        ("pkcs11:token=a?module-path=/m", "it names no key"),
        ("pkcs11:token=a;object=b", "module-path is an absolute path"),
        ("pkcs11:token=a;object=b?module-path=m.so", "module-path is an absolute path"),
        ("pkcs11:token=a;object=b?module-name=m", "instead of module-name give module-path"),
        ("pkcs11:token=a;object=b?module-path=/m&pin-value=SECRET", "a PIN belongs in a file"),
        ("pkcs11:token=a;object=b?module-path=/m&pin-source=|/bin/cat", "pin-source is an absolute path"),
        ("pkcs11:token=a;token=b;object=b?module-path=/m", "each once at most"),
        ("pkcs11:token=a;object=b;slot-id=3?module-path=/m", "each once at most"),
        ("pkcs11:token=a;object=b;x-vendor=3?module-path=/m", "each once at most"),
        ("pkcs11:token=a;object=b;type=cert?module-path=/m", "type, where it is given, is private"),
        ("pkcs11:token=a;object=%FF?module-path=/m", "object is not UTF-8"),
        ("pkcs11:token=a%0A;object=b?module-path=/m", "unprintable"),
        ("pkcs11:token=a;object=b c?module-path=/m", "each once at most"),
        (f"pkcs11:token=a;object={'b' * MAX_URI}?module-path=/m", "pkcs11:token=NAME"),
    ],
)
def test_everything_else_is_refused_and_not_repeated(text: str, why: str) -> None:
    with pytest.raises(ValueError) as caught:
        parse(text)
    assert why in str(caught.value)
    assert "SECRET" not in str(caught.value)


URI = "pkcs11:token=a;object=b?module-path=/m&pin-source=file:/pin"
CERT, KEY, FOLDER = ("--upstream-cert-file", "/c"), ("--upstream-key-file", "/k"), ("--upstream-dir", "/d")


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        ((*CERT,), ""),
        ((*FOLDER,), ""),
        ((), "a CA is nothing without its certificate and key"),
        ((*CERT, *KEY), "they name two keys of the upstream CA; give one"),
        ((*FOLDER, *CERT), "they name two upstream CAs; give one"),
        ((*FOLDER, "--upstream", "openbao"), "they name two upstream CAs; leave one out"),
        ((*CERT, "--upstream", "cert-manager"), "they name two upstream CAs; leave one out"),
    ],
)
def test_what_stands_beside_it(flags: tuple[str, ...], said: str) -> None:
    parser = argparse.ArgumentParser()
    config.add_arguments(parser)
    sound = ("--trust-domain", "a.test", "--namespace", "n", "--upstream-key-uri", URI)
    found = config.examine(parser.parse_args([*sound, *flags]), {})
    assert said in "\n".join(found.faults)
    assert said or found.faults == ()
    assert "/pin" not in "\n".join(found.faults), "where a secret may be is not shown"
    if not said:
        assert found.config.above.files.key_uri == parse(URI)
