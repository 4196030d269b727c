"""Which key store the settings put the authorities' keys into."""

from collections.abc import Callable
from contextlib import ExitStack

from signer.key_settings import KeySettings
from signer.key_uri import KeyPlace
from signer.keystore.keys import Keys
from signer.keystore.kms import PROBE_SECONDS as KMS_SECONDS
from signer.keystore.kms import KmsStore
from signer.keystore.signing import Signing
from signer.keystore.token import MAKE_SECONDS, OPEN_SECONDS, TokenStore
from signer.keystore.worker import Worker
from signer.kms.chosen import kms_of_place
from signer.pkcs11_uri import TokenUri
from svid.spiffeid import TrustDomain


def chosen(
    settings: KeySettings,
    trust_domain: TrustDomain,
    now: Callable[[], float],
    told: Callable[[str], None],
    until: ExitStack,
) -> Keys:
    """Keys in a store, or in memory. `now`: seconds that only grow; `until`: when nothing is asked of it any more."""
    if settings.place is None:
        return Keys(trust_domain)
    worker = Worker("keys")
    store = opened(settings.place, worker, now)
    until.callback(store.close)
    return Keys(trust_domain, store, Signing(worker, told), returning=settings.returning)


def opened(place: KeyPlace, worker: Worker, now: Callable[[], float]) -> TokenStore | KmsStore:
    """The store there, which `worker` asks. Nothing of it is begun yet."""
    if isinstance(place, TokenUri):
        return TokenStore(place, worker, now)
    return KmsStore(place, kms_of_place(place, now), worker)


def probe_seconds(place: KeyPlace) -> float:
    """How long it may take to try that store with one or two kinds of keys."""
    return OPEN_SECONDS + 2 * MAKE_SECONDS if isinstance(place, TokenUri) else KMS_SECONDS
