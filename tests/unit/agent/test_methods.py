"""The methods of a volume's socket: handlers are made when they are called, of the service that is called."""

from typing import Any, NamedTuple

import grpc

from agent.socket.methods import Methods, table


class Details(NamedTuple):
    method: str


class Service:
    def __init__(self, answer: bytes) -> None:
        self.answer = answer

    def ask(self, data: bytes, context: object) -> bytes:
        return self.answer + data


TABLE = table("a.Service", {"Ask": (grpc.unary_unary_rpc_method_handler, Service.ask)})


def test_a_method_is_that_of_its_service() -> None:
    for answer in (b"one ", b"two "):
        handler: Any = Methods(Service(answer), TABLE).service(Details("/a.Service/Ask"))  # type: ignore[arg-type]
        assert not handler.response_streaming
        assert handler.unary_unary(b"asked", None) == answer + b"asked"


def test_what_is_not_its_own_is_left_to_others() -> None:
    methods = Methods(Service(b""), TABLE)
    for path in ("/a.Service/Other", "/b.Service/Ask", "Ask", ""):
        assert methods.service(Details(path)) is None  # type: ignore[arg-type]
