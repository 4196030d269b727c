import datetime

from google.protobuf import timestamp_pb2 as _timestamp_pb2
from google.protobuf.internal import containers as _containers
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class ListRequest(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class ListResponse(_message.Message):
    __slots__ = ("volumes",)
    VOLUMES_FIELD_NUMBER: _ClassVar[int]
    volumes: _containers.RepeatedCompositeFieldContainer[Volume]
    def __init__(self, volumes: _Optional[_Iterable[_Union[Volume, _Mapping]]] = ...) -> None: ...

class ExplainRequest(_message.Message):
    __slots__ = ("namespace", "pod")
    NAMESPACE_FIELD_NUMBER: _ClassVar[int]
    POD_FIELD_NUMBER: _ClassVar[int]
    namespace: str
    pod: str
    def __init__(self, namespace: _Optional[str] = ..., pod: _Optional[str] = ...) -> None: ...

class ExplainResponse(_message.Message):
    __slots__ = ("volumes", "publish_problems", "authority")
    VOLUMES_FIELD_NUMBER: _ClassVar[int]
    PUBLISH_PROBLEMS_FIELD_NUMBER: _ClassVar[int]
    AUTHORITY_FIELD_NUMBER: _ClassVar[int]
    volumes: _containers.RepeatedCompositeFieldContainer[Volume]
    publish_problems: _containers.RepeatedCompositeFieldContainer[Problem]
    authority: str
    def __init__(self, volumes: _Optional[_Iterable[_Union[Volume, _Mapping]]] = ..., publish_problems: _Optional[_Iterable[_Union[Problem, _Mapping]]] = ..., authority: _Optional[str] = ...) -> None: ...

class RotateRequest(_message.Message):
    __slots__ = ("namespace", "pod")
    NAMESPACE_FIELD_NUMBER: _ClassVar[int]
    POD_FIELD_NUMBER: _ClassVar[int]
    namespace: str
    pod: str
    def __init__(self, namespace: _Optional[str] = ..., pod: _Optional[str] = ...) -> None: ...

class RotateResponse(_message.Message):
    __slots__ = ("volumes",)
    VOLUMES_FIELD_NUMBER: _ClassVar[int]
    volumes: _containers.RepeatedCompositeFieldContainer[Volume]
    def __init__(self, volumes: _Optional[_Iterable[_Union[Volume, _Mapping]]] = ...) -> None: ...

class Volume(_message.Message):
    __slots__ = ("volume_id", "namespace", "pod", "pod_uid", "service_account", "driver", "layout", "state", "spiffe_id", "serial", "authority_id", "not_before", "not_after", "renew_at", "renew_because", "failures", "retry_at", "directory", "files", "files_written_at", "open_streams", "streams", "peers", "problems", "next_publish", "notice", "state_reason", "jwt_files", "files_serial", "files_not_after", "key_algorithm", "renew_from", "renew_until", "policy")
    VOLUME_ID_FIELD_NUMBER: _ClassVar[int]
    NAMESPACE_FIELD_NUMBER: _ClassVar[int]
    POD_FIELD_NUMBER: _ClassVar[int]
    POD_UID_FIELD_NUMBER: _ClassVar[int]
    SERVICE_ACCOUNT_FIELD_NUMBER: _ClassVar[int]
    DRIVER_FIELD_NUMBER: _ClassVar[int]
    LAYOUT_FIELD_NUMBER: _ClassVar[int]
    STATE_FIELD_NUMBER: _ClassVar[int]
    SPIFFE_ID_FIELD_NUMBER: _ClassVar[int]
    SERIAL_FIELD_NUMBER: _ClassVar[int]
    AUTHORITY_ID_FIELD_NUMBER: _ClassVar[int]
    NOT_BEFORE_FIELD_NUMBER: _ClassVar[int]
    NOT_AFTER_FIELD_NUMBER: _ClassVar[int]
    RENEW_AT_FIELD_NUMBER: _ClassVar[int]
    RENEW_BECAUSE_FIELD_NUMBER: _ClassVar[int]
    FAILURES_FIELD_NUMBER: _ClassVar[int]
    RETRY_AT_FIELD_NUMBER: _ClassVar[int]
    DIRECTORY_FIELD_NUMBER: _ClassVar[int]
    FILES_FIELD_NUMBER: _ClassVar[int]
    FILES_WRITTEN_AT_FIELD_NUMBER: _ClassVar[int]
    OPEN_STREAMS_FIELD_NUMBER: _ClassVar[int]
    STREAMS_FIELD_NUMBER: _ClassVar[int]
    PEERS_FIELD_NUMBER: _ClassVar[int]
    PROBLEMS_FIELD_NUMBER: _ClassVar[int]
    NEXT_PUBLISH_FIELD_NUMBER: _ClassVar[int]
    NOTICE_FIELD_NUMBER: _ClassVar[int]
    STATE_REASON_FIELD_NUMBER: _ClassVar[int]
    JWT_FILES_FIELD_NUMBER: _ClassVar[int]
    FILES_SERIAL_FIELD_NUMBER: _ClassVar[int]
    FILES_NOT_AFTER_FIELD_NUMBER: _ClassVar[int]
    KEY_ALGORITHM_FIELD_NUMBER: _ClassVar[int]
    RENEW_FROM_FIELD_NUMBER: _ClassVar[int]
    RENEW_UNTIL_FIELD_NUMBER: _ClassVar[int]
    POLICY_FIELD_NUMBER: _ClassVar[int]
    volume_id: str
    namespace: str
    pod: str
    pod_uid: str
    service_account: str
    driver: str
    layout: str
    state: str
    spiffe_id: str
    serial: str
    authority_id: str
    not_before: _timestamp_pb2.Timestamp
    not_after: _timestamp_pb2.Timestamp
    renew_at: _timestamp_pb2.Timestamp
    renew_because: str
    failures: int
    retry_at: _timestamp_pb2.Timestamp
    directory: str
    files: _containers.RepeatedScalarFieldContainer[str]
    files_written_at: _timestamp_pb2.Timestamp
    open_streams: int
    streams: _containers.RepeatedCompositeFieldContainer[Stream]
    peers: _containers.RepeatedCompositeFieldContainer[Peer]
    problems: _containers.RepeatedCompositeFieldContainer[Problem]
    next_publish: str
    notice: str
    state_reason: str
    jwt_files: _containers.RepeatedCompositeFieldContainer[JwtFile]
    files_serial: str
    files_not_after: _timestamp_pb2.Timestamp
    key_algorithm: str
    renew_from: _timestamp_pb2.Timestamp
    renew_until: _timestamp_pb2.Timestamp
    policy: str
    def __init__(self, volume_id: _Optional[str] = ..., namespace: _Optional[str] = ..., pod: _Optional[str] = ..., pod_uid: _Optional[str] = ..., service_account: _Optional[str] = ..., driver: _Optional[str] = ..., layout: _Optional[str] = ..., state: _Optional[str] = ..., spiffe_id: _Optional[str] = ..., serial: _Optional[str] = ..., authority_id: _Optional[str] = ..., not_before: _Optional[_Union[datetime.datetime, _timestamp_pb2.Timestamp, _Mapping]] = ..., not_after: _Optional[_Union[datetime.datetime, _timestamp_pb2.Timestamp, _Mapping]] = ..., renew_at: _Optional[_Union[datetime.datetime, _timestamp_pb2.Timestamp, _Mapping]] = ..., renew_because: _Optional[str] = ..., failures: _Optional[int] = ..., retry_at: _Optional[_Union[datetime.datetime, _timestamp_pb2.Timestamp, _Mapping]] = ..., directory: _Optional[str] = ..., files: _Optional[_Iterable[str]] = ..., files_written_at: _Optional[_Union[datetime.datetime, _timestamp_pb2.Timestamp, _Mapping]] = ..., open_streams: _Optional[int] = ..., streams: _Optional[_Iterable[_Union[Stream, _Mapping]]] = ..., peers: _Optional[_Iterable[_Union[Peer, _Mapping]]] = ..., problems: _Optional[_Iterable[_Union[Problem, _Mapping]]] = ..., next_publish: _Optional[str] = ..., notice: _Optional[str] = ..., state_reason: _Optional[str] = ..., jwt_files: _Optional[_Iterable[_Union[JwtFile, _Mapping]]] = ..., files_serial: _Optional[str] = ..., files_not_after: _Optional[_Union[datetime.datetime, _timestamp_pb2.Timestamp, _Mapping]] = ..., key_algorithm: _Optional[str] = ..., renew_from: _Optional[_Union[datetime.datetime, _timestamp_pb2.Timestamp, _Mapping]] = ..., renew_until: _Optional[_Union[datetime.datetime, _timestamp_pb2.Timestamp, _Mapping]] = ..., policy: _Optional[str] = ...) -> None: ...

class JwtFile(_message.Message):
    __slots__ = ("name", "audiences", "not_after", "renew_at")
    NAME_FIELD_NUMBER: _ClassVar[int]
    AUDIENCES_FIELD_NUMBER: _ClassVar[int]
    NOT_AFTER_FIELD_NUMBER: _ClassVar[int]
    RENEW_AT_FIELD_NUMBER: _ClassVar[int]
    name: str
    audiences: _containers.RepeatedScalarFieldContainer[str]
    not_after: _timestamp_pb2.Timestamp
    renew_at: _timestamp_pb2.Timestamp
    def __init__(self, name: _Optional[str] = ..., audiences: _Optional[_Iterable[str]] = ..., not_after: _Optional[_Union[datetime.datetime, _timestamp_pb2.Timestamp, _Mapping]] = ..., renew_at: _Optional[_Union[datetime.datetime, _timestamp_pb2.Timestamp, _Mapping]] = ...) -> None: ...

class Stream(_message.Message):
    __slots__ = ("method", "open_seconds")
    METHOD_FIELD_NUMBER: _ClassVar[int]
    OPEN_SECONDS_FIELD_NUMBER: _ClassVar[int]
    method: str
    open_seconds: int
    def __init__(self, method: _Optional[str] = ..., open_seconds: _Optional[int] = ...) -> None: ...

class Peer(_message.Message):
    __slots__ = ("uid", "gid", "pid", "command")
    UID_FIELD_NUMBER: _ClassVar[int]
    GID_FIELD_NUMBER: _ClassVar[int]
    PID_FIELD_NUMBER: _ClassVar[int]
    COMMAND_FIELD_NUMBER: _ClassVar[int]
    uid: int
    gid: int
    pid: int
    command: str
    def __init__(self, uid: _Optional[int] = ..., gid: _Optional[int] = ..., pid: _Optional[int] = ..., command: _Optional[str] = ...) -> None: ...

class Problem(_message.Message):
    __slots__ = ("at", "reason", "message", "first_at", "times", "advice")
    AT_FIELD_NUMBER: _ClassVar[int]
    REASON_FIELD_NUMBER: _ClassVar[int]
    MESSAGE_FIELD_NUMBER: _ClassVar[int]
    FIRST_AT_FIELD_NUMBER: _ClassVar[int]
    TIMES_FIELD_NUMBER: _ClassVar[int]
    ADVICE_FIELD_NUMBER: _ClassVar[int]
    at: _timestamp_pb2.Timestamp
    reason: str
    message: str
    first_at: _timestamp_pb2.Timestamp
    times: int
    advice: str
    def __init__(self, at: _Optional[_Union[datetime.datetime, _timestamp_pb2.Timestamp, _Mapping]] = ..., reason: _Optional[str] = ..., message: _Optional[str] = ..., first_at: _Optional[_Union[datetime.datetime, _timestamp_pb2.Timestamp, _Mapping]] = ..., times: _Optional[int] = ..., advice: _Optional[str] = ...) -> None: ...
