"""A service's methods on a volume's socket: of one that is called, gRPC's handler is made then.

A socket serves ten methods beside what is the same for all of them, of which a pod calls one or two. Handlers of all of
them, by their names, were 4 KB of each volume.
"""

from collections.abc import Callable, Mapping
from types import MappingProxyType, MethodType
from typing import Any, TypeAlias

import grpc

# What makes gRPC's handler of it, and the function, which gets its service first.
Method: TypeAlias = "tuple[Callable[..., grpc.RpcMethodHandler[Any, Any]], Callable[..., Any]]"
# By the path that a call names.
Table: TypeAlias = Mapping[str, Method]


def table(service: str, methods: Mapping[str, Method]) -> Table:
    """Of a service's methods by their names: one for all sockets."""
    return MappingProxyType({f"/{service}/{name}": method for name, method in methods.items()})


class Methods(grpc.GenericRpcHandler):
    """Those of `served`, as `methods` has them."""

    def __init__(self, served: object, methods: Table) -> None:
        self._served = served
        self._methods = methods

    def service(self, handler_call_details: grpc.HandlerCallDetails) -> "grpc.RpcMethodHandler[Any, Any] | None":
        """None: another service's."""
        found = self._methods.get(handler_call_details.method)
        if found is None:
            return None
        made_of, function = found
        return made_of(MethodType(function, self._served))
