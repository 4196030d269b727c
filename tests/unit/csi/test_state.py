"""The one file that a new process believes in a volume: what comes back, and that damage is refused and not guessed."""

import json
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest

from csi.model import Contents
from csi.state import State, dump, load
from svid.errors import InvalidKey, InvalidSvid, SvidError
from svid.identity import WorkloadIdentity
from svid.spiffeid import TrustDomain
from svid.x509svid import X509Svid
from tests.csi_rig import contents, unchecked

Document = dict[str, Any]


def limited(names: tuple[TrustDomain, ...] | None) -> State:
    made = contents()
    return State(Contents(replace(made.identity, federates_with=names)), "")


@pytest.mark.parametrize("names", [None, (), (TrustDomain("partner.test"), TrustDomain("other.test"))])
def test_whom_an_identity_federates_with_comes_back_as_it_was(names: tuple[TrustDomain, ...] | None) -> None:
    # Nobody and everybody are two things.
    found = load(dump(limited(names))).contents.identity.federates_with
    assert found == names
    assert (found is None) == (names is None)


def test_a_state_of_an_agent_that_knew_no_limit_has_none() -> None:
    document = json.loads(dump(limited(())))
    del document["federates_with"]
    assert load(json.dumps(document).encode()).contents.identity.federates_with is None


def test_the_numbers_of_an_rsa_key_that_podsvid_made_are_not_looked_at_again() -> None:
    # For a node with many of them that would take longer than a start may.
    given = State(Contents(WorkloadIdentity((unchecked(),), contents().identity.bundle)), "")
    assert load(dump(given)).contents.identity.default.serial == given.contents.identity.default.serial
    svid = given.contents.identity.default
    with pytest.raises(InvalidKey):
        X509Svid.from_pem(svid.chain_pem(), svid.key_pem())
    with pytest.raises(InvalidKey):
        X509Svid.from_der(svid.chain_der(), svid.key_der())


def test_a_password_comes_back_and_is_not_printed() -> None:
    given = State(contents(), "sesame-1")
    assert load(dump(given)).password == "sesame-1"
    assert "sesame-1" not in repr(given)


def _set(key: str, value: object) -> Callable[[Document], None]:
    def change(document: Document) -> None:
        document[key] = value

    return change


def _svid(key: str, value: object) -> Callable[[Document], None]:
    def change(document: Document) -> None:
        document["svids"][0][key] = value

    return change


def _no_authority(document: Document) -> None:
    document["bundle"] = json.dumps({**json.loads(document["bundle"]), "keys": []})


@pytest.mark.parametrize(
    "change",
    [
        _set("version", 0),
        _set("version", 2),
        _set("version", None),
        _set("svids", []),
        _set("svids", {}),
        _set("trust_domain", "Example.ORG/"),
        _set("trust_domain", None),
        _set("bundle", "{}"),
        _set("bundle", {}),
        _set("federated", {"other.test": "{}"}),
        _set("federated", []),
        _set("jwt_svids", {"a": "b"}),
        _set("jwt_svids", {"a": 7}),
        _set("password", 7),
        _set("password", None),
        _set("federates_with", [7]),
        _set("federates_with", ["no trust domain"]),
        _svid("hint", 7),
        _svid("chain", ""),
        _svid("key", ""),
        _no_authority,
    ],
)
def test_what_was_not_written_so_is_refused_and_not_quoted(change: Callable[[Document], None]) -> None:
    document = json.loads(dump(State(contents(), "sesame-1")))
    change(document)
    with pytest.raises(SvidError) as caught:
        load(json.dumps(document).encode())
    assert "sesame" not in str(caught.value)
    assert "PRIVATE" not in str(caught.value)


@pytest.mark.parametrize("data", [b"", b"\xff", b"[]", b"null", b"{}", b"[" * 100_000, b'{"version": 1}'])
def test_what_is_no_state_is_refused(data: bytes) -> None:
    with pytest.raises(InvalidSvid, match="the volume's state is"):
        load(data)
