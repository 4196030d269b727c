"""Each check of a publish request with what is just refused and what is just accepted."""

from collections.abc import Callable

import pytest

from csi.errors import InvalidRequest
from csi.model import PodToken
from csi.pb import csi_pb2
from csi.profile import FS_GROUP_OF_CERT_MANAGER, PROFILES
from csi.request import TOKENS, check_target, check_volume_id, parse_publish
from runtime.terminal import shown
from tests.csi_rig import KUBELET_ROOT, OTHER_UID, UID, publish_request, target

Request = csi_pb2.NodePublishVolumeRequest
Change = Callable[[Request], object]


def context(key: str, value: str) -> Change:
    return lambda request: request.volume_context.update({f"csi.storage.k8s.io/{key}": value})


def without(key: str) -> Change:
    return lambda request: request.volume_context.pop(f"csi.storage.k8s.io/{key}")


def field(name: str, value: object) -> Change:
    return lambda request: setattr(request, name, value)


def mount(name: str, value: object) -> Change:
    return lambda request: setattr(request.volume_capability.mount, name, value)


def group_of(text: str) -> Change:
    return mount("volume_mount_group", text)


def moved(uid: str) -> Change:
    """Target and pod of that uid."""

    def change(request: Request) -> None:
        request.target_path = target(uid=uid)
        request.volume_context["csi.storage.k8s.io/pod.uid"] = uid

    return change


REFUSED: list[tuple[Change, str]] = [
    (field("volume_id", ""), "volume_id is missing"),
    (field("target_path", ""), "target_path is missing"),
    (lambda r: r.ClearField("volume_capability"), "volume_capability is missing"),
    (lambda r: r.volume_capability.ClearField("mount"), "no access type"),
    (lambda r: r.volume_capability.block.SetInParent(), "block access is not supported"),
    (mount("fs_type", "ext4"), "csi.fsType is not supported"),
    (lambda r: r.volume_capability.mount.mount_flags.append("suid"), "mount_flags are not supported"),
    (field("volume_id", "a/b"), "volume_id 'a/b' is not usable"),
    (field("volume_id", "a" * 129), "is not usable"),
    (field("volume_id", ".a"), "is not usable"),
    (field("volume_id", "a\n"), "is not usable"),
    (field("volume_id", "ä"), "is not usable"),
    (without("ephemeral"), "only inline ephemeral volumes"),
    (context("ephemeral", "false"), "only inline ephemeral volumes"),
    (context("ephemeral", "True"), "only inline ephemeral volumes"),
    (field("readonly", False), "readOnly must be true"),
    (without("pod.namespace"), "volume_context has no csi.storage.k8s.io/pod.namespace"),
    (without("pod.name"), "volume_context has no csi.storage.k8s.io/pod.name"),
    (without("pod.uid"), "volume_context has no csi.storage.k8s.io/pod.uid"),
    (without("serviceAccount.name"), "volume_context has no csi.storage.k8s.io/serviceAccount.name"),
    (context("pod.namespace", "a" * 64), "is not a namespace name"),
    (context("pod.namespace", "a.b"), "is not a namespace name"),
    (context("pod.namespace", "a/sa/root"), "is not a namespace name"),
    (context("pod.namespace", "default\n"), "is not a namespace name"),
    (context("pod.namespace", "Default"), "is not a namespace name"),
    (context("pod.namespace", "-a"), "is not a namespace name"),
    (context("pod.namespace", "a-"), "is not a namespace name"),
    (context("pod.name", "a" * 254), "is not a pod name"),
    (context("pod.name", "a..b"), "is not a pod name"),
    (context("pod.name", "a/b"), "is not a pod name"),
    (context("pod.name", ".a"), "is not a pod name"),
    (context("pod.name", "A"), "is not a pod name"),
    (context("serviceAccount.name", ""), "static pods get no identity"),
    (context("serviceAccount.name", "a" * 254), "is not a service account name"),
    (context("serviceAccount.name", "a/../b"), "is not a service account name"),
    (context("serviceAccount.name", "web\n"), "is not a service account name"),
    (context("serviceAccount.name", "we b"), "is not a service account name"),
    (context("pod.uid", ".."), "is not a pod uid"),
    (context("pod.uid", "a" * 65), "is not a pod uid"),
    (context("pod.uid", "a_b"), "is not a pod uid"),
    (context("pod.uid", OTHER_UID), f"belongs to pod uid '{UID}' but the request is for pod uid '{OTHER_UID}'"),
    (field("target_path", target(uid=OTHER_UID)), f"belongs to pod uid '{OTHER_UID}'"),
    (field("target_path", "/etc/mount"), "is not of the form"),
    (group_of("-1"), "is not a group id"),
    (group_of("root"), "is not a group id"),
    (group_of("2147483648"), "is not a group id"),
    (group_of("00000000001"), "is not a group id"),
    (group_of("٣"), "is not a group id"),
    (group_of(" 1"), "is not a group id"),
    (lambda r: r.volume_context.update({"spiffeId": "x"}), "unknown 'spiffeId'"),
    (lambda r: r.volume_context.update({FS_GROUP_OF_CERT_MANAGER: "1"}), "unknown"),
    (lambda r: r.secrets.update({TOKENS: "a" * (24 * 1024 + 1)}), "is longer than 24576 characters"),
    (lambda r: r.volume_context.update({TOKENS: "a" * (24 * 1024 + 1)}), "is longer than 24576 characters"),
]


