"""`podsvid api` against the agent itself, and bundles that come and go."""

import asyncio
import json
from pathlib import Path

import pytest
from cryptography import x509

from tests.fake_workload_api import WEB, FakeWorkloadApi, eventually, x509_svid
from tests.node.api_rig import OTHERS, Runs, modes, podsvid, watching, with_server
from tests.support import IS_ROOT, VOLUME, node, pod


@pytest.mark.skipif(not IS_ROOT, reason="mounts on this host's own mount table: run as root")
def test_everything_works_against_the_agent_over_its_own_rotations(base: Path) -> None:
    async def run() -> None:
        # Long enough for a busy machine to renew it in the second half.
        async with node(ttl="4s") as (here, kubelet):
            socket = here.short(await kubelet.publish(pod(), VOLUME)) / "socket"
            found = await podsvid("fetch", "x509", "--output", "json", SPIFFE_ENDPOINT_SOCKET=f"unix://{socket}")
            assert found.document["svids"][0]["spiffe_id"] == str(WEB)
            common = ("--socket", str(socket), "--output", "json")
            (row,) = (await podsvid("fetch", "jwt", *common, "--audience", "a", "--audience", "b")).document["svids"]
            assert (row["spiffe_id"], sorted(row["audience"])) == (str(WEB), ["a", "b"])
            validate = ("validate", "jwt", *common, "--svid", row["token"], "--audience")
            assert (await podsvid(*validate, "b")).document["claims"]["sub"] == str(WEB)
            assert (await podsvid(*validate, "c")).code == 5
            other = ("--spiffe-id", "spiffe://example.org/other")
            assert (await podsvid("fetch", "jwt", *common, "--audience", "a", *other)).code == 4
            bundle = (await podsvid("fetch", "bundle", *common)).document["bundles"]["example.org"]
            assert x509.load_pem_x509_certificates(bundle["x509"].encode())
            assert bundle["jwt"]["keys"]
            runs = Runs(base)
            out = base / "out"
            async with watching("--socket", str(socket), "--write", str(out), "--exec", *runs.command()) as watched:
                await eventually(lambda: len(runs.serials("ok")) >= 10)
                assert await watched.end() == 0
            assert runs.serials("TORN") == []
            assert len(set(runs.serials("ok"))) == len(runs.serials("ok"))

    asyncio.run(run())


@pytest.mark.spec("WL-11", "WL-12")
def test_a_federated_bundle_that_the_next_answer_leaves_out_is_dropped(base: Path) -> None:
    async def run(server: FakeWorkloadApi) -> None:
        svid = x509_svid(server.issuer)
        server.rotate(svid, federated=[OTHERS.bundle])
        out = base / "out"
        async with watching("--socket", str(server.path), "--output", "json", "--write", str(out)) as found:
            await eventually(lambda: len(found.out) == 1)
            assert "federated_bundle.other.example.pem" in modes(out)
            server.rotate(svid)
            await eventually(lambda: len(found.out) == 2)
            assert "federated_bundle.other.example.pem" not in modes(out)
            assert json.loads(found.out[1])["federated_bundles"] == {}
            assert await found.end() == 0

    with_server(base, run)
