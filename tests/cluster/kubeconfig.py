"""Files that tell a client where the API server is and who the client is."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml

from .pki import Pair


def write(path: Path, url: str, ca_cert: Path, client: Pair) -> None:
    """One for a client with a certificate."""
    user = {"client-certificate": str(client.cert), "client-key": str(client.key)}
    _write(path, {"server": url, "certificate-authority": str(ca_cert)}, user)


def with_token(path: Path, admin: Path, token: str) -> None:
    """One for a client with a token, at the API server of an administrator's."""
    (cluster,) = yaml.safe_load(admin.read_text())["clusters"]
    _write(path, cluster["cluster"], {"token": token})


def _write(path: Path, cluster: dict[str, Any], user: dict[str, str]) -> None:
    path.touch(mode=0o600)
    document = {
        "apiVersion": "v1",
        "kind": "Config",
        "current-context": "podsvid",
        "clusters": [{"name": "podsvid", "cluster": cluster}],
        "users": [{"name": "podsvid", "user": user}],
        "contexts": [{"name": "podsvid", "context": {"cluster": "podsvid", "user": "podsvid"}}],
    }
    path.write_text(yaml.safe_dump(document))
