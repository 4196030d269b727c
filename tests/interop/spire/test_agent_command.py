"""What people who come from SPIRE type: `spire-agent api ...` and `healthcheck`, at the socket of a volume."""

import asyncio
import re
import signal
import subprocess
from collections.abc import Awaitable, Callable, Mapping
from pathlib import Path

from tests.interop.rig import ended, openssl, ran, until
from tests.processes import end
from tests.support import VOLUME, Host, node, pod

WEB = "spiffe://example.org/ns/default/sa/web"


def with_socket(test: Callable[[Host, Path, str], Awaitable[None]], ttl: str = "1h") -> None:
    """`test` gets the volume of a pod, and the path of its socket."""

    async def run() -> None:
        async with node(ttl=ttl) as (here, kubelet):
            target = await kubelet.publish(pod(), VOLUME)
            await test(here, target, str(here.short(target) / "socket"))

    asyncio.run(run())


def test_fetch_x509(programs: Mapping[str, Path], tmp_path: Path) -> None:
    async def test(here: Host, target: Path, socket: str) -> None:
        command = [str(programs["spire-agent"]), "api", "fetch", "x509", "-socketPath", socket, "-write", str(tmp_path)]
        said = await ran(*command)
        assert "Received 1 svid" in said
        assert re.findall(r"SPIFFE ID:\s+(.*)", said) == [WEB]
        assert sorted(path.name for path in tmp_path.iterdir()) == ["bundle.0.pem", "svid.0.key", "svid.0.pem"]
        # The same SVID, from the socket by SPIRE and from the files: openssl takes the one under the other's bundle.
        assert (tmp_path / "svid.0.pem").read_bytes() == (target / "tls.crt").read_bytes()
        assert openssl(target, tmp_path / "bundle.0.pem") == "OK"
        public = [
            await ran("openssl", "pkey", "-pubout", "-in", str(key))
            for key in (tmp_path / "svid.0.key", target / "tls.key")
        ]
        assert public[0] == public[1]

    with_socket(test)


def test_fetch_and_validate_jwt(programs: Mapping[str, Path]) -> None:
    async def test(here: Host, target: Path, socket: str) -> None:
        spire = (str(programs["spire-agent"]), "api")
        said = await ran(*spire, "fetch", "jwt", "-socketPath", socket, "-audience", "db")
        token = said.split()[1]
        assert said.startswith(f"token({WEB}):")
        assert "bundle(spiffe://example.org):" in said
        said = await ran(*spire, "validate", "jwt", "-socketPath", socket, "-audience", "db", "-svid", token)
        assert "SVID is valid." in said
        assert re.findall(r"SPIFFE ID\s*:\s*(.*)", said) == [WEB]
        for audience, svid, why in (
            ("other", token, "token is not for this audience"),
            ("db", f"{token[:-4]}AAAA", "signature does not match"),
        ):
            command = (*spire, "validate", "jwt", "-socketPath", socket, "-audience", audience, "-svid", svid)
            status, out, complaints = await ended(*command)
            assert (status, out) == (1, "")
            assert complaints.strip() == f"SVID is not valid: JWT-SVID is invalid: {why}"

    with_socket(test)


def test_fetch_of_a_chosen_identity_and_of_one_that_is_not_the_pods(programs: Mapping[str, Path]) -> None:
    async def test(here: Host, target: Path, socket: str) -> None:
        fetch = (str(programs["spire-agent"]), "api", "fetch", "jwt", "-socketPath", socket, "-audience", "db")
        assert f"token({WEB}):" in await ran(*fetch, "-spiffeID", WEB)
        status, out, complaints = await ended(*fetch, "-spiffeID", "spiffe://example.org/ns/default/sa/other")
        assert status != 0
        assert "token(" not in out
        assert "PermissionDenied" in complaints

    with_socket(test)


def test_watch_prints_each_renewal(programs: Mapping[str, Path], tmp_path: Path) -> None:
    async def test(here: Host, target: Path, socket: str) -> None:
        log = tmp_path / "watch.log"
        with log.open("wb") as sink:
            process = subprocess.Popen(
                [str(programs["spire-agent"]), "api", "watch", "-socketPath", socket], stdout=sink, stderr=sink
            )
        try:
            await until(lambda: log.read_text().count("SVID Valid Until:") >= 4)
        finally:
            end(process, signal.SIGINT)
        said = log.read_text()
        assert set(re.findall(r"SPIFFE ID:\s+(.*)", said)) == {WEB}
        ends = re.findall(r"SVID Valid Until:\s+(.*)", said)
        assert len(set(ends)) == len(ends) >= 4, said

    with_socket(test, ttl="6s")


def test_healthcheck(programs: Mapping[str, Path]) -> None:
    async def test(here: Host, target: Path, socket: str) -> None:
        command = [str(programs["spire-agent"]), "healthcheck", "-socketPath"]
        assert "Agent is healthy" in await ran(*command, socket)
        status, _, _ = await ended(*command, f"{socket}.absent")
        assert status != 0

    with_socket(test)
