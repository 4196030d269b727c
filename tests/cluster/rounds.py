"""All pods shake hands in pairs, round after round, by files and by the Workload API; what each held is noted."""

from __future__ import annotations

import os
import random
import threading
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime, timedelta
from itertools import pairwise
from pathlib import Path

import grpc
from cryptography import x509
from cryptography.hazmat.primitives import serialization
from cryptography.x509.oid import ExtensionOID

from agent.pb import workload_pb2
from svid.certificates import certificates_from_der, certificates_from_pem, to_pem

from .fleet import handshake

# A pause, or the handshakes would have a core for themselves; and between two looks at what each pod has. A pod may get
# an SVID by the clock and, when another authority signs a moment later, the next one a moment after it.
ROUND_SECONDS, LOOK_SECONDS = 0.5, 0.02
# Renewal by the clock begins at this share of an SVID's life, at the soonest; certificates have whole seconds.
_DUE, _WHOLE = 0.4, timedelta(seconds=2)


@dataclass(frozen=True)
class Held:
    """An SVID that a pod had: who issued it, and until when."""

    serial: int
    authority: str
    ends: datetime


def held(folder: Path) -> Held:
    """What is in a folder that is laid out as a volume is."""
    leaf = certificates_from_pem((folder / "..data" / "tls.crt").read_bytes())[0]
    found = leaf.extensions.get_extension_for_oid(ExtensionOID.AUTHORITY_KEY_IDENTIFIER).value
    assert isinstance(found, x509.AuthorityKeyIdentifier)
    assert found.key_identifier is not None
    return Held(leaf.serial_number, found.key_identifier.hex(), leaf.not_valid_after_utc)


def trusted(folder: Path) -> frozenset[x509.Certificate]:
    """The roots that are in it."""
    return frozenset(certificates_from_pem((folder / "..data" / "ca.crt").read_bytes()))


def issuers(svids: Sequence[Held]) -> list[str]:
    """Who issued them, one after another."""
    found: list[str] = []
    for each in svids:
        if [each.authority] != found[-1:]:
            found.append(each.authority)
    return found


def undue(svids: Sequence[Held], lifetime: timedelta) -> list[str]:
    """Which came before the clock asked for it, and not because another authority signs."""
    least = lifetime * _DUE - _WHOLE
    return [
        f"{after.serial:x} came {after.ends - before.ends} after {before.serial:x}"
        for before, after in pairwise(svids)
        if after.authority == before.authority and after.ends - before.ends < least
    ]


class Rounds:
    """Of these pods, each with the folder of what it has; goes on in a thread until `stop`."""

    def __init__(self, folders: Mapping[str, Path]) -> None:
        assert len(folders) % 2 == 0, "nobody is left over in a round"
        self._folders = dict(folders)
        self._rng = random.Random(1)
        self._stop = threading.Event()
        self.rounds = 0
        self.slowest = 0.0
        self.failures: list[str] = []
        # What each had, one after another, and which folder was the newest at the last look.
        self.noted = {name: [held(folder)] for name, folder in folders.items()}
        self._newest = dict.fromkeys(folders, "")

    @property
    def handshakes(self) -> int:
        return self.rounds * len(self._folders) // 2

    def run(self) -> None:
        """Go on until `stop`. What fails is kept in `failures`, with its time and the two pods."""
        last = time.monotonic()
        while not self._stop.wait(LOOK_SECONDS):
            self._look()
            if time.monotonic() < last + ROUND_SECONDS:
                continue
            self.once()
            now = time.monotonic()
            self.slowest, last = max(self.slowest, now - last), now

    def once(self) -> None:
        """A round: each pod once."""
        names = list(self._folders)
        self._rng.shuffle(names)
        for server, client in zip(names[::2], names[1::2], strict=True):
            try:
                handshake(self._folders[server], self._folders[client])
            except Exception as error:
                self._failed(f"{server} {client}", error)
            self._look()
        self.rounds += 1

    def _look(self) -> None:
        for name, folder in self._folders.items():
            try:
                newest = os.readlink(folder / "..data")
                if newest == self._newest[name]:
                    continue
                self._newest[name] = newest
                now = held(folder)
            except Exception as error:
                self._failed(name, error)
                continue
            if now != self.noted[name][-1]:
                self.noted[name].append(now)

    def _failed(self, who: str, error: Exception) -> None:
        self.failures.append(f"{datetime.now()} {who}: {error!r}")

    def stop(self) -> None:
        self._stop.set()


class Follower:
    """A user of the Workload API: keeps what the socket last said in a folder that is laid out as a volume is."""

    def __init__(self, socket: str, folder: Path) -> None:
        self._channel = grpc.insecure_channel(f"unix:{socket}")
        self._stream = self._channel.unary_stream(
            "/SpiffeWorkloadAPI/FetchX509SVID",
            request_serializer=workload_pb2.X509SVIDRequest.SerializeToString,
            response_deserializer=workload_pb2.X509SVIDResponse.FromString,
        )(workload_pb2.X509SVIDRequest(), metadata=(("workload.spiffe.io", "true"),), wait_for_ready=True)
        self.folder = folder
        self.answers = 0
        self.ended = ""

    def run(self) -> None:
        """Go on until `stop`; `ended` says why it did before."""
        try:
            for answer in self._stream:
                self._keep(answer.svids[0])
        except grpc.RpcError as error:
            self.ended = str(error)

    def stop(self) -> None:
        self._stream.cancel()
        self._channel.close()

    def _keep(self, svid: workload_pb2.X509SVID) -> None:
        there = self.folder / str(self.answers + 1)
        there.mkdir(mode=0o700)
        key = serialization.load_der_private_key(svid.x509_svid_key, None)
        written = {
            "tls.crt": to_pem(certificates_from_der(svid.x509_svid)),
            "ca.crt": to_pem(certificates_from_der(svid.bundle)),
            "tls.key": key.private_bytes(
                serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
            ),
        }
        for name, content in written.items():
            (there / name).write_bytes(content)
        link = self.folder / "..new"
        link.symlink_to(there.name)
        link.replace(self.folder / "..data")
        # Whoever waits for an answer reads it next.
        self.answers += 1


@contextmanager
def following(sockets: Iterable[str], folder: Path) -> Iterator[list[Follower]]:
    """One for each socket, from its first answer on."""
    found, threads = [], []
    try:
        for number, socket in enumerate(sockets):
            own = folder / str(number)
            own.mkdir()
            found.append(Follower(socket, own))
            threads.append(threading.Thread(target=found[-1].run, daemon=True))
            threads[-1].start()
        yield found
    finally:
        for each in found:
            each.stop()
        for thread in threads:
            thread.join()
