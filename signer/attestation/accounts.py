"""Whether a service account is there still: what a review says of a token, and nobody says of one that has ended."""

from dataclasses import dataclass
from datetime import datetime

from signer.cluster.kube import KubeApi
from signer.cluster.objects import Named, instant
from signer.errors import ApiUnavailable, Forbidden, NotFound
from signer.model import BoundToken


@dataclass(frozen=True, slots=True)
class Account:
    """A service account. `created`: by the API server; None where that cannot be read."""

    uid: str
    created: datetime | None


class Accounts:
    """The API server's service accounts, each asked for when it matters."""

    def __init__(self, api: KubeApi) -> None:
        self._api = api

    async def has(self, proven: BoundToken) -> bool:
        """Whether the account that this token is of is there, and no other of its name. Raises ApiUnavailable."""
        found = await self.find(proven.namespace, proven.service_account)
        return found is not None and found.uid == proven.service_account_uid

    async def find(self, namespace: str, name: str) -> Account | None:
        """The account of that name; None where there is none, or it is being deleted. The names are the API server's
        own. Raises ApiUnavailable."""
        path = f"/api/v1/namespaces/{namespace}/serviceaccounts/{name}"
        try:
            found = (await self._api.read(path, Named)).metadata
        except NotFound:
            return None
        except Forbidden as error:
            raise ApiUnavailable(f"the signer may not read service accounts: {error}; apply its RBAC") from None
        if not found.uid or found.deletion_timestamp is not None:
            return None
        return Account(found.uid, instant(found.creation_timestamp))
