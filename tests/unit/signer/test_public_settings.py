"""Where documents are served, as the settings have it: what contradicts itself, and who is waited for because of it."""

import re

import pytest

from runtime.settings import InvalidSetting
from signer import parts
from signer.audience_settings import FEDERATION, audiences
from svid.oidc import Issuer
from tests.unit.signer.test_audience_settings import loaded

PAIR = ("--oidc-cert-file", "/c", "--oidc-key-file", "/k")
ISSUER = ("--jwt-issuer", "https://a.example/x")
OIDC = ("--oidc-listen", ":8445", *PAIR, *ISSUER)


def test_nothing_is_listened_at_unless_said() -> None:
    assert parts.public(loaded()).listening == ()


def test_each_listener_has_its_address_and_its_certificate() -> None:
    found = parts.public(loaded("--bundle-listen", "127.0.0.1:8444", *OIDC, "--bundle-hint", "1m"))
    bundle, oidc = found.listening
    assert (bundle.name, bundle.address, bundle.files) == ("bundle", ("127.0.0.1", 8444), None)
    assert (oidc.name, oidc.address) == ("oidc", ("::", 8445))
    assert [str(each) for each in oidc.files or ()] == ["/c", "/k"]
    assert found.max_age == 60
    assert found.publication.issuer == Issuer("https://a.example/x", "https://a.example/x/keys")
    assert found.publication.refresh_hint.total_seconds() == 60


def test_where_the_keys_are_is_a_setting_of_its_own() -> None:
    found = parts.publication(loaded(*ISSUER, "--jwks-uri", "https://b.example/j"))
    assert found.issuer == Issuer("https://a.example/x", "https://b.example/j")


def test_who_listens_has_readers_that_are_waited_for() -> None:
    assert FEDERATION not in audiences(loaded())
    assert FEDERATION in audiences(loaded("--bundle-listen", ":8444"))


@pytest.mark.parametrize(
    ("flags", "why"),
    [
        (("--bundle-listen", ":8444", "--bundle-profile", "https_web"), "give both"),
        (("--bundle-listen", ":8444", "--bundle-profile", "https_web", "--bundle-cert-file", "/c"), "give both"),
        (("--bundle-listen", ":8444", "--bundle-cert-file", "/c", "--bundle-key-file", "/k"), "leave them out"),
        (("--bundle-cert-file", "/c", "--bundle-key-file", "/k"), "leave them out"),
        (("--oidc-listen", ":8445", *ISSUER), "give both"),
        (PAIR, "leave them out"),
        (("--oidc-listen", ":8445", *PAIR), "set jwt_issuer"),
        ((*OIDC, "--jwt-svids", "false"), "set jwt_issuer and jwt_svids"),
        (("--jwks-uri", "https://a.example/k"), "set jwt_issuer"),
        ((*OIDC[:-1], "https://A.example"), "documents are served at an https:// URL"),
        ((*OIDC, "--jwks-uri", "https://b.example/x/.well-known/openid-configuration"), "cannot be where"),
        (("--bundle-listen", ":8443"), "both are one port"),
        (("--bundle-listen", ":8444", "--oidc-listen", ":8444", *PAIR, *ISSUER), "both are one port"),
    ],
)
def test_what_contradicts_itself(flags: tuple[str, ...], why: str) -> None:
    with pytest.raises(InvalidSetting, match=re.escape(why)):
        loaded(*flags)
