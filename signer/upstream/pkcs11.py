"""A CA's key in a PKCS#11 token (HSM, smart card, SoftHSM): each signature is made by a process of its own."""

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Mapping
from types import MappingProxyType

from cryptography.hazmat.primitives.asymmetric import ec, rsa

from runtime.extras import not_installed
from signer.held_key import Scheme, Unsupported, held
from signer.pkcs11_uri import KeyUri, TokenUri
from signer.upstream.certify import UpstreamUnusable
from svid.keys import PrivateKey, PublicKey

# Seconds that a token may take for one signature, with the start of the process that asks it.
SECONDS = 20.0
MAX_ANSWER = 64 * 1024
# By PKCS#11's names.
MECHANISMS = MappingProxyType({Scheme.ECDSA: "ECDSA", Scheme.RSA_SHA256: "SHA256_RSA_PKCS", Scheme.ED25519: "EDDSA"})
_WHY: Mapping[str, str] = MappingProxyType(
    {
        "not-installed": not_installed("python-pkcs11", "pkcs11"),
        "no-module": "{module} cannot be loaded as a PKCS#11 module; is it the vendor's library for this machine, and "
        "is its configuration there (SoftHSM: SOFTHSM2_CONF)?",
        "no-token": "there is no such token at {module}; is it plugged in, and the service behind it there?",
        "several-tokens": "several tokens at {module} are called so; name its serial number as well (serial=)",
        "pin-unread": "{pin_file} cannot be read: {detail}",
        "no-pin": "{pin_file} holds no PIN: one line of printable UTF-8",
        "pin-refused": "the token refuses the PIN in {pin_file} ({detail}). This process does not try it again: tokens "
        "lock themselves after a few wrong ones. Put the right one there",
        "pin-last-try": "the token locks itself at the next wrong PIN, and so the one in {pin_file} is not tried: log "
        "in once by the vendor's tool, which resets the count",
        "pin-locked": "the token has locked its user's PIN after too many wrong ones: unlock it by the vendor's tool",
        "no-key": "the token has no private key of that name that is of the certificate's algorithm; without a PIN it "
        "shows none that is private (pin-source=)",
        "several-keys": "the token has several private keys that are called so; name its id as well (id=)",
        "failed": "the token failed ({detail})",
    }
)
# Runs a program with that on its standard input, for so many seconds; its end and what it printed.
Run = Callable[[bytes, float], "subprocess.CompletedProcess[bytes]"]


def run(asked: bytes, seconds: float) -> "subprocess.CompletedProcess[bytes]":
    """The process that signs. Raises OSError; subprocess.TimeoutExpired once it, and what it began, was killed."""
    pipe = subprocess.PIPE
    with subprocess.Popen(
        [sys.executable, "-P", "-m", "signer.upstream.pkcs11_child"],
        stdin=pipe,
        stdout=pipe,
        stderr=subprocess.DEVNULL,
        cwd="/",
        process_group=0,
    ) as process:
        try:
            found, _ = process.communicate(asked, timeout=seconds)
        except BaseException:
            os.killpg(process.pid, signal.SIGKILL)
            raise
        return subprocess.CompletedProcess(process.args, process.returncode, found)


class TokenKey:
    """The private key that `uri` names. Blocks; one thread at a time."""

    def __init__(self, uri: KeyUri, run: Run = run, salt: bytes | None = None) -> None:
        self._uri = uri
        self._run = run
        # Which PIN the token refused: that process tells its digest, of which nobody finds the PIN without the salt.
        self._salt = salt or os.urandom(16)
        self._refused = ""

    def __str__(self) -> str:
        return str(self._uri)

    def of(self, public: PublicKey) -> PrivateKey:
        """The key to that public half. It, and signing with it, raise UpstreamUnusable."""
        try:
            return held(public, lambda scheme, data: self._signed(kind_of(public), scheme, data))
        except Unsupported as error:
            raise UpstreamUnusable(f"the key in the token cannot be used: {error}") from None

    def _signed(self, kind: str, scheme: Scheme, data: bytes) -> bytes:
        uri = self._uri
        asked = {
            "module": str(uri.module),
            "token": uri.token,
            "serial": uri.serial,
            "label": uri.label,
            "id": uri.id.hex(),
            "pin_file": str(uri.pin_file) if uri.pin_file is not None else None,
            "kind": kind,
            "mechanism": MECHANISMS[scheme],
            "data": data.hex(),
            "salt": self._salt.hex(),
            "refused": self._refused,
        }
        try:
            done = self._run(json.dumps(asked).encode(), SECONDS)
        except subprocess.TimeoutExpired:
            raise UpstreamUnusable(f"{uri}: the token did not sign within {SECONDS:g} s") from None
        except OSError as error:
            raise UpstreamUnusable(f"{uri}: no process can be started to ask it: {error.strerror}") from None
        if done.returncode != 0:
            raise UpstreamUnusable(f"{uri}: the process that asks the token ended (status {done.returncode})")
        found = _read(done.stdout)
        if "signature" in found:
            self._refused = ""
            return bytes.fromhex(found["signature"])
        if found.get("failed") == "pin-refused":
            self._refused = found.get("pin", "")
        raise self._unusable(found.get("failed", ""), found.get("detail", ""))

    def _unusable(self, why: str, detail: str) -> UpstreamUnusable:
        return UpstreamUnusable(f"{self._uri}: {sentence(self._uri, why, detail)}")


def sentence(uri: KeyUri | TokenUri, why: str, detail: str) -> str:
    """What a process that asks the token means by that word, and what to do about it."""
    return _WHY.get(why, _WHY["failed"]).format(module=uri.module, pin_file=uri.pin_file, detail=detail[:80])


def kind_of(public: PublicKey) -> str:
    """Which kind of key the token has, by PKCS#11's name."""
    if isinstance(public, ec.EllipticCurvePublicKey):
        return "EC"
    return "RSA" if isinstance(public, rsa.RSAPublicKey) else "EC_EDWARDS"


def _read(answer: bytes) -> Mapping[str, str]:
    try:
        found = json.loads(answer[: MAX_ANSWER + 1])
        bytes.fromhex(found.get("signature", ""))
        return {name: value for name, value in found.items() if isinstance(value, str)}
    except (ValueError, AttributeError, TypeError):
        return {"failed": "failed", "detail": "no answer"}
