"""Who calls: the agent that a call's headers prove, what its node has called already, and a place for its message."""

from typing import Protocol

from runtime.deadlines import Deadlines
from runtime.headers import Headers
from signer.attestation.attestor import Attestor
from signer.errors import Reason, Refused
from signer.front.calls import MESSAGE_SECONDS, Context, bearer
from signer.front.limits import NodeLimits, Place, Slots
from signer.metrics import Metrics
from signer.model import SOON, Agent, Sender

# What was said about the caller's own token: a stranger who goes on like this is sent away.
_NO_AGENT = frozenset(
    {
        Reason.AGENT_TOKEN_MISSING,
        Reason.AGENT_TOKEN_INVALID,
        Reason.AGENT_TOKEN_EXPIRED,
        Reason.AGENT_TOKEN_AUDIENCE,
        Reason.AGENT_TOKEN_UNBOUND,
        Reason.AGENT_DENIED,
        Reason.INVALID_REQUEST,
    }
)


class Gate(Protocol):
    """The connections that calls come on, by the name that grpc gives them."""

    def proven(self, peer: str, node: str) -> bool:
        """An agent of the node with that uid is at the other end. False: there is no room for one more."""

    def strike(self, peer: str) -> None:
        """A call on it proved no agent."""

    def used(self, peer: str, size: int) -> None:
        """So many bytes of it were a message that is answered."""

    def rest(self, peer: str, seconds: float) -> None:
        """Nothing more of it is wanted for so long."""

    def sender(self, peer: str) -> Sender:
        """Who is at the other end, as far as that is proven."""
        ...


class Callers:
    """Whoever calls, before anything of what they say is read."""

    def __init__(self, attestor: Attestor, limits: NodeLimits, gate: Gate, metrics: Metrics) -> None:
        self._attestor = attestor
        self._limits = limits
        self._gate = gate
        self._metrics = metrics
        # For the messages of calls.
        self.patience = Deadlines(MESSAGE_SECONDS)

    async def proven(self, context: Context, headers: Headers) -> Agent:
        """The agent that a call's headers prove. Raises Refused."""
        peer = context.peer()
        try:
            agent = await self._attestor.agent(bearer(headers), self._gate.sender(peer))
        except Refused as refusal:
            if refusal.reason in _NO_AGENT:
                self._gate.strike(peer)
            raise
        if not self._gate.proven(peer, agent.node_uid):
            raise Refused(Reason.BUSY, "this replica has as many agents as it has memory for", retry_after=SOON)
        self.count(context, agent, 1)
        return agent

    def count(self, context: Context, agent: Agent, calls: int) -> None:
        """So many calls more of the agent's node: whoever has too many is not read for a while."""
        wait = self._limits.called(agent.node_uid, calls)
        if wait > 0.0:
            self._metrics.turned_away("calls")
            self._gate.rest(context.peer(), wait)

    def given_up(self) -> None:
        """A call was ended before its message came, by its agent or for the message's length."""
        self._metrics.turned_away("message")

    def used(self, context: Context, size: int) -> None:
        """So many bytes of what was said are answered."""
        self._gate.used(context.peer(), size)

    def place(self, slots: Slots, what: str, holder: str = "") -> Place:
        """One of the replica's, to be entered at once. Raises Refused (BUSY)."""
        place = slots.take(holder)
        if place is None:
            self._metrics.turned_away(what)
            raise Refused(Reason.BUSY, f"this replica has its fill of {what}", retry_after=SOON)
        return place
