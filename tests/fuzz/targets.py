"""What is fuzzed: functions of bytes that raise only when a property does not hold."""

import contextlib
import json
import re
import tempfile
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from pathlib import Path
from types import MappingProxyType

from google.protobuf.message import DecodeError

from csi import state
from csi.attributes import parse_attributes
from csi.errors import InvalidRequest
from csi.journal import Damaged, Entry, Journal
from csi.pb import csi_pb2
from csi.profile import PROFILES
from csi.request import check_target, parse_publish
from signer.authority.state import AuthorityState
from signer.cluster.objects import PolicyObject
from signer.errors import ApiUnavailable, InvalidPolicy, StateDamaged
from signer.model import LivePod
from signer.policy.policy import PolicySettings, decide, read_policy
from signer.policy.template import is_segment, path_template
from svid.bundle import TrustBundle
from svid.errors import InvalidSpiffeId, SvidError
from svid.spiffeid import SpiffeId, TrustDomain
from tests.fuzz.channel import orders, reports
from tests.fuzz.early import early
from tests.fuzz.workers import workers
from tests.typed import typed

OWN = TrustDomain("example.org")
ROOT = "/var/lib/kubelet"
NOW = datetime(2030, 1, 1, tzinfo=UTC)
# SPIFFE-ID section 2, written down a second time.
_ORACLE = re.compile(r"spiffe://([a-z0-9._-]{1,255})((?:/(?!\.{1,2}(?:/|\Z))[a-zA-Z0-9._-]+)*)", re.ASCII)


def spiffe_ids(data: bytes) -> None:
    """The parser agrees with the grammar, and what it takes comes out as it went in."""
    text = data.decode("utf-8", errors="surrogateescape")
    expected = _ORACLE.fullmatch(text)
    allowed = expected is not None and len(text) <= 2048
    try:
        found = SpiffeId.parse(text)
    except InvalidSpiffeId as error:
        assert not allowed, "refused although it is one"
        assert len(str(error)) < 4096
        return
    assert allowed, "taken although it is none"
    assert str(found) == text
    assert expected is not None
    assert found.trust_domain.name == expected[1]


def attributes(data: bytes) -> None:
    """volumeAttributes: refused with a short message that names a key, or canonical."""
    given = _pairs(data)
    for profile in PROFILES.values():
        try:
            options = parse_attributes(given, profile)
        except InvalidRequest as error:
            assert len(str(error)) < 2000
            assert str(error).isprintable()
            continue
        assert dict(options.given) == {key: value for key, value in given.items() if key in dict(options.given)}
        assert parse_attributes(dict(options.given), profile) == options
        assert all("/" not in name and name not in ("", ".", "..") for _, name in options.file_names)


def templates(data: bytes) -> None:
    """A path template renders to a SPIFFE ID below its prefix whatever the pod's labels are, or refuses."""
    text, _, label = data.decode("utf-8", errors="replace").partition("\n")
    prefix = "/ns/{namespace}/"
    try:
        template = path_template(text, prefix)
    except InvalidPolicy as error:
        assert len(str(error)) < 2000
        return
    pod = LivePod("shop", "web-0", "u-1", "node-1", "web", {"app": label, "a": label})
    try:
        path = template.render(pod, is_segment, "a segment")
    except InvalidPolicy:
        return
    try:
        found = SpiffeId.parse(f"spiffe://example.org{path}")
    except InvalidSpiffeId:
        assert len(path) > 1500, "a path of legal length that is none"
        return
    assert str(found).startswith("spiffe://example.org/ns/shop/")


