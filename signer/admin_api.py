"""What both ends of the signer's admin socket go by; its commands load this and nothing else of the signer."""

from collections.abc import Mapping
from types import MappingProxyType

from signer.pb import admin_pb2

SERVICE: str = admin_pb2.DESCRIPTOR.services_by_name["Admin"].full_name
KINDS: "Mapping[admin_pb2.Kind, str]" = MappingProxyType({admin_pb2.KIND_X509: "x509", admin_pb2.KIND_JWT: "jwt"})
