"""The SVID of SPIRE's by which its server knows the signer as a downstream: from an agent, or files, at each use."""

import stat
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from urllib.parse import quote

import grpc

from signer.pb import spire_pb2
from signer.spire_settings import SpireSettings
from signer.upstream import rpc
from signer.upstream.certify import UpstreamUnusable, read_bounded
from signer.upstream.remote import UpstreamAway
from svid.bundle import TrustBundle
from svid.errors import SvidError
from svid.spiffeid import SpiffeId, TrustDomain
from svid.x509svid import X509Svid

_FETCH = "/SpiffeWorkloadAPI/FetchX509SVID"
# The Workload API answers nobody without it.
_HEADER = (("workload.spiffe.io", "true"),)
# Of a workload, which has a few.
_MAX_SVIDS = 64
_AWAY = frozenset({grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.DEADLINE_EXCEEDED, grpc.StatusCode.RESOURCE_EXHAUSTED})


@dataclass(frozen=True, slots=True)
class DownstreamSvid:
    """It is valid now. `bundle`: what is trusted of the same trust domain."""

    svid: X509Svid = field(repr=False)
    bundle: TrustBundle


async def from_agent(by: SpireSettings, now: datetime) -> DownstreamSvid:
    """Of the Workload API at `agent_socket`. Raises UpstreamAway, UpstreamUnusable."""
    at = by.agent_socket
    try:
        async with rpc.channel(f"unix:{quote(str(at))}") as channel:
            request, answer = spire_pb2.FetchX509SVIDRequest(), spire_pb2.FetchX509SVIDResponse()
            found = await rpc.first(channel, _FETCH, request, answer, _HEADER)
    except rpc.CallFailed as error:
        if error.code is grpc.StatusCode.PERMISSION_DENIED:
            raise UpstreamUnusable(
                f"the SPIRE agent at {at} has no SVID for this signer ({error}): is there a registration entry, and "
                "do its selectors fit the signer's pod?"
            ) from None
        if error.code in _AWAY:
            raise UpstreamAway(f"the SPIRE agent at {at} cannot be asked for the signer's SVID ({error})") from None
        raise UpstreamUnusable(f"the SPIRE agent at {at} gives this signer no SVID ({error})") from None
    if found is None:
        raise UpstreamAway(f"the SPIRE agent at {at} ended the call without an SVID")
    entry = _chosen(by, found)
    try:
        svid = X509Svid.from_der(entry.x509_svid, entry.x509_svid_key)
        return _checked(svid, TrustBundle.from_der(by.trust_domain, entry.bundle), by, now)
    except (SvidError, ValueError) as error:
        raise UpstreamUnusable(f"the SVID that the SPIRE agent at {at} gives cannot be used: {error}") from None


def _chosen(by: SpireSettings, found: spire_pb2.FetchX509SVIDResponse) -> spire_pb2.X509SVID:
    if len(found.svids) > _MAX_SVIDS:
        raise UpstreamUnusable(f"the SPIRE agent at {by.agent_socket} gives {len(found.svids)} SVIDs")
    for each in found.svids:
        if by.spiffe_id is None or each.spiffe_id == str(by.spiffe_id):
            return each
    raise UpstreamUnusable(f"the SPIRE agent at {by.agent_socket} gives this signer no SVID of {by.spiffe_id}")


def from_files(by: SpireSettings, now: datetime) -> DownstreamSvid:
    """Of tls.crt, tls.key and ca.crt in `svid_dir`. Raises UpstreamUnusable. Blocks."""
    assert by.svid_dir is not None
    try:
        chain, key, roots = (read_bounded(by.svid_dir / name) for name in ("tls.crt", "tls.key", "ca.crt"))
        return _checked(X509Svid.from_pem(chain, key), TrustBundle.from_pem(by.trust_domain, roots), by, now)
    except OSError as error:
        raise UpstreamUnusable(f"{error.filename} cannot be read: {error.strerror}") from None
    except (SvidError, ValueError) as error:
        raise UpstreamUnusable(f"the SVID in {by.svid_dir} cannot be used: {error}") from None


def look(path: Path) -> None:
    """Whether there is a socket. Raises UpstreamUnusable. Blocks."""
    try:
        mode = path.stat().st_mode
    except OSError as error:
        raise UpstreamUnusable(f"{path}: {error.strerror}; is the SPIRE agent's socket mounted there?") from None
    if not stat.S_ISSOCK(mode):
        raise UpstreamUnusable(f"{path} is no socket")


def _checked(svid: X509Svid, bundle: TrustBundle, by: SpireSettings, now: datetime) -> DownstreamSvid:
    _check_named(svid.spiffe_id, by.spiffe_id, by.trust_domain)
    svid.check(bundle, now)
    return DownstreamSvid(svid, bundle)


def _check_named(found: SpiffeId, wanted: SpiffeId | None, trust_domain: TrustDomain) -> None:
    if found.trust_domain != trust_domain:
        raise ValueError(f"it is {found}, and not of the signer's trust domain {trust_domain}")
    if wanted is not None and found != wanted:
        raise ValueError(f"it is {found}, and not {wanted}")
