"""The console's page in a real browser: what a person sees of a rotation, an outage, hostile names, 10,000 pods."""

import base64
import json
import os
import threading
from collections.abc import Iterator
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import pytest

from podsvid.by_kubeconfig import NotTold
from podsvid.console.picture import NodeLook, Picture, at, utc
from podsvid.console.serving import Console
from tests.browser import Page, browser, program
from tests.console_rig import Told, picture, token_of, volume
from tests.node.test_quickstart import Quickstart

pytestmark = [
    pytest.mark.skipif(program() is None, reason="no browser here: apt-get install chromium-headless-shell"),
    pytest.mark.timeout(180),
]
ROWS = "document.querySelectorAll('.space .row:not([hidden])')"
MARKUP = "<img src=x onerror=\"document.title='broken'\">"
SCRIPT = "<script>document.title='broken'</script>"


@pytest.fixture(scope="module")
def shared() -> Iterator[Page]:
    with browser() as found:
        yield found


@pytest.fixture
def page(shared: Page) -> Page:
    """At a common size, and with nothing said yet."""
    shared.size(1280, 800)
    shared.said.clear()
    shared.requests.clear()
    return shared


def shot(page: Page, name: str) -> None:
    """Kept where CONSOLE_PICTURES says, for whoever looks."""
    folder = os.environ.get("CONSOLE_PICTURES")
    if folder:
        (Path(folder) / f"{name}.png").write_bytes(base64.b64decode(page.picture()))


def text(page: Page) -> str:
    return str(page.value("document.body.innerText"))


def test_a_rotation_is_watched_in_the_quickstart(page: Page, tmp_path: Path) -> None:
    with Quickstart("--web", "--without-mounts", directory=None) as quickstart:
        url = quickstart.next_event()
        assert url["event"] == "web"
        page.open(url["url"])
        published = quickstart.next_event()
        cell = "document.querySelector('.space .c-serial').textContent"
        # Which one it is by now is not known: they live for seconds.
        page.until(f"{ROWS}.length && {cell}")
        first = page.value(cell)
        # The token is off the address, and the table says what the event does.
        assert page.value("location.href") == url["url"].partition("#")[0] + "#identities"
        assert "demo/pod-1" in text(page)
        assert page.value("document.querySelector('.space .c-id').textContent") == published["spiffe_id"]
        shot(page, "quickstart")
        page.until(f"{cell} !== {json.dumps(first)}")
        # By keyboard to the pod's own page and back.
        page.value("document.querySelector('.rows').focus()")
        page.press("Enter")
        page.until("document.querySelector('.way')")
        assert page.value("location.hash") == "#pod/demo/pod-1"
        assert text(page).count("the quickstart has an authority of its own") == 1
        page.press("Escape")
        page.until("location.hash === '#identities'")
        # Its authority, which lives for as long as it, and where more than that is to be seen.
        page.press("2")
        page.until("document.querySelectorAll('.lane .track .active').length === 1")
        assert "Authorities of example.org" in text(page)
        assert "a rotation of the CA is seen in a cluster" in text(page)
        assert "1 SVID held" in text(page)
        assert page.value("document.querySelectorAll('main .notice:not([hidden])').length") == 0
        shot(page, "quickstart-authorities")
        page.press("1")
        page.until("document.querySelector('.rows')")
    # The agent is gone, and so is who served the page.
    page.until("document.getElementById('age').textContent.startsWith('podsvid console cannot be reached')")
    shot(page, "ended")
    assert {each.split("/")[2] for each in page.requests} == {url["url"].split("/")[2]}


