"""The table of a node's bounds says what the code has: each row, its setting and its metric."""

import argparse
import re
from pathlib import Path

import pytest

from agent import budget, config, fairness
from agent.authority import batches, calls, connection
from agent.channel import messages
from agent.daemon import GIVES_WAY
from agent.servers import answers, asked
from agent.servers.served import NICE
from agent.socket import connections, early, endpoint, guard
from agent.socket.accounts import UNTAKEN, Limits
from csi import server
from csi.room import KIB, MIB
from podsvid.waiting import GIVEN_UP
from runtime.pages import HEALTH_LIMITS, METRICS_LIMITS
from svid import jwtsvid

DOCS = Path(__file__).resolve().parents[3] / "docs"
PAGE = (DOCS / "operations.md").read_text(encoding="utf-8").partition("## Bounds of a node")[2]


def rows() -> dict[str, list[str]]:
    """Default, setting and where it shows, by what is bounded."""
    table = re.search(r"^\| bound \|.*\n\|---.*\n((?:\|.*\n)+)", PAGE, re.M)
    assert table
    found = {}
    for line in table[1].splitlines():
        bound, *rest = re.split(r" \| |^\| | \|$", line)[1:-1]
        found[bound] = rest
    return found


def defaults() -> config.AgentConfig:
    parser = argparse.ArgumentParser()
    config.add_arguments(parser)
    return config.load(parser.parse_args(["--trust-domain", "example.org"]), {})


def kib(*numbers: int) -> str:
    return ", ".join(f"{number // KIB} KiB" for number in numbers)


def mib(*numbers: int) -> str:
    return ", ".join(f"{number // MIB} MiB" for number in numbers)


FIXED = {
    "connections of one pod, whatever": f"{connections.POD}; {connections.ALL}",
    "metadata of a call": kib(guard.MAX_METADATA),
    "a token that is to be validated": (
        f"{kib(jwtsvid.MAX_TOKEN)}; {jwtsvid.MAX_AUDIENCES}, {jwtsvid.MAX_AUDIENCE_BYTES}"
    ),
    "time from a call's headers": f"{guard.REQUEST:g} s; {kib(endpoint.WINDOW)}; {kib(endpoint.MAX_REQUEST)}",
    "what a client says before it has": (
        f"{kib(early.BYTES, early.BLOCK, early.DECODED)}, {early.STREAMS}, {early.BLOCK_FIELDS} and {early.FIELDS}, "
        f"{early.FRAMES}; 10 s"
    ),
    "the same of all connections of one pod": f"{mib(early.POD)}; {mib(early.ALL)}",
    "calls of one socket that wait": f"{endpoint.WAITING}, fewer on further sockets of a pod",
    "refusals that a pod does not take": f"as many as `socket_calls`, {UNTAKEN} at least",
    "bytes of a message of kubelet": kib(server.MAX_MESSAGE),
    "new volumes made at once": f"{defaults().publishes}; {fairness.MAKINGS}",
    "volumes taken away at once": str(fairness.ENDINGS),
    "keystores made at once": str(fairness.KEYSTORE_THREADS),
    "calls to the signer at once": f"{calls.AT_ONCE}, {calls.OF_ONE}; {fairness.SIGNER_JWTS}",
    "renewals in batches at once": f"{calls.ITEMS}, {calls.ITEMS_OF_ONE}; {batches.MOST}; {batches.CALLS}",
    "a message of the signer": mib(connection.MAX_MESSAGE),
    "what pods' sockets have asked": f"{answers.MOST_ANSWERS}; {mib(asked.MOST, asked.MOST_EACH)}",
    "what the process of pods' sockets is told": f"{mib(messages.MAX_SNAPSHOT)}; {kib(messages.MAX_REPORT)}",
    "connections to the page of probes": (
        f"{HEALTH_LIMITS.connections}, {HEALTH_LIMITS.by_address} and {METRICS_LIMITS.connections}, "
        f"{METRICS_LIMITS.by_address}; {kib(HEALTH_LIMITS.head)}; {HEALTH_LIMITS.deadline:g} and "
        f"{METRICS_LIMITS.deadline:g}"
    ),
    "memory, and connections, of the process": (
        f"{mib(budget.QUARANTINE)} (`socket_memory`, where that is less); {budget.QUARANTINE_CONNECTIONS}"
    ),
}
# Those that are a setting's default alone.
SET = {
    "volumes of one pod": ("pod_volumes",),
    "volumes of the node": ("volumes",),
    "memory of all volumes": ("volumes_memory",),
    "memory that stays free": ("memory_headroom",),
    "calls open at once": ("socket_calls", "socket_rate", "socket_burst"),
    "connections of one volume's socket": ("socket_connections",),
    "RSA keys made at once": ("key_threads",),
    "RSA keys of new volumes": ("key_queue",),
    "JWT-SVIDs that one pod has waiting": ("jwt_queue",),
    "memory of the process that serves all": ("socket_memory",),
}


def row(begin: str) -> list[str]:
    return next(cells for bound, cells in rows().items() if bound.startswith(begin))


@pytest.mark.parametrize("begin", FIXED)
def test_what_is_fixed_is_the_codes(begin: str) -> None:
    assert row(begin)[0] == FIXED[begin]


@pytest.mark.parametrize("begin", SET)
def test_what_can_be_set_has_its_settings_default(begin: str) -> None:
    default, named, _ = row(begin)
    assert re.findall(r"`(\w+)`", named) == list(SET[begin])
    assert default.removesuffix(" MiB") == ", ".join(f"{getattr(defaults(), each):g}" for each in SET[begin])


def test_every_row_has_a_default_a_setting_or_that_there_is_none_and_where_it_shows() -> None:
    settings = set(vars(type(defaults()))["__dataclass_fields__"])
    metrics = set(re.findall(r"`(podsvid_\w+)`", (DOCS / "metrics.md").read_text(encoding="utf-8")))
    assert len(rows()) > 30
    for bound, (default, named, shows) in rows().items():
        assert all((default, named, shows)), bound
        assert "fixed" in named or set(re.findall(r"`(\w+)`", named)) & settings, bound
        for metric in re.findall(r"podsvid_\w+", shows):
            assert metric.removesuffix("_count") in metrics, (bound, metric)


def test_the_reasons_of_refused_connections_are_in_it() -> None:
    for why in ("connections of a socket", "connections of a pod", "connections of all pods", "first bytes"):
        assert why in messages.REFUSALS
        assert any(why in shows for _, _, shows in rows().values()), why


def test_the_other_numbers_in_it_are_so_too() -> None:
    assert row("`podsvid node ls` and `explain`")[2].startswith(f"`TIMED_OUT` after {GIVEN_UP:g} s")
    assert Limits() == Limits(
        *(getattr(defaults(), f"socket_{each}") for each in ("connections", "calls", "rate", "burst"))
    )


def test_the_threat_model_says_what_each_process_has_in_numbers() -> None:
    page = (DOCS / "threat-model.md").read_text(encoding="utf-8")
    most = budget.descriptors(defaults().volumes)
    for line in (
        f"| `socket_memory`, {mib(budget.SOCKETS)} | the same | {mib(budget.QUARANTINE)} |",
        f"| RLIMIT_NOFILE | the hard limit that it was started with | {most} | {most} | {most} |",
        f"| nice, beside the agent | 0 | {GIVES_WAY} | {GIVES_WAY} | {NICE} |",
        f"| Uid, Gid; Groups | 0; the container's | {defaults().socket_user} (`socket_user`); none |",
    ):
        assert line in page
