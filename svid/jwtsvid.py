"""JWT-SVIDs: what one is, and the one validator for everything issued or received (JWT-SVID.md sections 2 to 5)."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

from svid.spiffeid import SpiffeId


@dataclass(frozen=True, slots=True)
class JwtSvid:
    """A JWT-SVID: `token` is the JWS compact form, a bearer secret; `audiences` is `aud` as a list in its order.

    `issued_at` is None where the token has no `iat`. `claims` is the whole payload. `hint` may be empty.
    """

    spiffe_id: SpiffeId
    audiences: tuple[str, ...]
    expires_at: datetime
    issued_at: datetime | None
    token: str = field(repr=False)
    claims: Mapping[str, Any] = field(repr=False)
    hint: str = ""
