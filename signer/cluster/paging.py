"""A collection in parts that fit: as many objects at once as there is room for their bytes, down to one."""

from collections.abc import AsyncIterator, Mapping

from signer.cluster.decoding import Kept, Page
from signer.cluster.kube import KubeApi
from signer.errors import AnswerTooLarge, ApiUnavailable

# Objects asked for at once, where they are small: the API server holds each part in memory, too.
MOST = 500
# Bytes. Below a part of this size the next one may have twice as many objects.
SMALL = 1024 * 1024


class Paging:
    """How many objects of one collection are asked for at once; it remembers what fitted."""

    def __init__(self) -> None:
        self.limit = MOST

    async def pages(
        self, api: KubeApi, path: str, kind: type[Kept], query: Mapping[str, str]
    ) -> AsyncIterator[Page[Kept]]:
        """All parts. Raises SignerError, Gone among them when the rest cannot be had any more."""
        token = ""
        while True:
            asked = {**query, "limit": str(self.limit), **({"continue": token} if token else {})}
            try:
                found = await api.list(path, kind, asked)
            except AnswerTooLarge:
                if self.limit == 1:
                    raise
                self.limit //= 2
                continue
            except ApiUnavailable:
                # It may be that the API server could not put so much together in time.
                self.limit = max(1, self.limit // 2)
                raise
            token, size = found.more, found.size
            yield found
            del found  # its bytes are not held while the next ones come
            if size <= SMALL:
                self.limit = min(MOST, self.limit * 2)
            if not token:
                return
