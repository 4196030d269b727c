"""What a person's commands keep of the cluster's objects.

What every object has is demanded: else any JSON would be a pod.
"""

from datetime import UTC, datetime

import msgspec

from signer.pod_certificate_settings import SIGNER_NAME


class Metadata(msgspec.Struct, frozen=True, rename="camel"):
    name: str
    namespace: str = ""
    uid: str = ""
    creation_timestamp: datetime | None = None
    deletion_timestamp: datetime | None = None


class Csi(msgspec.Struct, frozen=True, rename="camel"):
    driver: str = ""


class PodCertificate(msgspec.Struct, frozen=True, rename="camel"):
    signer_name: str = ""


class Source(msgspec.Struct, frozen=True, rename="camel"):
    pod_certificate: PodCertificate | None = None


class Projected(msgspec.Struct, frozen=True, rename="camel"):
    sources: tuple[Source, ...] | None = None


class Volume(msgspec.Struct, frozen=True, rename="camel"):
    csi: Csi | None = None
    projected: Projected | None = None

    @property
    def certified(self) -> bool:
        sources = (self.projected.sources if self.projected else None) or ()
        return any(each.pod_certificate and each.pod_certificate.signer_name == SIGNER_NAME for each in sources)


class Spec(msgspec.Struct, frozen=True, rename="camel"):
    node_name: str | None = None
    volumes: tuple[Volume, ...] | None = None


class Condition(msgspec.Struct, frozen=True, rename="camel"):
    type: str = ""
    status: str = ""


class Status(msgspec.Struct, frozen=True, rename="camel"):
    phase: str | None = None
    conditions: tuple[Condition, ...] | None = None


class Pod(msgspec.Struct, frozen=True, rename="camel"):
    metadata: Metadata
    spec: Spec = Spec()
    status: Status = Status()

    @property
    def ready(self) -> bool:
        return any(each.type == "Ready" and each.status == "True" for each in self.status.conditions or ())


class Pods(msgspec.Struct, frozen=True, rename="camel"):
    items: tuple[Pod, ...]


class Series(msgspec.Struct, frozen=True, rename="camel"):
    count: int | None = None
    last_observed_time: datetime | None = None


class Event(msgspec.Struct, frozen=True, rename="camel"):
    metadata: Metadata
    reason: str = ""
    message: str = ""
    reporting_component: str | None = None
    count: int | None = None
    last_timestamp: datetime | None = None
    event_time: datetime | None = None
    series: Series | None = None

    @property
    def last_seen(self) -> datetime:
        observed = self.series.last_observed_time if self.series else None
        found = observed or self.last_timestamp or self.event_time or self.metadata.creation_timestamp
        return found or datetime.fromtimestamp(0, UTC)

    @property
    def times(self) -> int:
        return (self.series.count if self.series else None) or self.count or 1


class Page(msgspec.Struct, frozen=True, rename="camel"):
    """Of a list that is read in parts; `more`: where the next one begins, empty of the last."""

    more: str = msgspec.field(default="", name="continue")


class Events(msgspec.Struct, frozen=True, rename="camel"):
    items: tuple[Event, ...]
    metadata: Page = Page()
