"""Google Cloud KMS: versions of keys, which are made in a key ring, sign, and are found again by a name."""

import base64
import binascii
from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType
from typing import Any

from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat, load_pem_public_key

from signer.clouds.process import PASSING, Cloud, Failed
from signer.held_key import Scheme
from signer.kms.interface import KmsFailed, KmsMissing, digest_of, id_of, named, public_of, signature_for, unfinished
from svid.keys import KeyAlgorithm, PublicKey

# Seconds: for one signature, in which keys are looked through, as mints wait meanwhile, and until a key is made.
SIGN_SECONDS, NAMING_SECONDS, MAKE_SECONDS, LOOK_SECONDS = 5.0, 1.0, 20.0, 0.5
# Of a page: each key is some 500 bytes.
_PAGE = 200
_ALGORITHMS: Mapping[KeyAlgorithm, str] = MappingProxyType(
    {
        KeyAlgorithm.EC_P256: "EC_SIGN_P256_SHA256",
        KeyAlgorithm.EC_P384: "EC_SIGN_P384_SHA384",
        KeyAlgorithm.RSA_2048: "RSA_SIGN_PKCS1_2048_SHA256",
        KeyAlgorithm.RSA_3072: "RSA_SIGN_PKCS1_3072_SHA256",
        KeyAlgorithm.RSA_4096: "RSA_SIGN_PKCS1_4096_SHA256",
    }
)
# Of a version that is there and signs no more; and of an identity that may not.
_ENDED, _DENIED = "FailedPrecondition", ("Forbidden", "PermissionDenied")
_ALIVE = frozenset({"ENABLED", "DISABLED", "PENDING_GENERATION"})


class GoogleKms:
    """Implements Kms. `hardware`: keys are made by an HSM; `now`: seconds that only grow."""

    def __init__(
        self,
        cloud: Cloud,
        ring: str,
        hardware: bool,
        now: Callable[[], float],
        sleep: Callable[[float], None],
    ) -> None:
        self._cloud = cloud
        self._ring = ring
        self._hardware = hardware
        self._now = now
        self._sleep = sleep
        # Keys stay listed for ever; of these it is known that they are destroyed.
        self._ended: set[str] = set()

    def sign(self, key: str, public: PublicKey, scheme: Scheme, data: bytes) -> bytes:
        digest = digest_of(scheme, data)
        # No checksums: the signature is verified.
        answer = self._ask("asymmetric_sign", {"name": key, "digest": {digest.hash: digest.value}}, SIGN_SECONDS)
        try:
            return signature_for(public, base64.b64decode(answer["signature"], validate=True))
        except (KeyError, TypeError, binascii.Error):
            raise KmsFailed("its answer cannot be read") from None

    def create(self, name: str, algorithm: KeyAlgorithm) -> PublicKey:
        level = "HSM" if self._hardware else "SOFTWARE"
        asked = {
            "parent": self._ring,
            "crypto_key_id": id_of(name),
            "crypto_key": {
                "purpose": "ASYMMETRIC_SIGN",
                "version_template": {"algorithm": _ALGORITHMS[algorithm], "protection_level": level},
                "labels": {"podsvid": _label(name)},
            },
        }
        self._ask("create_crypto_key", asked)
        try:
            return self._finished(name, algorithm)
        except KmsFailed as error:
            raise unfinished(error, self.path(name), lambda: self.destroy(name)) from None

    def _finished(self, name: str, algorithm: KeyAlgorithm) -> PublicKey:
        self._await(self.path(name))
        found = self._ask("get_public_key", {"name": self.path(name)}).get("pem")
        try:
            key = load_pem_public_key(str(found).encode())
        except ValueError:
            raise KmsFailed(f"the public key of {name} cannot be read") from None
        return public_of(key.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo), algorithm)

    def destroy(self, name: str) -> bool:
        try:
            state = self._state(self.path(name))
        except KmsMissing:
            return False
        if state in _ALIVE:
            self._ask("destroy_crypto_key_version", {"name": self.path(name)})
        self._ended.add(id_of(name))
        return True

    def names(self, prefix: str) -> Sequence[str]:
        found: list[str] = []
        until, asked = self._now() + NAMING_SECONDS, dict[str, Any](parent=self._ring, page_size=_PAGE)
        while True:
            page = self._ask("list_crypto_keys", asked)
            keys = page.get("crypto_keys")
            for each in keys if isinstance(keys, list) else ():
                called = str(each.get("name", "")).rpartition("/")[2]
                name = named(called, prefix)
                if name is None or called in self._ended:
                    continue
                if self._now() >= until:
                    return found
                if self._is_alive(name):
                    found.append(name)
                else:
                    self._ended.add(called)
            if not page.get("next_page_token") or self._now() >= until:
                return found
            asked["page_token"] = page["next_page_token"]

    def path(self, name: str) -> str:
        # Each key that is made here has one version.
        return f"{self._ring}/cryptoKeys/{id_of(name)}/cryptoKeyVersions/1"

    def look(self) -> None:
        self._ask("list_crypto_keys", {"parent": self._ring, "page_size": 1})

    def close(self) -> None:
        self._cloud.close()

    def _is_alive(self, name: str) -> bool:
        try:
            return self._state(self.path(name)) in _ALIVE
        except KmsMissing:
            return False

    def _state(self, version: str) -> str:
        return str(self._ask("get_crypto_key_version", {"name": version}).get("state"))

    def _await(self, version: str) -> None:
        """An HSM takes a moment to make a key."""
        until = self._now() + MAKE_SECONDS
        while (state := self._state(version)) == "PENDING_GENERATION" and self._now() < until:
            self._sleep(LOOK_SECONDS)
        if state != "ENABLED":
            raise KmsFailed(f"the key that it made is {state}: {version}")

    def _ask(self, method: str, asked: Mapping[str, Any], *seconds: float) -> Mapping[str, Any]:
        try:
            return self._cloud.ask(method, asked, *seconds)
        except Failed as failed:
            kind = KmsMissing if failed.kind == "missing" or failed.code == _ENDED else KmsFailed
            hint = ": what its identity needs is in docs/kms.md" if failed.code in _DENIED else ""
            raise kind(f"{failed}{hint}", again=failed.kind in PASSING) from None


def _label(name: str) -> str:
    """For people who look at the ring: whose trust domain's it is, or a part of it."""
    begun = name.rsplit("-", 2)[0].removeprefix("podsvid-")
    return begun.replace(".", "_")[:63]
