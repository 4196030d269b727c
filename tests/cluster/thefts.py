"""What holds among thefts, restored Secrets and dead leaders: nothing abandoned comes back, and nobody is cut off."""

from __future__ import annotations

import json
import os
import random
import threading
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import permutations
from pathlib import Path

from cryptography import x509

from signer.authority.slots import KINDS
from svid.bundle import TrustBundle
from svid.spiffeid import TrustDomain

from . import signing
from .cluster import Cluster
from .fleet import handshake
from .signing import NAMESPACE, TRUST_DOMAIN, stored_state
from .waiting import PATIENCE_SECONDS

RECORD = f"/api/v1/namespaces/{NAMESPACE}/configmaps/podsvid-authority-abandoned"
# Seconds between two looks at all places.
LOOK_SECONDS = 0.5


def named(jwks: bytes) -> set[str]:
    """The ids of all authorities that a bundle trusts."""
    bundle = TrustBundle.from_jwks(TrustDomain(TRUST_DOMAIN), jwks)
    roots = (each.extensions.get_extension_for_class(x509.SubjectKeyIdentifier) for each in bundle.x509_authorities)
    return {each.value.digest.hex() for each in roots} | {each.key_id for each in bundle.jwt_authorities}


def in_volume(target: Path) -> set[str]:
    """What the volume's pod trusts now, by the files of one moment."""
    folder = os.open(target / "..data", os.O_PATH | os.O_DIRECTORY)
    try:
        return named(Path(f"/proc/self/fd/{folder}/bundle.json").read_bytes())
    finally:
        os.close(folder)


class Watch:
    """Looks at the Secret, the published bundle and each volume, and shakes hands between volumes, without a pause.

    `broken`: what must never be. A handshake may fail only while a restored Secret is being followed (`following`):
    the key that signed until then is lost with the Secret.
    """

    def __init__(self, cluster: Cluster, targets: list[Path]) -> None:
        self._cluster = cluster
        self._targets = targets
        self._stop = threading.Event()
        self._rng = random.Random(5)
        self._lost: dict[str, set[str]] = defaultdict(set)
        self._excused = False
        self._hands_off = threading.Lock()
        self.left: set[str] = set()
        self.broken: list[str] = []
        self.looks = self.handshakes = self.excused = 0

    def run(self, work: Callable[[], None]) -> None:
        """`work` again and again until `stop`; what it raises is kept."""
        while not self._stop.is_set():
            try:
                work()
            except OSError:
                continue  # the API server was slow; the next look sees as much
            except Exception as error:
                self.broken.append(repr(error))
                return

    def stop(self) -> None:
        self._stop.set()

    def look(self) -> None:
        """Once at all places: what has left and is not there any more must not be there again."""
        self._stop.wait(LOOK_SECONDS)
        self._hear()
        with self._hands_off:
            places = {"Secret": self._secret()}
        places |= {"ConfigMap": self._published()}
        places |= {str(target): in_volume(target) for target in self._targets}
        for place, trusted in places.items():
            if back := trusted & self._lost[place]:
                self.broken.append(f"{back} is trusted again in {place}")
            self._lost[place] |= self.left - trusted
        self.looks += 1

    def shake(self) -> None:
        """One handshake between two volumes."""
        self._stop.wait(0.01)
        one, other = self._rng.sample(self._targets, 2)
        excused = self._excused
        try:
            handshake(one, other)
        except Exception as error:
            if excused or self._excused:
                self.excused += 1
            else:
                self.broken.append(f"{time.monotonic():.1f} {one} {other}: {error!r}")
        self.handshakes += 1

    @contextmanager
    def restoring(self) -> Iterator[None]:
        """The Secret is the test's until a signer has started from it: nobody goes by it."""
        with self._hands_off:
            yield

    @contextmanager
    def following(self) -> Iterator[None]:
        """Agents follow a Secret that was restored while no signer ran."""
        self._excused = True
        yield
        self._excused = False

    def settled(self) -> None:
        """Wait until all trust what the Secret says and nothing that left, and each volume takes each other's SVID."""
        until = time.monotonic() + PATIENCE_SECONDS
        while wrong := self._wrong():
            assert time.monotonic() < until, wrong
            time.sleep(0.5)

    def _wrong(self) -> str:
        self._hear()
        places = {"Secret": self._secret(), "ConfigMap": self._published()}
        places |= {str(target): in_volume(target) for target in self._targets}
        for place, trusted in places.items():
            if trusted & self.left or trusted != places["Secret"]:
                return f"{place} trusts {trusted}, of which {trusted & self.left} has left, not {places['Secret']}"
        for one, other in permutations(self._targets, 2):
            try:
                handshake(one, other)
            except Exception as error:
                return f"{one} and {other}: {error!r}"
        return ""

    def _hear(self) -> None:
        found = self._cluster.api.find(RECORD)
        if found is not None:
            entries = json.loads(found["data"]["abandoned.json"])["entries"]
            self.left |= {each["id"] for each in entries if each["left_at"]}

    def _secret(self) -> set[str]:
        state = stored_state(self._cluster)
        return {slot.id for kind in KINDS for slot in state.slots(kind)}

    def _published(self) -> set[str]:
        return named(self._cluster.api.get(signing.BUNDLE)["data"]["bundle.json"].encode())
