"""KubeApi over the `kubernetes` package: its configuration, credentials and connections, and bounds of its own.

What comes is read in pieces, up to a number of bytes, and never unpacked: an object's author chooses how large it is.
"""

import asyncio
import os
import ssl
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import AsyncExitStack, suppress
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

import aiohttp
import msgspec
import yaml
from kubernetes.aio import client, config

from runtime.bodies import TooLong, whole
from signer.cluster import decoding
from signer.cluster.decoding import Event, Kept, Page
from signer.cluster.kube import Object
from signer.errors import (
    LOOK_AT_KUBECONFIG,
    AnswerTooLarge,
    ApiUnavailable,
    Conflict,
    Forbidden,
    Gone,
    NotFound,
    SignerError,
)

# Seconds. A list may take longer, while it comes. A watch has no total; it is dead when not even a bookmark came for
# this long (they come every minute).
CALL_SECONDS = 15.0
LIST_SECONDS = 60.0
SILENCE_SECONDS = 150.0
CONNECTIONS = 64
# Bytes. etcd takes objects of 1.5 MiB, which JSON spells with six bytes for one at the worst ("<").
MAX_OBJECT = 16 * 1024 * 1024
# Of several objects at once.
MAX_PAGE = 4 * 1024 * 1024
# Parts of lists that are on their way at one time; and events of watches above this many bytes: the others wait.
PAGES = 2
LARGE_EVENTS = 1
LARGE = 512 * 1024
_PARTIAL = "application/json;as=PartialObjectMetadata{};g=meta.k8s.io;v=1, application/json"
_JSON = "application/json, */*;q=0.5"
# What the package raises at a kubeconfig that is no YAML, or has something else where it expects a mapping.
_GARBLED = (yaml.YAMLError, ValueError, TypeError, AttributeError, KeyError)
# What to look at where nobody answers.
_IN_POD = "look at this namespace's network policies and at the API server"
_KINDS: Mapping[int, type[SignerError]] = {401: Forbidden, 403: Forbidden, 404: NotFound, 409: Conflict, 410: Gone}


class KubeClient:
    """A connection to the API server of a kubeconfig, or of the cluster that this process runs in.

    The service account token is read again every minute. Close it on the loop on which it was made.
    """

    def __init__(self, configuration: client.Configuration, look: str = "") -> None:
        """`look`: what to look at where the API server cannot be reached."""
        configuration.connection_pool_maxsize = CONNECTIONS
        self._configuration = configuration
        self._look = look
        self._pages = asyncio.Semaphore(PAGES)
        self._large = asyncio.Semaphore(LARGE_EVENTS)
        self._client = client.ApiClient(configuration)
        # Is told what time it is by the API server, with each answer.
        self.dated: Callable[[datetime], None] = lambda at: None

    @classmethod
    async def connect(cls, kubeconfig: Path | None, context: str | None = None) -> "KubeClient":
        """Make the client; nothing is sent yet. Raises ApiUnavailable when there is no usable configuration.

        `context`: of the kubeconfig; None is its current one.
        """
        configuration = client.Configuration()
        try:
            if kubeconfig is not None:
                _openable(kubeconfig)
                await config.load_kube_config(
                    str(kubeconfig), context=context, client_configuration=configuration, persist_config=False
                )
            else:
                config.load_incluster_config(configuration)
        except (config.ConfigException, OSError, *_GARBLED) as error:
            why = getattr(error, "strerror", None) or " ".join(str(error).split()).rstrip(".")
            if kubeconfig is not None:
                raise ApiUnavailable(f"kubeconfig {kubeconfig} cannot be used: {why}") from None
            raise ApiUnavailable(
                f"no configuration for the API server: {why}; run in a pod, or give --kubeconfig"
            ) from None
        return cls(configuration, LOOK_AT_KUBECONFIG if kubeconfig is not None else _IN_POD)

    async def close(self) -> None:
        await self._client.close()

    async def get(self, path: str) -> Object:
        return await self._call("GET", path)

    async def read(self, path: str, kind: type[Kept]) -> Kept:
        return decoding.one(await self._answer("GET", path, None, "", MAX_OBJECT, CALL_SECONDS), kind)

    async def list(self, path: str, kind: type[Kept], query: Mapping[str, str] | None = None) -> Page[Kept]:
        accept = _PARTIAL.format("List") if kind.partial else _JSON
        most = MAX_OBJECT if (query or {}).get("limit") == "1" else MAX_PAGE
        async with self._pages:
            data = await self._answer("GET", _with(path, query), None, "", most, LIST_SECONDS, accept)
        return decoding.page(data, kind)

    async def create(self, path: str, body: Object) -> Object:
        return await self._call("POST", path, body)

    async def replace(self, path: str, body: Object) -> Object:
        return await self._call("PUT", path, body)

    async def patch(self, path: str, body: Object) -> Object:
        return await self._call("PATCH", path, body, "application/merge-patch+json")

    async def delete(self, path: str, body: Object | None = None) -> None:
        await self._call("DELETE", path, body)

    async def watch(self, path: str, kind: type[Kept], query: Mapping[str, str]) -> AsyncIterator[Event[Kept]]:
        timeout = aiohttp.ClientTimeout(total=None, sock_connect=CALL_SECONDS, sock_read=SILENCE_SECONDS)
        accept = _PARTIAL.format("") if kind.partial else _JSON
        try:
            response = await self._send("GET", _with(path, {**query, "watch": "true"}), None, "", timeout, accept)
            async with response:
                if response.status != 200:
                    raise _error(response.status, await _body(response, MAX_OBJECT))
                async for line in _lines(response, MAX_OBJECT, self._large):
                    yield decoding.event(line, kind)
                    del line
        except (aiohttp.ClientError, ValueError, OSError, TimeoutError) as error:
            raise self._unreachable(error) from None

    async def _call(
        self, method: str, path: str, body: Object | None = None, content_type: str = "application/json"
    ) -> Object:
        data = await self._answer(method, path, body, content_type, MAX_OBJECT, CALL_SECONDS)
        try:
            answer: Object = msgspec.json.decode(data)
        except (ValueError, RecursionError):
            raise self._strange() from None
        return answer

    async def _answer(
        self,
        method: str,
        path: str,
        body: Object | None,
        content_type: str,
        most: int,
        seconds: float,
        accept: str = _JSON,
    ) -> bytearray:
        timeout = aiohttp.ClientTimeout(total=None, sock_connect=CALL_SECONDS, sock_read=CALL_SECONDS)
        try:
            async with asyncio.timeout(seconds):
                response = await self._send(method, path, body, content_type, timeout, accept)
                async with response:
                    data = await _body(response, most)
        except (aiohttp.ClientError, ValueError, OSError, TimeoutError) as error:
            raise self._unreachable(error) from None
        if not 200 <= response.status < 300:
            raise _error(response.status, data)
        return data

    async def _send(
        self,
        method: str,
        path: str,
        body: Object | None,
        content_type: str,
        timeout: aiohttp.ClientTimeout,
        accept: str,
    ) -> aiohttp.ClientResponse:
        # Not the package's typed calls: parsing tens of thousands of pods into models takes minutes and gigabytes.
        settings: Any = await self._configuration.auth_settings()
        # A token's file ends with its line.
        headers = {each["key"]: each["value"].strip() for each in settings.values() if each["in"] == "header"}
        headers["Accept"] = accept
        headers["Accept-Encoding"] = "identity"
        if content_type:
            headers["Content-Type"] = content_type
        answer: Any = await self._client.rest_client.request(
            method, f"{self._configuration.host}{path}", headers=headers, body=body, _request_timeout=timeout
        )
        response: aiohttp.ClientResponse = answer.response
        with suppress(KeyError, ValueError, OverflowError):
            self.dated(parsedate_to_datetime(response.headers["Date"]).astimezone(UTC))
        return response

    def _unreachable(self, error: BaseException) -> ApiUnavailable:
        if isinstance(error, aiohttp.ClientResponseError):
            return self._strange()
        what = f"the API server {self._configuration.host} cannot be reached ({_why(error)})"
        return ApiUnavailable(f"{what}; {self._look}" if self._look else what)

    def _strange(self) -> ApiUnavailable:
        # Not in the words of an error: they may quote what stands there.
        what = f"the API server {self._configuration.host} answers with what no API server does; is it one?"
        return ApiUnavailable(f"{what} {self._look}".rstrip())


