"""What `podsvid api` makes of an answer: files, a JSON document, text for people, and the bare credentials.

Private keys go into files only. The JSON documents are described in docs/api.md; members are added, never changed.
"""

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import TYPE_CHECKING, Any

from podsvid.api.answers import ValidToken, X509State
from podsvid.api.errors import shown
from podsvid.api.file_set import SetFile
from podsvid.options import as_yaml
from svid.bundle import TrustBundle
from svid.certificates import serial_of

if TYPE_CHECKING:
    from svid.jwtsvid import JwtSvid

_EXEC_VERSIONS = ("client.authentication.k8s.io/v1", "client.authentication.k8s.io/v1beta1")


@dataclass(frozen=True, slots=True)
class Rendered:
    """One answer in every form. `bare` is PEM, or a token a line, or a credential for kubectl."""

    files: Mapping[str, SetFile] = field(repr=False)
    document: Mapping[str, Any] = field(repr=False)
    text: str = field(repr=False)
    bare: str = field(repr=False, default="")

    def output(self, form: str) -> str:
        """What to print for --output `form`; it ends with a line feed."""
        if form == "json":
            return json.dumps(self.document) + "\n"
        if form == "yaml":
            return as_yaml(json.dumps(self.document))
        return self.text if form == "text" else self.bare


def x509(state: X509State) -> Rendered:
    """X.509-SVIDs. A foreign bundle's file has the trust domain in its name, since its place could change."""
    files: dict[str, SetFile] = {}
    rows = []
    text = []
    pem = []
    for number, held in enumerate(state.svids):
        svid, chain, bundle = held.svid, held.svid.chain_pem(), held.bundle.to_pem()
        files[f"svid.{number}.pem"] = SetFile(chain)
        files[f"svid.{number}.key"] = SetFile(svid.key_pem(), secret=True)
        files[f"bundle.{number}.pem"] = SetFile(bundle)
        rows.append(
            {
                "spiffe_id": str(svid.spiffe_id),
                "hint": svid.hint,
                "serial": svid.serial,
                "not_before": _time(svid.not_before),
                "not_after": _time(svid.not_after),
                "chain": chain.decode(),
                "bundle": bundle.decode(),
            }
        )
        hint = [("hint", shown(svid.hint))] if svid.hint else []
        times = [("valid from", _time(svid.not_before)), ("valid to", _time(svid.not_after))]
        text.append(_lines([("SPIFFE ID", str(svid.spiffe_id)), *hint, ("serial", svid.serial), *times]))
        pem += [f"# {svid.spiffe_id}\n{chain.decode()}", f"# trust bundle\n{bundle.decode()}"]
    federated = {str(bundle.trust_domain): bundle.to_pem() for bundle in state.federated}
    for name, content in federated.items():
        files[f"federated_bundle.{name}.pem"] = SetFile(content)
        pem.append(f"# trust bundle of {name}\n{content.decode()}")
    if federated:
        text.append(_lines([("federated", name) for name in federated]))
    document = {
        "svids": rows,
        "federated_bundles": {name: content.decode() for name, content in federated.items()},
    }
    return Rendered(files, document, "\n".join(text), "".join(pem))


def exec_credential(svid: "JwtSvid", info: str) -> Rendered:
    """What kubectl, and other clients of Kubernetes, take from a program that they run for a token.

    `info`: KUBERNETES_EXEC_INFO, in which they say the version of the document that they want.
    """
    try:
        asked = json.loads(info or "{}").get("apiVersion")
    except (ValueError, AttributeError, RecursionError):
        asked = None
    document = {
        "apiVersion": asked if asked in _EXEC_VERSIONS else _EXEC_VERSIONS[0],
        "kind": "ExecCredential",
        "status": {"token": svid.token, "expirationTimestamp": _time(svid.expires_at)},
    }
    return Rendered({}, document, "", json.dumps(document) + "\n")


def jwt(svids: "Sequence[JwtSvid]", *, show_tokens: bool) -> Rendered:
    """JWT-SVIDs. Without `show_tokens` neither the text nor the document has them."""
    rows = []
    text = []
    for svid in svids:
        issued = [] if svid.issued_at is None else [("issued at", _time(svid.issued_at))]
        rows.append(
            {
                "spiffe_id": str(svid.spiffe_id),
                "hint": svid.hint,
                "audience": list(svid.audiences),
                "issued_at": _time(svid.issued_at) if svid.issued_at else None,
                "expires_at": _time(svid.expires_at),
                "token": svid.token if show_tokens else None,
            }
        )
        lines = [("SPIFFE ID", str(svid.spiffe_id))]
        lines += [("hint", shown(svid.hint))] if svid.hint else []
        lines += [("audience", shown(audience)) for audience in svid.audiences]
        lines += [*issued, ("expires", _time(svid.expires_at))]
        lines += [("token", svid.token)] if show_tokens else []
        text.append(_lines(lines))
    files = {f"jwt_svid.{n}.token": SetFile(svid.token.encode(), secret=True) for n, svid in enumerate(svids)}
    return Rendered(files, {"svids": rows}, "\n".join(text), "".join(f"{svid.token}\n" for svid in svids))


def bundles(found: Sequence[TrustBundle]) -> Rendered:
    """Trust bundles: X.509 authorities as PEM, JWT authorities as a JWK Set, each where there are any."""
    files: dict[str, SetFile] = {}
    rows = {}
    text = []
    for bundle in found:
        name = str(bundle.trust_domain)
        keys = bundle.to_jwt_jwks()
        if bundle.x509_authorities:
            files[f"trust_bundle.{name}.pem"] = SetFile(bundle.to_pem())
        if bundle.jwt_authorities:
            files[f"trust_bundle.{name}.jwks"] = SetFile(keys)
        rows[name] = {"x509": bundle.to_pem().decode(), "jwt": json.loads(keys)}
        lines = [("trust domain", name)]
        lines += [
            ("X.509 authority", f"{serial_of(each)}, valid to {_time(each.not_valid_after_utc)}")
            for each in bundle.x509_authorities
        ]
        lines += [("JWT authority", shown(each.key_id)) for each in bundle.jwt_authorities]
        text.append(_lines(lines))
    pem = "".join(f"# trust bundle of {each.trust_domain}\n{each.to_pem().decode()}" for each in found)
    return Rendered(files, {"bundles": rows}, "\n".join(text), pem)


def valid_token(found: ValidToken) -> Rendered:
    """What the server says of a token."""
    document = {"spiffe_id": str(found.spiffe_id), "claims": dict(found.claims)}
    claims = [(shown(name)[1:-1], json.dumps(value)) for name, value in sorted(found.claims.items())]
    return Rendered({}, document, _lines([("SPIFFE ID", str(found.spiffe_id)), *claims]))


def _lines(pairs: Iterable[tuple[str, str]]) -> str:
    found = list(pairs)
    width = max(len(name) for name, _ in found) + 3
    return "".join(f"{name + ':':{width}}{value}\n" for name, value in found)


def _time(at: datetime) -> str:
    return f"{at:%Y-%m-%dT%H:%M:%SZ}"
