from google.protobuf.internal import containers as _containers
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class NewDownstreamX509CARequest(_message.Message):
    __slots__ = ("csr", "preferred_ttl")
    CSR_FIELD_NUMBER: _ClassVar[int]
    PREFERRED_TTL_FIELD_NUMBER: _ClassVar[int]
    csr: bytes
    preferred_ttl: int
    def __init__(self, csr: _Optional[bytes] = ..., preferred_ttl: _Optional[int] = ...) -> None: ...

class NewDownstreamX509CAResponse(_message.Message):
    __slots__ = ("ca_cert_chain", "x509_authorities")
    CA_CERT_CHAIN_FIELD_NUMBER: _ClassVar[int]
    X509_AUTHORITIES_FIELD_NUMBER: _ClassVar[int]
    ca_cert_chain: _containers.RepeatedScalarFieldContainer[bytes]
    x509_authorities: _containers.RepeatedScalarFieldContainer[bytes]
    def __init__(self, ca_cert_chain: _Optional[_Iterable[bytes]] = ..., x509_authorities: _Optional[_Iterable[bytes]] = ...) -> None: ...

class GetBundleRequest(_message.Message):
    __slots__ = ("output_mask",)
    OUTPUT_MASK_FIELD_NUMBER: _ClassVar[int]
    output_mask: BundleMask
    def __init__(self, output_mask: _Optional[_Union[BundleMask, _Mapping]] = ...) -> None: ...

class BundleMask(_message.Message):
    __slots__ = ("x509_authorities",)
    X509_AUTHORITIES_FIELD_NUMBER: _ClassVar[int]
    x509_authorities: bool
    def __init__(self, x509_authorities: _Optional[bool] = ...) -> None: ...

class Bundle(_message.Message):
    __slots__ = ("trust_domain", "x509_authorities")
    TRUST_DOMAIN_FIELD_NUMBER: _ClassVar[int]
    X509_AUTHORITIES_FIELD_NUMBER: _ClassVar[int]
    trust_domain: str
    x509_authorities: _containers.RepeatedCompositeFieldContainer[X509Certificate]
    def __init__(self, trust_domain: _Optional[str] = ..., x509_authorities: _Optional[_Iterable[_Union[X509Certificate, _Mapping]]] = ...) -> None: ...

class X509Certificate(_message.Message):
    __slots__ = ("asn1",)
    ASN1_FIELD_NUMBER: _ClassVar[int]
    asn1: bytes
    def __init__(self, asn1: _Optional[bytes] = ...) -> None: ...

class FetchX509SVIDRequest(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class FetchX509SVIDResponse(_message.Message):
    __slots__ = ("svids",)
    SVIDS_FIELD_NUMBER: _ClassVar[int]
    svids: _containers.RepeatedCompositeFieldContainer[X509SVID]
    def __init__(self, svids: _Optional[_Iterable[_Union[X509SVID, _Mapping]]] = ...) -> None: ...

class X509SVID(_message.Message):
    __slots__ = ("spiffe_id", "x509_svid", "x509_svid_key", "bundle")
    SPIFFE_ID_FIELD_NUMBER: _ClassVar[int]
    X509_SVID_FIELD_NUMBER: _ClassVar[int]
    X509_SVID_KEY_FIELD_NUMBER: _ClassVar[int]
    BUNDLE_FIELD_NUMBER: _ClassVar[int]
    spiffe_id: str
    x509_svid: bytes
    x509_svid_key: bytes
    bundle: bytes
    def __init__(self, spiffe_id: _Optional[str] = ..., x509_svid: _Optional[bytes] = ..., x509_svid_key: _Optional[bytes] = ..., bundle: _Optional[bytes] = ...) -> None: ...
