"""The Kubernetes API as the signer uses it: plain objects at plain paths, and mirrors of what it watches."""

from collections.abc import AsyncIterator, Mapping
from typing import Any, Protocol, TypeAlias

Object: TypeAlias = dict[str, Any]


class KubeApi(Protocol):
    """A connection to the API server. Paths are REST paths such as `/api/v1/namespaces/a/secrets/b`.

    Every call raises ApiUnavailable (unreachable, overloaded, 5xx), Forbidden (401, 403), NotFound (404), Conflict
    (409: changed meanwhile, or exists), Gone (410); other answers are ApiUnavailable as well.
    """

    async def get(self, path: str) -> Object:
        """Read one object."""
        ...

    async def list(self, path: str, query: Mapping[str, str] | None = None) -> Object:
        """Read a collection: the List object. `query` such as {"labelSelector": "a=b"}."""
        ...

    async def create(self, path: str, body: Object) -> Object:
        """POST to a collection; what the API server made of it."""
        ...

    async def replace(self, path: str, body: Object) -> Object:
        """PUT; with `metadata.resourceVersion` in `body` only if the object still has it."""
        ...

    async def patch(self, path: str, body: Object) -> Object:
        """JSON merge patch."""
        ...

    async def delete(self, path: str, body: Object | None = None) -> None:
        """DELETE; `body` may hold preconditions."""
        ...

    def watch(self, path: str, query: Mapping[str, str]) -> AsyncIterator[Object]:
        """Events {"type", "object"} of a collection from `query["resourceVersion"]` on, until the server ends it."""
        ...
