import datetime

from google.protobuf import timestamp_pb2 as _timestamp_pb2
from google.protobuf.internal import containers as _containers
from google.protobuf.internal import enum_type_wrapper as _enum_type_wrapper
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class Kind(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    KIND_UNSPECIFIED: _ClassVar[Kind]
    KIND_X509: _ClassVar[Kind]
    KIND_JWT: _ClassVar[Kind]
    KIND_BOTH: _ClassVar[Kind]

class Action(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    ACTION_UNSPECIFIED: _ClassVar[Action]
    ACTION_PREPARE: _ClassVar[Action]
    ACTION_ACTIVATE: _ClassVar[Action]
    ACTION_REVOKE: _ClassVar[Action]
    ACTION_ROTATE: _ClassVar[Action]
    ACTION_REVOKE_UPSTREAM: _ClassVar[Action]
    ACTION_TRUST_UPSTREAM: _ClassVar[Action]
KIND_UNSPECIFIED: Kind
KIND_X509: Kind
KIND_JWT: Kind
KIND_BOTH: Kind
ACTION_UNSPECIFIED: Action
ACTION_PREPARE: Action
ACTION_ACTIVATE: Action
ACTION_REVOKE: Action
ACTION_ROTATE: Action
ACTION_REVOKE_UPSTREAM: Action
ACTION_TRUST_UPSTREAM: Action

class PublishRequest(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class PublishResponse(_message.Message):
    __slots__ = ("trust_domain", "sequence", "spiffe", "pem", "issuer", "jwks_uri", "openid_configuration", "jwks", "token_issuer")
    TRUST_DOMAIN_FIELD_NUMBER: _ClassVar[int]
    SEQUENCE_FIELD_NUMBER: _ClassVar[int]
    SPIFFE_FIELD_NUMBER: _ClassVar[int]
    PEM_FIELD_NUMBER: _ClassVar[int]
    ISSUER_FIELD_NUMBER: _ClassVar[int]
    JWKS_URI_FIELD_NUMBER: _ClassVar[int]
    OPENID_CONFIGURATION_FIELD_NUMBER: _ClassVar[int]
    JWKS_FIELD_NUMBER: _ClassVar[int]
    TOKEN_ISSUER_FIELD_NUMBER: _ClassVar[int]
    trust_domain: str
    sequence: int
    spiffe: str
    pem: str
    issuer: str
    jwks_uri: str
    openid_configuration: str
    jwks: str
    token_issuer: str
    def __init__(self, trust_domain: _Optional[str] = ..., sequence: _Optional[int] = ..., spiffe: _Optional[str] = ..., pem: _Optional[str] = ..., issuer: _Optional[str] = ..., jwks_uri: _Optional[str] = ..., openid_configuration: _Optional[str] = ..., jwks: _Optional[str] = ..., token_issuer: _Optional[str] = ...) -> None: ...

class ExplainRequest(_message.Message):
    __slots__ = ("namespace", "pod")
    NAMESPACE_FIELD_NUMBER: _ClassVar[int]
    POD_FIELD_NUMBER: _ClassVar[int]
    namespace: str
    pod: str
    def __init__(self, namespace: _Optional[str] = ..., pod: _Optional[str] = ...) -> None: ...

class ExplainResponse(_message.Message):
    __slots__ = ("outcome", "policy", "spiffe_id", "matched", "not_matched", "x509_ttl", "x509_ttl_most", "ttl_clipped", "lost", "entitled", "certificate_ttl", "proxy_ttl", "subject")
    OUTCOME_FIELD_NUMBER: _ClassVar[int]
    POLICY_FIELD_NUMBER: _ClassVar[int]
    SPIFFE_ID_FIELD_NUMBER: _ClassVar[int]
    MATCHED_FIELD_NUMBER: _ClassVar[int]
    NOT_MATCHED_FIELD_NUMBER: _ClassVar[int]
    X509_TTL_FIELD_NUMBER: _ClassVar[int]
    X509_TTL_MOST_FIELD_NUMBER: _ClassVar[int]
    TTL_CLIPPED_FIELD_NUMBER: _ClassVar[int]
    LOST_FIELD_NUMBER: _ClassVar[int]
    ENTITLED_FIELD_NUMBER: _ClassVar[int]
    CERTIFICATE_TTL_FIELD_NUMBER: _ClassVar[int]
    PROXY_TTL_FIELD_NUMBER: _ClassVar[int]
    SUBJECT_FIELD_NUMBER: _ClassVar[int]
    outcome: str
    policy: str
    spiffe_id: str
    matched: _containers.RepeatedScalarFieldContainer[str]
    not_matched: _containers.RepeatedCompositeFieldContainer[NotMatched]
    x509_ttl: str
    x509_ttl_most: str
    ttl_clipped: str
    lost: _containers.RepeatedCompositeFieldContainer[Lost]
    entitled: str
    certificate_ttl: str
    proxy_ttl: str
    subject: str
    def __init__(self, outcome: _Optional[str] = ..., policy: _Optional[str] = ..., spiffe_id: _Optional[str] = ..., matched: _Optional[_Iterable[str]] = ..., not_matched: _Optional[_Iterable[_Union[NotMatched, _Mapping]]] = ..., x509_ttl: _Optional[str] = ..., x509_ttl_most: _Optional[str] = ..., ttl_clipped: _Optional[str] = ..., lost: _Optional[_Iterable[_Union[Lost, _Mapping]]] = ..., entitled: _Optional[str] = ..., certificate_ttl: _Optional[str] = ..., proxy_ttl: _Optional[str] = ..., subject: _Optional[str] = ...) -> None: ...

class NotMatched(_message.Message):
    __slots__ = ("policy", "because", "differences", "elsewhere")
    POLICY_FIELD_NUMBER: _ClassVar[int]
    BECAUSE_FIELD_NUMBER: _ClassVar[int]
    DIFFERENCES_FIELD_NUMBER: _ClassVar[int]
    ELSEWHERE_FIELD_NUMBER: _ClassVar[int]
    policy: str
    because: str
    differences: int
    elsewhere: bool
    def __init__(self, policy: _Optional[str] = ..., because: _Optional[str] = ..., differences: _Optional[int] = ..., elsewhere: _Optional[bool] = ...) -> None: ...

class Lost(_message.Message):
    __slots__ = ("policy", "because")
    POLICY_FIELD_NUMBER: _ClassVar[int]
    BECAUSE_FIELD_NUMBER: _ClassVar[int]
    policy: str
    because: str
    def __init__(self, policy: _Optional[str] = ..., because: _Optional[str] = ...) -> None: ...

class WatchRequest(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class StepRequest(_message.Message):
    __slots__ = ("action", "kind", "authority_id", "forced")
    ACTION_FIELD_NUMBER: _ClassVar[int]
    KIND_FIELD_NUMBER: _ClassVar[int]
    AUTHORITY_ID_FIELD_NUMBER: _ClassVar[int]
    FORCED_FIELD_NUMBER: _ClassVar[int]
    action: Action
    kind: Kind
    authority_id: str
    forced: bool
    def __init__(self, action: _Optional[_Union[Action, str]] = ..., kind: _Optional[_Union[Kind, str]] = ..., authority_id: _Optional[str] = ..., forced: _Optional[bool] = ...) -> None: ...

class StepResponse(_message.Message):
    __slots__ = ("message", "warnings")
    MESSAGE_FIELD_NUMBER: _ClassVar[int]
    WARNINGS_FIELD_NUMBER: _ClassVar[int]
    message: str
    warnings: _containers.RepeatedScalarFieldContainer[str]
    def __init__(self, message: _Optional[str] = ..., warnings: _Optional[_Iterable[str]] = ...) -> None: ...

class AuthorityStatus(_message.Message):
    __slots__ = ("trust_domain", "sequence", "leader", "authorities", "agents", "agents_waiting", "waiting_nodes", "next", "rotating_x509", "rotating_jwt", "reissuing_x509", "reissuing_jwt", "abandoned", "to_do", "requested_x509", "upstream_roots", "revoked_roots", "unknown", "warnings", "awaited")
    TRUST_DOMAIN_FIELD_NUMBER: _ClassVar[int]
    SEQUENCE_FIELD_NUMBER: _ClassVar[int]
    LEADER_FIELD_NUMBER: _ClassVar[int]
    AUTHORITIES_FIELD_NUMBER: _ClassVar[int]
    AGENTS_FIELD_NUMBER: _ClassVar[int]
    AGENTS_WAITING_FIELD_NUMBER: _ClassVar[int]
    WAITING_NODES_FIELD_NUMBER: _ClassVar[int]
    NEXT_FIELD_NUMBER: _ClassVar[int]
    ROTATING_X509_FIELD_NUMBER: _ClassVar[int]
    ROTATING_JWT_FIELD_NUMBER: _ClassVar[int]
    REISSUING_X509_FIELD_NUMBER: _ClassVar[int]
    REISSUING_JWT_FIELD_NUMBER: _ClassVar[int]
    ABANDONED_FIELD_NUMBER: _ClassVar[int]
    TO_DO_FIELD_NUMBER: _ClassVar[int]
    REQUESTED_X509_FIELD_NUMBER: _ClassVar[int]
    UPSTREAM_ROOTS_FIELD_NUMBER: _ClassVar[int]
    REVOKED_ROOTS_FIELD_NUMBER: _ClassVar[int]
    UNKNOWN_FIELD_NUMBER: _ClassVar[int]
    WARNINGS_FIELD_NUMBER: _ClassVar[int]
    AWAITED_FIELD_NUMBER: _ClassVar[int]
    trust_domain: str
    sequence: int
    leader: str
    authorities: _containers.RepeatedCompositeFieldContainer[Authority]
    agents: int
    agents_waiting: int
    waiting_nodes: _containers.RepeatedScalarFieldContainer[str]
    next: _containers.RepeatedScalarFieldContainer[str]
    rotating_x509: bool
    rotating_jwt: bool
    reissuing_x509: bool
    reissuing_jwt: bool
    abandoned: _containers.RepeatedCompositeFieldContainer[Abandoned]
    to_do: _containers.RepeatedScalarFieldContainer[str]
    requested_x509: Requested
    upstream_roots: _containers.RepeatedCompositeFieldContainer[UpstreamRoot]
    revoked_roots: _containers.RepeatedCompositeFieldContainer[RevokedRoot]
    unknown: str
    warnings: _containers.RepeatedScalarFieldContainer[str]
    awaited: _containers.RepeatedCompositeFieldContainer[Awaited]
    def __init__(self, trust_domain: _Optional[str] = ..., sequence: _Optional[int] = ..., leader: _Optional[str] = ..., authorities: _Optional[_Iterable[_Union[Authority, _Mapping]]] = ..., agents: _Optional[int] = ..., agents_waiting: _Optional[int] = ..., waiting_nodes: _Optional[_Iterable[str]] = ..., next: _Optional[_Iterable[str]] = ..., rotating_x509: _Optional[bool] = ..., rotating_jwt: _Optional[bool] = ..., reissuing_x509: _Optional[bool] = ..., reissuing_jwt: _Optional[bool] = ..., abandoned: _Optional[_Iterable[_Union[Abandoned, _Mapping]]] = ..., to_do: _Optional[_Iterable[str]] = ..., requested_x509: _Optional[_Union[Requested, _Mapping]] = ..., upstream_roots: _Optional[_Iterable[_Union[UpstreamRoot, _Mapping]]] = ..., revoked_roots: _Optional[_Iterable[_Union[RevokedRoot, _Mapping]]] = ..., unknown: _Optional[str] = ..., warnings: _Optional[_Iterable[str]] = ..., awaited: _Optional[_Iterable[_Union[Awaited, _Mapping]]] = ...) -> None: ...

class Awaited(_message.Message):
    __slots__ = ("kind", "id", "audience", "until")
    KIND_FIELD_NUMBER: _ClassVar[int]
    ID_FIELD_NUMBER: _ClassVar[int]
    AUDIENCE_FIELD_NUMBER: _ClassVar[int]
    UNTIL_FIELD_NUMBER: _ClassVar[int]
    kind: Kind
    id: str
    audience: str
    until: _timestamp_pb2.Timestamp
    def __init__(self, kind: _Optional[_Union[Kind, str]] = ..., id: _Optional[str] = ..., audience: _Optional[str] = ..., until: _Optional[_Union[datetime.datetime, _timestamp_pb2.Timestamp, _Mapping]] = ...) -> None: ...

class Requested(_message.Message):
    __slots__ = ("id", "at", "since", "submitted", "said")
    ID_FIELD_NUMBER: _ClassVar[int]
    AT_FIELD_NUMBER: _ClassVar[int]
    SINCE_FIELD_NUMBER: _ClassVar[int]
    SUBMITTED_FIELD_NUMBER: _ClassVar[int]
    SAID_FIELD_NUMBER: _ClassVar[int]
    id: str
    at: str
    since: _timestamp_pb2.Timestamp
    submitted: bool
    said: _containers.RepeatedScalarFieldContainer[str]
    def __init__(self, id: _Optional[str] = ..., at: _Optional[str] = ..., since: _Optional[_Union[datetime.datetime, _timestamp_pb2.Timestamp, _Mapping]] = ..., submitted: _Optional[bool] = ..., said: _Optional[_Iterable[str]] = ...) -> None: ...

class UpstreamRoot(_message.Message):
    __slots__ = ("id", "subject", "since", "leaves_at", "not_after", "key_id", "authorities")
    ID_FIELD_NUMBER: _ClassVar[int]
    SUBJECT_FIELD_NUMBER: _ClassVar[int]
    SINCE_FIELD_NUMBER: _ClassVar[int]
    LEAVES_AT_FIELD_NUMBER: _ClassVar[int]
    NOT_AFTER_FIELD_NUMBER: _ClassVar[int]
    KEY_ID_FIELD_NUMBER: _ClassVar[int]
    AUTHORITIES_FIELD_NUMBER: _ClassVar[int]
    id: str
    subject: str
    since: _timestamp_pb2.Timestamp
    leaves_at: _timestamp_pb2.Timestamp
    not_after: _timestamp_pb2.Timestamp
    key_id: str
    authorities: _containers.RepeatedScalarFieldContainer[str]
    def __init__(self, id: _Optional[str] = ..., subject: _Optional[str] = ..., since: _Optional[_Union[datetime.datetime, _timestamp_pb2.Timestamp, _Mapping]] = ..., leaves_at: _Optional[_Union[datetime.datetime, _timestamp_pb2.Timestamp, _Mapping]] = ..., not_after: _Optional[_Union[datetime.datetime, _timestamp_pb2.Timestamp, _Mapping]] = ..., key_id: _Optional[str] = ..., authorities: _Optional[_Iterable[str]] = ...) -> None: ...

class RevokedRoot(_message.Message):
    __slots__ = ("id", "key_id", "subject", "asked_at", "trusted")
    ID_FIELD_NUMBER: _ClassVar[int]
    KEY_ID_FIELD_NUMBER: _ClassVar[int]
    SUBJECT_FIELD_NUMBER: _ClassVar[int]
    ASKED_AT_FIELD_NUMBER: _ClassVar[int]
    TRUSTED_FIELD_NUMBER: _ClassVar[int]
    id: str
    key_id: str
    subject: str
    asked_at: _timestamp_pb2.Timestamp
    trusted: bool
    def __init__(self, id: _Optional[str] = ..., key_id: _Optional[str] = ..., subject: _Optional[str] = ..., asked_at: _Optional[_Union[datetime.datetime, _timestamp_pb2.Timestamp, _Mapping]] = ..., trusted: _Optional[bool] = ...) -> None: ...

class Abandoned(_message.Message):
    __slots__ = ("kind", "id", "asked_at", "left_at", "svids_end", "replaced", "certified_until")
    KIND_FIELD_NUMBER: _ClassVar[int]
    ID_FIELD_NUMBER: _ClassVar[int]
    ASKED_AT_FIELD_NUMBER: _ClassVar[int]
    LEFT_AT_FIELD_NUMBER: _ClassVar[int]
    SVIDS_END_FIELD_NUMBER: _ClassVar[int]
    REPLACED_FIELD_NUMBER: _ClassVar[int]
    CERTIFIED_UNTIL_FIELD_NUMBER: _ClassVar[int]
    kind: Kind
    id: str
    asked_at: _timestamp_pb2.Timestamp
    left_at: _timestamp_pb2.Timestamp
    svids_end: _timestamp_pb2.Timestamp
    replaced: bool
    certified_until: _timestamp_pb2.Timestamp
    def __init__(self, kind: _Optional[_Union[Kind, str]] = ..., id: _Optional[str] = ..., asked_at: _Optional[_Union[datetime.datetime, _timestamp_pb2.Timestamp, _Mapping]] = ..., left_at: _Optional[_Union[datetime.datetime, _timestamp_pb2.Timestamp, _Mapping]] = ..., svids_end: _Optional[_Union[datetime.datetime, _timestamp_pb2.Timestamp, _Mapping]] = ..., replaced: _Optional[bool] = ..., certified_until: _Optional[_Union[datetime.datetime, _timestamp_pb2.Timestamp, _Mapping]] = ...) -> None: ...

class Authority(_message.Message):
    __slots__ = ("kind", "id", "stage", "prepared_at", "activated_at", "leaves_at", "not_after", "svids", "svids_known")
    KIND_FIELD_NUMBER: _ClassVar[int]
    ID_FIELD_NUMBER: _ClassVar[int]
    STAGE_FIELD_NUMBER: _ClassVar[int]
    PREPARED_AT_FIELD_NUMBER: _ClassVar[int]
    ACTIVATED_AT_FIELD_NUMBER: _ClassVar[int]
    LEAVES_AT_FIELD_NUMBER: _ClassVar[int]
    NOT_AFTER_FIELD_NUMBER: _ClassVar[int]
    SVIDS_FIELD_NUMBER: _ClassVar[int]
    SVIDS_KNOWN_FIELD_NUMBER: _ClassVar[int]
    kind: Kind
    id: str
    stage: str
    prepared_at: _timestamp_pb2.Timestamp
    activated_at: _timestamp_pb2.Timestamp
    leaves_at: _timestamp_pb2.Timestamp
    not_after: _timestamp_pb2.Timestamp
    svids: int
    svids_known: bool
    def __init__(self, kind: _Optional[_Union[Kind, str]] = ..., id: _Optional[str] = ..., stage: _Optional[str] = ..., prepared_at: _Optional[_Union[datetime.datetime, _timestamp_pb2.Timestamp, _Mapping]] = ..., activated_at: _Optional[_Union[datetime.datetime, _timestamp_pb2.Timestamp, _Mapping]] = ..., leaves_at: _Optional[_Union[datetime.datetime, _timestamp_pb2.Timestamp, _Mapping]] = ..., not_after: _Optional[_Union[datetime.datetime, _timestamp_pb2.Timestamp, _Mapping]] = ..., svids: _Optional[int] = ..., svids_known: _Optional[bool] = ...) -> None: ...
