"""Whatever is wrong with settings, and wherever a secret was put by mistake: no refusal repeats it."""

from pathlib import Path

import pytest

from runtime.settings import InvalidSetting
from tests.unit.agent.test_config import load

SECRET = "c2VjcmV0LXNlY3JldC1zZWNyZXQtc2VjcmV0LXNlYw"
PEM = f"-----BEGIN PRIVATE KEY-----\n{SECRET}\n-----END PRIVATE KEY-----\n"
TOKEN = f"eyJhbGciOiJSUzI1NiJ9.{SECRET}.{SECRET}"


@pytest.mark.parametrize(
    "flags",
    [
        ("--ca-key-file", SECRET),
        ("--ca-key-file", PEM),
        ("--agent-token-file", TOKEN),
        ("--signer-address", TOKEN),
        ("--log-format", PEM),
        ("--trust-domain", PEM),
        ("--tracing-endpoint", f"http://me:{SECRET}@collector:4317"),
        ("--tracing-endpoint", f"http://{SECRET}@collector"),
        ("--authority", "signer", "--jwt-issuer", f"https://me:{SECRET}@issuer.test"),
        ("--sds-svid-name", TOKEN, "--sds-bundle-name", TOKEN),
    ],
)
def test_a_value_is_not(flags: tuple[str, ...]) -> None:
    with pytest.raises(InvalidSetting) as caught:
        load("--trust-domain", "example.org", *flags)
    assert SECRET not in str(caught.value)
    assert "not shown (it may be a secret)" in str(caught.value)


@pytest.mark.parametrize(
    "text",
    [
        PEM,
        f"trust_domain: a\n{PEM}",
        f"trust_domain: a\nca_key_file: |\n{PEM}",
        f"ca_key_file: &a{SECRET}\n  b: *{SECRET}",
        f"ca_key_file: !{SECRET} x",
        f"ca_key_file: !a!{SECRET} x",
        f"x: [{SECRET}",
        f"%YAML {SECRET}\n---\n",
        f"a: '{SECRET}",
        f'a: "\\q{SECRET}"',
        f"- {SECRET}",
        SECRET,
        f"{TOKEN}: a",
        f"{SECRET}: a",
        f"ca_key_file: [{SECRET}]",
        f"ca_key_file: {{{SECRET}: {SECRET}}}",
    ],
)
def test_a_file_is_not(tmp_path: Path, text: str) -> None:
    path = tmp_path / "agent.yaml"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(InvalidSetting) as caught:
        load("--trust-domain", "example.org", "--config", str(path))
    assert SECRET not in str(caught.value)


def test_an_unknown_variable_is_not() -> None:
    with pytest.raises(InvalidSetting, match="PODSVID_CA_KEY is set and is no setting") as caught:
        load("--trust-domain", "example.org", environment={"PODSVID_CA_KEY": SECRET})
    assert SECRET not in str(caught.value)
