"""The Workload API as its client sees it: `podsvid api fetch x509` and `podsvid api watch`."""

import argparse
import asyncio
import json
import os
import secrets
import shutil
import sys
from collections.abc import AsyncIterable, AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from urllib.parse import urlsplit

import grpc
import grpc.aio

from agent.errors import WorkloadApiError
from agent.pb import workload_pb2
from agent.workload_api import HEADER, SERVICE
from svid.bundle import TrustBundle
from svid.errors import SvidError
from svid.spiffeid import SpiffeId
from svid.x509svid import X509Svid

ENDPOINT_VARIABLE = "SPIFFE_ENDPOINT_SOCKET"
FIRST_RETRY, MAX_RETRY = 0.5, 10.0


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the verbs of `podsvid api`."""
    verbs = parser.add_subparsers(dest="verb", required=True, metavar="fetch|watch")
    fetch = verbs.add_parser("fetch", help="print the current SVID and end")
    fetch.add_argument("kind", choices=["x509"])
    fetch.add_argument("--write", metavar="DIR", type=Path, help="also write svid.N.pem, svid.N.key, bundle.N.pem")
    watch = verbs.add_parser("watch", help="print every new SVID until interrupted")
    for verb in (fetch, watch):
        verb.add_argument("--socket", help=f"socket path or unix:// address (default: ${ENDPOINT_VARIABLE})")
        verb.add_argument("--output", choices=["text", "json"], default="text")
        verb.add_argument("--timeout", type=float, default=10.0, metavar="SECONDS", help="for the first answer")


def run(arguments: argparse.Namespace) -> int:
    """Carry out `podsvid api …`. Raises WorkloadApiError."""
    target = address(arguments.socket or os.environ.get(ENDPOINT_VARIABLE, ""))
    if arguments.verb == "fetch":
        return asyncio.run(_fetch(target, arguments))
    try:
        return asyncio.run(_watch(target, arguments))
    except KeyboardInterrupt:
        return 0


def address(text: str) -> str:
    """A gRPC target from a socket path or a Workload Endpoint URI (section 4). Raises WorkloadApiError."""
    if not text:
        raise WorkloadApiError(f"no Workload API socket: set {ENDPOINT_VARIABLE} or give --socket")
    if text.startswith("/"):
        return f"unix:{text}"
    try:
        uri = urlsplit(text)
        port = uri.port
    except ValueError:
        raise WorkloadApiError(f"{text!r} is not a socket path, unix:///PATH or tcp://IP:PORT") from None
    if uri.scheme == "unix" and not uri.netloc and uri.path.startswith("/") and not uri.query and not uri.fragment:
        return f"unix:{uri.path}"
    if uri.scheme == "tcp" and uri.hostname and port and not uri.path and not uri.query:
        return uri.netloc
    raise WorkloadApiError(f"{text!r} is not a socket path, unix:///PATH or tcp://IP:PORT")


async def _fetch(target: str, arguments: argparse.Namespace) -> int:
    async with _stream(target) as responses:
        try:
            async with asyncio.timeout(arguments.timeout):
                response = await anext(aiter(responses))
        except TimeoutError:
            raise WorkloadApiError(f"no answer from {target} within {arguments.timeout:g} s") from None
        except (grpc.aio.AioRpcError, StopAsyncIteration) as error:
            raise WorkloadApiError(_explain(target, error)) from None
    svids = _parse(response)
    if arguments.write:
        _write(arguments.write, svids)
    _print(svids, arguments.output)
    return 0


async def _watch(target: str, arguments: argparse.Namespace) -> int:
    delay = FIRST_RETRY
    while True:
        try:
            async with _stream(target) as responses:
                async for response in responses:
                    delay = FIRST_RETRY
                    _print(_parse(response), arguments.output)
            reason = f"{target} ended the stream"
        except grpc.aio.AioRpcError as error:
            reason = _explain(target, error)
            if error.code() in (grpc.StatusCode.INVALID_ARGUMENT, grpc.StatusCode.UNIMPLEMENTED):
                raise WorkloadApiError(reason) from None
        print(f"podsvid: {reason}; trying again in {delay:g} s", file=sys.stderr, flush=True)
        await asyncio.sleep(delay)
        delay = min(delay * 2, MAX_RETRY)


@asynccontextmanager
async def _stream(target: str) -> AsyncIterator[AsyncIterable[workload_pb2.X509SVIDResponse]]:
    async with grpc.aio.insecure_channel(target) as channel:
        call = channel.unary_stream(
            f"/{SERVICE}/FetchX509SVID",
            request_serializer=workload_pb2.X509SVIDRequest.SerializeToString,
            response_deserializer=workload_pb2.X509SVIDResponse.FromString,
        )(workload_pb2.X509SVIDRequest(), metadata=(HEADER,))
        try:
            yield call
        finally:
            call.cancel()


def _parse(response: workload_pb2.X509SVIDResponse) -> list[tuple[X509Svid, TrustBundle]]:
    try:
        found = []
        for entry in response.svids:
            svid = X509Svid.from_der(entry.x509_svid, entry.x509_svid_key, entry.hint)
            if svid.spiffe_id != SpiffeId.parse(entry.spiffe_id):
                raise WorkloadApiError(f"the answer names {entry.spiffe_id[:200]!r} but its SVID is {svid.spiffe_id}")
            found.append((svid, TrustBundle.from_der(svid.spiffe_id.trust_domain, entry.bundle)))
    except SvidError as error:
        raise WorkloadApiError(f"the answer is unusable: {error}") from None
    if not found:
        raise WorkloadApiError("the answer holds no SVID")
    return found


def _print(svids: list[tuple[X509Svid, TrustBundle]], output: str) -> None:
    rows = [
        {
            "spiffe_id": str(svid.spiffe_id),
            "serial": svid.serial,
            "not_before": svid.not_before.isoformat(),
            "not_after": svid.not_after.isoformat(),
            "hint": svid.hint,
            "chain": svid.chain_pem().decode(),
            "bundle": bundle.to_pem().decode(),
        }
        for svid, bundle in svids
    ]
    if output == "json":
        print(json.dumps({"svids": rows}), flush=True)
        return
    for row in rows:
        print(f"SPIFFE ID:  {row['spiffe_id']}\nserial:     {row['serial']}")
        print(f"valid from: {row['not_before']}\nvalid to:   {row['not_after']}", flush=True)


def _write(directory: Path, svids: list[tuple[X509Svid, TrustBundle]]) -> None:
    """Chain, key and bundle as one: a new directory, one rename of `..data`, links beside it (as in a volume)."""
    directory.mkdir(parents=True, exist_ok=True)
    stamp = directory / f"..{secrets.token_hex(8)}"
    stamp.mkdir(mode=0o700)
    names = []
    try:
        for number, (svid, bundle) in enumerate(svids):
            for name, content, mode in (
                (f"svid.{number}.pem", svid.chain_pem(), 0o644),
                (f"svid.{number}.key", svid.key_pem(), 0o600),
                (f"bundle.{number}.pem", bundle.to_pem(), 0o644),
            ):
                descriptor = os.open(stamp / name, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode)
                with os.fdopen(descriptor, "wb") as file:
                    file.write(content)
                names.append(name)
        data = directory / "..data"
        old = data.readlink() if data.is_symlink() else None
        _replace_link(data, stamp.name)
    except BaseException:
        shutil.rmtree(stamp, ignore_errors=True)
        raise
    for name in names:
        _replace_link(directory / name, f"..data/{name}")
    if old is not None and old.name.startswith("..") and len(old.parts) == 1:
        shutil.rmtree(directory / old, ignore_errors=True)


def _replace_link(path: Path, target: str) -> None:
    temporary = path.with_name(f"{path.name}.tmp")
    temporary.unlink(missing_ok=True)
    temporary.symlink_to(target)
    os.replace(temporary, path)


def _explain(target: str, error: BaseException) -> str:
    if isinstance(error, grpc.aio.AioRpcError):
        return f"{target} answered {error.code().name}: {error.details()}"
    return f"{target} ended the stream without an answer"
