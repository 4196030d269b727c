"""What the quickstart's live view shows: all that it promises, and no more than the screen has lines."""

import io
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from rich.console import Console

from podsvid.quickstart.pods import Pod
from podsvid.quickstart.reading import PlayedPod, Seen
from podsvid.quickstart.talking import Peer, Talk
from podsvid.quickstart.views import LiveView, PlainView

NOW = datetime(2026, 11, 28, tzinfo=UTC)
VOLUME = "/proc/123456/root/tmp/pv-abcdefgh/pod-1"
COMMANDS = (
    f"openssl x509 -in {VOLUME}/tls.crt -noout -text",
    f"SPIFFE_ENDPOINT_SOCKET=unix://{VOLUME}/socket \\\n  /home/somebody/podsvid/.venv/bin/podsvid api fetch x509",
)


def played(number: int) -> PlayedPod:
    name = "app" if number == 1 else f"app-{number}"
    seen = Seen(
        spiffe_id=f"spiffe://example.org/ns/demo/sa/{name}",
        trust_domain="example.org",
        serial=f"{number:040x}",
        not_after=NOW + timedelta(seconds=30),
        at=NOW,
        chain=b"",
    )
    return PlayedPod(Pod("demo", f"pod-{number}", str(number)), Path("/t"), Path("/l"), seen)


def view(width: int, height: int, pods: int) -> tuple[LiveView, Console]:
    console = Console(file=io.StringIO(), width=width, height=height, force_terminal=True)
    made = LiveView(console, lambda _: COMMANDS)
    there = [played(number) for number in range(1, pods + 1)]
    for each in there:
        made.published(each)
    if pods > 1:
        peers = [Peer(each.current.spiffe_id, each.current.serial) for each in there]
        made.spoke(there[0], there[1], Talk(peers[0], peers[1]))
        made.refused(there[1], there[0].current.spiffe_id, "unable to get local issuer certificate")
    return made, console


def lines(made: LiveView, console: Console, *, going_on: bool) -> list[str]:
    frame = console.render_lines(made._draw(NOW, going_on=going_on), pad=False)
    return ["".join(each.text for each in line) for line in frame]


def packed(text: str) -> str:
    """Without blanks: where a line is folded depends on how long the path of this checkout is."""
    return "".join(text.split())


@pytest.mark.parametrize("pods", [1, 2, 5, 500])
@pytest.mark.parametrize(("width", "height"), [(80, 24), (120, 40)])
def test_a_frame_fits_the_screen_with_both_commands(width: int, height: int, pods: int) -> None:
    made, console = view(width, height, pods)
    frame = lines(made, console, going_on=True)
    assert len(frame) < height
    text = packed("".join(frame))
    assert packed("tls.crt -noout -text") in text
    assert packed("podsvid api fetch x509") in text
    assert frame[-1] == "Ctrl-C takes everything away again."
    assert packed("quickstart --web shows it in a browser as well.") in text
    for number in range(1, min(pods, 5) + 1):
        assert packed(f"demo/pod-{number} spiffe://") in text
    assert (packed("more pods") in text) == (pods == 500)
    assert (packed("refused a stranger") in text) == (pods > 1)
    # What is folded stays below its heading.
    assert not [line for line in frame if line.startswith("certificate")]


@pytest.mark.parametrize(("width", "height"), [(80, 24), (120, 40)])
def test_the_first_frame_says_what_is_waited_for(width: int, height: int) -> None:
    made, console = view(width, height, 0)
    assert "Starting an agent" in console.file.getvalue()  # type: ignore[attr-defined]
    assert "Starting an agent" in lines(made, console, going_on=True)[0]
    assert not [line for line in lines(made, console, going_on=False) if "Starting" in line]


@pytest.mark.parametrize("pods", [0, 2, 500])
def test_with_a_page_its_whole_url_is_on_the_screen_while_it_is_there(pods: int) -> None:
    url = f"http://127.0.0.1:65535/#token={'x' * 43}"
    console = Console(file=io.StringIO(), width=80, height=24, force_terminal=True)
    made = LiveView(console, lambda _: COMMANDS, url)
    for number in range(1, pods + 1):
        made.published(played(number))
    frame = lines(made, console, going_on=True)
    assert len(frame) < 24
    assert f"  {url}" in [line.rstrip() for line in frame]
    assert not [line for line in lines(made, console, going_on=False) if "token" in line]


def test_the_last_frame_offers_nothing_that_is_gone() -> None:
    made, console = view(80, 24, 5)
    frame = lines(made, console, going_on=False)
    assert frame[-1] == "Stopped."
    assert len([line for line in frame if "valid until 2026-11-28T00:00:30Z" in line]) == 5
    assert not [line for line in frame if line.rstrip()[-2:] == " s"]
    assert not [line for line in frame if "tls.crt" in line or "api fetch" in line or "Ctrl-C" in line]


def test_lines_have_the_two_commands_once_however_many_pods_there_are() -> None:
    console = Console(file=io.StringIO(), width=80)
    made = PlainView(console, lambda _: COMMANDS)
    for number in (1, 2, 3):
        made.published(played(number))
    assert isinstance(console.file, io.StringIO)
    text = console.file.getvalue()
    assert [text.count(each) for each in COMMANDS] == [1, 1]
    assert text.count("try in another terminal:") == 1
    assert [f"demo/pod-{number} published" in text for number in (1, 2, 3)] == [True] * 3
