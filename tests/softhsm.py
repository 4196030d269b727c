"""A PKCS#11 token in files: SoftHSM, as Debian's package `softhsm2` has it."""

import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from shutil import which

import pytest

from signer.pkcs11_uri import KeyUri
from svid.keys import PrivateKey, key_to_pem

MODULE = Path("/usr/lib/softhsm/libsofthsm2.so")
needed = pytest.mark.skipif(which("softhsm2-util") is None, reason="needs SoftHSM: apt-get install softhsm2")


@dataclass(frozen=True)
class Token:
    """A token of that label in `folder`, whose user's PIN is in `pin_file`."""

    folder: Path
    label: str = "hsm"
    # No digits: what is said to hold no PIN may hold keys, digests and names of folders.
    pin: str = "right-pin"

    @property
    def pin_file(self) -> Path:
        return self.folder / "pin"

    @property
    def objects(self) -> Path:
        """Where its objects are: without them there is no token."""
        return self.folder / "tokens"

    def make(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """Initialize it, and have this process and its children find it."""
        self.objects.mkdir()
        config = self.folder / "softhsm2.conf"
        config.write_text(f"directories.tokendir = {self.objects}\nobjectstore.backend = file\nlog.level = ERROR\n")
        monkeypatch.setenv("SOFTHSM2_CONF", str(config))
        self.pin_file.write_text(f"{self.pin}\n")
        self._util("--init-token", "--free", "--label", self.label, "--so-pin", "1234", "--pin", self.pin)

    def put(self, key: PrivateKey, label: str = "ca", number: str = "01") -> None:
        """Have a key in it."""
        file = self.folder / "imported.pem"
        file.write_bytes(key_to_pem(key))
        try:
            self._util(
                "--import", str(file), "--token", self.label, "--label", label, "--id", number, "--pin", self.pin
            )
        finally:
            file.unlink()

    @contextmanager
    def away(self) -> Iterator[None]:
        """Without it, as if it were taken out."""
        kept = self.objects.rename(self.folder / "away")
        self.objects.mkdir()
        yield
        self.objects.rmdir()
        kept.rename(self.objects)

    def uri(self, *, label: str = "ca", token: str | None = None, number: bytes = b"", module: Path = MODULE) -> KeyUri:
        """That of a key in it."""
        return KeyUri(module, self.label if token is None else token, "", label, number, self.pin_file)

    @property
    def whole_uri(self) -> str:
        """That of itself, in which keys are to be made."""
        return f"pkcs11:token={self.label}?module-path={MODULE}&pin-source=file:{self.pin_file}"

    def _util(self, *arguments: str) -> None:
        done = subprocess.run(["softhsm2-util", *arguments], capture_output=True, text=True, timeout=60, check=False)
        assert done.returncode == 0, done.stdout + done.stderr
