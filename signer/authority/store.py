"""Where the authorities are kept: one Secret, changed by compare and swap, encrypted if there is a key for that."""

import base64
import binascii
import logging
import secrets
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from signer.authority.slots import OpenKey, nowhere
from signer.authority.state import AuthorityState
from signer.cluster.kube import OWN_LABELS, KubeApi, Object
from signer.errors import NotFound, StateDamaged
from signer.held_key import ref_of
from svid.jwtauthority import JwtSigningKey
from svid.spiffeid import TrustDomain

_log = logging.getLogger("podsvid.store")
SECRET_TYPE = "podsvid.io/authority-state"
PLAIN, ENCRYPTED = "state.json", "state.enc"
_NONCE = 12
_KEY = 32


@dataclass(frozen=True, slots=True)
class Stored:
    """A state as it was read: `version` is what a change is compared with."""

    state: AuthorityState
    version: str


class StateStore(Protocol):
    """Keeps one state."""

    async def load(self) -> Stored | None:
        """What is kept; None when nothing was ever. Raises StateDamaged, SignerError."""
        ...

    async def create(self, state: AuthorityState) -> Stored:
        """Keep the first one. Raises Conflict when there is one, SignerError."""
        ...

    async def replace(self, stored: Stored, state: AuthorityState) -> Stored:
        """Keep `state` in the place of `stored`. Raises Conflict when that is no longer the newest, SignerError."""
        ...


@dataclass(frozen=True, slots=True)
class Cipher:
    """AES-256-GCM; the name of what is encrypted is authenticated along, so that no copy passes for another."""

    key: bytes = field(repr=False)

    def encrypt(self, data: bytes, name: str) -> bytes:
        """Nonce, then ciphertext with its tag."""
        nonce = secrets.token_bytes(_NONCE)
        return nonce + AESGCM(self.key).encrypt(nonce, data, name.encode())

    def decrypt(self, data: bytes, name: str) -> bytes:
        """Raises StateDamaged."""
        try:
            return AESGCM(self.key).decrypt(data[:_NONCE], data[_NONCE:], name.encode())
        except (InvalidTag, ValueError):
            raise StateDamaged(
                f"the stored authorities ({name}) cannot be decrypted: the key in state_key_file is another one, or "
                "the Secret was changed; put the right key in place, or restore the Secret from a backup"
            ) from None


def read_cipher(path: Path | None) -> Cipher | None:
    """The key file: 32 bytes, raw or as base64. Raises StateDamaged."""
    if path is None:
        return None
    try:
        data = path.read_bytes()
    except OSError as error:
        raise StateDamaged(f"state_key_file {path} cannot be read: {error.strerror}") from None
    if len(data) != _KEY:
        try:
            data = base64.b64decode(data.strip(), validate=True)
        except binascii.Error:
            data = b""
    if len(data) != _KEY:
        raise StateDamaged(f"state_key_file {path} does not hold {_KEY} bytes, raw or as base64")
    return Cipher(data)


class SecretStore:
    """Implements StateStore on a Secret of the signer's own namespace."""

    def __init__(
        self,
        api: KubeApi,
        namespace: str,
        name: str,
        trust_domain: TrustDomain,
        cipher: Cipher | None = None,
        open_key: OpenKey = nowhere,
    ) -> None:
        self._api = api
        self._collection = f"/api/v1/namespaces/{namespace}/secrets"
        self._path = f"{self._collection}/{name}"
        self._name = name
        self._namespace = namespace
        self._trust_domain = trust_domain
        self._cipher = cipher
        self._open_key = open_key
        # Of the state that was read or written last.
        self._keys: dict[str, JwtSigningKey] = {}

    async def load(self) -> Stored | None:
        try:
            return self._stored(await self._api.get(self._path))
        except NotFound:
            return None

    async def create(self, state: AuthorityState) -> Stored:
        return self._stored(await self._api.create(self._collection, self._body(state, None)))

    async def replace(self, stored: Stored, state: AuthorityState) -> Stored:
        return self._stored(await self._api.replace(self._path, self._body(state, stored.version)))

    def read_event(self, body: Object) -> AuthorityState | None:
        """For a mirror: the state in a Secret that was seen to change; None, with a log line, when it is unusable.

        What a running signer knows stays in force then, for as long as without the API server: what cannot be read may
        be a newer state, which a signer of a later version or with another key wrote.
        """
        try:
            return self._stored(body).state
        except StateDamaged as error:
            _log.error("the authorities' Secret was damaged", extra={"reason": error.reason, "error": str(error)})
            return None

    def _stored(self, body: Object) -> Stored:
        data = body.get("data") or {}
        wanted, other = (ENCRYPTED, PLAIN) if self._cipher else (PLAIN, ENCRYPTED)
        if wanted not in data:
            if other in data:
                raise StateDamaged(
                    f"Secret {self._name} is {'not ' if self._cipher else ''}encrypted; "
                    f"{'leave state_key_file out' if self._cipher else 'set state_key_file'}"
                )
            raise StateDamaged(f"Secret {self._name} has no {wanted}; restore it from a backup")
        try:
            content = base64.b64decode(data[wanted], validate=True)
        except (binascii.Error, TypeError, ValueError):
            raise StateDamaged(f"Secret {self._name} is damaged; restore it from a backup") from None
        if self._cipher:
            content = self._cipher.decrypt(content, self._aad)
        state = AuthorityState.from_json(content, self._trust_domain, self._keys, self._open_key)
        self._keys = _jwt_keys(state)
        return Stored(state, str((body.get("metadata") or {}).get("resourceVersion", "")))

    def _body(self, state: AuthorityState, version: str | None) -> Object:
        content = state.to_json()
        self._keys |= _jwt_keys(state)
        name = PLAIN
        if self._cipher:
            content, name = self._cipher.encrypt(content, self._aad), ENCRYPTED
        metadata: Object = {
            "name": self._name,
            "namespace": self._namespace,
            "labels": dict(OWN_LABELS),
        }
        if version is not None:
            metadata["resourceVersion"] = version
        return {
            "apiVersion": "v1",
            "kind": "Secret",
            "type": SECRET_TYPE,
            "metadata": metadata,
            "data": {name: base64.b64encode(content).decode()},
        }

    @property
    def _aad(self) -> str:
        return f"{self._trust_domain.name}/{self._namespace}/{self._name}"


def _jwt_keys(state: AuthorityState) -> dict[str, JwtSigningKey]:
    here = [slot.key for slot in state.jwt if isinstance(slot.key, JwtSigningKey)]
    return {key.to_pem().decode(): key for key in here if ref_of(key.private_key) is None}
