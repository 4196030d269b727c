"""A program that reads volumes at full speed, as applications do, and says what it should never have seen.

python -m tests.chaos.reader EXPECTED FINDINGS: until it is ended. EXPECTED is replaced whenever something may be
missing; what does not fit together is a finding at first sight, what is missing or not valid only if EXPECTED, read
once more, still says that it must be there.
"""

import json
import os
import sys
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path

from cryptography import x509
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat, load_pem_private_key


@dataclass(frozen=True)
class Finding:
    """`torn`: never to be seen, whatever goes on. Else missing or not valid."""

    text: str
    torn: bool = False


def look(target: Path, spiffe_id: str, now: datetime) -> Finding | None:
    """What is wrong with the files of a volume, read through one handle; None when nothing is."""
    try:
        folder = os.open(target / "..data", os.O_RDONLY | os.O_DIRECTORY)
    except OSError as error:
        return Finding(f"..data: {error.strerror}")
    try:
        chain, key, roots = (_read(folder, name) for name in ("tls.crt", "tls.key", "ca.crt"))
    except OSError as error:
        return Finding(f"a file: {error.strerror}")
    finally:
        os.close(folder)
    return check(chain, key, roots, spiffe_id, now)


def check(chain: bytes, key: bytes, roots: bytes, spiffe_id: str, now: datetime) -> Finding | None:
    """As `look`, for what was read."""
    try:
        leaf = x509.load_pem_x509_certificates(chain)[0]
        mine = load_pem_private_key(key, None).public_key()
        anchors = x509.load_pem_x509_certificates(roots)
    except ValueError as error:
        return Finding(f"unreadable: {error}", torn=True)
    encoding, form = Encoding.DER, PublicFormat.SubjectPublicKeyInfo
    if mine.public_bytes(encoding, form) != leaf.public_key().public_bytes(encoding, form):
        return Finding("key and certificate are not of one pair", torn=True)
    names = leaf.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    found = names.get_values_for_type(x509.UniformResourceIdentifier)
    if found != [spiffe_id]:
        return Finding(f"it is {found}, not {spiffe_id}", torn=True)
    if not any(_issued(leaf, anchor) for anchor in anchors):
        return Finding("its own trust bundle does not verify it", torn=True)
    if now > leaf.not_valid_after_utc:
        return Finding(f"it ended at {leaf.not_valid_after_utc}")
    if now < leaf.not_valid_before_utc:
        return Finding(f"it begins at {leaf.not_valid_before_utc}")
    return None


def _issued(leaf: x509.Certificate, anchor: x509.Certificate) -> bool:
    try:
        leaf.verify_directly_issued_by(anchor)
    except (ValueError, TypeError, InvalidSignature):
        return False
    return True


def _read(folder: int, name: str) -> bytes:
    with os.fdopen(os.open(name, os.O_RDONLY, dir_fd=folder), "rb") as file:
        return file.read()


@dataclass(frozen=True)
class Expected:
    """Volumes that must hold an SVID at every moment, with its SPIFFE ID.

    `offset`: how far the node's clock is ahead, in seconds.
    """

    volumes: dict[str, str]
    offset: float

    @classmethod
    def read(cls, path: Path) -> "Expected":
        document = json.loads(path.read_text())
        return cls(document["volumes"], document["offset"])

    def write(self, path: Path) -> None:
        new = path.with_suffix(".new")
        new.write_text(json.dumps({"volumes": self.volumes, "offset": self.offset}))
        new.replace(path)


def main(path: Path, findings: Path) -> None:
    read = 0
    version, expected = 0, Expected({}, 0.0)
    while True:
        now = path.stat().st_mtime_ns
        if now != version:
            version, expected = now, Expected.read(path)
        for name, spiffe_id in expected.volumes.items():
            found = look(Path(name), spiffe_id, datetime.now(UTC) + timedelta(seconds=expected.offset))
            read += 1
            if found is None:
                continue
            again = Expected.read(path)
            if again.volumes.get(name) != spiffe_id or again.offset != expected.offset:
                continue
            with findings.open("a") as file:
                file.write(f"{datetime.now(UTC):%H:%M:%S.%f} {name.split('/pods/')[1][:8]}: {found.text}\n")
        count = findings.with_suffix(".count")
        count.with_suffix(".new").write_text(str(read))
        count.with_suffix(".new").replace(count)


if __name__ == "__main__":
    # At full speed means whenever nobody else has something to do.
    os.nice(15)
    main(Path(sys.argv[1]), Path(sys.argv[2]))
