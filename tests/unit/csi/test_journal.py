"""The journal, which a new process believes: what it holds, that it is whole or absent, and what is not believed."""

import json
import os
import resource
import stat
from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime, timedelta, timezone
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from csi.errors import InvalidRequest
from csi.journal import Damaged, Entry, Journal
from csi.model import PodToken
from csi.request import TOKENS, parse_publish
from tests.csi_rig import KUBELET_ROOT, NOW, OTHER_UID, UID, publish_request, target, volume

RENEW_AT = NOW + timedelta(minutes=40)
Document = dict[str, Any]
KEYS = ["version", "volume_id", "target", "pod", "group", "driver", "profile", "attributes", "serial", "renew_at"]


def entry(volume_id: str = "csi-1", **attributes: str) -> Entry:
    return Entry(volume(volume_id=volume_id, **attributes), "0a1b", RENEW_AT)


def recorded(base: Path, each: Entry | None = None) -> tuple[Journal, Path]:
    journal, found = Journal(base / "journal", KUBELET_ROOT), each or entry()
    journal.record(found)
    return journal, base / "journal" / f"{found.volume.id}.json"


def test_what_is_recorded_comes_back(tmp_path: Path) -> None:
    request = publish_request(volume_id="csi-9", keyAlgorithm="ed25519", dnsNames="a.test", keyMode="0400")
    request.volume_capability.mount.volume_mount_group = "2000"
    given = Entry(parse_publish(request, KUBELET_ROOT, "csi.spiffe.io").volume, "0a1b", RENEW_AT)
    journal, _ = recorded(tmp_path, given)
    journal.record(entry())
    assert list(journal.entries()) == [entry(), given]
    assert list(Journal(tmp_path / "none", KUBELET_ROOT).entries()) == []


def test_only_the_agent_reads_it_and_no_token_is_in_it(tmp_path: Path) -> None:
    request = publish_request()
    request.secrets[TOKENS] = "a.secret.token"
    parsed = parse_publish(request, KUBELET_ROOT, "")
    assert parsed.token == PodToken("a.secret.token")
    _, path = recorded(tmp_path, Entry(parsed.volume, "0a1b", RENEW_AT))
    text = path.read_text(encoding="utf-8")
    assert "secret" not in text
    assert [*json.loads(text)] == KEYS
    assert stat.S_IMODE(path.parent.stat().st_mode) == 0o700


def test_the_mode_of_the_directory_is_not_the_umasks(tmp_path: Path) -> None:
    before = os.umask(0)
    try:
        _, path = recorded(tmp_path)
    finally:
        os.umask(before)
    assert stat.S_IMODE(path.parent.stat().st_mode) == 0o700


def test_an_entry_that_fits_in_part_only_leaves_the_one_before(tmp_path: Path) -> None:
    journal, path = recorded(tmp_path)
    before, limits = path.read_bytes(), resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (len(before) // 2, limits[1]))
    try:
        with pytest.raises(OSError, match="File too large"):
            journal.record(replace(entry(), serial="ffff"))
        with pytest.raises(OSError, match="File too large"):
            journal.record(entry("csi-2"))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    # What was cut off is nobody's entry, and nobody's damage.
    assert list(journal.entries()) == [entry()]
    journal.record(replace(entry(), serial="ffff"))
    assert list(journal.entries()) == [replace(entry(), serial="ffff")]


def test_an_entry_is_replaced_in_one_step_when_it_is_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    journal, path = recorded(tmp_path)
    before, real, steps = path.read_bytes(), os.replace, list[bytes]()

    def fake(source: Path, destination: Path) -> None:
        assert path.read_bytes() == before
        steps.append(Path(source).read_bytes())
        real(source, destination)

    with monkeypatch.context() as patched:
        patched.setattr(os, "replace", fake)
        journal.record(replace(entry(), serial="ffff"))
    assert steps == [path.read_bytes()]
    assert json.loads(steps[0])["serial"] == "ffff"
    assert [each.name for each in path.parent.iterdir()] == ["csi-1.json"]


def written(monkeypatch: pytest.MonkeyPatch) -> list[tuple[bytes, int]]:
    """What is written into files that are there, and where."""
    real, seen = os.pwrite, list[tuple[bytes, int]]()

    def pwrite(file: int, content: bytes, offset: int) -> int:
        seen.append((content, offset))
        return real(file, content, offset)

    monkeypatch.setattr(os, "pwrite", pwrite)
    return seen


@pytest.mark.parametrize("process", ["the same", "the next"])
def test_a_renewal_is_one_write_into_one_page(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, process: str) -> None:
    given = entry()
    journal, path = recorded(tmp_path, given)
    if process == "the next":
        journal = Journal(path.parent, KUBELET_ROOT)
        (found,) = journal.entries()
        assert isinstance(found, Entry)
        given = found
    before, seen = path.stat().st_ino, written(monkeypatch)
    for number in range(3):
        renewed = replace(given, serial=f"{number:04x}", renew_at=RENEW_AT + timedelta(seconds=number))
        journal.record(renewed)
        assert list(Journal(path.parent, KUBELET_ROOT).entries()) == [renewed]
    assert path.stat().st_ino == before
    assert len(seen) == 3
    # What an end of the process could cut in two would be nobody's entry.
    assert all(offset > 0 and offset + len(content) == path.stat().st_size <= 4096 for content, offset in seen)


def of_another_length(given: Entry, path: Path) -> Entry:
    return replace(given, serial="0a1b2c")


def of_a_volume_that_came_back_otherwise(given: Entry, path: Path) -> Entry:
    return entry(keyMode="0440")


def over_a_file_that_is_gone(given: Entry, path: Path) -> Entry:
    path.unlink()
    return replace(given, serial="ffff")


def over_a_file_of_somebody_else(given: Entry, path: Path) -> Entry:
    path.write_bytes(b"{}")
    return replace(given, serial="ffff")


def over_a_pipe(given: Entry, path: Path) -> Entry:
    """Whoever opens one to write waits for who reads."""
    path.unlink()
    os.mkfifo(path)
    return replace(given, serial="ffff")


def over_a_link(given: Entry, path: Path) -> Entry:
    elsewhere = path.with_name("elsewhere")
    path.rename(elsewhere)
    path.symlink_to(elsewhere)
    return replace(given, serial="ffff")


@pytest.mark.parametrize(
    "change",
    [
        of_another_length,
        of_a_volume_that_came_back_otherwise,
        over_a_file_that_is_gone,
        over_a_file_of_somebody_else,
        over_a_pipe,
        over_a_link,
    ],
)
# Who waits for a reader of the pipe waits for ever.
@pytest.mark.timeout(10)
def test_what_does_not_fit_the_file_replaces_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, change: Callable[[Entry, Path], Entry]
) -> None:
    given = entry()
    journal, path = recorded(tmp_path, given)
    now, seen = change(given, path), written(monkeypatch)
    journal.record(now)
    assert list(journal.entries()) == [now]
    assert seen == []
    assert not path.is_symlink()


