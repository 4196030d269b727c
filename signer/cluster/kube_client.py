"""KubeApi over the `kubernetes` package: its configuration, credentials and connections, plain objects."""

import asyncio
import json
import ssl
from collections.abc import AsyncIterator, Mapping
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

import aiohttp
from kubernetes.aio import client, config

from signer.cluster.kube import Object
from signer.errors import ApiUnavailable, Conflict, Forbidden, Gone, NotFound, SignerError

# Seconds. A watch has no total; it is dead when not even a bookmark came for this long (they come every minute).
CALL_SECONDS = 15.0
SILENCE_SECONDS = 150.0
CONNECTIONS = 64
# The largest object of a watch that fits: etcd takes 1.5 MiB.
MAX_LINE = 4 * 1024 * 1024
_KINDS: Mapping[int, type[SignerError]] = {401: Forbidden, 403: Forbidden, 404: NotFound, 409: Conflict, 410: Gone}


class KubeClient:
    """A connection to the API server of a kubeconfig, or of the cluster that this process runs in.

    The service account token is read again every minute. Close it on the loop on which it was made.
    """

    def __init__(self, configuration: client.Configuration) -> None:
        configuration.connection_pool_maxsize = CONNECTIONS
        configuration.client_session_kwargs = {"read_bufsize": MAX_LINE}
        self._configuration = configuration
        self._client = client.ApiClient(configuration)

    @classmethod
    async def connect(cls, kubeconfig: Path | None) -> "KubeClient":
        """Make the client; nothing is sent yet. Raises ApiUnavailable when there is no usable configuration."""
        configuration = client.Configuration()
        try:
            if kubeconfig is not None:
                await config.load_kube_config(str(kubeconfig), client_configuration=configuration, persist_config=False)
            else:
                config.load_incluster_config(configuration)
        except (config.ConfigException, OSError) as error:
            raise ApiUnavailable(
                f"no configuration for the API server: {error}; run in a pod, or give --kubeconfig"
            ) from None
        return cls(configuration)

    async def close(self) -> None:
        await self._client.close()

    async def get(self, path: str) -> Object:
        return await self._call("GET", path)

    async def list(self, path: str, query: Mapping[str, str] | None = None) -> Object:
        return await self._call("GET", _with(path, query))

    async def create(self, path: str, body: Object) -> Object:
        return await self._call("POST", path, body)

    async def replace(self, path: str, body: Object) -> Object:
        return await self._call("PUT", path, body)

    async def patch(self, path: str, body: Object) -> Object:
        return await self._call("PATCH", path, body, "application/merge-patch+json")

    async def delete(self, path: str, body: Object | None = None) -> None:
        await self._call("DELETE", path, body)

    async def watch(self, path: str, query: Mapping[str, str]) -> AsyncIterator[Object]:
        timeout = aiohttp.ClientTimeout(total=None, sock_connect=CALL_SECONDS, sock_read=SILENCE_SECONDS)
        try:
            response = await self._send("GET", _with(path, {**query, "watch": "true"}), None, "", timeout)
            async with response:
                if response.status != 200:
                    raise _error(response.status, await response.read())
                async for line in response.content:
                    yield json.loads(line)
        except (aiohttp.ClientError, ValueError, OSError, TimeoutError) as error:
            raise _unreachable(error) from None

    async def _call(
        self, method: str, path: str, body: Object | None = None, content_type: str = "application/json"
    ) -> Object:
        try:
            async with asyncio.timeout(CALL_SECONDS):
                response = await self._send(method, path, body, content_type, aiohttp.ClientTimeout(total=None))
                async with response:
                    data = await response.read()
            if 200 <= response.status < 300:
                answer: Object = json.loads(data)
                return answer
        except (aiohttp.ClientError, ValueError, OSError, TimeoutError) as error:
            raise _unreachable(error) from None
        raise _error(response.status, data)

    async def _send(
        self, method: str, path: str, body: Object | None, content_type: str, timeout: aiohttp.ClientTimeout
    ) -> aiohttp.ClientResponse:
        # Not the package's typed calls: parsing tens of thousands of pods into models takes minutes and gigabytes.
        settings: Any = await self._configuration.auth_settings()
        headers = {each["key"]: each["value"] for each in settings.values() if each["in"] == "header"}
        headers["Accept"] = "application/json, */*;q=0.5"
        if content_type:
            headers["Content-Type"] = content_type
        answer: Any = await self._client.rest_client.request(
            method, f"{self._configuration.host}{path}", headers=headers, body=body, _request_timeout=timeout
        )
        response: aiohttp.ClientResponse = answer.response
        return response


def _with(path: str, query: Mapping[str, str] | None) -> str:
    return f"{path}?{urlencode(query)}" if query else path


def _error(status: int, data: bytes) -> SignerError:
    try:
        message = str(json.loads(data).get("message") or "")
    except (ValueError, AttributeError):
        message = ""
    kind = _KINDS.get(status, ApiUnavailable)
    return kind(f"the API server answers {status}{': ' + message[:500] if message else ''}")


def _unreachable(error: BaseException) -> ApiUnavailable:
    what = "certificate not trusted" if isinstance(error, ssl.SSLError) else type(error).__name__
    return ApiUnavailable(f"the API server cannot be reached ({what})")
