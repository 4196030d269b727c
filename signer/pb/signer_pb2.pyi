import datetime

from google.protobuf import timestamp_pb2 as _timestamp_pb2
from google.protobuf.internal import containers as _containers
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class Pod(_message.Message):
    __slots__ = ("namespace", "name", "uid")
    NAMESPACE_FIELD_NUMBER: _ClassVar[int]
    NAME_FIELD_NUMBER: _ClassVar[int]
    UID_FIELD_NUMBER: _ClassVar[int]
    namespace: str
    name: str
    uid: str
    def __init__(self, namespace: _Optional[str] = ..., name: _Optional[str] = ..., uid: _Optional[str] = ...) -> None: ...

class MintX509SVIDRequest(_message.Message):
    __slots__ = ("pod", "pod_token", "csr", "ttl_seconds", "dns_names", "ttl")
    POD_FIELD_NUMBER: _ClassVar[int]
    POD_TOKEN_FIELD_NUMBER: _ClassVar[int]
    CSR_FIELD_NUMBER: _ClassVar[int]
    TTL_SECONDS_FIELD_NUMBER: _ClassVar[int]
    DNS_NAMES_FIELD_NUMBER: _ClassVar[int]
    TTL_FIELD_NUMBER: _ClassVar[int]
    pod: Pod
    pod_token: str
    csr: bytes
    ttl_seconds: int
    dns_names: _containers.RepeatedScalarFieldContainer[str]
    ttl: str
    def __init__(self, pod: _Optional[_Union[Pod, _Mapping]] = ..., pod_token: _Optional[str] = ..., csr: _Optional[bytes] = ..., ttl_seconds: _Optional[int] = ..., dns_names: _Optional[_Iterable[str]] = ..., ttl: _Optional[str] = ...) -> None: ...

class MintX509SVIDResponse(_message.Message):
    __slots__ = ("spiffe_id", "chain", "trust_sequence", "renew_from", "renew_until", "hint", "federates_with", "federates_with_all", "notice", "policy", "signed_at")
    SPIFFE_ID_FIELD_NUMBER: _ClassVar[int]
    CHAIN_FIELD_NUMBER: _ClassVar[int]
    TRUST_SEQUENCE_FIELD_NUMBER: _ClassVar[int]
    RENEW_FROM_FIELD_NUMBER: _ClassVar[int]
    RENEW_UNTIL_FIELD_NUMBER: _ClassVar[int]
    HINT_FIELD_NUMBER: _ClassVar[int]
    FEDERATES_WITH_FIELD_NUMBER: _ClassVar[int]
    FEDERATES_WITH_ALL_FIELD_NUMBER: _ClassVar[int]
    NOTICE_FIELD_NUMBER: _ClassVar[int]
    POLICY_FIELD_NUMBER: _ClassVar[int]
    SIGNED_AT_FIELD_NUMBER: _ClassVar[int]
    spiffe_id: str
    chain: bytes
    trust_sequence: int
    renew_from: _timestamp_pb2.Timestamp
    renew_until: _timestamp_pb2.Timestamp
    hint: str
    federates_with: _containers.RepeatedScalarFieldContainer[str]
    federates_with_all: bool
    notice: str
    policy: str
    signed_at: _timestamp_pb2.Timestamp
    def __init__(self, spiffe_id: _Optional[str] = ..., chain: _Optional[bytes] = ..., trust_sequence: _Optional[int] = ..., renew_from: _Optional[_Union[datetime.datetime, _timestamp_pb2.Timestamp, _Mapping]] = ..., renew_until: _Optional[_Union[datetime.datetime, _timestamp_pb2.Timestamp, _Mapping]] = ..., hint: _Optional[str] = ..., federates_with: _Optional[_Iterable[str]] = ..., federates_with_all: _Optional[bool] = ..., notice: _Optional[str] = ..., policy: _Optional[str] = ..., signed_at: _Optional[_Union[datetime.datetime, _timestamp_pb2.Timestamp, _Mapping]] = ...) -> None: ...

class MintX509SVIDsRequest(_message.Message):
    __slots__ = ("items",)
    ITEMS_FIELD_NUMBER: _ClassVar[int]
    items: _containers.RepeatedCompositeFieldContainer[MintX509SVIDItem]
    def __init__(self, items: _Optional[_Iterable[_Union[MintX509SVIDItem, _Mapping]]] = ...) -> None: ...

class MintX509SVIDItem(_message.Message):
    __slots__ = ("request", "traceparent")
    REQUEST_FIELD_NUMBER: _ClassVar[int]
    TRACEPARENT_FIELD_NUMBER: _ClassVar[int]
    request: MintX509SVIDRequest
    traceparent: str
    def __init__(self, request: _Optional[_Union[MintX509SVIDRequest, _Mapping]] = ..., traceparent: _Optional[str] = ...) -> None: ...

class MintX509SVIDsResponse(_message.Message):
    __slots__ = ("outcomes",)
    OUTCOMES_FIELD_NUMBER: _ClassVar[int]
    outcomes: _containers.RepeatedCompositeFieldContainer[MintX509SVIDOutcome]
    def __init__(self, outcomes: _Optional[_Iterable[_Union[MintX509SVIDOutcome, _Mapping]]] = ...) -> None: ...

