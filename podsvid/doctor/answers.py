"""What is kept of a signer's answers: those of other versions, or of what is no signer, are none."""

import msgspec


class Authority(msgspec.Struct, frozen=True):
    kind: str = ""
    id: str = ""
    stage: str = ""
    prepared_at: str | None = None
    activated_at: str | None = None
    not_after: str | None = None


class Root(msgspec.Struct, frozen=True):
    """Of the CA above."""

    subject: str = ""
    since: str | None = None
    not_after: str | None = None
    authorities: tuple[str, ...] | None = None


class Requested(msgspec.Struct, frozen=True):
    at: str = ""
    said: tuple[str, ...] | None = None


class Status(msgspec.Struct, frozen=True):
    """Of `authority show`."""

    sequence: str = ""
    leader: str = ""
    authorities: tuple[Authority, ...] | None = None
    agents: int = 0
    agents_waiting: int = 0
    waiting_nodes: tuple[str, ...] | None = None
    next: tuple[str, ...] | None = None
    to_do: tuple[str, ...] | None = None
    requested_x509: Requested | None = None
    upstream_roots: tuple[Root, ...] | None = None
    unknown: str = ""
    warnings: tuple[str, ...] | None = None


class Bundle(msgspec.Struct, frozen=True):
    """Of `bundle show`."""

    trust_domain: str = ""
    spiffe: str = ""
    pem: str = ""
