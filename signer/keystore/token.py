"""Authorities' keys in a PKCS#11 token: one process, begun again where it ends or hangs, has the session with it."""

import json
import os
from collections.abc import Callable, Mapping, Sequence
from typing import Any, cast

from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric import ec, padding, rsa
from cryptography.hazmat.primitives.asymmetric.utils import Prehashed, encode_dss_signature
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.serialization import load_der_public_key

from runtime.child import MAX_FRAME, Child, ChildProcess, Gone, Late
from signer.held_key import KeyRef, Scheme, held
from signer.keystore.store import KeyMissing, KeyStoreUnavailable
from signer.keystore.worker import Worker
from signer.pkcs11_uri import TokenUri
from signer.upstream.pkcs11 import MECHANISMS, kind_of, sentence
from svid.errors import InvalidKey
from svid.keys import KeyAlgorithm, PrivateKey, PublicKey, algorithm_of

KIND = "pkcs11"
# Seconds: for one signature; to load the library and log in; to make a key, which for RSA may take some.
SIGN_SECONDS, OPEN_SECONDS, MAKE_SECONDS = 5.0, 20.0, 20.0
# Seconds until another attempt, after the first that failed: the second comes at once.
FIRST_PAUSE, MOST_PAUSE = 0.5, 30.0
# What is to be signed when it is tried.
_PROBE = bytes(32)
_MISSING = (
    "the token has no key {name}, with which the authority is to sign: is it the token that the key was made in? Where "
    "it is lost, replace the authority: podsvid authority rotate --forced"
)


def _begun() -> Child:
    return ChildProcess("signer.keystore.token_child")


