"""Why something is not a valid SPIFFE value. `reason` is stable; the text is for a person and holds no secret."""


class SvidError(Exception):
    """Base of this package's errors."""

    reason = "SVID_ERROR"


class InvalidSpiffeId(SvidError):
    """Not a SPIFFE ID or trust domain name."""

    reason = "INVALID_SPIFFE_ID"


class InvalidKey(SvidError):
    """Not a key, or not one of the listed algorithms."""

    reason = "INVALID_KEY"


class InvalidSvid(SvidError):
    """Not a valid X.509-SVID of its trust domain at the given time."""

    reason = "INVALID_X509_SVID"


class InvalidBundle(SvidError):
    """Not a usable trust bundle."""

    reason = "INVALID_TRUST_BUNDLE"


class IssuanceRefused(SvidError):
    """The authority must not sign what was asked for."""

    reason = "ISSUANCE_REFUSED"