def test_what_came_of_a_file_of_the_same_size_that_somebody_else_wrote_is_set_aside_by_the_next_process(
    tmp_path: Path,
) -> None:
    given = entry()
    journal, path = recorded(tmp_path, given)
    path.write_bytes(path.read_bytes().replace(b"spiffe", b"others").replace(b"csi-1", b"csi-2"))
    journal.record(replace(given, serial="ffff"))
    (found,) = Journal(path.parent, KUBELET_ROOT).entries()
    assert isinstance(found, Damaged)
    journal.record(replace(given, serial="eeee"))
    assert list(Journal(path.parent, KUBELET_ROOT).entries()) == [replace(given, serial="eeee")]


def test_an_entry_of_more_than_a_page_is_replaced(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    label = "a" * 58
    given = entry(dnsNames=",".join(f"{number}.{label}.{label}.{label}.{label}.test" for number in range(16)))
    journal, path = recorded(tmp_path, given)
    assert path.stat().st_size > 4096
    seen = written(monkeypatch)
    journal.record(replace(given, serial="ffff"))
    assert list(journal.entries()) == [replace(given, serial="ffff")]
    assert seen == []


def test_forgetting_takes_all_of_one_volume_and_nothing_of_another(tmp_path: Path) -> None:
    journal, path = recorded(tmp_path)
    # Names that begin, or end, as the first one's do.
    for name in ("csi-1.json", "csi-1.tmp", "csi-11"):
        journal.record(entry(name))
    for suffix in (".tmp", ".damaged"):
        path.with_suffix(suffix).touch()
    for _ in range(2):
        journal.forget("csi-1")
        assert sorted(each.name for each in path.parent.iterdir()) == [
            "csi-1.json.json",
            "csi-1.tmp.json",
            "csi-11.json",
        ]
    assert len(list(journal.entries())) == 3


@pytest.mark.parametrize("name", ["../csi-1", "", ".", "..", "a/b", "a" * 129, "\0"])
def test_no_volumes_id_leads_out_of_the_directory(tmp_path: Path, name: str) -> None:
    journal, _ = recorded(tmp_path)
    (tmp_path / "csi-1.json").touch()
    with pytest.raises(InvalidRequest):
        journal.forget(name)
    with pytest.raises(InvalidRequest):
        journal.record(Entry(replace(volume(), id=name), "0a1b", RENEW_AT))
    assert (tmp_path / "csi-1.json").exists()


def _set(*keys: str, to: object) -> Callable[[Document], None]:
    def change(document: Document) -> None:
        for key in keys[:-1]:
            document = document[key]
        document[keys[-1]] = to

    return change


def _without(key: str) -> Callable[[Document], None]:
    def change(document: Document) -> None:
        del document[key]

    return change


NOT_BELIEVED: list[tuple[Callable[[Document], None], str]] = [
    (_set("target", to=target(uid=OTHER_UID)), "the target is another pod's"),
    (_set("pod", "uid", to=OTHER_UID), "the target is another pod's"),
    (_set("target", to="/etc/shadow/mount"), "not of the form"),
    (_set("target", to=target(root="/elsewhere")), "not of the form"),
    (_set("target", to=target(name="..")), "not of the form"),
    (_set("target", to=7), "TypeError"),
    (_set("version", to=1), "version 1 is not 2"),
    (_set("version", to=3), "version 3 is not 2"),
    (_set("volume_id", to="csi-2"), "the file's name is not its volume id"),
    (_set("volume_id", to="../x"), "not usable"),
    (_set("renew_at", to="2030-01-01T00:00:00"), "renew_at has no time zone"),
    (_set("renew_at", to="soon"), "isoformat"),
    (_set("renew_at", to=None), "TypeError"),
    (_set("group", to=-1), "group is no group id"),
    (_set("group", to=2**32 - 1), "group is no group id"),
    (_set("group", to=True), "group is no group id"),
    (_set("group", to="2000"), "group is no group id"),
    (_set("group", to=1.5), "group is no group id"),
    (_set("pod", "namespace", to=7), "the pod's names are no texts"),
    (_set("pod", "name", to=None), "the pod's names are no texts"),
    (_set("pod", "service_account", to=["admin"]), "the pod's names are no texts"),
    (_set("pod", "uid", to=7), "the pod's names are no texts"),
    (_set("pod", "more", to="x"), "TypeError"),
    (_set("pod", to="web"), "TypeError"),
    (_set("profile", to="another"), "KeyError"),
    (_set("profile", to=[]), "TypeError"),
    (_set("attributes", to={"spiffeId": "spiffe://x/y"}), "unknown 'spiffeId'"),
    (_set("attributes", to={"keyMode": "0777"}), "is not accepted"),
    (_set("attributes", to={"ttl": 5}), "TypeError"),
    (_set("attributes", to="x"), "unknown 'x'"),
    (_set("attributes", to=[]), "AttributeError"),
    *((_without(key), "KeyError") for key in KEYS),
]


@pytest.mark.parametrize(("change", "why"), NOT_BELIEVED, ids=range(len(NOT_BELIEVED)))
def test_an_entry_that_this_agent_did_not_write_is_set_aside_once(
    tmp_path: Path, change: Callable[[Document], None], why: str
) -> None:
    journal, path = recorded(tmp_path)
    journal.record(entry("csi-3"))
    document = json.loads(path.read_text(encoding="utf-8"))
    change(document)
    path.write_text(json.dumps(document), encoding="utf-8")
    damaged, other = journal.entries()
    assert isinstance(damaged, Damaged)
    assert why in damaged.why
    assert damaged.path == path.with_suffix(".damaged")
    assert damaged.path.read_text(encoding="utf-8") == json.dumps(document)
    assert other == entry("csi-3")
    assert list(journal.entries()) == [entry("csi-3")]


@pytest.mark.parametrize("group", [None, 0, 2**32 - 2])
def test_the_greatest_and_the_least_group_are_believed(tmp_path: Path, group: int | None) -> None:
    given = Entry(replace(volume(), group=group), "0a1b", RENEW_AT)
    journal, _ = recorded(tmp_path, given)
    assert list(journal.entries()) == [given]


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b"null", b"\xff\xfe", b"[" * 100_000, b'{"version": 2}', b"7"])
def test_a_file_that_is_no_entry_is_set_aside(tmp_path: Path, content: bytes) -> None:
    journal, path = recorded(tmp_path)
    path.write_bytes(content)
    (damaged,) = journal.entries()
    assert isinstance(damaged, Damaged)
    assert damaged.path.read_bytes() == content


