"""The Kubernetes API as the signer uses it: at plain paths, objects to write, and what is kept of those it follows."""

from collections.abc import AsyncIterator, Mapping
from types import MappingProxyType
from typing import Any, Protocol, TypeAlias

from signer.cluster.decoding import Event, Kept, Page

Object: TypeAlias = dict[str, Any]
# Of what is podsvid's own.
MANAGED: Mapping[str, str] = MappingProxyType({"app.kubernetes.io/managed-by": "podsvid"})
OWN_LABELS: Mapping[str, str] = MappingProxyType({"app.kubernetes.io/name": "podsvid", **MANAGED})


class KubeApi(Protocol):
    """A connection to the API server. Paths are REST paths such as `/api/v1/namespaces/a/secrets/b`.

    Every call raises ApiUnavailable (unreachable, overloaded, 5xx), Forbidden (401, 403), NotFound (404), Conflict
    (409: changed meanwhile, or exists), Gone (410); other answers are ApiUnavailable as well.
    """

    async def get(self, path: str) -> Object:
        """Read one object."""
        ...

    async def read(self, path: str, kind: type[Kept]) -> Kept:
        """Read of one object what is kept of its kind."""
        ...

    async def list(self, path: str, kind: type[Kept], query: Mapping[str, str] | None = None) -> Page[Kept]:
        """Read a part of a collection. `query` such as {"labelSelector": "a=b", "limit": "500"}.

        Raises AnswerTooLarge when the part does not fit; one object always does.
        """
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

    def watch(self, path: str, kind: type[Kept], query: Mapping[str, str]) -> AsyncIterator[Event[Kept]]:
        """Events of a collection from `query["resourceVersion"]` on, until the server ends it."""
        ...