def test_names_that_are_markup_are_shown_as_they_are(page: Page) -> None:
    hostile = [
        volume("a", spiffe_id=MARKUP, state=MARKUP, state_reason=SCRIPT, policy=MARKUP),
        volume(SCRIPT, namespace=MARKUP, serial=MARKUP, volume_id=MARKUP),
        volume("turned", spiffe_id="spiffe://example.org/\u202egpj.exe\u2066\x07"),
        volume("l" * 253, spiffe_id=f"spiffe://example.org/{'l' * 2000}", policy="l" * 317, serial="5" * 40),
        {"volume_id": None, "state": None, "not_after": "no time", "files": 7},
        # Characters with very many marks, from the right to the left, and as wide as a column each.
        volume(
            ("e" + "\u0301" * 300) * 14,
            namespace="\u05d0" * 60,
            spiffe_id="\ufdfd" * 40,
            policy="\U0001f469\u200d" * 30,
        ),
    ]
    explained: dict[str, Any] = {
        "pod": MARKUP,
        "node": MARKUP,
        "policy": {"outcome": SCRIPT, "policy": MARKUP, "lost": [{"policy": MARKUP, "because": SCRIPT}]},
        "on_node": {
            "volumes": [
                volume(
                    "a",
                    spiffe_id=MARKUP,
                    files=[MARKUP],
                    problems=[{"reason": MARKUP, "message": SCRIPT, "advice": MARKUP}],
                    peers=[{"uid": 1, "pid": 2, "command": MARKUP}],
                )
            ],
            "authority": MARKUP,
            "publish_problems": [{"reason": MARKUP, "message": SCRIPT}],
        },
        "events": [{"at": MARKUP, "reason": MARKUP, "count": MARKUP, "message": SCRIPT}],
        "notes": [MARKUP],
        "missing": {MARKUP: SCRIPT},
    }
    authority = {
        "trust_domain": MARKUP,
        "authorities": [{"kind": MARKUP, "id": MARKUP, "stage": SCRIPT}],
        "to_do": [SCRIPT],
        "next": [MARKUP],
        "upstream_roots": [{"subject": MARKUP, "id": SCRIPT}],
        "agents": 1,
    }
    partner_of = {"url": "l" * 2000}
    missing = {"nodes": MARKUP, "federations": SCRIPT, "leader": MARKUP}
    partner = dict.fromkeys(("name", "trust_domain", "url", "sequence", "fetched_at", "next_poll"), MARKUP)
    beyond: dict[str, Any] = {
        "federations": ({**partner, "errors": [SCRIPT, MARKUP, "l" * 2000]}, {**partner, **partner_of}),
        "findings": ({"reason": "UPSTREAM_AWAY", "bad": True, "seen": MARKUP, "to_do": SCRIPT},),
    }
    source = Told(picture(*hostile, authority=authority, missing=missing, **beyond), lambda *_: explained)
    source.picture = replace(source.picture, name=MARKUP, nodes=(*source.picture.nodes, NodeLook(SCRIPT, (), MARKUP)))
    with Console(source) as console:
        page.open(console.url)
        page.until(f"{ROWS}.length === 6")
        # Nothing of a name is outside of its column, which is as wide as in every other row.
        for width in (320, 1280):
            page.size(width, 800)
            page.until(f"innerWidth === {width} && document.documentElement.scrollWidth <= innerWidth")
            right = "(cell) => Math.round(cell.getBoundingClientRect().right)"
            cells = f"[...{ROWS}].map((row) => [...row.children].map({right}).join())"
            assert page.value(f"new Set({cells}).size") == 1
            out = "(cell, part) => part.getBoundingClientRect().right > cell.getBoundingClientRect().right + 1"
            parts = f"[...{ROWS}].flatMap((row) => [...row.querySelectorAll('.long > span')])"
            assert page.value(f"{parts}.some((part) => ({out})(part.parentElement, part))") is False
            assert page.value(f"[...{ROWS}].every((row) => row.offsetHeight === 32)")
        assert MARKUP in text(page)
        assert "\u202e" not in text(page)
        assert "\N{REPLACEMENT CHARACTER}gpj.exe\N{REPLACEMENT CHARACTER}" in text(page)
        shot(page, "hostile")
        for view, sign in (
            ("#authorities", ".lane"),
            ("#nodes", ".node"),
            ("#problems", ".problem"),
            ("#pod/shop/a", ".way"),
        ):
            page.value(f"location.hash = '{view}'")
            page.until(f"document.querySelector('{sign}')")
            assert MARKUP in text(page)
            # Nor does a name of any length push the page aside.
            page.size(400, 700)
            page.until("innerWidth === 400 && document.documentElement.scrollWidth <= innerWidth")
            page.size(1280, 800)
        assert page.value("document.querySelectorAll('main img, main script, header img').length") == 0
        assert page.value("document.title") == "podsvid"
    assert [each for each in page.said if "ERR_CONNECTION" not in each] == []


