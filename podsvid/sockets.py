"""Why a Unix socket does not answer as it should: what is at its path, and who listens there instead."""

import errno
import os
import socket
import stat
from collections.abc import Callable
from pathlib import Path
from types import MappingProxyType
from typing import Final

import grpc

from podsvid.outcome import CommandError

# Seconds for each look.
_LOOK = 3.0
# A method that tells who somebody is, without a request that means anything.
_KNOWN: Final = MappingProxyType(
    {
        "/podsvid.agent.v1.NodeAdmin/Explain": "the admin socket of an agent, which `podsvid node` asks",
        "/podsvid.signer.v1.Admin/Explain": "the admin socket of a signer, which `podsvid authority` asks",
        "/SpiffeWorkloadAPI/ValidateJWTSVID": "the socket of a pod, which `podsvid api` asks",
        "/csi.v1.Identity/GetPluginInfo": "the socket of a CSI driver, which kubelet asks",
    }
)


_OF_THE_SOCKET: Final = frozenset(
    {
        grpc.StatusCode.UNAVAILABLE,
        grpc.StatusCode.UNIMPLEMENTED,
        grpc.StatusCode.INVALID_ARGUMENT,
        grpc.StatusCode.INTERNAL,
        grpc.StatusCode.UNKNOWN,
        grpc.StatusCode.DEADLINE_EXCEEDED,
    }
)


class SocketAbsent(CommandError):
    """Nothing is at that path."""

    reason = "NO_SOCKET"


class NotASocket(CommandError):
    """Something else is at that path."""

    reason = "NOT_A_SOCKET"


class NobodyListens(CommandError):
    """Who made the socket has gone."""

    reason = "NOBODY_LISTENS"


class SocketDenied(CommandError):
    """This user may not open it."""

    reason = "SOCKET_DENIED"


class WrongSocket(CommandError):
    """Somebody else listens."""

    reason = "WRONG_SOCKET"


def trouble(path: str, wanted: str, service: str) -> CommandError | None:
    """What is wrong with the socket at `path`, where `wanted` is to listen, such as "an agent", with that gRPC service.

    None: nothing is seen. It connects, and asks who is there. Takes some seconds at most.
    """
    found = _unreachable(path, wanted)
    if found is not None:
        return found
    spoken = _first_bytes(path)
    if spoken == b"HTTP/":
        return WrongSocket(f"an HTTP server listens at {path}, not {wanted}")
    if not spoken:
        # A gRPC server begins, and without being asked.
        return None
    other = _other(path, service)
    return WrongSocket(f"{path} is {other}; that of {wanted} is wanted") if other else None


def explained(error: grpc.RpcError, path: str, wanted: str, service: str) -> CommandError | None:
    """`trouble`, where the call failed for more than what was asked."""
    return trouble(path, wanted, service) if error.code() in _OF_THE_SOCKET else None


def _unreachable(path: str, wanted: str) -> CommandError | None:
    try:
        mode = os.stat(path).st_mode
        if not stat.S_ISSOCK(mode):
            what = "a directory" if stat.S_ISDIR(mode) else "a file"
            return NotASocket(f"{path} is {what} and no socket of {wanted}")
        with socket.socket(socket.AF_UNIX) as tried:
            tried.settimeout(_LOOK)
            tried.connect(path)
    except OSError as error:
        if error.errno in (errno.ENOENT, errno.ENOTDIR):
            return SocketAbsent(f"there is no {path}: {wanted} does not run here, or its socket is elsewhere")
        if error.errno in (errno.EACCES, errno.EPERM):
            owner = _owner(path)
            return SocketDenied(f"user {os.geteuid()} may not open {path}{owner}; run this as who may")
        if error.errno == errno.ECONNREFUSED:
            return NobodyListens(f"nobody listens at {path} any more: {wanted} has ended, or starts anew")
        if error.errno == errno.EPROTOTYPE:
            return NotASocket(f"{path} is a socket of another type and none of {wanted}")
        if "too long" in str(error):
            return NotASocket(f"{path} is longer than a socket's 107 bytes: make a symbolic link to it")
    return None


def _owner(path: str) -> str:
    try:
        found = Path(path).stat()
    except OSError:
        return ""
    return f", which is user {found.st_uid}'s (mode {stat.S_IMODE(found.st_mode):04o})"


def _first_bytes(path: str) -> bytes:
    try:
        with socket.socket(socket.AF_UNIX) as tried:
            tried.settimeout(_LOOK)
            tried.connect(path)
            tried.sendall(b"GET / HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")
            return tried.recv(5)
    except OSError:
        return b""


def _other(path: str, service: str) -> str | None:
    with grpc.insecure_channel(f"unix:{path}", options=(("grpc.use_local_subchannel_pool", 1),)) as channel:
        for method, name in _KNOWN.items():
            try:
                call: Callable[..., bytes] = channel.unary_unary(method)
                call(b"", timeout=_LOOK)
            except grpc.RpcError as error:
                if error.code() is grpc.StatusCode.UNIMPLEMENTED:
                    continue
                if error.code() in (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.DEADLINE_EXCEEDED):
                    return None
            return None if method.startswith(f"/{service}/") else name
    return None
