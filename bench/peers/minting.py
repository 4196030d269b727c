"""The rows of SVIDs that are minted: SPIRE's server and the signer, each asked over TLS in its own API, in turn."""

import itertools
import tempfile
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding

from agent.authority.batches import CALLS, MOST
from agent.authority.connection import YOUNG_SECONDS
from bench.peers.asking import Answered, AskingFailed, Client, Lane
from bench.peers.figures import Figures
from bench.peers.machine import cpu, family
from bench.peers.ours import signer
from bench.peers.progress import say
from bench.peers.side import PEER, SIGNER, turns
from bench.peers.spire import TRUST_DOMAIN, Spire, spire
from bench.peers.wire import batch_request, mint_request, minted
from signer.pb import signer_pb2
from svid.bundle import TrustBundle
from svid.dnsnames import SIGNER_NAME
from svid.keys import KeyAlgorithm, signature_hash
from svid.spiffeid import TrustDomain

# Agents, each with a connection; and calls of all of them at once.
AGENTS, AT_ONCE = 8, 64
# Of SPIRE's agents in a call; each has one call under way.
PEER_BATCH = 100
SINGLE, BATCH = 1000, 1600
KEYS = ("mint-rate", "mint-cpu", "batch-rate", "batch-cpu")

_SPIRE = "/spire.api.server.svid.v1.SVID"
_OURS = "/podsvid.signer.v1.Signer"


@dataclass(frozen=True)
class Server:
    """Who mints: `single` and `batched` ask for that many and return how it went, `processes` are its own."""

    name: str
    processes: Callable[[], list[int]]
    single: Callable[[int], Awaitable[Answered]]
    batched: Callable[[int], Awaitable[Answered]]


async def measure(
    figures: Figures, programs: Mapping[str, Path], client: Client, wanted: frozenset[str], rounds: int, scale: float
) -> None:
    """Those rows of this part that are wanted."""
    single, batch = (max(AGENTS * PEER_BATCH, int(each * scale)) for each in (SINGLE, BATCH))
    with (
        tempfile.TemporaryDirectory(prefix="pv", dir="/tmp") as name,
        signer(Path(name), (single + batch) * rounds, AGENTS) as (pid, site),
    ):
        async with spire(programs, PEER_BATCH) as peer:
            servers = [await _peer(peer, client), _ours(pid, site, Path(name), client)]
            for number in range(rounds):
                for server in turns(number, servers):
                    for kind, ask, count in (("mint", server.single, single), ("batch", server.batched, batch)):
                        if wanted.isdisjoint({f"{kind}-rate", f"{kind}-cpu"}):
                            continue
                        before = cpu(server.processes())
                        found = await ask(count)
                        took = cpu(server.processes()) - before
                        figures.add(f"{kind}-rate", server.name, count / found.seconds)
                        figures.add(f"{kind}-cpu", server.name, took / count * 1e3)
                        said = f"{count / found.seconds:.4g}/s, {took / count * 1e3:.3g} ms"
                        say(f"round {number + 1}: {kind}, {server.name}: {said}")


def _csr(*names: x509.GeneralName) -> bytes:
    key = KeyAlgorithm.EC_P256.generate()
    made = x509.CertificateSigningRequestBuilder().subject_name(x509.Name([]))
    if names:
        made = made.add_extension(x509.SubjectAlternativeName(names), critical=False)
    return made.sign(key, signature_hash(key)).public_bytes(Encoding.DER)


async def _peer(peer: Spire, client: Client) -> Server:
    admin, agent = await peer.as_admin(), peer.as_agent()
    one = mint_request(_csr(x509.UniformResourceIdentifier(f"spiffe://{TRUST_DOMAIN}/ns/default/sa/web")))
    many = batch_request(_csr(), list(peer.entries))

    async def single(count: int) -> Answered:
        lanes = [Lane(peer.address, [one] * (count // AGENTS), metadata={}, tls=admin) for _ in range(AGENTS)]
        return _all_of(count, await client.call(f"{_SPIRE}/MintX509SVID", lanes, AT_ONCE, keep=True), lambda _: 1)

    async def batched(count: int) -> Answered:
        calls = count // PEER_BATCH // AGENTS
        lanes = [Lane(peer.address, [many] * calls, metadata={}, tls=agent) for _ in range(AGENTS)]
        return _all_of(count, await client.call(f"{_SPIRE}/BatchNewX509SVID", lanes, AGENTS, keep=True), minted)

    return Server(PEER, lambda: family(peer.server.pid), single, batched)


def _ours(pid: int, site: Mapping[str, Any], folder: Path, client: Client) -> Server:
    roots = folder / "roots.pem"
    bundle = TrustBundle.from_jwks(TrustDomain(TRUST_DOMAIN), Path(site["bundle"]).read_bytes())
    roots.write_bytes(bundle.to_pem())
    tls = {"Roots": str(roots), "Name": SIGNER_NAME}
    csr = _csr()
    # Each pod once: what is known of its token from the first time would make the second cheaper.
    waiting = [iter([each for each in site["pods"] if each[4] == agent]) for agent in range(AGENTS)]

    def lanes(count: int, pack: Callable[[list[signer_pb2.MintX509SVIDRequest]], list[bytes]]) -> list[Lane]:
        found = []
        for agent in range(AGENTS):
            requests = [
                signer_pb2.MintX509SVIDRequest(
                    pod=signer_pb2.Pod(namespace=namespace, name=name, uid=uid), pod_token=token, csr=csr
                )
                for namespace, name, uid, token, *_ in itertools.islice(waiting[agent], count // AGENTS)
            ]
            metadata = {"authorization": f"Bearer {site['agents'][agent]}"}
            found.append(Lane(site["address"], pack(requests), metadata=metadata, tls=tls))
        return found

    # Of a young connection little is taken at once.
    async def single(count: int) -> Answered:
        wanted = lanes(count, lambda requests: [each.SerializeToString() for each in requests])
        answered = await client.call(f"{_OURS}/MintX509SVID", wanted, AT_ONCE, keep=True, settle=YOUNG_SECONDS)
        return _all_of(count, answered, lambda _: 1)

    async def batched(count: int) -> Answered:
        wanted = lanes(count, _packed)
        answered = await client.call(f"{_OURS}/MintX509SVIDs", wanted, CALLS * AGENTS, keep=True, settle=YOUNG_SECONDS)
        return _all_of(count, answered, _answers)

    return Server(SIGNER, lambda: family(pid), single, batched)


def _packed(requests: list[signer_pb2.MintX509SVIDRequest]) -> list[bytes]:
    """As agents do: as many in a call as fit."""
    found = []
    for at in range(0, len(requests), MOST):
        items = [signer_pb2.MintX509SVIDItem(request=each) for each in requests[at : at + MOST]]
        found.append(signer_pb2.MintX509SVIDsRequest(items=items).SerializeToString())
    return found


def _answers(message: bytes) -> int:
    outcomes = signer_pb2.MintX509SVIDsResponse.FromString(message).outcomes
    return sum(each.WhichOneof("outcome") == "answer" for each in outcomes)


def _all_of(count: int, answered: Answered, made: Callable[[bytes], int]) -> Answered:
    """What was answered, if that is so many SVIDs. Raises AskingFailed."""
    found = sum(map(made, answered.answers))
    if found != count:
        raise AskingFailed(f"{found} SVIDs to {count} requests")
    return answered