def test_markup_could_do_nothing_even_if_it_came_in(page: Page) -> None:
    with Console(Told(picture(volume("a")))) as console:
        page.open(console.url)
        page.until(f"{ROWS}.length === 1")
        for code in ("document.body.innerHTML = '<b>x</b>'", "eval('1')", "new Function('1')()"):
            assert (
                page.value(f"(() => {{ try {{ {code}; return 'done' }} catch (error) {{ return 'refused' }} }})()")
                == "refused"
            )
        other = "http://127.0.0.1:1/"
        assert page.value(f"fetch('{other}').then(() => 'sent', () => 'refused')") == "refused"
        assert any("Content Security Policy" in each for each in page.said)


class Elsewhere(BaseHTTPRequestHandler):
    """Another page that the same browser has open."""

    def do_GET(self) -> None:
        self.send_response(200)
        self.send_header("Content-Type", "text/html")
        self.end_headers()

    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002 - http.server calls it so
        pass


def test_another_page_of_the_same_browser_gets_nothing(page: Page) -> None:
    with Console(Told(picture(volume("a")))) as console, HTTPServer(("127.0.0.1", 0), Elsewhere) as other:
        threading.Thread(target=other.serve_forever, daemon=True).start()
        here = f"http://127.0.0.1:{console.port}"
        page.open(f"http://127.0.0.1:{other.server_port}/")
        page.until(f"location.port === '{other.server_port}'")
        # Even with the token; and without asking whether it may.
        header = json.dumps({"headers": {"Authorization": f"Bearer {token_of(console)}"}})
        for path, given in (("/data", header), ("/", "{}"), ("/", "{mode: 'no-cors'}"), ("/data", "{mode: 'no-cors'}")):
            asked = f"fetch('{here}{path}', {given}).then(() => 'had', () => 'refused')"
            assert page.value(asked) == "refused", (path, given)
        image = f"const image = new Image(); image.onload = () => had('had'); image.src = '{here}/assets/icon.svg'"
        made = f"new Promise((had) => {{ {image}; image.onerror = () => had('refused') }})"
        assert page.value(made) == "refused"
        other.shutdown()


def test_without_the_token_the_page_says_what_to_open(page: Page) -> None:
    with Console(Told(picture(volume("a")))) as console:
        page.open(console.url.partition("#")[0])
        page.until("document.querySelector('main .notice')")
        assert "open the URL that podsvid console printed" in text(page)


def test_ten_thousand_identities_cost_what_a_screenful_does(page: Page) -> None:
    nodes = tuple(
        NodeLook(
            f"node-{number}",
            tuple(
                volume(f"cart-{number}-{each}", state="expired" if (number, each) == (70, 7) else "ok")
                for each in range(100)
            ),
        )
        for number in range(100)
    )
    with Console(Told(Picture("cluster", "there", True, nodes), every=60.0)) as console:
        page.open(console.url)
        page.until("document.querySelector('.tools .hint').textContent === '10,000 identities'")
        assert page.value(f"{ROWS}.length") < 100
        # What is wrong comes first.
        assert page.value("document.querySelector('.space .row .c-pod').textContent") == "shop/cart-70-7"
        page.press("End")
        page.until(f"[...{ROWS}].some((row) => row.ariaRowIndex === '10001')")
        assert page.value(f"{ROWS}.length") < 100
        page.press("/")
        page.until("document.activeElement.id === 'filter'")
        for key in "node-42 9":
            page.press(key)
        page.until("document.querySelector('.tools .hint').textContent.startsWith('19 of')")
        shot(page, "ten-thousand")
        for width, height, dark in ((320, 600, True), (400, 700, False), (720, 700, True), (1800, 900, True)):
            page.size(width, height, dark=dark)
            # The table is laid out anew a frame after the window has its width.
            page.until(f"innerWidth === {width} && document.documentElement.scrollWidth <= innerWidth")
            shot(page, f"width-{width}")
            assert page.value("document.querySelector('.c-pod:not([role=columnheader])').offsetWidth") >= 75


