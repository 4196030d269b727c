"""What a replica's probes are answered: that it lives, and why it signs nothing yet."""

from collections.abc import Mapping

from signer.authority.key_care import KeyWatch
from signer.authority.rotation import Rotation


async def alive() -> str | None:
    """Who is answered at all is answered by the loop that does everything."""
    return None


def lacking(needed: Mapping[str, bool], rotation: Rotation, keys: KeyWatch) -> str | None:
    """What keeps a replica from signing; None when nothing does. `needed`: whether each is there, by its name."""
    missing = [name for name, there in needed.items() if not there]
    awaited = rotation.first.awaited or rotation.requests.first_awaited
    if missing and awaited:
        return awaited
    lacks = keys.lacking(rotation.state) if rotation.state is not None else ""
    if lacks:
        return lacks
    return f"not read yet: {', '.join(missing)}" if missing else None