def test_a_directory_in_an_entrys_place_is_set_aside(tmp_path: Path) -> None:
    journal, path = recorded(tmp_path)
    path.unlink()
    path.mkdir()
    (damaged,) = journal.entries()
    assert isinstance(damaged, Damaged)
    assert "IsADirectoryError" in damaged.why


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=6,
)


@given(key=st.sampled_from(["volume_id", "target", "pod", "group", "profile", "attributes", "renew_at"]), value=JSON)
def test_whatever_stands_in_an_entry_it_is_read_or_set_aside(
    tmp_path_factory: pytest.TempPathFactory, key: str, value: object
) -> None:
    journal, path = recorded(tmp_path_factory.mktemp("j"))
    document = {**json.loads(path.read_text(encoding="utf-8")), key: value}
    path.write_text(json.dumps(document), encoding="utf-8")
    (found,) = journal.entries()
    if isinstance(found, Entry):
        assert found.volume.below_pods[0] == found.volume.pod.uid == UID


def test_an_instant_of_any_zone_is_that_instant(tmp_path: Path) -> None:
    away = RENEW_AT.astimezone(timezone(timedelta(hours=5)))
    journal, _ = recorded(tmp_path, Entry(volume(), "0a1b", away))
    (found,) = journal.entries()
    assert isinstance(found, Entry)
    assert found.renew_at == RENEW_AT
    assert found.renew_at > datetime.now(UTC)