async def _body(response: aiohttp.ClientResponse, most: int) -> bytearray:
    """All of it, up to `most` bytes. Raises AnswerTooLarge."""
    try:
        return await whole(response, most)
    except TooLong:
        raise AnswerTooLarge(f"the API server's answer has more than {most >> 20} MiB") from None


async def _lines(response: aiohttp.ClientResponse, most: int, large: asyncio.Semaphore) -> AsyncIterator[bytes]:
    """Its lines as they come, each up to `most` bytes; a long one waits for `large`. Raises AnswerTooLarge."""
    rest = bytearray()
    async with AsyncExitStack() as held:
        async for piece in response.content.iter_any():
            start, at = 0, len(rest)
            rest += piece
            while (at := rest.find(b"\n", at)) >= 0:
                with memoryview(rest) as whole:
                    line = bytes(whole[start:at])
                at += 1
                start = at
                if line:
                    yield line
                del line
            if start:
                del rest[:start]
                await held.aclose()
            if len(rest) > most:
                raise AnswerTooLarge(f"an event of the API server has more than {most >> 20} MiB")
            if len(rest) > LARGE >= len(rest) - len(piece):
                await held.enter_async_context(large)


def _with(path: str, query: Mapping[str, str] | None) -> str:
    return f"{path}?{urlencode(query)}" if query else path


def _openable(kubeconfig: Path) -> None:
    """Raises OSError: one that is not there is only logged by the package, which takes several joined by colons."""
    for each in str(kubeconfig).split(os.pathsep):
        Path(each).open().close()


def _error(status: int, data: bytes | bytearray) -> SignerError:
    try:
        message = str(msgspec.json.decode(data).get("message") or "")
    except (ValueError, AttributeError, RecursionError):
        message = ""
    kind = _KINDS.get(status, ApiUnavailable)
    return kind(f"the API server answers {status}{': ' + message[:500] if message else ''}")


def _why(error: BaseException) -> str:
    """In the system's words, where it has some."""
    if isinstance(error, ssl.SSLError):
        return "certificate not trusted"
    if isinstance(error, OSError) and error.errno and error.errno > 0:
        # The loop's own words have the address, once more.
        return os.strerror(error.errno)
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    if isinstance(error, TimeoutError):
        return "no answer in time"
    if isinstance(error, ConnectionError | aiohttp.ServerDisconnectedError | aiohttp.ClientPayloadError):
        return "it ended the connection"
    return type(error).__name__
