"""What podsvid's own pods tell by exec: the console of a cluster, with a person's rights and no others."""

import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future
from dataclasses import replace
from datetime import datetime
from typing import Any, Final, Protocol, TypeVar

from podsvid.authority import DEFAULT_SOCKET
from podsvid.by_kubeconfig import EXEC_SECONDS, NEEDED, AgentPod, KubeconfigCluster, NotAllowed, NotTold
from podsvid.console.beyond import MOST_FEDERATIONS, Federations, Reads, federations, findings
from podsvid.console.guard import is_name
from podsvid.console.picture import NodeLook, Picture, at, utc
from podsvid.explain import explained
from podsvid.waiting import GaveUp, Waiting
from runtime.aside import begun
from signer.errors import SignerError

# Processes that are started in podsvid's pods at once. The API server carries each exec.
AT_ONCE = 4
# Of more the page would hold the console, and rounds last too long to be news.
MOST_NODES = 500
# Identities in all: pods' authors choose how many there are, and this machine keeps each, and the page once more.
MOST_ROWS = 40_000
# Said to whoever may not.
RIGHTS: Final = f"{NEEDED}; to show federations, list on federatedtrustdomains.podsvid.io"
_EXPLAIN_SECONDS = 20.0
# Of one answer: a command's, and of the connection before it, which nothing else bounds.
ANSWER_SECONDS = EXEC_SECONDS + 15.0
_LS = ("podsvid", "node", "ls", "--output", "json")
_SHOW = ("podsvid", "authority", "show", "--socket", DEFAULT_SOCKET, "--output", "json")

_Answer = TypeVar("_Answer")


class Execs(Reads, Protocol):
    """What of a KubeconfigCluster is needed to look; every method raises SignerError."""

    @property
    def host(self) -> str: ...

    def agents(self) -> Sequence[AgentPod]: ...

    def signer(self) -> str: ...

    def run(self, pod: str, container: str, command: list[str]) -> Any: ...


class InCluster:
    """A cluster's agents, in turn, and a signer. `every`: seconds of rest between two rounds."""

    def __init__(self, cluster: KubeconfigCluster, every: float) -> None:
        self._looking = Round(cluster)
        self._cluster = cluster
        self._every = every

    @property
    def every(self) -> float:
        return self._every

    def unseen(self) -> Picture:
        return self._looking.unseen()

    def look(self, keep: Callable[[Picture], None]) -> None:
        """Raises SignerError where not even the agents are known."""
        self._looking.look(keep)

    def explain(self, namespace: str, pod: str) -> dict[str, Any]:
        """Raises SignerError, CommandError."""
        waiting = Waiting(_EXPLAIN_SECONDS, tell=lambda _: None, longer="")
        return explained(self._cluster, namespace, pod, waiting).to_json()


