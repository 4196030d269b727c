"""What the agent counts, in one registry that is made and handed in. Labels name outcomes, never volumes or pods."""

from collections.abc import Callable

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

_PUBLISH_BUCKETS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30)


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
            "podsvid_rotations", "SVID rotations by result (ok, or a reason code).", ["result"], registry=self.registry
        )
        self.streams = Gauge("podsvid_workload_api_streams", "Open Workload API streams.", registry=self.registry)
        self._volumes = Gauge("podsvid_volumes", "Published volumes.", registry=self.registry)
        self._expiry = Gauge(
            "podsvid_earliest_expiry_timestamp_seconds",
            "When the first SVID on this node ends, as Unix time; 0 without any.",
            registry=self.registry,
        )
        self._rotations.labels("ok")

    def published(self, result: str, seconds: float) -> None:
        """Count a NodePublishVolume call."""
        self._publish.labels(result).observe(seconds)

    def rotated(self, result: str) -> None:
        """Count a rotation."""
        self._rotations.labels(result).inc()

    def watch(self, volumes: Callable[[], float], earliest_expiry: Callable[[], float]) -> None:
        """Ask these for the values of the gauges at each scrape."""
        self._volumes.set_function(volumes)
        self._expiry.set_function(earliest_expiry)
