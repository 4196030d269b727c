"""Which key store the settings put the authorities' keys into."""

from collections.abc import Callable
from contextlib import ExitStack

from signer.key_settings import KeySettings
from signer.keystore.keys import Keys
from signer.keystore.signing import Signing
from signer.keystore.token import TokenStore
from signer.keystore.worker import Worker
from svid.spiffeid import TrustDomain


def chosen(
    settings: KeySettings,
    trust_domain: TrustDomain,
    now: Callable[[], float],
    told: Callable[[str], None],
    until: ExitStack,
) -> Keys:
    """Keys in a token, or in memory. `now`: seconds that only grow; `until`: when nothing is asked of it any more."""
    if settings.token is None:
        return Keys(trust_domain)
    worker = Worker("token")
    store = TokenStore(settings.token, worker, now)
    until.callback(store.close)
    return Keys(trust_domain, store, Signing(worker, told), returning=settings.returning)
