"""Requests as data: the parser never raises anything but its own error, and never lets a strange path through."""

from contextlib import suppress

from hypothesis import given
from hypothesis import strategies as st

from csi.errors import InvalidRequest
from csi.model import PodToken
from csi.pb import csi_pb2
from csi.request import TOKENS, check_target, parse_publish

UID = "0b6a9a4e-6a8e-4c1c-9f3c-111111111111"
ROOT = "/var/lib/kubelet"
TARGET = f"{ROOT}/pods/{UID}/volumes/kubernetes.io~csi/spiffe/mount"


def good() -> csi_pb2.NodePublishVolumeRequest:
    request = csi_pb2.NodePublishVolumeRequest(volume_id="csi-1", target_path=TARGET, readonly=True)
    request.volume_capability.mount.SetInParent()
    for key, value in {
        "ephemeral": "true",
        "pod.name": "web-0",
        "pod.namespace": "default",
        "pod.uid": UID,
        "serviceAccount.name": "web",
    }.items():
        request.volume_context[f"csi.storage.k8s.io/{key}"] = value
    return request


def test_a_good_request() -> None:
    parsed = parse_publish(good(), ROOT)
    assert parsed.volume.pod.service_account == "web"
    assert parsed.volume.below_pods == (UID, "volumes", "kubernetes.io~csi", "spiffe", "mount")
    assert parsed.volume.group is None
    assert parsed.token is None


def test_tokens_from_secrets_win_over_those_an_author_could_have_written() -> None:
    request = good()
    request.volume_context[TOKENS] = "from the context"
    assert parse_publish(request, ROOT).token == PodToken("from the context")
    request.secrets[TOKENS] = "from the secrets"
    assert parse_publish(request, ROOT).token == PodToken("from the secrets")
    assert "from the secrets" not in repr(parse_publish(request, ROOT))


@given(st.text(alphabet=st.sampled_from(list("/.~a0\0\n ä-")), max_size=40))
def test_no_target_that_is_accepted_leaves_the_pods_directory(text: str) -> None:
    for candidate in (text, f"{ROOT}/pods/{text}", f"{ROOT}/pods/{UID}/volumes/kubernetes.io~csi/{text}/mount"):
        try:
            below = check_target(candidate, ROOT)
        except InvalidRequest:
            continue
        assert f"{ROOT}/pods/" + "/".join(below) == candidate
        assert not {"", ".", ".."} & set(below)


@given(st.binary(max_size=300))
def test_any_bytes_that_are_a_request_are_answered(data: bytes) -> None:
    request = csi_pb2.NodePublishVolumeRequest()
    try:
        request.ParseFromString(data)
    except Exception:
        return
    with suppress(InvalidRequest):
        parse_publish(request, ROOT)