def told_apart(page: Page, column: str) -> list[str]:
    """What each row shows at least of the name in a column: its own end, where all of that is on the screen."""
    whole = "(part) => part.scrollWidth <= part.clientWidth"
    inside = "(part, cell) => part.getBoundingClientRect().right <= cell.getBoundingClientRect().right + 1"
    tail = f"(({whole})(tail) && ({inside})(tail, cell) ? tail.textContent : '')"
    cells = f"[...{ROWS}].map((row) => row.querySelector('.c-{column}'))"
    head = f"(({whole})(cell.children[0]) ? cell.children[0].textContent : '…')"
    return list(page.value(f"{cells}.map((cell) => {{ const tail = cell.children[1]; return {head} + {tail}; }})"))


@pytest.mark.parametrize(
    "form", ["gke-prod-cluster-default-pool-3f2a9c1d-x{}k2", "ip-10-0-{}-17.eu-1.compute.internal"]
)
def test_pods_and_nodes_of_real_clusters_can_be_told_apart_at_each_width(page: Page, form: str) -> None:
    seen = at(utc())

    def checkout(number: int) -> dict[str, Any]:
        return shop(number) | {"namespace": "payments", "pod": f"checkout-7d9f8b6c5-x{number}k4q"}

    nodes = [NodeLook(form.format(each), (checkout(each), checkout(each + 4)), "", seen) for each in range(4)]
    source = Told(Picture("cluster", "there", True, tuple(nodes)))
    with Console(source) as console:
        page.open(console.url)
        page.until(f"{ROWS}.length === 8")
        for width in (320, 720, 1280, 1920):
            page.size(width, 600, dark=width == 1920)
            page.until(f"innerWidth === {width} && document.documentElement.scrollWidth <= innerWidth")
            pods = told_apart(page, "pod")
            assert len(set(pods)) == 8, pods
            if width > 1000:
                nodes_shown = told_apart(page, "node")
                assert len(set(nodes_shown)) == 4, nodes_shown
            # A row is marked as far as the frame, and its columns stand below their heads.
            row = f"{ROWS}[0].getBoundingClientRect()"
            rows = "document.querySelector('.rows')"
            assert page.value(f"Math.abs({row}.right - {rows}.getBoundingClientRect().right)") < 1
            left = "querySelector('.c-left').getBoundingClientRect().left"
            assert page.value(f"{ROWS}[0].{left} - document.querySelector('.heads').{left}") == 0
            assert page.value(f"{ROWS}[0].querySelector('.bar').clientWidth > 0") == (width > 560)
        # Whoever does not see gets it as one name, and whoever points at it.
        name = "payments/checkout-7d9f8b6c5-x0k4q"
        assert page.value(f"[...{ROWS}].some((row) => row.children[1].ariaLabel === '{name}')")
        assert page.value(f"[...{ROWS}].some((row) => row.children[1].title === '{name}')")
        page.press("3")
        for width in (320, 1280):
            page.size(width, 600)
            page.until(f"innerWidth === {width} && document.querySelectorAll('.node strong').length === 4")
            fields = "[...document.querySelectorAll('.node strong')]"
            assert page.value(f"{fields}.every((each) => each.scrollWidth <= each.clientWidth)")
            # All of it is on the screen, in as many lines as it takes.
            assert page.value(f"{fields}.map((each) => each.innerText)") == [form.format(each) for each in range(4)]
            assert page.value(f"{fields}.every((each) => getComputedStyle(each).textOverflow === 'clip')")
        # One more has another end: no name of a row that was there is drawn as if it were everybody's.
        another = NodeLook("elsewhere", (shop(1) | {"pod": "web"},), "", seen)
        source.picture = replace(source.picture, nodes=(*nodes, another))
        page.press("1")
        page.until(f"{ROWS}.length === 9")
        assert page.value(f"[...{ROWS}].filter((row) => row.querySelector('.c-node .rest').textContent).length") == 0


def authority(stage: str, name: str, **moments: int) -> dict[str, Any]:
    """One of `authority show`; moments in seconds from now."""
    now = datetime.now(UTC)
    times = {each: (now + timedelta(seconds=after)).isoformat() for each, after in moments.items()}
    return {"kind": "KIND_X509", "id": name, "stage": stage, "svids": 40, "svids_known": True, **times}


