"""Requests as data: the parser never raises anything but its own error, and never lets a strange path through."""

from contextlib import suppress

from google.protobuf.message import DecodeError
from hypothesis import event, given, settings
from hypothesis import strategies as st

from csi.attributes import ATTRIBUTES, parse_attributes
from csi.errors import InvalidRequest
from csi.model import PodToken
from csi.pb import csi_pb2
from csi.request import KUBELET_PREFIX, TOKENS, check_target, parse_publish
from tests.csi_rig import KUBELET_ROOT, OTHER_UID, UID, publish_request, target

ROOT = KUBELET_ROOT


def good() -> csi_pb2.NodePublishVolumeRequest:
    return publish_request()


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


# What fits nowhere, beside what fits in some field: most requests get past some checks and not past others.
WORDS = st.sampled_from(
    ["", "true", "web-0", UID, OTHER_UID, target(), target(uid=OTHER_UID), "..", "a/b", "\0", "2000", "-1", "ec-p256"]
) | st.text(max_size=20)
FIELDS = ["volume_id", "target_path", "readonly", "block", "no capability", "flags", "group"]
CONTEXT_KEYS = [*good().volume_context, *(each.name for each in ATTRIBUTES), TOKENS, "unknown"]


@st.composite
def changed(draw: st.DrawFn) -> csi_pb2.NodePublishVolumeRequest:
    """A good request in which some fields, which hold what kubelet or a pod's author wrote, hold something else."""
    request = good()
    for field in draw(st.lists(st.sampled_from(FIELDS), max_size=2, unique=True)):
        if field == "readonly":
            request.readonly = draw(st.booleans())
        elif field == "block":
            request.volume_capability.block.SetInParent()
        elif field == "no capability":
            request.ClearField("volume_capability")
        elif field == "flags":
            request.volume_capability.mount.mount_flags.extend(draw(st.lists(WORDS, max_size=2)))
        elif field == "group":
            request.volume_capability.mount.volume_mount_group = draw(WORDS)
        else:
            setattr(request, field, draw(WORDS))
    for key, value in draw(st.dictionaries(st.sampled_from(CONTEXT_KEYS) | WORDS, WORDS, max_size=3)).items():
        request.volume_context[key] = value
    return request


@settings(max_examples=400)
@given(changed())
def test_a_good_request_that_was_changed_is_read_or_refused_and_what_is_read_is_one_pods(
    request: csi_pb2.NodePublishVolumeRequest,
) -> None:
    try:
        parsed = parse_publish(request, ROOT, "csi.podsvid.io")
    except InvalidRequest as error:
        event(f"refused: {str(error)[:24]}")
        assert len(str(error)) < 700
        assert str(error).isprintable()
        return
    event("read")
    volume = parsed.volume
    assert request.readonly
    assert volume.target == f"{ROOT}/pods/" + "/".join(volume.below_pods)
    assert volume.below_pods[0] == volume.pod.uid == request.volume_context[f"{KUBELET_PREFIX}pod.uid"]
    assert volume.pod.namespace == request.volume_context[f"{KUBELET_PREFIX}pod.namespace"]
    assert not set("/\0") & set(volume.id + volume.pod.namespace + volume.pod.name + volume.pod.service_account)
    assert volume.options == parse_attributes(dict(volume.options.given))


def test_changed_requests_come_through_to_the_last_check_and_fail_at_many() -> None:
    """The property above is worth nothing if all that it is given fails at the first check."""
    told = set[str]()

    @settings(max_examples=200, database=None, derandomize=True)
    @given(changed())
    def collect(request: csi_pb2.NodePublishVolumeRequest) -> None:
        try:
            parse_publish(request, ROOT)
            told.add("read")
        except InvalidRequest as error:
            told.add(str(error)[:16])

    collect()
    assert "read" in told
    assert len(told) >= 8


@given(st.binary(max_size=300))
def test_bytes_behind_a_good_request_change_it_or_nothing(data: bytes) -> None:
    # Protobuf takes what follows as more of the same message, so these bytes get past the first check.
    try:
        request = csi_pb2.NodePublishVolumeRequest.FromString(good().SerializeToString() + data)
    except DecodeError:
        return
    with suppress(InvalidRequest):
        parse_publish(request, ROOT)