class TokenStore:
    """Implements KeyStore. Everything that is asked of the token is asked by `worker`, on whose thread it may run.

    `start` begins the process. `now`: seconds that only grow.
    """

    def __init__(
        self,
        uri: TokenUri,
        worker: Worker,
        now: Callable[[], float],
        start: Callable[[], Child] = _begun,
        salt: bytes | None = None,
    ) -> None:
        self._uri = uri
        self._worker = worker
        self._now = now
        self._start = start
        # Which PIN the token refused: the process tells its digest, of which nobody finds the PIN without the salt.
        self._salt = salt or os.urandom(16)
        self._refused = ""
        self._child: Child | None = None
        self._failures = 0
        self._not_before = 0.0
        self._last = ""
        # Of keys that a new session did not find: until when that is believed of the sessions in use, too.
        self._missing: dict[str, float] = {}

    def __str__(self) -> str:
        return str(self._uri)

    @property
    def kind(self) -> str:
        return KIND

    def create(self, name: str, algorithm: KeyAlgorithm) -> PrivateKey:
        number = os.urandom(16).hex()
        asked = {"operation": "create", "name": name, "id": number, "algorithm": algorithm.value}
        return self.open(KeyRef(KIND, name), _public(self._asked(asked, MAKE_SECONDS), algorithm))

    def open(self, ref: KeyRef, public: PublicKey) -> PrivateKey:
        kind = kind_of(public)

        def signed(scheme: Scheme, data: bytes) -> bytes:
            asked = {"operation": "sign", "name": ref.name, "kind": kind, "mechanism": MECHANISMS[scheme]}
            answer = self._asked({**asked, "data": data.hex()}, SIGN_SECONDS, again=True)
            return _bytes(answer, "signature")

        return held(public, signed, ref)

    def delete(self, name: str) -> bool:
        return bool(self._asked({"operation": "delete", "name": name}, SIGN_SECONDS).get("found"))

    def names(self, prefix: str) -> Sequence[str]:
        found = self._asked({"operation": "names", "prefix": prefix}, SIGN_SECONDS).get("names")
        if not isinstance(found, list) or not all(isinstance(each, str) for each in found):
            raise KeyStoreUnavailable(f"{self._uri}: the token's answer cannot be read")
        return found

    def probe(self, algorithm: KeyAlgorithm) -> None:
        """Make a key that is not kept, and sign with it."""
        rsa_key = algorithm.value.startswith("rsa-")
        mechanism = MECHANISMS[Scheme.RSA_SHA256 if rsa_key else Scheme.ECDSA]
        asked = {"operation": "probe", "name": "", "id": "", "algorithm": algorithm.value, "mechanism": mechanism}
        answer = self._asked(asked, MAKE_SECONDS)
        public, signature = _public(answer, algorithm), _bytes(answer, "signature")
        try:
            _verify(public, signature)
        except InvalidSignature:
            raise KeyStoreUnavailable(
                f"{self._uri}: what the token signs does not verify by the key that it made"
            ) from None

    def close(self) -> None:
        """Ask nothing more, and have the process end; what is being asked now is not waited for."""
        self._worker.begin(self._drop)
        self._worker.end()

    def _asked(self, asked: Mapping[str, Any], seconds: float, *, again: bool = False) -> Mapping[str, Any]:
        return self._worker.call(lambda: self._answered(asked, seconds, again=again))

    def _answered(self, asked: Mapping[str, Any], seconds: float, *, again: bool) -> Mapping[str, Any]:
        fresh, name = self._child is None, str(asked.get("name", ""))
        try:
            answer = self._attempt(asked, seconds)
            self._missing.pop(name, None)
            return answer
        except KeyMissing:
            if not fresh and self._now() >= self._missing.get(name, 0.0):
                self._drop()
                return self._answered(asked, seconds, again=again)
            # The others' session goes on: it is this key that is not there.
            if fresh:
                self._missing[name] = self._now() + MOST_PAUSE
            raise
        except KeyStoreUnavailable:
            # A session that was good may be one of before the token was taken out and put back.
            if fresh or not again:
                raise
        return self._attempt(asked, seconds)

    def _attempt(self, asked: Mapping[str, Any], seconds: float) -> Mapping[str, Any]:
        child = self._child
        if child is None:
            left = self._not_before - self._now()
            if left > 0:
                raise KeyStoreUnavailable(f"{self._last}; asked again in {left:.0f} s")
            child = self._opened()
        answer = self._told(child, asked, seconds)
        self._failures, self._refused = 0, ""
        return answer

    def _opened(self) -> Child:
        uri = self._uri
        which = {
            "module": str(uri.module),
            "token": uri.token,
            "serial": uri.serial,
            "pin_file": str(uri.pin_file) if uri.pin_file is not None else None,
            "salt": self._salt.hex(),
            "refused": self._refused,
        }
        try:
            child = self._start()
        except OSError as error:
            raise self._failed(f"no process can be started to ask it: {error.strerror}") from None
        self._child = child
        self._told(child, which, OPEN_SECONDS)
        return child

    def _told(self, child: Child, asked: Mapping[str, Any], seconds: float) -> Mapping[str, Any]:
        message = json.dumps(asked).encode()
        if len(message) > MAX_FRAME:
            raise KeyStoreUnavailable(f"{self._uri}: that is too long to be signed there")
        try:
            answer = _read(child.ask(message, seconds))
        except Late:
            raise self._failed(f"the token did not answer within {seconds:g} s") from None
        except Gone as error:
            raise self._failed(f"the process that asks the token {error}") from None
        except BaseException:
            self._drop()
            raise
        why = answer.get("failed")
        if why is None:
            return answer
        if why == "pin-refused":
            self._refused = str(answer.get("pin", ""))
        said = sentence(self._uri, str(why), str(answer.get("detail", "")))
        if why == "no-key":
            raise KeyMissing(f"{self._uri}: {_MISSING.format(name=asked.get('name', ''))}")
        if why == "several-keys":
            raise KeyMissing(f"{self._uri}: {said}")
        raise self._failed(said)

    def _failed(self, why: str) -> KeyStoreUnavailable:
        self._drop()
        pause = min(FIRST_PAUSE * 2 ** min(self._failures - 1, 16), MOST_PAUSE) if self._failures else 0.0
        self._failures += 1
        self._not_before = self._now() + pause
        self._last = f"{self._uri}: {why}"
        return KeyStoreUnavailable(self._last)

    def _drop(self) -> None:
        child, self._child = self._child, None
        if child is not None:
            child.end()


def _read(answer: bytes) -> Mapping[str, Any]:
    try:
        found = json.loads(answer)
    except (ValueError, RecursionError):
        found = None
    return found if isinstance(found, dict) else {"failed": "failed", "detail": "no answer"}


def _bytes(answer: Mapping[str, Any], name: str) -> bytes:
    try:
        return bytes.fromhex(answer[name])
    except (KeyError, TypeError, ValueError):
        raise KeyStoreUnavailable("the token's answer cannot be read") from None


def _verify(public: PublicKey, signature: bytes) -> None:
    """Whether that signs what is tried. Raises InvalidSignature."""
    if isinstance(public, rsa.RSAPublicKey):
        public.verify(signature, _PROBE, padding.PKCS1v15(), SHA256())
    elif isinstance(public, ec.EllipticCurvePublicKey):
        half = len(signature) // 2
        pair = encode_dss_signature(int.from_bytes(signature[:half]), int.from_bytes(signature[half:]))
        public.verify(pair, _PROBE, ec.ECDSA(Prehashed(SHA256())))


def _public(answer: Mapping[str, Any], algorithm: KeyAlgorithm) -> PublicKey:
    try:
        found = load_der_public_key(_bytes(answer, "public"))
        if algorithm_of(found) is algorithm and not (
            isinstance(found, rsa.RSAPublicKey) and found.public_numbers().e != 65537
        ):
            return cast(PublicKey, found)
    except (ValueError, UnsupportedAlgorithm, InvalidKey):
        pass
    raise KeyStoreUnavailable(f"the token made a key that is not {algorithm.value}")