def shop(number: int, **more: Any) -> dict[str, Any]:
    """A pod with an SVID of an hour, in the middle of its life."""
    began = datetime.now(UTC) - timedelta(minutes=2 * number)
    times = {"not_before": 0, "not_after": 60, "renew_at": 32, "renew_from": 28, "renew_until": 36}
    moments = {each: (began + timedelta(minutes=after)).isoformat() for each, after in times.items()}
    name = ("cart", "web", "search", "billing")[number % 4]
    identity = f"spiffe://example.org/ns/shop/sa/{name}"
    policy = "usual" if name == "billing" else f"shop/{name}"
    serial = f"{number + 77:02x}" * 20
    return volume(f"{name}-{number}", spiffe_id=identity, serial=serial, **{"policy": policy, **moments, **more})


def test_an_outage_a_refusal_and_an_authoritys_life_are_seen(page: Page) -> None:
    status = {
        "trust_domain": "example.org",
        "authorities": [
            authority("old", "c81fd5d930", prepared_at=-90000, activated_at=-80000, leaves_at=3000),
            authority("active", "77aa5cd204", prepared_at=-9000, activated_at=-5000),
            authority("prepared", "0b12cd9aa3", prepared_at=-900),
        ],
        "agents": 3,
        "agents_waiting": 1,
        "next": ["x509: activate 0b12cd9aa3 when 1 agent more has acknowledged"],
    }
    seen = at(utc())
    well = [NodeLook(f"node-{each}", tuple(shop(each * 5 + one) for one in range(5)), "", seen) for each in range(3)]
    source = Told(Picture("cluster", "https://there:6443", True, tuple(well), status, authority_at=seen))
    policy = {"outcome": "refused: NO_POLICY: no policy matches", "policy": ""}
    source.explained = lambda *_: {
        "policy": policy,
        "on_node": None,
        "missing": {"on_node": "the pod has no csi volume"},
    }
    with Console(source) as console:
        page.open(console.url)
        page.until(f"{ROWS}.length === 15")
        assert page.value("document.querySelectorAll('nav .badge.bad').length") == 0
        away = {"state": "retrying", "state_reason": "SIGNER_UNREACHABLE", "failures": 2}
        source.picture = replace(
            source.picture,
            nodes=(*well[:2], NodeLook("node-2", (shop(10, **away), *well[2].volumes[1:]), "it did not answer", seen)),
        )
        page.until("document.querySelector('nav .badge.bad')")
        # What it said before is not what is.
        states = f"[...{ROWS}].map((row) => row.querySelector('.state'))"
        page.until(f"/^was ok \\d+s ago$/.test({states}[0].textContent)")
        assert page.value(f"{states}.filter((each) => each.classList.contains('bad')).length") == 5
        assert page.value(f"{states}[4].textContent").startswith("was retrying SIGNER_UNREACHABLE ")
        assert page.value("document.getElementById('age').textContent").endswith("; 1 of 3 nodes not known")
        bar = "document.querySelectorAll('.space .row')[1].querySelector"
        width, left = page.value(f"{bar}('u').style.width"), page.value(f"{bar}('u').style.left")
        assert [round(float(each.removesuffix("%"))) for each in (left, width)] == [40, 13]
        page.size(1280, 600)
        shot(page, "console")
        page.press("4")
        page.until("document.querySelectorAll('.problem').length === 2")
        assert "node node-2: it did not answer\n\nwhat is shown was said " in text(page)
        assert "pod shop/search-10 on node-2: unknown (was retrying SIGNER_UNREACHABLE)" in text(page)
        page.press("3")
        page.until("document.querySelectorAll('.node').length === 3")
        assert page.value("[...document.querySelectorAll('.node')].map((each) => each.className).join()") == (
            "node ok,node ok,node bad"
        )
        page.press("2")
        page.until("document.querySelectorAll('.lane').length === 3")
        stages = "[...lane.querySelectorAll('.track span')].map((part) => part.className).join('>')"
        assert (
            page.value(f"[...document.querySelectorAll('.lane')].map((lane) => {stages}).join()")
            == "prepared>active>old,prepared>active,prepared"
        )
        assert "2 of 3 agents" in text(page)
        page.until("/said\\n\\d+s ago/.test(document.body.innerText)")
        shot(page, "authorities")
        page.value("location.hash = '#pod/shop/none'")
        page.until("document.querySelector('.way li.bad')")
        assert "refused: NO_POLICY: no policy matches" in page.value("document.querySelector('.way li.bad').innerText")
        # Nobody is refused by a policy that asks for nothing.
        assert "none is asked" not in text(page)
        shot(page, "refusal")


