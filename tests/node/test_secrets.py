"""Keys and tokens of a whole signer and a whole agent, searched for in everything that both write."""

import asyncio
import base64
import json
import tempfile
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import grpc
import grpc.aio
import pytest
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.hazmat.primitives.serialization import load_pem_private_key

from agent.pb import node_admin_pb2, workload_pb2
from podsvid.quickstart.errors import PublishFailed
from podsvid.quickstart.kubelet import StandInKubelet
from podsvid.quickstart.pods import Pod, PodVolume
from tests.ports import free_port
from tests.signer_process import process
from tests.signer_rig import AUDIENCE
from tests.support import DRIVER, HEADER, IS_ROOT, Host, host

pytestmark = pytest.mark.skipif(not IS_ROOT, reason="mounts on this host's own mount table: run as root")


def scalars(pem: bytes) -> list[bytes]:
    """The secret numbers of a private key."""
    key = load_pem_private_key(pem, None)
    if isinstance(key, ec.EllipticCurvePrivateKey):
        return [key.private_numbers().private_value.to_bytes(32, "big")]
    assert isinstance(key, rsa.RSAPrivateKey)
    numbers = key.private_numbers()
    return [number.to_bytes(256, "big").lstrip(b"\0") for number in (numbers.d, numbers.p, numbers.q)]


def spellings(secret: bytes) -> set[bytes]:
    """A secret as text or binary may hold it: raw, hexadecimal, decimal, base64 wherever it begins in it."""
    found = {secret, secret.hex().encode(), secret.hex().upper().encode(), str(int.from_bytes(secret, "big")).encode()}
    for encode in (base64.b64encode, base64.urlsafe_b64encode):
        for before in range(3):
            # Characters at the ends depend on the neighbours, too.
            found.add(encode(b"x" * before + secret)[4:-4])
    return found


def leaked(secrets: Mapping[str, Iterable[bytes]], places: Mapping[str, bytes]) -> list[str]:
    return [
        f"{what} in {where}"
        for what, all_of_it in secrets.items()
        for where, content in places.items()
        if any(spelling in content for secret in all_of_it for spelling in spellings(secret))
    ]


class Gathering:
    """The secrets that there were, by what they are, and what was written, by where."""

    def __init__(self) -> None:
        self.secrets: dict[str, list[bytes]] = {}
        self.places: dict[str, bytes] = {}

    def token(self, what: str, token: str) -> None:
        # Header and signature of these are the same for all; a JWT's middle is its own.
        self.secrets[what] = [token.encode(), token.split(".")[1].encode()]

    def process(self, what: str, pid: int) -> None:
        for name in ("cmdline", "environ"):
            self.places[f"{what}'s {name}"] = Path(f"/proc/{pid}/{name}").read_bytes()


async def live(site: Mapping[str, Any], here: Host, seen: Gathering) -> None:
    """Mint, refuse, renew, hand out a JWT-SVID, restart, unpublish."""
    async with StandInKubelet(here.kubelet_root) as kubelet:
        await kubelet.wait_registered(DRIVER)

        def volume(token: str) -> PodVolume:
            tokens = {AUDIENCE: {"token": token, "expirationTimestamp": "2099-01-01T00:00:00Z"}}
            return PodVolume(tokens=tokens)

        (namespace, name, uid, token, _, account), other = site["pods"][0], site["pods"][1]
        web = Pod(namespace, name, uid, account)
        for what, each in (("pod token", token), ("other pod's token", other[3]), ("agent token", site["agents"][0])):
            seen.token(what, each)
        with pytest.raises(PublishFailed) as refused:
            await kubelet.publish(web, volume(other[3]))
        with pytest.raises(PublishFailed) as malformed:
            await kubelet.publish(web, volume("not.a-token"))
        seen.places["what kubelet was told"] = f"{refused.value} {malformed.value}".encode()
        target = await kubelet.publish(web, volume(token))
        seen.secrets["first key"] = scalars((target / "tls.key").read_bytes())
        options = (("grpc.use_local_subchannel_pool", 1),)
        async with grpc.aio.insecure_channel(f"unix:{here.short(target)}/socket", options=options) as channel:
            fetch: Any = channel.unary_unary("/SpiffeWorkloadAPI/FetchJWTSVID")
            request = workload_pb2.JWTSVIDRequest(audience=["api"]).SerializeToString()
            answer = workload_pb2.JWTSVIDResponse.FromString(await fetch(request, metadata=HEADER))
        seen.token("JWT-SVID", answer.svids[0].svid)
        await rotate(here, namespace, name)
        seen.secrets["second key"] = scalars((target / "tls.key").read_bytes())
        agent, exposed, *_ = here.processes()
        seen.process("agent", agent)
        seen.process("exposed process", exposed)
        for path in (here.base / "r").rglob("*"):
            if path.is_file():
                seen.places[f"run directory: {path.name}"] = path.read_bytes()
        await kubelet.unpublish(web, volume(token))
        assert await asyncio.to_thread(here.stop) == 0
        seen.places["agent's log"] = here.log.read_bytes()


async def rotate(here: Host, namespace: str, name: str) -> None:
    async with grpc.aio.insecure_channel(f"unix:{here.base}/r/admin.sock") as channel:
        call: Any = channel.unary_unary(
            "/podsvid.agent.v1.NodeAdmin/Rotate",
            request_serializer=node_admin_pb2.RotateRequest.SerializeToString,
            response_deserializer=node_admin_pb2.RotateResponse.FromString,
        )
        await call(node_admin_pb2.RotateRequest(namespace=namespace, pod=name))


def authorities(folder: Path) -> list[bytes]:
    """The secret numbers of all authorities' keys, from the signer's Secret."""
    stored = json.loads((folder / "secret.json").read_text())["data"]["state.json"]
    state = json.loads(base64.b64decode(stored))
    return [number for slot in (*state["x509"], *state["jwt"]) for number in scalars(slot["key"].encode())]


def test_no_key_and_no_token_is_written_anywhere_but_where_it_belongs() -> None:
    seen = Gathering()
    with tempfile.TemporaryDirectory(prefix="pv", dir="/tmp") as name:
        folder = Path(name)
        with process(folder, 2, 1, free_port()) as (signer, site), host() as here:
            (folder / "token").write_text(site["agents"][0])
            here.start(
                *("--authority", "signer", "--signer-address", site["address"], "--signer-bundle", site["bundle"]),
                *("--agent-token-file", str(folder / "token"), "--log-level", "debug"),
            )
            seen.secrets["authorities' keys"] = authorities(folder)
            asyncio.run(live(site, here, seen))
            seen.process("signer", signer.pid)
        seen.places["signer's log"] = (folder / "signer.log").read_bytes()
        seen.places["what the signer wrote to the API server"] = (folder / "objects.json").read_bytes()
    for wanted in (b"mint allowed", b"mint refused", b"POD_TOKEN"):
        assert wanted in seen.places["signer's log"]
    assert b"SVID rotated" in seen.places["agent's log"]
    assert len(seen.secrets) == 7
    assert leaked(seen.secrets, seen.places) == []


def test_a_leak_would_be_seen() -> None:
    secret = bytes(range(1, 33))
    for spelling in (secret, base64.b64encode(b"before" + secret + b"after"), secret.hex().encode()):
        assert leaked({"key": [secret]}, {"log": b"..." + spelling + b"..."}) == ["key in log"]
