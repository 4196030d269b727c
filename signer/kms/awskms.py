"""AWS KMS: keys by their ids and aliases, which are made, sign, and are found again by a name."""

from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from types import MappingProxyType
from typing import Any

from signer.clouds.process import PASSING, Cloud, Failed
from signer.held_key import Scheme
from signer.kms.interface import KmsFailed, KmsMissing, digest_of, id_of, named, public_of, signature_for, unfinished
from signer.kms_uri import AwsAccount
from svid.keys import KeyAlgorithm, PublicKey

# Seconds: for one signature, and in which aliases are looked through, as mints wait meanwhile.
SIGN_SECONDS, NAMING_SECONDS = 5.0, 1.0
# Days in which a key that is destroyed can be had back: the fewest that AWS has.
WINDOW_DAYS = 7
TAG = "podsvid"
_PAGE = 100
_SPECS: Mapping[KeyAlgorithm, str] = MappingProxyType(
    {
        KeyAlgorithm.EC_P256: "ECC_NIST_P256",
        KeyAlgorithm.EC_P384: "ECC_NIST_P384",
        KeyAlgorithm.RSA_2048: "RSA_2048",
        KeyAlgorithm.RSA_3072: "RSA_3072",
        KeyAlgorithm.RSA_4096: "RSA_4096",
    }
)
# Of a key that is there and signs no more.
_ENDED = frozenset({"DisabledException", "KMSInvalidStateException"})


class AwsKms:
    """Implements Kms. `prefix`: of the aliases of keys that are made; `now`: seconds that only grow."""

    def __init__(self, cloud: Cloud, at: AwsAccount, prefix: str, now: Callable[[], float]) -> None:
        self._cloud = cloud
        self._at = at
        self._prefix = prefix
        self._now = now
        # Of keys made by this process: an alias is not known everywhere at once.
        self._made: dict[str, str] = {}

    def sign(self, key: str, public: PublicKey, scheme: Scheme, data: bytes) -> bytes:
        digest = digest_of(scheme, data)
        asked = {
            "KeyId": self._made.get(key, key),
            "Message": digest.value,
            "MessageType": "DIGEST",
            "SigningAlgorithm": f"RSASSA_PKCS1_V1_5_{_by(digest.hash)}" if digest.rsa else f"ECDSA_{_by(digest.hash)}",
        }
        return signature_for(public, self._bytes(self._ask("sign", asked, SIGN_SECONDS), "Signature"))

    def create(self, name: str, algorithm: KeyAlgorithm) -> PublicKey:
        asked = {
            "KeyUsage": "SIGN_VERIFY",
            "KeySpec": _SPECS[algorithm],
            # By which it is known to be of that name, wherever its alias leads some day.
            "Description": name,
            "Tags": [{"TagKey": TAG, "TagValue": self._prefix}],
        }
        arn = self._key(self._ask("create_key", asked)).get("Arn")
        if not isinstance(arn, str) or not arn.startswith(f"{self._at}:key/"):
            raise KmsFailed(f"it made a key elsewhere: {str(arn)[:100]!r}")
        try:
            self._ask("create_alias", {"AliasName": self._alias(name), "TargetKeyId": arn})
            found = public_of(self._bytes(self._ask("get_public_key", {"KeyId": arn}), "PublicKey"), algorithm)
        except KmsFailed as error:
            raise unfinished(error, arn, lambda: self._end(arn)) from None
        self._made[self.path(name)] = arn
        return found

    def destroy(self, name: str) -> bool:
        path = self.path(name)
        try:
            about = self._key(self._ask("describe_key", {"KeyId": self._made.get(path, path)}))
        except KmsMissing:
            return False
        # Whoever may lead the alias elsewhere could have any key destroyed, the CA's above, too.
        if about.get("Description") != name:
            raise KmsFailed(f"{self._alias(name)} leads to a key that was not made as {name}: it is left")
        if about.get("KeyState") != "PendingDeletion":
            self._end(str(about.get("Arn")))
        # Of a key that was just made it may not be known yet; it ends with the key.
        with suppress(KmsMissing):
            self._ask("delete_alias", {"AliasName": self._alias(name)})
        self._made.pop(path, None)
        return True

    def names(self, prefix: str) -> Sequence[str]:
        found: list[str] = []
        until, begins, asked = self._now() + NAMING_SECONDS, self._alias_of(""), dict[str, Any](Limit=_PAGE)
        while True:
            page = self._ask("list_aliases", asked)
            aliases = (str(each.get("AliasName", "")) for each in _list(page, "Aliases"))
            names = (named(each.removeprefix(begins), prefix) for each in aliases if each.startswith(begins))
            found += (each for each in names if each is not None)
            if not page.get("Truncated") or self._now() >= until:
                return found
            asked["Marker"] = page.get("NextMarker")

    def path(self, name: str) -> str:
        return f"{self._at}:{self._alias(name)}"

    def look(self) -> None:
        self._ask("list_aliases", {"Limit": 1})

    def close(self) -> None:
        self._cloud.close()

    def _end(self, arn: str) -> None:
        self._ask("schedule_key_deletion", {"KeyId": arn, "PendingWindowInDays": WINDOW_DAYS})

    def _alias(self, name: str) -> str:
        return self._alias_of(id_of(name))

    def _alias_of(self, called: str) -> str:
        return f"alias/{self._prefix}/{called}"

    def _ask(self, method: str, asked: Mapping[str, Any], *seconds: float) -> Mapping[str, Any]:
        try:
            return self._cloud.ask(method, asked, *seconds)
        except Failed as failed:
            kind = KmsMissing if failed.kind == "missing" or failed.code in _ENDED else KmsFailed
            hint = ": what its role has to be allowed is in docs/kms.md" if "AccessDenied" in failed.code else ""
            raise kind(f"{failed}{hint}", again=failed.kind in PASSING) from None

    def _key(self, answer: Mapping[str, Any]) -> Mapping[str, Any]:
        found = answer.get("KeyMetadata")
        if not isinstance(found, dict):
            raise KmsFailed("its answer cannot be read")
        return found

    def _bytes(self, answer: Mapping[str, Any], name: str) -> bytes:
        try:
            return bytes.fromhex(answer[name]["bytes"])
        except (KeyError, TypeError, ValueError):
            raise KmsFailed("its answer cannot be read") from None


def _by(hash_name: str) -> str:
    return hash_name.replace("sha", "SHA_").upper()


def _list(page: Mapping[str, Any], name: str) -> Sequence[Mapping[str, Any]]:
    found = page.get(name)
    return [each for each in found if isinstance(each, dict)] if isinstance(found, list) else []
