"""What one run of the quickstart was asked for."""

from dataclasses import dataclass

from podsvid.quickstart.place import Place


@dataclass(frozen=True)
class Settings:
    """The options, checked, with the directory that they led to; ``mounts``: whether the host allows any here."""

    place: Place
    pods: int
    ttl: str
    poll_interval: float
    trust_domain: str
    exit_after: int | None
    keystores: bool
    mounts: bool
