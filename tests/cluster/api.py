"""The few calls of the Kubernetes API that the cluster tests make."""

from __future__ import annotations

import json
import ssl
import urllib.error
import urllib.request
from typing import Any

from .pki import Pair

# Kubernetes objects as they travel; the tests read a few fields of each.
Object = dict[str, Any]

_CALL_SECONDS = 20.0


class ApiError(Exception):
    """The API server refused a call. `status` is the HTTP status."""

    def __init__(self, status: int, message: str) -> None:
        super().__init__(f"{status}: {message}")
        self.status = status


class KubeApi:
    """An administrator's connection to the API server."""

    def __init__(self, url: str, ca_cert: str, client: Pair) -> None:
        self.url = url
        self._tls = ssl.create_default_context(cafile=ca_cert)
        self._tls.load_cert_chain(client.cert, client.key)

    def text(self, path: str) -> str:
        """GET whose answer is plain text, such as a log. Raises ApiError, OSError."""
        return self._call("GET", path, None).decode(errors="replace")

    def get(self, path: str) -> Object:
        """Read an object. Raises ApiError, OSError."""
        return self._json("GET", path, None)

    def find(self, path: str) -> Object | None:
        """Read an object that may not exist. Raises ApiError, OSError."""
        try:
            return self.get(path)
        except ApiError as error:
            if error.status == 404:
                return None
            raise

    def create(self, path: str, body: Object) -> Object:
        """Create an object in a collection. Raises ApiError, OSError."""
        return self._json("POST", path, body)

    def delete(self, path: str) -> None:
        """Ask for an object's deletion. Raises ApiError, OSError."""
        self._json("DELETE", path, None)

    def _json(self, method: str, path: str, body: Object | None) -> Object:
        answer: Object = json.loads(self._call(method, path, body))
        return answer

    def _call(self, method: str, path: str, body: Object | None) -> bytes:
        request = urllib.request.Request(
            f"{self.url}{path}",
            method=method,
            data=None if body is None else json.dumps(body).encode(),
            headers={"Content-Type": "application/json"},
        )
        try:
            with urllib.request.urlopen(request, timeout=_CALL_SECONDS, context=self._tls) as answer:
                content: bytes = answer.read()
                return content
        except urllib.error.HTTPError as error:
            raise ApiError(error.code, error.read().decode(errors="replace")[:1000]) from None
