"""Which CA pool of Google's Certificate Authority Service certifies the authorities, and what contradicts that."""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from runtime.settings import Conflict

# As projects, locations and pools are called; the resource's name stands in paths.
POOL = re.compile(
    r"projects/[a-z][a-z0-9.:-]{3,80}/locations/[a-z]+(-[a-z0-9]+){1,4}/caPools/[A-Za-z0-9_-]{1,63}", re.ASCII
)
CA = re.compile(r"[A-Za-z0-9_-]{1,63}", re.ASCII)


@dataclass(frozen=True, slots=True)
class GoogleCasSettings:
    """As the settings `google_cas_*` have them; `roots` is upstream_bundle_file."""

    pool: str | None
    ca: str | None
    roots: Path | None

    def conflicts(self) -> Iterator[Conflict]:
        """What keeps these from being used."""
        if self.pool is None:
            yield Conflict(
                ("upstream", "google_cas_pool"),
                "say which pool certifies: projects/PROJECT/locations/LOCATION/caPools/POOL",
            )