@pytest.mark.parametrize(("change", "words"), REFUSED, ids=range(len(REFUSED)))
def test_refused_with_what_is_wrong(change: Change, words: str) -> None:
    request = publish_request()
    change(request)
    with pytest.raises(InvalidRequest) as caught:
        parse_publish(request, KUBELET_ROOT)
    assert words in str(caught.value)
    assert len(str(caught.value)) < 700


ACCEPTED: list[Change] = [
    field("volume_id", "a" * 128),
    field("volume_id", "A._-"),
    context("pod.namespace", "a" * 63),
    context("pod.name", ".".join(["a" * 63] * 3 + ["a" * 61])),
    context("serviceAccount.name", "a" * 253),
    context("serviceAccount.name", "system.node-1"),
    context("a-later-key", "of kubelet's own"),
    moved("a" * 64),
    moved("0"),
    group_of("0"),
    group_of("2147483647"),
    group_of("0000000001"),
    lambda r: r.secrets.update({TOKENS: "a" * (24 * 1024)}),
]


@pytest.mark.parametrize("change", ACCEPTED, ids=range(len(ACCEPTED)))
def test_accepted_to_the_bound(change: Change) -> None:
    request = publish_request()
    change(request)
    found = parse_publish(request, KUBELET_ROOT, "csi.podsvid.io")
    assert found.volume.id == request.volume_id
    assert found.volume.target == request.target_path
    assert found.volume.driver == "csi.podsvid.io"


def test_the_checks_come_in_the_order_that_the_csi_suite_expects() -> None:
    request = Request()
    for told, mend in (
        ("volume_id is missing", field("volume_id", "a/b")),
        ("target_path is missing", field("target_path", "/etc/mount")),
        ("volume_capability is missing", lambda r: r.volume_capability.mount.SetInParent()),
        ("volume_id 'a/b' is not usable", field("volume_id", "csi-1")),
        ("only inline ephemeral volumes", context("ephemeral", "true")),
        ("readOnly must be true", field("readonly", True)),
        ("has no csi.storage.k8s.io/pod.namespace", context("pod.namespace", "default")),
        ("has no csi.storage.k8s.io/pod.name", context("pod.name", "web-0")),
        ("has no csi.storage.k8s.io/pod.uid", context("pod.uid", UID)),
        ("has no csi.storage.k8s.io/serviceAccount.name", context("serviceAccount.name", "web")),
        ("is not of the form", field("target_path", target())),
    ):
        with pytest.raises(InvalidRequest, match=told):
            parse_publish(request, KUBELET_ROOT)
        mend(request)
    parse_publish(request, KUBELET_ROOT)


