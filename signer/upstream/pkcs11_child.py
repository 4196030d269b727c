"""`python -m signer.upstream.pkcs11_child`: signs once with a key in a PKCS#11 token, and ends.

A process of its own, since a vendor's library may crash, hang, print, start threads, or hold on to a session that the
token has forgotten. One JSON object comes in (module, token, serial, label, id, pin_file, kind, mechanism, data, salt,
refused; bytes as hex), one goes out: {"signature": hex}, or {"failed": why, "detail": the error's name, "pin": digest}.
"""

import hashlib
import json
import os
import sys
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, cast

from runtime.child import harden

if TYPE_CHECKING:
    import pkcs11

MAX_PIN = 1024


class Failed(Exception):
    """Why it did not sign, by a word that the signer has a sentence for."""

    def __init__(self, why: str, detail: str = "", pin: str = "") -> None:
        super().__init__(why)
        self.why = why
        self.detail = detail
        self.pin = pin


def read_pin(path: str | None) -> str | None:
    """The PIN in that file; None: there is none. Raises Failed."""
    if path is None:
        return None
    try:
        with open(path, "rb") as file:
            data = file.read(MAX_PIN + 1)
    except OSError as error:
        raise Failed("pin-unread", error.strerror or "") from None
    pin = data.decode("utf-8", "replace").rstrip("\r\n")
    # What is no PIN is not tried: a wrong one counts.
    if not pin or len(data) > MAX_PIN or not pin.isprintable() or "\ufffd" in pin:
        raise Failed("no-pin")
    return pin


def token_of(asked: Mapping[str, Any]) -> "pkcs11.Token":
    """The token that is asked for, by its label and serial number. Raises Failed."""
    from pkcs11 import exceptions, lib

    try:
        library = lib(asked["module"])
    except (exceptions.PKCS11Error, RuntimeError, OSError):
        raise Failed("no-module") from None
    serial = asked["serial"].encode() or None
    try:
        return library.get_token(token_label=asked["token"] or None, token_serial=serial)
    except exceptions.NoSuchToken:
        raise Failed("no-token") from None
    except exceptions.MultipleTokensReturned:
        raise Failed("several-tokens") from None


def session_with(
    token: "pkcs11.Token", pin: str | None, asked: Mapping[str, Any], *, rw: bool = False
) -> "pkcs11.Session":
    """A session with it, logged in if there is a PIN that was not refused before. Raises Failed."""
    from pkcs11 import TokenFlag, exceptions

    digest = "" if pin is None else hashlib.sha256(bytes.fromhex(asked["salt"]) + pin.encode()).hexdigest()
    if pin is not None and digest == asked["refused"]:
        raise Failed("pin-refused", "before", digest)
    # A wrong one counts, and the last one locks the key away for good.
    if pin is not None and token.flags & TokenFlag.USER_PIN_LOCKED:
        raise Failed("pin-locked")
    if pin is not None and token.flags & TokenFlag.USER_PIN_FINAL_TRY:
        raise Failed("pin-last-try")
    try:
        return token.open(rw=rw, user_pin=pin)
    except exceptions.PinLocked:
        raise Failed("pin-locked") from None
    except (exceptions.PinIncorrect, exceptions.PinInvalid, exceptions.PinLenRange, exceptions.PinExpired) as error:
        raise Failed("pin-refused", type(error).__name__, digest) from None


def _signed(asked: Mapping[str, Any]) -> bytes:
    try:
        from pkcs11 import KeyType, Mechanism, ObjectClass, exceptions
    except ImportError:
        raise Failed("not-installed") from None
    pin = read_pin(asked["pin_file"])
    with session_with(token_of(asked), pin, asked) as session:
        try:
            key = session.get_key(
                object_class=ObjectClass.PRIVATE_KEY,
                key_type=KeyType[asked["kind"]],
                label=asked["label"] or None,
                id=bytes.fromhex(asked["id"]) or None,
            )
        except exceptions.NoSuchKey:
            raise Failed("no-key") from None
        except exceptions.MultipleObjectsReturned:
            raise Failed("several-keys") from None
        return bytes(
            cast("pkcs11.SignMixin", key).sign(bytes.fromhex(asked["data"]), mechanism=Mechanism[asked["mechanism"]])
        )


def _answer(asked: Mapping[str, Any]) -> Mapping[str, str]:
    try:
        return {"signature": _signed(asked).hex()}
    except Failed as failed:
        return {"failed": failed.why, "detail": failed.detail, "pin": failed.pin}
    except Exception as error:
        # Its text is the vendor's; its name is PKCS#11's.
        return {"failed": "failed", "detail": type(error).__name__}


def main() -> None:
    """Answer once."""
    harden()
    # What the library prints is no answer.
    answers = os.dup(1)
    os.dup2(2, 1)
    answer = json.dumps(_answer(json.load(sys.stdin)))
    os.write(answers, answer.encode())
    # Nor is what it does at its end waited for.
    os._exit(0)


if __name__ == "__main__":
    main()