class MintX509SVIDOutcome(_message.Message):
    __slots__ = ("item", "answer", "refusal")
    ITEM_FIELD_NUMBER: _ClassVar[int]
    ANSWER_FIELD_NUMBER: _ClassVar[int]
    REFUSAL_FIELD_NUMBER: _ClassVar[int]
    item: int
    answer: MintX509SVIDResponse
    refusal: bytes
    def __init__(self, item: _Optional[int] = ..., answer: _Optional[_Union[MintX509SVIDResponse, _Mapping]] = ..., refusal: _Optional[bytes] = ...) -> None: ...

class MintJWTSVIDRequest(_message.Message):
    __slots__ = ("pod", "pod_token", "spiffe_id", "audiences")
    POD_FIELD_NUMBER: _ClassVar[int]
    POD_TOKEN_FIELD_NUMBER: _ClassVar[int]
    SPIFFE_ID_FIELD_NUMBER: _ClassVar[int]
    AUDIENCES_FIELD_NUMBER: _ClassVar[int]
    pod: Pod
    pod_token: str
    spiffe_id: str
    audiences: _containers.RepeatedScalarFieldContainer[str]
    def __init__(self, pod: _Optional[_Union[Pod, _Mapping]] = ..., pod_token: _Optional[str] = ..., spiffe_id: _Optional[str] = ..., audiences: _Optional[_Iterable[str]] = ...) -> None: ...

class MintJWTSVIDResponse(_message.Message):
    __slots__ = ("token", "renew_from", "renew_until", "reusable")
    TOKEN_FIELD_NUMBER: _ClassVar[int]
    RENEW_FROM_FIELD_NUMBER: _ClassVar[int]
    RENEW_UNTIL_FIELD_NUMBER: _ClassVar[int]
    REUSABLE_FIELD_NUMBER: _ClassVar[int]
    token: str
    renew_from: _timestamp_pb2.Timestamp
    renew_until: _timestamp_pb2.Timestamp
    reusable: bool
    def __init__(self, token: _Optional[str] = ..., renew_from: _Optional[_Union[datetime.datetime, _timestamp_pb2.Timestamp, _Mapping]] = ..., renew_until: _Optional[_Union[datetime.datetime, _timestamp_pb2.Timestamp, _Mapping]] = ..., reusable: _Optional[bool] = ...) -> None: ...

class WatchTrustRequest(_message.Message):
    __slots__ = ("acknowledged_sequence", "in_use", "agent_version", "digest")
    ACKNOWLEDGED_SEQUENCE_FIELD_NUMBER: _ClassVar[int]
    IN_USE_FIELD_NUMBER: _ClassVar[int]
    AGENT_VERSION_FIELD_NUMBER: _ClassVar[int]
    DIGEST_FIELD_NUMBER: _ClassVar[int]
    acknowledged_sequence: int
    in_use: _containers.RepeatedCompositeFieldContainer[AuthorityUse]
    agent_version: str
    digest: bytes
    def __init__(self, acknowledged_sequence: _Optional[int] = ..., in_use: _Optional[_Iterable[_Union[AuthorityUse, _Mapping]]] = ..., agent_version: _Optional[str] = ..., digest: _Optional[bytes] = ...) -> None: ...

class AuthorityUse(_message.Message):
    __slots__ = ("authority_id", "svids")
    AUTHORITY_ID_FIELD_NUMBER: _ClassVar[int]
    SVIDS_FIELD_NUMBER: _ClassVar[int]
    authority_id: str
    svids: int
    def __init__(self, authority_id: _Optional[str] = ..., svids: _Optional[int] = ...) -> None: ...

class WatchTrustResponse(_message.Message):
    __slots__ = ("sequence", "bundles", "renew", "issues_jwt", "digest")
    SEQUENCE_FIELD_NUMBER: _ClassVar[int]
    BUNDLES_FIELD_NUMBER: _ClassVar[int]
    RENEW_FIELD_NUMBER: _ClassVar[int]
    ISSUES_JWT_FIELD_NUMBER: _ClassVar[int]
    DIGEST_FIELD_NUMBER: _ClassVar[int]
    sequence: int
    bundles: _containers.RepeatedCompositeFieldContainer[Bundle]
    renew: _containers.RepeatedCompositeFieldContainer[RenewalDirective]
    issues_jwt: bool
    digest: bytes
    def __init__(self, sequence: _Optional[int] = ..., bundles: _Optional[_Iterable[_Union[Bundle, _Mapping]]] = ..., renew: _Optional[_Iterable[_Union[RenewalDirective, _Mapping]]] = ..., issues_jwt: _Optional[bool] = ..., digest: _Optional[bytes] = ...) -> None: ...

class Bundle(_message.Message):
    __slots__ = ("trust_domain", "jwks")
    TRUST_DOMAIN_FIELD_NUMBER: _ClassVar[int]
    JWKS_FIELD_NUMBER: _ClassVar[int]
    trust_domain: str
    jwks: bytes
    def __init__(self, trust_domain: _Optional[str] = ..., jwks: _Optional[bytes] = ...) -> None: ...

class RenewalDirective(_message.Message):
    __slots__ = ("authority_id", "until")
    AUTHORITY_ID_FIELD_NUMBER: _ClassVar[int]
    FROM_FIELD_NUMBER: _ClassVar[int]
    UNTIL_FIELD_NUMBER: _ClassVar[int]
    authority_id: str
    until: _timestamp_pb2.Timestamp
    def __init__(self, authority_id: _Optional[str] = ..., until: _Optional[_Union[datetime.datetime, _timestamp_pb2.Timestamp, _Mapping]] = ..., **kwargs) -> None: ...