def test_nothing_of_the_pod_comes_from_what_its_author_wrote() -> None:
    for name in ("pod.name", "pod.uid", "serviceAccount.name", "namespace", "csi.storage.k8s.iO/pod.name"):
        with pytest.raises(InvalidRequest, match="unknown"):
            parse_publish(publish_request(**{name: "admin"}), KUBELET_ROOT)


def test_the_attributes_group_wins_over_the_pods_also_when_it_is_root() -> None:
    request = publish_request(fsGroup="0")
    request.volume_capability.mount.volume_mount_group = "2000"
    assert parse_publish(request, KUBELET_ROOT).volume.group == 0
    del request.volume_context["fsGroup"]
    assert parse_publish(request, KUBELET_ROOT).volume.group == 2000


def test_the_profile_decides_what_is_accepted_and_what_is_the_default() -> None:
    request = publish_request(**{FS_GROUP_OF_CERT_MANAGER: "70"})
    found = parse_publish(request, KUBELET_ROOT, "spiffe.csi.cert-manager.io", PROFILES["cert-manager"]).volume
    assert (found.group, found.options.layout, found.options.profile) == (70, "cert-manager", "cert-manager")


def test_a_token_is_kept_out_of_the_volume_and_of_what_is_printed() -> None:
    request = publish_request()
    request.secrets[TOKENS] = "a.secret.token"
    found = parse_publish(request, KUBELET_ROOT)
    assert found.token == PodToken("a.secret.token")
    assert "a.secret" not in repr(found)
    assert found.volume == parse_publish(publish_request(), KUBELET_ROOT).volume
    assert parse_publish(publish_request(), KUBELET_ROOT).token is None


@pytest.mark.parametrize(
    "path",
    [
        target(root="/elsewhere"),
        target(root=f"{KUBELET_ROOT}/"),
        target(uid=".."),
        target(uid="a" * 65),
        target(name=".."),
        target(name="a" * 64),
        target(name="A"),
        target(name="ä"),
        f"{target()}/",
        f"{target()}/more",
        target()[1:],
        target().replace("/mount", "/mounts"),
        target().replace("/mount", "/\0mount"),
        target().replace("volumes/", "volume-subpaths/"),
        target().replace("~csi", "~secret"),
        target().replace("/spiffe/", "/./spiffe/"),
        target().replace("/spiffe/", "//"),
        f"{KUBELET_ROOT}/pods",
        target().removeprefix(f"{KUBELET_ROOT}/pods/"),
        f"{KUBELET_ROOT}/podsx/{UID}/volumes/kubernetes.io~csi/spiffe/mount",
        "",
    ],
)
def test_no_other_path_is_a_target(path: str) -> None:
    with pytest.raises(InvalidRequest, match=r"is not of the form .*; check --kubelet-root"):
        check_target(path, KUBELET_ROOT)


def test_a_path_as_long_as_the_kernel_takes_and_one_byte_more() -> None:
    fits = "/" + "r" * (4096 - 1 - len(target(root="")))
    assert len(target(root=fits)) == 4096
    assert check_target(target(root=fits), fits)[0] == UID
    with pytest.raises(InvalidRequest):
        check_target(target(root=f"{fits}r"), f"{fits}r")
    # Bytes count, not characters.
    with pytest.raises(InvalidRequest):
        check_target(target(root=f"{fits[:-1]}ä"), f"{fits[:-1]}ä")


def test_a_volume_id_is_one_plain_file_name() -> None:
    for name in ("a", "0", "csi-0a", "A.b_c-d", "a" * 128):
        check_volume_id(name)
    for name in ("", ".", "..", "-a", "_a", "a/b", "a\0", "a\n", "a b", "ä", "a" * 129):
        with pytest.raises(InvalidRequest, match="is not usable: 1 to 128 of"):
            check_volume_id(name)


def test_what_an_author_wrote_is_shown_quoted_escaped_and_cut() -> None:
    assert shown("a'\n\x1b[31mä") == ascii("a'\n\x1b[31mä")
    assert shown("a" * 80) == "'" + "a" * 80 + "'"
    assert shown("a" * 81) == "'" + "a" * 80 + "\\u2026'"