class Round:
    """Looks at everybody once, and remembers what they said for the next round. `seconds`: for one answer."""

    def __init__(self, cluster: Execs, seconds: float = ANSWER_SECONDS, now: Callable[[], datetime] = utc) -> None:
        self._cluster = cluster
        self._seconds = seconds
        self._now = now
        # What has not ended, by whom it was asked. Nobody is asked again before: it would hold one thread more.
        self._hanging: dict[str, Future[Any]] = {}
        self._lock = threading.Lock()
        self._picture = Picture("cluster", cluster.host)
        self._federations = Federations()
        # When a signer said what is known of authorities.
        self._authority_at = now()

    def unseen(self) -> Picture:
        return self._picture

    def look(self, keep: Callable[[Picture], None]) -> None:
        """Raises SignerError, GaveUp where not even the agents are known."""
        self._hanging = {who: each for who, each in self._hanging.items() if not each.done()}
        found_agents = self._asked(f"the API server {self._cluster.host}", self._cluster.agents)
        agents = sorted(found_agents, key=lambda each: each.node)
        # Why nobody else is asked in this round.
        refused: list[str] = []
        shown = agents[:MOST_NODES]
        more = len(agents) - len(shown)
        left_out = f"{more} of {len(agents)} nodes are not asked: the console asks {MOST_NODES}"
        missing = {"unasked": left_out} if more else {}
        missing.update((key, why) for key, why in self._picture.missing.items() if key not in ("nodes", "unasked"))
        before = {each.node: each for each in self._picture.nodes}
        nodes = {each.node: before.get(each.node, NodeLook(each.node)) for each in shown}
        self._picture = replace(self._picture, nodes=tuple(nodes.values()), missing=missing)
        keep(self._picture)

        def told(change: Callable[[], Picture]) -> None:
            with self._lock:
                self._picture = change()
                keep(self._picture)

        def authority() -> None:
            status, missing = self._authority()
            told(lambda: self._with_authority(status, missing))

        def beyond() -> None:
            found, why = self._beyond()
            told(lambda: self._with_federations(found, why))

        def node(agent: AgentPod) -> None:
            found = self._node(agent, nodes[agent.node], refused)

            def changed() -> Picture:
                nodes[agent.node] = found
                nodes.update(_bounded(nodes, MOST_ROWS))
                return replace(self._picture, nodes=tuple(nodes.values()))

            told(changed)

        work: list[Callable[[], None]] = [authority, beyond, *((lambda each=each: node(each)) for each in shown)]
        _together(iter(work))
        told(lambda: replace(self._picture, looked=True))

    def _with_authority(self, status: dict[str, Any] | None, missing: dict[str, str]) -> Picture:
        kept = {key: text for key, text in self._picture.missing.items() if key not in ("authority", "leader")}
        # What it said last is still the best that is known.
        told = replace(self._picture, missing={**kept, **missing})
        if status is None:
            return told
        self._authority_at = self._now()
        return self._judged(replace(told, authority=status, authority_at=at(self._authority_at)))

    def _authority(self) -> tuple[dict[str, Any] | None, dict[str, str]]:
        """What a signer says, the one that leads where it can be asked: only that one knows what the CA above said."""
        try:
            signer = self._asked("the API server for a signer", self._cluster.signer)
            found = self._shown_by(signer)
        except (SignerError, GaveUp) as error:
            return None, {"authority": str(error)}
        leader = found.get("leader")
        if not isinstance(leader, str) or leader == signer or not is_name(leader):
            return found, {}
        try:
            return self._shown_by(leader), {}
        except (SignerError, GaveUp) as error:
            return found, {"leader": f"what the CA above said last is known to {leader}, which leads: {error}"}

    def _shown_by(self, signer: str) -> dict[str, Any]:
        found = self._asked(f"pod {signer}", lambda: self._cluster.run(signer, "signer", list(_SHOW)))
        if not isinstance(found, dict):
            raise NotTold("the signer's answer is none of authority show")
        return found

    def _beyond(self) -> tuple[Federations | None, str]:
        try:
            found = self._asked("the API server for federations", lambda: federations(self._cluster))
        except (SignerError, GaveUp) as error:
            return None, str(error)
        return found, f"only {MOST_FEDERATIONS} of them are shown" if found.more else ""

    def _with_federations(self, found: Federations | None, why: str) -> Picture:
        missing = {key: text for key, text in self._picture.missing.items() if key != "federations"}
        if why:
            missing["federations"] = why
        told = replace(self._picture, missing=missing)
        if found is None:
            return told
        self._federations = found
        return self._judged(replace(told, federations=found.shown, federations_at=at(self._now())))

    def _judged(self, picture: Picture) -> Picture:
        # Of what waited when a signer was heard last it is not known whether it still does.
        return replace(picture, findings=findings(picture.authority, self._federations, self._authority_at))

    def _node(self, agent: AgentPod, before: NodeLook, refused: list[str]) -> NodeLook:
        if not agent.running:
            return replace(
                before, missing=f"pod {agent.name} does not run ({agent.phase}); kubectl describe pod says why"
            )
        if refused:
            return replace(before, missing=refused[0])
        try:
            found = self._asked(f"pod {agent.name}", lambda: self._cluster.run(agent.name, "agent", list(_LS)))
        except (SignerError, GaveUp) as error:
            if isinstance(error, NotAllowed):
                refused.append(str(error))
            return replace(before, missing=str(error))
        volumes = found.get("volumes") if isinstance(found, dict) else None
        if not isinstance(volumes, list):
            return replace(before, missing=f"the answer of pod {agent.name} is none of node ls")
        listed = tuple(each for each in volumes if isinstance(each, dict))
        return NodeLook(agent.node, listed, seen_at=at(self._now()))

    def _asked(self, who: str, work: Callable[[], _Answer]) -> _Answer:
        if (before := self._hanging.get(who)) is not None and not before.done():
            raise NotTold(
                f"{who} has not answered for longer than {self._seconds:g} s; it is asked again when that ends"
            )
        asked = begun(work)
        self._hanging[who] = asked
        return Waiting(self._seconds, tell=lambda _: None, longer="").result(asked, who)


def _bounded(nodes: Mapping[str, NodeLook], most: int) -> dict[str, NodeLook]:
    """The same with `most` volumes in all: those that are not well before others, wherever they are, and of one node
    that has very many no more than of the next that has."""
    if sum(len(each.volumes) for each in nodes.values()) <= most:
        return dict(nodes)
    ill = _shares({name: sum(map(_is_ill, each.volumes)) for name, each in nodes.items()}, most)
    room = most - sum(ill.values())
    well = _shares({name: sum(not _is_ill(volume) for volume in each.volumes) for name, each in nodes.items()}, room)
    return {name: _cut(each, ill[name], well[name]) for name, each in nodes.items()}


def _is_ill(volume: dict[str, Any]) -> bool:
    return volume.get("state") != "ok"


def _shares(wanted: Mapping[str, int], room: int) -> dict[str, int]:
    """Of `room` as much for each as for the next, and none of it for who does not want it."""
    found = {}
    for place, (name, count) in enumerate(sorted(wanted.items(), key=lambda each: each[1])):
        found[name] = min(count, room // (len(wanted) - place))
        room -= found[name]
    return found


def _cut(look: NodeLook, ill: int, well: int) -> NodeLook:
    lost = len(look.volumes) - ill - well
    if not lost:
        return look
    first = [each for each in look.volumes if _is_ill(each)][:ill]
    rest = [each for each in look.volumes if not _is_ill(each)][:well]
    return replace(look, volumes=(*first, *rest), left_out=look.left_out + lost)


def _together(work: Iterator[Callable[[], None]]) -> None:
    """All of it, AT_ONCE at a time, on threads that keep no process from ending. Raises what the first failure did."""
    lock = threading.Lock()

    def run() -> None:
        while True:
            with lock:
                each = next(work, None)
            if each is None:
                return
            each()

    for each in [begun(run) for _ in range(AT_ONCE)]:
        each.result()
