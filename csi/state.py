"""The one file from which a new process picks a volume up, whatever its layout: for the agent's eyes only.

Bundles of federated trust domains are not in it, but where an agent wrote it that had no other place for them.
"""

import json
from dataclasses import dataclass, field
from typing import Any

from csi.model import Contents
from svid.bundle import TrustBundle
from svid.errors import InvalidSvid
from svid.identity import WorkloadIdentity
from svid.jwtsvid import parse_jwt_svid_unverified
from svid.spiffeid import TrustDomain
from svid.x509svid import X509Svid

NAME = ".state.json"
_VERSION = 1


@dataclass(frozen=True, slots=True)
class State:
    """What was written, and the password of the keystores; empty where there are none."""

    contents: Contents
    password: str = field(repr=False)


def dump(state: State) -> bytes:
    """As JSON. It holds private keys and tokens."""
    identity = state.contents.identity
    return json.dumps(
        {
            "version": _VERSION,
            "svids": [
                {"chain": svid.chain_pem().decode(), "key": svid.key_pem().decode(), "hint": svid.hint}
                for svid in identity.svids
            ],
            "trust_domain": identity.bundle.trust_domain.name,
            "bundle": identity.bundle.to_jwks().decode(),
            "federates_with": _names(identity),
            # For an older agent, which asks its authority then.
            "federated": {},
            "jwt_svids": {name: svid.token for name, svid in state.contents.jwt_svids.items()},
            "password": state.password,
        }
    ).encode()


def load(data: bytes) -> State:
    """What `dump` wrote. Raises SvidError, whose text quotes nothing of it."""
    try:
        document = json.loads(data.decode("utf-8"))
        if document["version"] != _VERSION:
            raise InvalidSvid("the volume's state is of another version")
        svids = tuple(
            X509Svid.from_pem(each["chain"].encode(), each["key"].encode(), _text(each["hint"]), own=True)
            for each in document["svids"]
        )
        bundle = _bundle(document["trust_domain"], document["bundle"])
        federated = tuple(_bundle(name, text) for name, text in document["federated"].items())
        jwt_svids = {_text(name): parse_jwt_svid_unverified(token) for name, token in document["jwt_svids"].items()}
        password = _text(document["password"])
        # Absent in what an older agent wrote, which knew no limit.
        federates = document.get("federates_with")
        federates_with = None if federates is None else tuple(TrustDomain(_text(name)) for name in federates)
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise InvalidSvid(f"the volume's state is damaged ({type(error).__name__})") from None
    if not bundle.x509_authorities:
        raise InvalidSvid("the volume's state holds no X.509 authority")
    return State(Contents(WorkloadIdentity(svids, bundle, federated, federates_with), jwt_svids), password)


def _names(identity: WorkloadIdentity) -> list[str] | None:
    return None if identity.federates_with is None else [each.name for each in identity.federates_with]


def _bundle(name: str, jwks: str) -> TrustBundle:
    return TrustBundle.from_jwks(TrustDomain(name), jwks.encode())


def _text(value: Any) -> str:
    if not isinstance(value, str):
        raise TypeError
    return value
