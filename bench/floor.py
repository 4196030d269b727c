"""What podsvid is measured against in the same run: as little as could do the job at all."""

import asyncio
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import grpc
import grpc.aio
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec

EMPTY_STREAM, EMPTY_CALL = "/Floor/Stream", "/Floor/Call"
# The libraries that the agent cannot do without are loaded; nothing of podsvid is.
_SERVER = """
import asyncio, sys, grpc.aio
import cryptography.x509
from cryptography.hazmat.primitives.asymmetric import ec
async def stream(request, context):
    yield b""
async def call(request, context):
    return b""
async def main():
    server = grpc.aio.server()
    handlers = {
        "Stream": grpc.unary_stream_rpc_method_handler(stream),
        "Call": grpc.unary_unary_rpc_method_handler(call),
    }
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler("Floor", handlers),))
    server.add_insecure_port("unix:" + sys.argv[1])
    await server.start()
    print("serving", flush=True)
    await asyncio.Event().wait()
asyncio.run(main())
"""


def mint() -> float:
    """Milliseconds of a P-256 key and one signature with it: what no minting can do without."""
    started = time.perf_counter()
    key = ec.generate_private_key(ec.SECP256R1())
    key.sign(b"x" * 400, ec.ECDSA(hashes.SHA256()))
    return (time.perf_counter() - started) * 1e3


@contextmanager
def server(socket: Path) -> Iterator[tuple[subprocess.Popen[bytes], float]]:
    """A process that serves empty handlers at `socket`, and the seconds from its start until it serves."""
    started = time.perf_counter()
    process = subprocess.Popen([sys.executable, "-c", _SERVER, str(socket)], stdout=subprocess.PIPE)
    try:
        assert process.stdout is not None
        assert process.stdout.readline() == b"serving\n", "the empty server did not start"
        yield process, time.perf_counter() - started
    finally:
        process.kill()
        process.wait()


async def fetch(socket: Path) -> None:
    """Connect and read the first, empty, message."""
    options = (("grpc.use_local_subchannel_pool", 1),)
    async with grpc.aio.insecure_channel(f"unix:{socket}", options=options) as channel:
        stream = channel.unary_stream(EMPTY_STREAM, request_serializer=bytes, response_deserializer=bytes)
        async with asyncio.timeout(60):
            await anext(aiter(stream(b"")))
