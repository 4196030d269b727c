"""The signer that a command asks for what is public: by its admin socket inside its pod, by exec from anywhere else."""

import argparse
import json
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, TypeVar

import grpc
from google.protobuf.json_format import Parse

from podsvid import authority as authority_command
from podsvid.authority import DEFAULT_SOCKET, CommandFailed, here
from podsvid.waiting import Waiting
from signer.admin_api import SERVICE
from signer.pb import admin_pb2

if TYPE_CHECKING:
    from podsvid.by_kubeconfig import KubeconfigCluster

_Answer = TypeVar("_Answer")


class NoDocument(CommandFailed):
    """The signer has no such document."""

    reason = "NO_DOCUMENT"


def check_discoverable(found: admin_pb2.PublishResponse) -> None:
    """Raises NoDocument where verifiers by OpenID Connect find nothing by the tokens."""
    if not found.issuer and not found.token_issuer:
        raise NoDocument(
            "JWT-SVIDs name no issuer: set jwt_issuer of the signer to the https URL that the documents are served at"
        )
    if not found.issuer:
        raise NoDocument(
            f"JWT-SVIDs name the issuer {found.token_issuer}, which verifiers cannot look up: set jwt_issuer of the "
            "signer to an https URL with a lower-case host, without user, query, fragment, dots or escapes"
        )
    if not found.jwks:
        raise NoDocument("there is no JWT authority (yet): look at jwt_svids of the signer, and at authority show")


class Signer(Protocol):
    """One replica. Every method raises SignerError and GaveUp."""

    def published(self) -> admin_pb2.PublishResponse:
        """What verifiers without an agent fetch."""
        ...

    def status(self) -> admin_pb2.AuthorityStatus:
        """The authorities, and what became of those that were abandoned."""
        ...


def signer_of(parsed: argparse.Namespace, waiting: Waiting, example: str) -> Signer:
    """By the options of `add_cluster`; `example` is what to run in a signer's pod. Raises SignerError.

    Whoever may have to read a kubeconfig is `unwinding` meanwhile: the kubernetes package keeps its keys in files.
    """
    if parsed.socket or (Path(here()).exists() and not parsed.kubeconfig):
        return _BySocket(here(parsed.socket or here()), waiting, example)
    # The kubernetes package takes as long to load as everything else.
    from podsvid.by_kubeconfig import KubeconfigCluster

    return _ByExec(KubeconfigCluster(parsed.kubeconfig, parsed.context, parsed.podsvid_namespace, example), waiting)


class _BySocket:
    def __init__(self, path: str, waiting: Waiting, example: str) -> None:
        authority_command.check_socket(path, example)
        self._path = path
        self._waiting = waiting

    def published(self) -> admin_pb2.PublishResponse:
        def work(channel: grpc.Channel) -> admin_pb2.PublishResponse:
            call: Callable[..., admin_pb2.PublishResponse] = channel.unary_unary(
                f"/{SERVICE}/Publish", admin_pb2.PublishRequest.SerializeToString, admin_pb2.PublishResponse.FromString
            )
            return call(admin_pb2.PublishRequest(), timeout=self._waiting.left())

        return self._asked(work)

    def status(self) -> admin_pb2.AuthorityStatus:
        return self._asked(lambda channel: next(authority_command.watch(channel, self._waiting.left())))

    def _asked(self, work: Callable[[grpc.Channel], _Answer]) -> _Answer:
        def called() -> _Answer:
            with grpc.insecure_channel(f"unix:{self._path}") as channel:
                return work(channel)

        try:
            return self._waiting.ask(authority_command.signer_at(self._path), called)
        except grpc.RpcError as error:
            raise authority_command.failed(error, self._path, self._waiting) from None


class _ByExec:
    """In one pod, so that what is asked belongs together."""

    def __init__(self, cluster: "KubeconfigCluster", waiting: Waiting) -> None:
        self._cluster = cluster
        self._waiting = waiting
        self._pod = ""

    def published(self) -> admin_pb2.PublishResponse:
        return Parse(self._ran("bundle"), admin_pb2.PublishResponse(), ignore_unknown_fields=True)

    def status(self) -> admin_pb2.AuthorityStatus:
        return Parse(self._ran("authority"), admin_pb2.AuthorityStatus(), ignore_unknown_fields=True)

    def _ran(self, command: str) -> str:
        line = ["podsvid", command, "show", "--socket", DEFAULT_SOCKET, "--output", "json"]

        def work() -> Any:
            self._pod = self._pod or self._cluster.signer()
            return self._cluster.run(self._pod, "signer", line)

        return json.dumps(self._waiting.ask(f"a signer of the cluster at {self._cluster.host}", work))
