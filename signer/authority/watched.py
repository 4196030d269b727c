"""The authorities' Secret as it is watched: what another replica stored is followed soon, without being asked for."""

from collections.abc import Awaitable, Callable

from runtime.clock import Clock
from runtime.stopping import side_by_side
from signer.authority.state import AuthorityState
from signer.authority.store import SecretStore
from signer.cluster.kube import KubeApi
from signer.cluster.mirror import Mirror
from signer.cluster.objects import DataObject, plain


class WatchedSecret:
    """The Secret `name`, whose states `store` reads."""

    def __init__(self, api: KubeApi, store: SecretStore, namespace: str, name: str, clock: Clock) -> None:
        self._mirror: Mirror[DataObject, AuthorityState] = Mirror(
            api,
            f"/api/v1/namespaces/{namespace}/secrets",
            DataObject,
            lambda each: store.read_event(plain(each)),
            clock,
            {"fieldSelector": f"metadata.name={name}"},
        )

    async def run(self, follow: Callable[[AuthorityState], Awaitable[object]]) -> None:
        """Have each state followed, for ever."""
        await side_by_side(self._mirror.run(), self._tell(follow))

    async def _tell(self, follow: Callable[[AuthorityState], Awaitable[object]]) -> None:
        version = 0
        while True:
            version = await self._mirror.changed.wait_beyond(version)
            for state in self._mirror.values.values():
                await follow(state)