def test_what_is_not_asked_yet_is_not_well_and_what_is_lost_is_said_on_every_tab(page: Page) -> None:
    seen = at(utc())
    nodes = (NodeLook("node-1", (shop(1),), "", seen, left_out=1234), NodeLook("node-2"))
    source = Told(Picture("cluster", "https://there:6443", False, nodes))
    with Console(source) as console:
        page.open(console.url)
        page.until(f"{ROWS}.length === 1")
        assert page.value("document.getElementById('age').textContent").startswith("as of ")
        page.press("3")
        page.until("document.querySelectorAll('.node').length === 2")
        fields = "[...document.querySelectorAll('.node')]"
        assert page.value(f"{fields}.map((each) => each.className + ': ' + each.lastChild.textContent)") == [
            "node ok: 1 ok",
            "node none: not asked yet",
        ]
        # What did not change is not drawn anew: the keyboard stays where it is.
        page.value(f"{fields}[1].focus()")
        source.picture = source.picture.lost("TIMED_OUT: nobody answers")
        for key in "312":
            page.press(key)
            page.until("document.querySelector('.notice:not([hidden])')?.textContent === 'TIMED_OUT: nobody answers'")
            if key == "3":
                page.until("document.querySelectorAll('.node.bad').length === 2")
                assert page.value("document.activeElement.dataset.key") == "node-2"
        # Where it is the first problem it is not said beside it, too.
        page.press("4")
        page.until("document.querySelectorAll('.problem').length === 2")
        assert text(page).count("TIMED_OUT: nobody answers") == 1
        assert "1,234 identities of 1 nodes are not shown" in text(page)


def test_a_cluster_that_never_answered_is_said_once_and_counted_nowhere(page: Page) -> None:
    away = "the API server https://there:6443 cannot be reached (Connection refused); look at the kubeconfig's context"
    source = Told(Picture("cluster", "https://there:6443"), fails=NotTold(away))
    with Console(source) as console:
        page.open(console.url)
        page.until("document.querySelector('.notice:not([hidden])')")
        assert page.value("document.querySelector('.tools .hint').textContent") == "– identities"
        assert page.value("document.getElementById('age').textContent") == "nothing is known"
        shot(page, "away")
        for key, sign in (("1", ".rows"), ("2", ".notice"), ("3", "main > .hint"), ("4", ".problem")):
            page.press(key)
            page.until(f"document.querySelector('main {sign}, {sign}')")
            assert text(page).count(f"API_SERVER_UNAVAILABLE: {away}") == 1, key
            assert "No agent runs" not in text(page)
            shot(page, f"away-{key}")
        assert page.value("document.querySelectorAll('.problem p')[1].innerText").startswith(
            "How pods are is not known"
        )
        # An answer is counted, be it none.
        source.fails, source.picture = None, Picture("cluster", "https://there:6443", True)
        page.press("1")
        page.until("document.querySelector('.tools .hint').textContent === '0 identities'")


def test_a_renewal_is_due_and_then_late_where_its_agent_was_asked_since(page: Page) -> None:
    now = datetime.now(UTC)

    def renewed(number: int, seconds: int) -> dict[str, Any]:
        return shop(number, renew_at=(now + timedelta(seconds=seconds)).isoformat())

    # Of what is rounded each has the better part of a minute until it reads otherwise.
    volumes = (renewed(0, -455), renewed(1, -20), renewed(2, 925), shop(3, not_after=(now - timedelta(1)).isoformat()))
    seen, before = at(now), at(now - timedelta(seconds=540))
    nodes = (
        NodeLook("asked", volumes, "", seen),
        # What became due after the look may be done by now; and of who is silent it is not known.
        NodeLook("before", (renewed(4, -500),), "", before),
        NodeLook("silent", (renewed(5, -500),), "it did not answer", before),
    )
    with Console(Told(Picture("cluster", "there", True, nodes))) as console:
        page.open(console.url)
        page.until(f"{ROWS}.length === 6")
        page.value("document.querySelector('[role=columnheader].c-pod button').click()")
        shot(page, "late")

        def cell(pod: str, column: str) -> Any:
            row = f"[...{ROWS}].find((row) => row.children[1].textContent === 'shop/{pod}')"
            return page.value(f"{row}.querySelector('.c-{column}').innerText")

        assert cell("cart-0", "renews") == "8m late"
        assert page.value("[...document.querySelectorAll('.c-renews.late')].map((each) => each.textContent)") == [
            "8m late"
        ]
        assert (cell("web-1", "renews"), cell("cart-4", "renews")) == ("due", "due")
        assert cell("search-2", "renews") == "15m"
        assert cell("web-5", "renews") == "–"
        assert "ended" in cell("billing-3", "left")


