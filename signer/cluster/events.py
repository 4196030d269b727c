"""Events on pods: refusals and surprises, where the pod's author looks. Best effort, bounded, rate limited."""

import asyncio
import logging
import secrets
from collections import OrderedDict
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime

from runtime import advice
from runtime.clock import Clock
from runtime.newest import keep
from signer.cluster.kube import KubeApi
from signer.errors import SignerError
from signer.model import PodClaim

_log = logging.getLogger("podsvid.events")
# A reason to refuse a pod is said once in this time, as what an agent asks for may stand in its text. A surprise comes
# with every renewal, and no SVID may cost a write: the same words are said once in a pod's usual life.
# Seconds.
REPEAT, SURPRISE_REPEAT = 5 * 60.0, 7 * 24 * 3600.0
# An agent says what was asked for, and in which words: of one pod so many different ones are told.
MAX_CLIPPED = 8
QUEUE = 1000
MAX_REMEMBERED = 20_000
# Seconds between two events: five a second at most.
SPACING = 0.2
_MAX_NOTE = 1000


@dataclass(frozen=True, slots=True)
class _Event:
    pod: PodClaim
    kind: str
    reason: str
    note: str
    at: datetime
    about: str = "Pod"

    @property
    def code(self) -> str:
        """By which the documentation explains it: the reason of a refusal, or the event's name."""
        return advice.exact(self.reason, self.note)


class Events:
    """Queues events and writes them from a loop of its own: a mint neither waits nor fails for one."""

    def __init__(self, api: KubeApi, identity: str, clock: Clock, docs_url: str = "") -> None:
        self._api = api
        self._docs_url = docs_url
        self._identity = identity
        self._clock = clock
        self._queue: asyncio.Queue[_Event] = asyncio.Queue(QUEUE)
        self._said: OrderedDict[tuple[str, str], float] = OrderedDict()
        self._clipped: OrderedDict[str, dict[int, float]] = OrderedDict()
        self._failing = False

    def refused(self, pod: PodClaim, reason: str, message: str, behind: int = QUEUE) -> None:
        """An identity was refused to `pod` for `reason` (a reason code). Dropped where `behind` events or more wait."""
        if self._queue.qsize() < behind:
            self._say(pod, "Warning", "IdentityRefused", f"{reason}: {message}", reason, REPEAT)

    def certificate_waits(self, pod: PodClaim, reason: str, message: str) -> None:
        """A certificate that kubelet asked for `pod` is not given yet, for `reason` (a reason code)."""
        self._say(pod, "Warning", "PodCertificatePending", f"{reason}: {message}", reason, REPEAT)

    def surprise(self, pod: PodClaim, reason: str, message: str, behind: int = QUEUE) -> None:
        """Something about its policies that a person should look at; `behind` as of `refused`."""
        if self._queue.qsize() < behind:
            self._say(pod, "Normal", reason, message, message, SURPRISE_REPEAT)

    def gave_up(self, namespace: str, secret: str, message: str) -> None:
        """A CA above was asked in vain; said of the authorities' Secret, as no pod is the one that waits."""
        self._warn(namespace, secret, "UpstreamRefused", message)

    def roots_refused(self, namespace: str, secret: str, message: str) -> None:
        """Roots that a CA above names are not trusted; said of the authorities' Secret."""
        self._warn(namespace, secret, "UpstreamRootsRefused", message)

    def root_revoked(self, namespace: str, secret: str, message: str) -> None:
        """A person declared a root of a CA above stolen, or took that back; said of the authorities' Secret."""
        self._warn(namespace, secret, "UpstreamRootRevoked", message)

    def _warn(self, namespace: str, secret: str, reason: str, message: str) -> None:
        of = PodClaim(namespace, secret, "")
        with suppress(asyncio.QueueFull):
            self._queue.put_nowait(_Event(of, "Warning", reason, message[:_MAX_NOTE], self._clock.now(), "Secret"))

    def clipped(self, pod: PodClaim, message: str) -> None:
        """Less of a lifetime was granted than the pod's author asked for. It comes with every renewal."""
        now = self._clock.monotonic()
        said = {text: at for text, at in self._clipped.get(pod.uid, {}).items() if now - at < SURPRISE_REPEAT}
        text = hash(message)
        if text in said or len(said) >= MAX_CLIPPED:
            return
        if self._queued(pod, "Normal", "TtlClipped", message):
            keep(self._clipped, pod.uid, {**said, text: now}, MAX_REMEMBERED)

    async def run(self) -> None:
        """Write what is queued, for ever."""
        while True:
            event = await self._queue.get()
            try:
                await self._write(event)
                self._failing = False
            except SignerError as error:
                if not self._failing:
                    _log.warning("event not written", extra={"reason": error.reason, "error": str(error)})
                self._failing = True
            await asyncio.sleep(SPACING)

    def _say(self, pod: PodClaim, kind: str, reason: str, note: str, same: str, repeat: float) -> None:
        now = self._clock.monotonic()
        key = (pod.uid, f"{reason} {same}")
        said = self._said.get(key)
        if said is not None and now - said < repeat:
            return
        if self._queued(pod, kind, reason, note):
            keep(self._said, key, now, MAX_REMEMBERED)

    def _queued(self, pod: PodClaim, kind: str, reason: str, note: str) -> bool:
        try:
            self._queue.put_nowait(_Event(pod, kind, reason, note[:_MAX_NOTE], self._clock.now()))
        except asyncio.QueueFull:
            return False
        return True

    async def _write(self, event: _Event) -> None:
        pod = event.pod
        await self._api.create(
            f"/apis/events.k8s.io/v1/namespaces/{pod.namespace}/events",
            {
                "apiVersion": "events.k8s.io/v1",
                "kind": "Event",
                "metadata": {"name": f"{pod.name[:200]}.{secrets.token_hex(8)}", "namespace": pod.namespace},
                "eventTime": event.at.astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ"),
                "type": event.kind,
                "reason": event.reason,
                "action": "Mint" if event.about == "Pod" else "Rotate",
                "note": advice.explained(event.note, event.code, self._docs_url, _MAX_NOTE),
                "regarding": {
                    "apiVersion": "v1",
                    "kind": event.about,
                    "namespace": pod.namespace,
                    "name": pod.name,
                    **({"uid": pod.uid} if pod.uid else {}),
                },
                "reportingController": "podsvid.io/signer",
                "reportingInstance": self._identity[:128],
            },
        )
