"""What gRPC for Python would log of what others send: a header that is no UTF-8, whole, and so tokens and keys."""

import logging

# Each has a decoder of its own: the one for calls by asyncio, the other for the rest.
_LOGGERS = ("grpc._cython.cygrpc", "grpc._common")


def leave_out_headers() -> None:
    """Have no such header written, whatever the level. Other lines of gRPC's stay: exceptions of handlers are there."""
    for name in _LOGGERS:
        logging.getLogger(name).addFilter(_is_no_header)


def _is_no_header(record: logging.LogRecord) -> bool:
    return not str(record.msg).startswith("Invalid encoding on")