def test_a_pods_page_says_each_instant_once(page: Page) -> None:
    drawn = shop(1)
    because = f"drawn at random in the window that the authority gave, {drawn['renew_from']} to {drawn['renew_until']}"
    source = Told(Picture("cluster", "there", True))
    volumes = [drawn | {"renew_because": because}]
    source.explained = lambda *_: {"policy": None, "on_node": {"volumes": volumes}}
    with Console(source) as console:
        page.open(console.url)
        page.until("document.querySelector('.tools')")
        page.value("location.hash = '#pod/shop/web-1'")
        page.until("document.querySelector('.way')")
        names = "[...document.querySelectorAll('dt')].map((each) => each.textContent)"
        assert "renewal" in page.value(names)
        assert "renewal window" not in page.value(names)
        assert text(page).count(because) == 1
        shot(page, "pod")
        # Where attempts failed the window stands nowhere else.
        volumes[0] |= {"failures": 2, "renew_because": "it was due, 2 attempts in a row failed"}
        page.value("[...document.querySelectorAll('button')].find((each) => each.textContent === 'ask again').click()")
        page.until(f"{names}.includes('renewal window')")


def test_clocks_that_differ_are_said(page: Page) -> None:
    source = Told(picture(volume("cart-0"), volume("cart-1", not_after="2026-05-31T00:00:00Z")))
    with Console(source) as console:
        page.open(console.url)
        page.until(f"{ROWS}.length === 2")
        page.press("4")
        page.until("document.querySelector('.problem')")
        assert "by this machine’s clock an SVID that its agent calls ok has ended" in text(page)


def test_a_page_that_nobody_sees_or_may_see_asks_no_more(page: Page) -> None:
    with Console(Told(picture(volume("cart-0")))) as console:
        page.open(console.url)
        page.until(f"{ROWS}.length === 1")
        page.value("Object.defineProperty(document, 'hidden', { value: true, configurable: true })")
        # The one that may be under way; and longer than until the next one.
        three = "new Promise((resolve) => setTimeout(resolve, 3000))"
        page.value(three)
        asked = len(page.requests)
        page.value(three)
        assert len(page.requests) == asked
        page.value("sessionStorage.setItem('token', 'another')")
        page.value("delete document.hidden, document.dispatchEvent(new Event('visibilitychange'))")
        age = "document.getElementById('age').textContent"
        page.until(f"{age}.includes('then reload this page')")
        asked = len(page.requests)
        page.value(three)
        assert len(page.requests) == asked
        # The right URL in the same tab goes on.
        page.value(f"location.hash = {json.dumps('token=' + token_of(console))}")
        page.until(f"{age}.startsWith('as of ')")


def test_the_policy_that_decided_is_a_column_to_sort_and_filter_by(page: Page) -> None:
    unknown = shop(20, policy="")
    seen = at(utc())
    node = NodeLook("node-1", (*(shop(each) for each in range(8)), unknown), "", seen)
    with Console(Told(Picture("cluster", "https://there:6443", True, (node,)))) as console:
        page.size(1600, 700)
        page.open(console.url)
        page.until(f"{ROWS}.length === 9")
        shot(page, "policies")
        cells = f"[...{ROWS}].map((row) => row.querySelector('.c-policy').textContent)"
        page.value("document.querySelector('[role=columnheader].c-policy button').click()")
        expected = ["shop/cart"] * 2 + ["shop/search"] * 2 + ["shop/web"] * 2 + ["usual"] * 2 + ["–"]
        page.until(f"{cells}.join() === {json.dumps(','.join(expected))}")
        assert "not known: minted before" in page.value(f"{ROWS}[8].querySelector('.c-policy').title")
        # The window is drawn, and said where somebody looks closer.
        assert " drawn between 20" in page.value(f"{ROWS}[0].querySelector('.bar').title")
        page.press("/")
        page.until("document.activeElement.id === 'filter'")
        for key in "policy:usual":
            page.press(key)
        page.until(f"{cells}.join() === 'usual,usual'")


