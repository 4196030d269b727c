"""What the agent counts, in one registry that is made and handed in. Labels name outcomes, never volumes or pods."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

from runtime.shown import Shown

# A volume is in one of these; see agent.workload.state.
STATES = ("ok", "waiting", "retrying", "overdue", "unwritten", "closed", "expired")
# Where a socket is that is not served with all others; see agent.servers.quarantine.
APART = ("quarantine", "closed")
# Every way of a pod's sockets: to, why.
MOVES = (
    *((to, why) for to in APART for why in ("memory", "cpu", "ended")),
    ("quarantine", "over"),
    *(("shared", why) for why in ("innocent", "quiet")),
)
# See csi.room.Room.figures.
MEMORY = ("limit", "used", "volumes", "volumes_grown")
_PUBLISH_BUCKETS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30)


@dataclass(frozen=True, slots=True)
class Queue:
    """Implements runtime.turns.Seen."""

    wait: Histogram
    refusals: Callable[[str], None]

    def waited(self, seconds: float) -> None:
        """Count a turn that came after so long."""
        self.wait.observe(seconds)

    def refused(self, why: str) -> None:
        """Count one that did not come."""
        self.refusals(why)


class Metrics:
    """The agent's metrics."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self._publish = Histogram(
            "podsvid_publish_duration_seconds",
            "Time of a NodePublishVolume call by result.",
            ["result"],
            buckets=_PUBLISH_BUCKETS,
            registry=self.registry,
        )
        self._rotations = Counter(
            "podsvid_rotations",
            "Renewals of what volumes hold, by kind of SVID (x509, jwt) and result (ok, or a reason code).",
            ["kind", "result"],
            registry=self.registry,
        )
        self._calls = Counter(
            "podsvid_api_calls", "Calls taken on the volumes' sockets by method.", ["method"], registry=self.registry
        )
        self._open_calls = Gauge(
            "podsvid_api_open_calls",
            "Calls open on the volumes' sockets by method; streams, mostly.",
            ["method"],
            registry=self.registry,
        )
        self._refused_calls = Counter(
            "podsvid_api_refused_calls",
            "Calls refused, and connections of pods closed, because a limit was reached, by limit (connections: of a "
            "socket, of a pod, of all pods; first bytes: before HTTP/2's settings are acknowledged; descriptors).",
            ["limit"],
            registry=self.registry,
        )
        self._sds_pushes = Counter("podsvid_sds_pushes", "Responses sent to Envoys.", registry=self.registry)
        self._sds_rejections = Counter(
            "podsvid_sds_rejections", "Responses that Envoys rejected (NACK).", registry=self.registry
        )
        self._server_starts = Counter(
            "podsvid_socket_server_starts",
            "Starts of the process that serves pods' sockets; more than one since the agent started: it ended.",
            registry=self.registry,
        )
        self._sockets_apart = Gauge(
            "podsvid_sockets_apart",
            "Pods' sockets that are not served with all others, by where: quarantine (a process of their own), closed.",
            ["where"],
            registry=self.registry,
        )
        self._socket_moves = Counter(
            "podsvid_socket_moves",
            "Pods whose sockets were moved, by where to (shared, quarantine, closed) and why (memory, cpu, ended: what "
            "was wrong with the process that served them; innocent, quiet, over: they are served again).",
            ["to", "why"],
            registry=self.registry,
        )
        self._server_lacks = Gauge(
            "podsvid_socket_server_lacks",
            "What the process that serves pods' sockets could not give up, or bound: the log says what.",
            registry=self.registry,
        )
        self._jwt_svids = Counter("podsvid_jwt_svids_minted", "JWT-SVIDs minted.", registry=self.registry)
        self._volumes = Gauge("podsvid_volumes", "Published volumes.", registry=self.registry)
        self._waiting = Gauge(
            "podsvid_volumes_waiting",
            "Volumes of an earlier agent that are not picked up yet.",
            registry=self.registry,
        )
        self._memory = Gauge(
            "podsvid_memory_bytes",
            "The agent's memory limit (0 without one), what of it is used, what volumes take of that, and what they "
            "take once they hold all generations of their files.",
            ["of"],
            registry=self.registry,
        )
        self._states = Gauge(
            "podsvid_volumes_by_state",
            "Published volumes by state: ok, waiting (no SVID yet), retrying (a renewal failed), overdue, unwritten "
            "(the files hold an older SVID), closed (its socket, for a while), expired.",
            ["state"],
            registry=self.registry,
        )
        self._registered = Gauge(
            "podsvid_registered",
            "1 while kubelet has the driver registered, by driver name.",
            ["driver"],
            registry=self.registry,
        )
        self._build = Gauge(
            "podsvid_build_info", "1, with the version as a label.", ["version"], registry=self.registry
        )
        self._expiry = Gauge(
            "podsvid_earliest_expiry_timestamp_seconds",
            "When the first SVID on this node ends, as Unix time; 0 without any.",
            registry=self.registry,
        )
        self._signer_away = Gauge(
            "podsvid_signer_away_seconds",
            "For how long the signer has not answered; 0 while it does, and without one.",
            registry=self.registry,
        )
        self._clock_behind = Gauge(
            "podsvid_node_clock_behind_seconds",
            "How far this node's clock was behind the signer's when that signed an X.509-SVID last; below 0: ahead.",
            registry=self.registry,
        )
        self._tasks = Gauge(
            "podsvid_tasks",
            "Tasks of the event loop: calls, streams and renewals; it goes back when they end.",
            registry=self.registry,
        )
        self._queue_length = Gauge(
            "podsvid_queue_length",
            "What waits for its turn, by queue: publish (new volumes), unpublish, key (RSA keys), keystore, jwt "
            "(JWT-SVIDs that pods ask for), mint (calls to the signer).",
            ["queue"],
            registry=self.registry,
        )
        self._queue_wait = Histogram(
            "podsvid_queue_wait_seconds",
            "How long what got its turn had waited, by queue.",
            ["queue"],
            buckets=_PUBLISH_BUCKETS,
            registry=self.registry,
        )
        self._queue_refusals = Counter(
            "podsvid_queue_refusals",
            "What got no turn, by queue and why: full (too many of the pod's own wait), late (not in time).",
            ["queue", "why"],
            registry=self.registry,
        )
        self._http_refused = Counter(
            "podsvid_http_refused",
            "Connections cut off and pages refused to probes and scrapers, by listener (health, metrics) and why "
            "(address, crowded, deadline, head, leave, rate, request).",
            ["listener", "why"],
            registry=self.registry,
        )
        for kind in ("x509", "jwt"):
            self._rotations.labels(kind, "ok")
        for to, why in MOVES:
            self._socket_moves.labels(to, why)
        # What is watched is asked on the event loop, by these.
        self._shown = Shown()
        self.refresh = self._shown.refresh
        self.fresh = self._shown.fresh

    def published(self, result: str, seconds: float) -> None:
        """Count a NodePublishVolume call."""
        self._publish.labels(result).observe(seconds)

    def rotated(self, kind: str, result: str) -> None:
        """Count a renewal."""
        self._rotations.labels(kind, result).inc()

    def jwt_minted(self) -> None:
        """Count a JWT-SVID that an authority issued."""
        self._jwt_svids.inc()

    def sds_pushed(self) -> None:
        """Count a response to an Envoy."""
        self._sds_pushes.inc()

    def sds_rejected(self) -> None:
        """Count a response that an Envoy rejected."""
        self._sds_rejections.inc()

    def call_started(self, method: str) -> None:
        """Count a call that a socket took; `method` is one that is served."""
        self._calls.labels(method).inc()
        self._open_calls.labels(method).inc()

    def call_ended(self, method: str) -> None:
        """Count the end of a call."""
        self._open_calls.labels(method).dec()

    def call_refused(self, why: str) -> None:
        """Count a call above a limit."""
        self._refused_calls.labels(why).inc()

    def calls_taken(self, method: str, number: int) -> None:
        """Count calls that sockets took."""
        self._calls.labels(method).inc(number)

    def calls_opened(self, method: str, number: int) -> None:
        """So many more calls are open now, or fewer."""
        self._open_calls.labels(method).inc(number)

    def calls_refused(self, why: str, number: int) -> None:
        """Count calls above a limit."""
        self._refused_calls.labels(why).inc(number)

    def sds_answers(self, pushed: int, rejected: int) -> None:
        """Count responses to Envoys, and those that they rejected."""
        self._sds_pushes.inc(pushed)
        self._sds_rejections.inc(rejected)

    def server_started(self) -> None:
        """Count a start of the process that serves pods' sockets."""
        self._server_starts.inc()

    def socket_moved(self, to: str, why: str) -> None:
        """Count a pod whose sockets are served elsewhere from now on."""
        self._socket_moves.labels(to, why).inc()

    def watch_sockets(self, apart: Callable[[], Mapping[str, float]]) -> None:
        """Ask this for the sockets that are not served with all others, by APART."""
        self._shown.add_all({name: self._sockets_apart.labels(name) for name in APART}, apart)

    def server_lacks(self, number: int) -> None:
        """Show how much of its confinement that process lacks."""
        self._server_lacks.set(number)

    def watch_signer(self, away: Callable[[], float]) -> None:
        """Ask this for the seconds since the signer was lost."""
        self._shown.add(self._signer_away, away)

    def watch_clock(self, behind: Callable[[], float]) -> None:
        """Ask this for the seconds by which this node's clock is behind the signer's."""
        self._shown.add(self._clock_behind, behind)

    def watch_waiting(self, waiting: Callable[[], float]) -> None:
        """Ask this for the number of volumes that are not picked up."""
        self._shown.add(self._waiting, waiting)

    def watch_memory(self, figures: Callable[[], Mapping[str, float]]) -> None:
        """Ask this for bytes by MEMORY."""
        self._shown.add_all({name: self._memory.labels(name) for name in MEMORY}, figures)

    def queue(self, name: str) -> "Queue":
        """Counts for the queue of that name."""
        return Queue(self._queue_wait.labels(name), lambda why: self._queue_refusals.labels(name, why).inc())

    def watch_queue(self, name: str, waiting: Callable[[], float]) -> None:
        """Ask this for what waits there."""
        self._shown.add(self._queue_length.labels(name), waiting)

    def watch_tasks(self, tasks: Callable[[], float]) -> None:
        """Ask this for the number of tasks."""
        self._shown.add(self._tasks, tasks)

    def http_refused(self, listener: str, why: str) -> None:
        """Count a connection that was cut off, or a page that was refused; from any thread."""
        self._http_refused.labels(listener, why).inc()

    def built(self, version: str) -> None:
        """Say which version runs."""
        self._build.labels(version).set(1)

    def watch_registration(self, driver: str, registered: Callable[[], bool]) -> None:
        """Ask this whether kubelet has the driver."""
        self._shown.add(self._registered.labels(driver), lambda: float(registered()))

    def watch(
        self,
        volumes: Callable[[], float],
        earliest_expiry: Callable[[], float],
        states: Callable[[], Mapping[str, float]] = dict,
    ) -> None:
        """Ask these for the values of the gauges, as all that is watched: when somebody reads the metrics."""
        self._shown.add(self._volumes, volumes)
        self._shown.add(self._expiry, earliest_expiry)
        self._shown.add_all({name: self._states.labels(name) for name in STATES}, states)
