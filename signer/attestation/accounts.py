"""Whether a service account is there still: what a review says of a token, and nobody says of one that has ended."""

from signer.cluster.kube import KubeApi
from signer.cluster.objects import Named
from signer.errors import ApiUnavailable, Forbidden, NotFound
from signer.model import BoundToken


class Accounts:
    """The API server's service accounts, each asked for when it matters."""

    def __init__(self, api: KubeApi) -> None:
        self._api = api

    async def has(self, proven: BoundToken) -> bool:
        """Whether the account that this token is of is there, and no other of its name. Raises ApiUnavailable."""
        return await self.is_there(proven.namespace, proven.service_account, proven.service_account_uid)

    async def is_there(self, namespace: str, name: str, uid: str) -> bool:
        """Whether the account of that name is the one of that uid. The names are the API server's own. Raises
        ApiUnavailable."""
        path = f"/api/v1/namespaces/{namespace}/serviceaccounts/{name}"
        try:
            found = (await self._api.read(path, Named)).metadata
        except NotFound:
            return False
        except Forbidden as error:
            raise ApiUnavailable(f"the signer may not read service accounts: {error}; apply its RBAC") from None
        return bool(found.uid) and found.uid == uid and found.deletion_timestamp is None
