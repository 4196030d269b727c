"""gRPC reflection of the Workload API under the names of its specification (Workload Endpoint 7).

podsvid's own messages live in a package of their own (see proto/workload); what a client is shown has none.
"""

from typing import Any

import grpc
from google.protobuf import descriptor_pb2, struct_pb2
from google.protobuf.descriptor_pool import DescriptorPool
from grpc_health.v1 import health_pb2
from grpc_reflection.v1alpha import reflection_pb2
from grpc_reflection.v1alpha.reflection import aio as reflection_aio

from agent.pb import workload_pb2
from agent.socket.guard import WORKLOAD_API

FILE = "workloadapi.proto"
# Method to message name stem and whether it streams.
METHODS = {
    "FetchX509SVID": ("X509SVID", True),
    "FetchX509Bundles": ("X509Bundles", True),
    "FetchJWTSVID": ("JWTSVID", False),
    "FetchJWTBundles": ("JWTBundles", True),
    "ValidateJWTSVID": ("ValidateJWTSVID", False),
}


def workload_api_file() -> descriptor_pb2.FileDescriptorProto:
    """The Workload API as its specification's file describes it: no package, one service."""
    file = descriptor_pb2.FileDescriptorProto()
    workload_pb2.DESCRIPTOR.CopyToProto(file)
    prefix = f".{file.package}."
    file.name = FILE
    file.ClearField("package")
    for message in file.message_type:
        _drop_package(message, prefix)
    service = file.service.add(name=WORKLOAD_API)
    for method, (stem, streams) in METHODS.items():
        service.method.add(
            name=method, input_type=f".{stem}Request", output_type=f".{stem}Response", server_streaming=streams
        )
    return file


def handlers() -> tuple[grpc.GenericRpcHandler, ...]:
    """Reflection under both of its names, which speak the same messages; without state, so for all sockets."""
    methods: dict[str, Any] = {
        "ServerReflectionInfo": grpc.stream_stream_rpc_method_handler(
            _servicer().ServerReflectionInfo,
            request_deserializer=reflection_pb2.ServerReflectionRequest.FromString,
            response_serializer=reflection_pb2.ServerReflectionResponse.SerializeToString,
        )
    }
    return tuple(
        grpc.method_handlers_generic_handler(f"grpc.reflection.{version}.ServerReflection", methods)
        for version in ("v1", "v1alpha")
    )


def _servicer() -> reflection_aio.ReflectionServicer:
    pool = DescriptorPool()
    for descriptor in (struct_pb2.DESCRIPTOR, health_pb2.DESCRIPTOR, reflection_pb2.DESCRIPTOR):
        pool.AddSerializedFile(descriptor.serialized_pb)
    pool.AddSerializedFile(workload_api_file().SerializeToString())
    others = [
        service.full_name
        for file in (health_pb2, reflection_pb2)
        for service in file.DESCRIPTOR.services_by_name.values()
    ]
    return reflection_aio.ReflectionServicer(service_names=[WORKLOAD_API, *others], pool=pool)


def _drop_package(message: descriptor_pb2.DescriptorProto, prefix: str) -> None:
    for field in message.field:
        if field.type_name.startswith(prefix):
            field.type_name = "." + field.type_name.removeprefix(prefix)
    for nested in message.nested_type:
        _drop_package(nested, prefix)