def test_federations_and_the_ca_above_are_seen_with_their_last_errors(page: Page) -> None:
    seen = at(utc())
    ago = (datetime.now(UTC) - timedelta(minutes=7)).isoformat()
    ends = (datetime.now(UTC) + timedelta(days=9)).isoformat()
    well = {"name": "west", "trust_domain": "west.example", "url": "https://west.example/bundle", "ready": True}
    well |= {"unseen": False, "sequence": 12, "fetched_at": ago, "next_poll": ends, "earliest_not_after": ends}
    ill = {**well, "name": "east", "trust_domain": "east.example", "url": "https://east.example/bundle"}
    error = "Failed: https://east.example/bundle: connection refused"
    asked = {"id": "5e01", "at": "openbao", "said": ["permission denied, asked again in 58s"]}
    active = authority("active", "77aa5cd204", prepared_at=-9000, activated_at=-5000)
    status = {"trust_domain": "example.org", "agents": 1, "authorities": [active], "requested_x509": asked}
    findings = (
        {"reason": "UPSTREAM_AWAY", "seen": "a request at openbao: permission denied", "to_do": "ask the CA above"},
        {"reason": "FEDERATION_FETCH_FAILED", "seen": "FederatedTrustDomain east", "to_do": "`kubectl describe`"},
    )
    node = NodeLook("n", (shop(1),), "", seen)
    source = Told(Picture("cluster", "https://there:6443", True, (node,), status, authority_at=seen))
    source.picture = replace(
        source.picture,
        federations=(well, {**ill, "errors": [error]}),
        federations_at=seen,
        findings=tuple(
            {**each, "bad": True, "link": f"docs/troubleshooting.md#{each['reason'].lower()}"} for each in findings
        ),
    )
    with Console(source) as console:
        page.open(console.url)
        page.until(f"{ROWS}.length === 1")
        page.press("2")
        page.until("document.querySelectorAll('.partner').length === 2")
        said = "[...document.querySelectorAll('main .error')].map((each) => each.textContent)"
        assert page.value(said) == ["a request at openbao: permission denied", error]
        assert page.value("[...document.querySelectorAll('.partner .state')].map((each) => each.className)") == [
            "state ok",
            "state warn",
        ]
        assert "sequence 12, fetched 7m ago, next look in 9d" in text(page)
        shot(page, "federation")
        page.press("4")
        page.until("document.querySelectorAll('.problem.bad').length === 2")
        assert "FEDERATION_FETCH_FAILED: FederatedTrustDomain east\n\nkubectl describe." in text(page)
        said = "[...document.querySelectorAll('.problem p:last-child')].map((each) => each.textContent)"
        pages = [f"see docs/troubleshooting.md#{each['reason'].lower()} · Authorities shows it" for each in findings]
        assert page.value(said) == pages
        shot(page, "problems")
        # Who does not answer any more keeps what was said, beside its age.
        source.picture = replace(source.picture.lost("TIMED_OUT: nobody answers"), authority_at=ago, federations_at=ago)
        page.press("2")
        page.until("document.querySelectorAll('.notice').length === 3")
        notices = "[...document.querySelectorAll('.notice')].map((each) => each.textContent)"
        ages = ["This is what it said 7m ago", "This is as it was 7m ago"]
        assert page.value(notices) == ["TIMED_OUT: nobody answers", *ages]
        for key, sign in (("1", ".rows"), ("3", ".node.bad"), ("4", ".problem")):
            page.press(key)
            page.until(f"document.querySelector('{sign}')")
            assert text(page).count("TIMED_OUT: nobody answers") == 1, key
        # The API server is away: of the signer nobody knows that it does not run.
        assert "Where no signer runs" not in text(page)
        assert "what is shown was said 7m ago" in text(page)