def policies(data: bytes) -> None:
    """A policy object is read or left out, and deciding by it gives an ID inside its namespace, or a refusal."""
    try:
        spec = json.loads(data)
    except (ValueError, RecursionError):
        return
    if not isinstance(spec, dict):
        return  # the API server takes no other
    body = {
        "kind": "WorkloadIdentity",
        "metadata": {"name": "p", "namespace": "shop", "uid": "1", "creationTimestamp": "2030-01-01T00:00:00Z"},
        "spec": spec,
    }
    try:
        policy = read_policy(typed(PolicyObject, body))
    except ApiUnavailable:
        return  # no text that an API server sends
    if policy is None:
        return
    pod = LivePod("shop", "web-0", "u-1", "node-1", "web", {"app": "web"})
    settings = PolicySettings(trust_domain=OWN)
    try:
        entitlement = decide([policy], pod, [], settings)
    except Exception as error:
        assert hasattr(error, "reason"), f"{type(error).__name__} instead of a refusal"
        return
    assert not policy.deny
    assert str(entitlement.spiffe_id).startswith("spiffe://example.org/ns/shop/")


def bundles(data: bytes) -> None:
    """JWKS and PEM bundles: only this package's errors, and what was read is written and read again the same."""
    for read in (TrustBundle.from_jwks, TrustBundle.from_pem, TrustBundle.from_der):
        try:
            found = read(OWN, data)
        except SvidError as error:
            assert len(str(error)) < 2000
            continue
        again = TrustBundle.from_jwks(OWN, found.to_jwks())
        assert again == found


def journals(data: bytes) -> None:
    """A journal file is a whole entry or reported and set aside; and so on for other kept files."""
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "v-1.json").write_bytes(data)
        for each in Journal(Path(folder), ROOT).entries():
            if isinstance(each, Damaged):
                assert len(each.why) < 5000
                continue
            _whole(each)
    with contextlib.suppress(SvidError):
        state.load(data)
    with contextlib.suppress(StateDamaged):
        AuthorityState.from_json(data, OWN)


def _whole(entry: Entry) -> None:
    pod = entry.volume.pod
    assert all(isinstance(each, str) for each in (pod.namespace, pod.name, pod.uid, pod.service_account))
    assert entry.renew_at.tzinfo is not None
    group = entry.volume.group
    assert group is None or (type(group) is int and 0 <= group < 2**32 - 1)
    assert check_target(entry.volume.target, ROOT) == entry.volume.below_pods


def requests(data: bytes) -> None:
    """A NodePublishVolume request is refused, or names a target below kubelet's pods and one pod."""
    try:
        request = csi_pb2.NodePublishVolumeRequest.FromString(data)
    except DecodeError:
        return
    # Most of what is random fails at the first check: the rest is looked at with the envelope put right.
    for mend in (False, True):
        if mend:
            request.volume_id = "v-1"
            request.target_path = f"{ROOT}/pods/u-1/volumes/kubernetes.io~csi/identity/mount"
            request.readonly = True
            request.volume_capability.mount.SetInParent()
            request.volume_capability.mount.fs_type = ""
            del request.volume_capability.mount.mount_flags[:]
            request.volume_context.update(_POD)
        try:
            found = parse_publish(request, ROOT)
        except InvalidRequest as error:
            assert len(str(error)) < 2000
            assert str(error).isprintable()
            continue
        volume = found.volume
        assert volume.target.startswith(f"{ROOT}/pods/{volume.pod.uid}/volumes/kubernetes.io~csi/")
        assert ".." not in volume.target.split("/")
        assert found.token is None or found.token.text not in repr(found)


_POD: Mapping[str, str] = MappingProxyType(
    {
        "csi.storage.k8s.io/ephemeral": "true",
        "csi.storage.k8s.io/pod.name": "web",
        "csi.storage.k8s.io/pod.namespace": "shop",
        "csi.storage.k8s.io/pod.uid": "u-1",
        "csi.storage.k8s.io/serviceAccount.name": "web",
    }
)
TARGETS: Mapping[str, Callable[[bytes], None]] = MappingProxyType(
    {
        each.__name__: each
        for each in (
            *(spiffe_ids, attributes, templates, policies, bundles, journals, requests),
            *(reports, orders, workers, early),
        )
    }
)


def _pairs(data: bytes) -> dict[str, str]:
    """Lines of KEY=VALUE."""
    lines = data.decode("utf-8", errors="replace").split("\n")
    return dict(line.partition("=")[::2] for line in lines if line)
