"""What a call by gRPC says beside its messages, for whoever reads it away from gRPC's doors."""

from collections.abc import Sequence
from typing import TypeAlias

# gRPC's metadata: names in lower case; bytes where a name ends in `-bin`.
Headers: TypeAlias = Sequence[tuple[str, str | bytes]]
