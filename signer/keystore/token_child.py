"""`python -m signer.keystore.token_child`: has a session with a PKCS#11 token, and makes keys and signatures in it.

A process of its own for what a vendor's library may do (signer/upstream/pkcs11_child.py), that stays: a login takes
longer than many signatures. Frames come in over standard input, which is a socket, and answers go back: the first says
which token (module, token, serial, pin_file, salt, refused), each other what to do. What fails ends the process: its
session may be one that the token has forgotten. A key that is not there is no failure of the session.
"""

import json
import os
import socket
import time
from collections.abc import Callable, Iterator, Mapping
from itertools import islice, takewhile
from typing import TYPE_CHECKING, Any, cast

from runtime.child import harden, read_frame, write_frame
from signer.upstream.pkcs11_child import Failed, read_pin, session_with, token_of

if TYPE_CHECKING:
    import pkcs11

# Of a token that is somebody else's, too: so many keys are looked at, and for so many seconds, as mints wait meanwhile.
MAX_KEYS, NAMING_SECONDS = 10_000, 1.0
# What is said of a key, and not of the token.
OF_A_KEY = frozenset({"no-key", "several-keys"})
_CURVES = {"ec-p256": "secp256r1", "ec-p384": "secp384r1"}
_PROBE = bytes(32)


class _Session:
    def __init__(self, session: "pkcs11.Session") -> None:
        self._session = session
        self._known: dict[str, pkcs11.SignMixin] = {}

    def sign(self, asked: Mapping[str, Any]) -> Mapping[str, Any]:
        from pkcs11 import Mechanism

        key = self._known.get(asked["name"])
        if key is None:
            key = self._known[asked["name"]] = self._found(asked["name"], asked["kind"])
        return {"signature": key.sign(bytes.fromhex(asked["data"]), mechanism=Mechanism[asked["mechanism"]]).hex()}

    def create(self, asked: Mapping[str, Any]) -> Mapping[str, Any]:
        public, _ = self._pair(asked, store=True)
        return {"public": _written(public).hex()}

    def probe(self, asked: Mapping[str, Any]) -> Mapping[str, Any]:
        from pkcs11 import Mechanism

        public, private = self._pair(asked, store=False)
        signature = cast("pkcs11.SignMixin", private).sign(_PROBE, mechanism=Mechanism[asked["mechanism"]])
        return {"public": _written(public).hex(), "signature": signature.hex()}

    def delete(self, asked: Mapping[str, Any]) -> Mapping[str, Any]:
        from pkcs11 import Attribute, ObjectClass

        self._known.pop(asked["name"], None)
        found = False
        for which in (ObjectClass.PRIVATE_KEY, ObjectClass.PUBLIC_KEY):
            wanted = {Attribute.CLASS: which, Attribute.LABEL: asked["name"]}
            # Found first: a search that is open bars its session from everything else.
            for each in list(self._session.get_objects(wanted)):
                each.destroy()
                found = True
        return {"found": found}

    def names(self, asked: Mapping[str, Any]) -> Mapping[str, Any]:
        from pkcs11 import Attribute, ObjectClass

        found: Iterator[Any] = iter(self._session.get_objects({Attribute.CLASS: ObjectClass.PRIVATE_KEY}))
        present, until = list(islice(found, MAX_KEYS)), time.monotonic() + NAMING_SECONDS
        labels = (each.label for each in takewhile(lambda _: time.monotonic() < until, present))
        return {"names": [each for each in labels if isinstance(each, str) and each.startswith(asked["prefix"])]}

    def _found(self, name: str, kind: str) -> "pkcs11.SignMixin":
        from pkcs11 import KeyType, ObjectClass, exceptions

        try:
            found = self._session.get_key(object_class=ObjectClass.PRIVATE_KEY, key_type=KeyType[kind], label=name)
        except exceptions.NoSuchKey:
            raise Failed("no-key") from None
        except exceptions.MultipleObjectsReturned:
            raise Failed("several-keys") from None
        return cast("pkcs11.SignMixin", found)

    def _pair(self, asked: Mapping[str, Any], *, store: bool) -> "tuple[pkcs11.PublicKey, pkcs11.PrivateKey]":
        from pkcs11 import Attribute, KeyType, Mechanism, MechanismFlag
        from pkcs11.util.ec import encode_named_curve_parameters

        made: dict[str, Any] = {
            "label": asked["name"] or None,
            "id": bytes.fromhex(asked["id"]) or None,
            "store": store,
            "capabilities": MechanismFlag.SIGN | MechanismFlag.VERIFY,
            # It signs, and that is all that can be had of it: not even wrapped by another key.
            "private_template": {Attribute.SENSITIVE: True, Attribute.EXTRACTABLE: False, Attribute.PRIVATE: True},
        }
        curve = _CURVES.get(asked["algorithm"])
        if curve is None:
            bits = int(asked["algorithm"].removeprefix("rsa-"))
            return self._session.generate_keypair(KeyType.RSA, bits, mechanism=Mechanism.RSA_PKCS_KEY_PAIR_GEN, **made)
        parameters = self._session.create_domain_parameters(
            KeyType.EC, {Attribute.EC_PARAMS: encode_named_curve_parameters(curve)}, local=True
        )
        return parameters.generate_keypair(mechanism=Mechanism.EC_KEY_PAIR_GEN, **made)


def _written(public: "pkcs11.PublicKey") -> bytes:
    from pkcs11 import KeyType
    from pkcs11.util.ec import encode_ec_public_key
    from pkcs11.util.rsa import encode_rsa_public_key

    return encode_rsa_public_key(public) if public.key_type is KeyType.RSA else encode_ec_public_key(public)


def _opened(asked: Mapping[str, Any]) -> _Session:
    try:
        import pkcs11  # noqa: F401
    except ImportError:
        raise Failed("not-installed") from None
    pin = read_pin(asked["pin_file"])
    return _Session(session_with(token_of(asked), pin, asked, rw=True))


def _answered(work: Callable[[], Mapping[str, Any]]) -> Mapping[str, Any]:
    try:
        return work()
    except Failed as failed:
        return {"failed": failed.why, "detail": failed.detail, "pin": failed.pin}
    except Exception as error:
        # Its text is the vendor's; its name is PKCS#11's.
        return {"failed": "failed", "detail": type(error).__name__}


def _serve(connection: socket.socket) -> None:
    session: _Session | None = None

    def answer(asked: Mapping[str, Any]) -> Mapping[str, Any]:
        nonlocal session
        if session is None:
            session = _opened(asked)
            return {}
        operation = {
            "sign": session.sign,
            "create": session.create,
            "delete": session.delete,
            "names": session.names,
            "probe": session.probe,
        }[asked["operation"]]
        return operation(asked)

    while (frame := read_frame(connection)) is not None:
        asked = json.loads(frame)
        found = _answered(lambda asked=asked: answer(asked))  # type: ignore[misc]
        write_frame(connection, json.dumps(found).encode())
        if "failed" in found and found["failed"] not in OF_A_KEY:
            return


def main() -> None:
    """Answer until nobody asks any more."""
    harden()
    # What the library reads there is no question.
    connection = socket.socket(fileno=os.dup(0))
    nothing = os.open(os.devnull, os.O_RDWR)
    os.dup2(nothing, 0)
    try:
        _serve(connection)
    finally:
        # Nor is what the library does at its end waited for.
        os._exit(0)


if __name__ == "__main__":
    main()
