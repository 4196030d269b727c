"""Serial numbers are written as openssl and Python's ssl write them, or a comparison of two commands' outputs fails."""

import ssl
import subprocess
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec

from svid.certificates import serial_of, to_pem

KEY = ec.generate_private_key(ec.SECP256R1())


def numbered(serial: int) -> x509.Certificate:
    name = x509.Name([])
    start = datetime(2026, 1, 1, tzinfo=UTC)
    builder = x509.CertificateBuilder(name, name, KEY.public_key(), serial, start, start + timedelta(days=1))
    return builder.sign(KEY, hashes.SHA256())


@pytest.mark.parametrize("serial", [1, 0xF, 0x10, 0x9DF, 0x9DFF, 0x80, 0xFF, 0x100, 2**158, 2**159 - 1, 0xA << 150])
def test_a_serial_number_is_written_as_others_write_it(tmp_path: Path, serial: int) -> None:
    found = numbered(serial)
    (tmp_path / "pem").write_bytes(to_pem([found]))
    said = subprocess.run(
        ["openssl", "x509", "-in", tmp_path / "pem", "-noout", "-serial"], capture_output=True, text=True, check=True
    ).stdout
    assert said.strip().lower() == f"serial={serial_of(found)}"
    decoded = ssl._ssl._test_decode_cert(str(tmp_path / "pem"))  # type: ignore[attr-defined]
    assert decoded["serialNumber"].lower() == serial_of(found)
