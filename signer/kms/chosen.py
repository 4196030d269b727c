"""Which KMS an URI's key, or its keys, are in."""

import time
from collections.abc import Callable

from signer.clouds.process import Cloud, CloudProcess, Service
from signer.key_uri import KmsKey, KmsPlace
from signer.kms.awskms import AwsKms
from signer.kms.gcpkms import GoogleKms
from signer.kms.interface import Kms
from signer.kms_uri import AwsKey, AwsPlace

# What begins a cloud's library; `now`: seconds that only grow.
Begin = Callable[[Service, Callable[[], float]], Cloud]


def kms_of_key(uri: KmsKey, now: Callable[[], float], begin: Begin = CloudProcess) -> tuple[Kms, str]:
    """The KMS that has that key, and the key's name there."""
    if isinstance(uri, AwsKey):
        return AwsKms(begin(Service("aws", "kms", uri.at.region), now), uri.at, "", now), uri.arn
    ring = uri.version.partition("/cryptoKeys/")[0]
    return GoogleKms(begin(Service("google", "kms"), now), ring, True, now, time.sleep), uri.version


def kms_of_place(uri: KmsPlace, now: Callable[[], float], begin: Begin = CloudProcess) -> Kms:
    """The KMS in which keys are made there."""
    if isinstance(uri, AwsPlace):
        return AwsKms(begin(Service("aws", "kms", uri.at.region), now), uri.at, uri.prefix, now)
    return GoogleKms(begin(Service("google", "kms"), now), uri.ring, uri.hardware, now, time.sleep)
