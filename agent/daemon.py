"""`podsvid agent`: builds everything in reading order, runs it, and takes it down in reverse."""

import asyncio
import logging
import random
from collections.abc import Awaitable, Callable
from contextlib import AsyncExitStack, ExitStack, suppress
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING

from agent import admin, admin_socket, budget, fairness, process
from agent.authority.given import FollowedJwtKeys, GivenX509
from agent.authority.jwt_keys import JwtKeys, open_kept
from agent.authority.local import IssuePolicy, Kept, LocalAuthority, X509Source, hung, open_embedded
from agent.channel.messages import Begin
from agent.config import AgentConfig, DriverName
from agent.errors import AuthorityDamaged
from agent.metrics import Metrics
from agent.servers.process import Confinement
from agent.servers.served import Servers, Settings
from agent.workload.kept import FILE as KEPT_BUNDLES
from agent.workload.kept import KeptBundles
from agent.workload.registry import WorkloadRegistry
from csi.errors import CsiError
from csi.journal import Journal
from csi.mount import Mounts, PlainDirectories, Targets, TmpfsMounts
from csi.mountable import Mountable
from csi.node import NodeService, NodeSettings
from csi.profile import PROFILES
from csi.reach import LOOK_SECONDS, KubeletReach, Reach, looked
from csi.registration import Registration, bound_at
from csi.room import MIB, Bounds, Room
from csi.server import serve_driver
from runtime import pages
from runtime.bounded import Bounded, Unanswered
from runtime.clock import Clock, SystemClock
from runtime.collector import tracing
from runtime.federation import FederatedBundles
from runtime.memory import own_memory, trimmer
from runtime.seldom import now_and_then
from runtime.stopping import Stopped, asked_to_stop, end, unless
from runtime.tracing import Tracing
from runtime.version import VERSION
from svid.jwtauthority import KeyringPolicy

if TYPE_CHECKING:
    from agent.authority.signer import SignerAuthority

_log = logging.getLogger("podsvid.agent")
# Seconds that kubelet waits at most for volumes of an earlier agent to be picked up.
ADOPT_SECONDS = 2.0
# Seconds from one attempt to give free memory back to the next.
TRIM_SECONDS = 10.0
# How much the process that serves pods' sockets gives way to this one, which mounts, mints and writes for all: whoever
# floods it has a third of this one's share of a busy core.
GIVES_WAY = 5
# Seconds that calls in flight get at a stop; the DaemonSet's grace period is 30.
STOP_GRACE = 5.0
# Other clusters and clouds look at a bundle every few minutes to hours; all of them know a key before it signs.
JWT_KEY_LEAD = timedelta(days=1)


async def run_agent(config: AgentConfig) -> None:
    """Serve until a signal. Raises AgentError, OSError."""
    stopping = asked_to_stop()
    process.prepare()
    clock: Clock = SystemClock()
    with ExitStack() as stack:
        stack.enter_context(process.only_one(config.run_dir))
        threads = stack.enter_context(fairness.threads(config))
        async with AsyncExitStack() as services:
            try:
                loops = await _start(config, clock, threads, services, stopping)
                await _run_until(stopping, loops)
            except Stopped:
                _log.info("agent stopping", extra={"grace_seconds": STOP_GRACE})
        _leave_clean(config)
    _log.info("agent stopped")


async def _start(
    config: AgentConfig, clock: Clock, threads: fairness.Threads, services: AsyncExitStack, stopping: asyncio.Event
) -> dict[str, Callable[[], Awaitable[None]]]:
    blocking = threads.blocking
    registrations: dict[DriverName, Registration] = {}
    sockets = [str(bound_at(_csi_socket(config, driver))) for driver in config.driver_names]
    pods = str(config.kubelet_root / "pods")
    mounts: Mounts = PlainDirectories() if config.volumes_without_mounts else TmpfsMounts()
    shared = KubeletReach(pods, lambda: [*sockets, *(each.bound for each in registrations.values())])
    mountable = None if config.volumes_without_mounts else Mountable(pods, mounts, shared)
    reach: Reach = mountable or shared
    for driver in config.driver_names:
        places = (_csi_socket(config, driver), config.kubelet_root / "plugins_registry")
        registrations[driver] = Registration(driver.name, *places, reach)
    for registration in registrations.values():
        registration.remove_stale()

    metrics = Metrics()
    metrics.built(VERSION)
    loop = asyncio.get_running_loop()
    metrics.watch_tasks(lambda: len(asyncio.all_tasks(loop)))
    for driver, each in registrations.items():
        metrics.watch_registration(driver.name, lambda each=each: each.registered)  # type: ignore[misc]
    rng = random.SystemRandom()
    facts = {"k8s.node.name": config.node_name, "service.version": VERSION}
    spans = services.enter_context(tracing(config.tracing_endpoint, "podsvid-agent", facts))
    # Started before all else, since it loads meanwhile.
    servers = Servers(_serving(config), metrics, blocking)
    serving_sockets = asyncio.create_task(servers.run(), name="servers")
    services.push_async_callback(_end, serving_sockets)
    await asyncio.sleep(0)
    signer = await _signer_authority(config, clock, rng, spans, metrics) if config.authority == "signer" else None
    authority: SignerAuthority | LocalAuthority
    authority = signer if signer is not None else await unless(stopping, _local_authority(config, clock))
    # It runs from here on: what it knows is needed before the first volume is served.
    following = asyncio.create_task(authority.run(), name="authority")
    services.push_async_callback(_end, following)
    if signer is not None:
        await unless(stopping, signer.wait_answered())
    journal = Journal(config.run_dir / "journal", str(config.kubelet_root))
    slow = fairness.slow_work(config, threads, metrics)
    kept = KeptBundles(config.run_dir / KEPT_BUNDLES)
    workloads = WorkloadRegistry(authority, journal, blocking, clock, rng, metrics, slow, servers, kept, spans)
    room = Room(bounds_of(config), own_memory, now_and_then(trimmer(), TRIM_SECONDS, loop.time))
    node = NodeService(
        NodeSettings(config.node_name, str(config.kubelet_root)),
        Targets(str(config.kubelet_root), mounts),
        workloads,
        journal,
        blocking,
        metrics.published,
        spans,
        room,
        fairness.volume_turns(config, metrics),
        reach,
    )
    metrics.watch_memory(room.figures)
    metrics.watch_waiting(lambda: node.waiting)
    # Undone from the last to the first: the sockets close while the directories that they are named by are still open.
    services.callback(node.close)
    services.push_async_callback(workloads.stop)
    services.push_async_callback(node.settle)
    await unless(stopping, node.look())
    adopting = asyncio.create_task(node.adopt(), name="adoption")
    services.push_async_callback(_end, adopting)
    # kubelet finds the volumes of a usual node picked up; what takes longer does not keep it from unpublishing.
    await unless(stopping, asyncio.wait([adopting], timeout=ADOPT_SECONDS))
    await unless(stopping, servers.settled())

    serving = False

    async def healthy() -> str | None:
        missing = [driver.name for driver, each in registrations.items() if not each.announced]
        return f"the registration socket of {', '.join(missing)} is missing" if missing else None

    async def ready() -> str | None:
        missing = [driver.name for driver, each in registrations.items() if not each.registered]
        if missing:
            refused = next((each.refused for each in registrations.values() if each.refused), "")
            return refused or f"kubelet has not registered {', '.join(missing)} yet"
        return f"{node.waiting} volumes of an earlier agent are not picked up yet" if node.waiting else None

    def away() -> float:
        return signer.contact.away_for if signer else 0.0

    def notes() -> str:
        seconds, ends = away(), workloads.earliest_expiry()
        until = f"; the first SVID ends at {datetime.fromtimestamp(ends, UTC):%Y-%m-%dT%H:%M:%SZ}" if ends else ""
        kept = f"the signer has not answered for {seconds:.0f} s: SVIDs are kept and served, new pods wait{until}"
        return kept if seconds else ""

    metrics.watch_signer(away)
    checks = pages.Checks(loop, healthy, ready, notes, metrics.fresh)
    services.enter_context(
        pages.serving(config.health_listen, config.metrics_listen, checks, metrics.registry, metrics.http_refused)
    )

    def where() -> str:
        if signer is None:
            return f"{config.authority}, on this node"
        seconds = away()
        state = f"has not answered for {seconds:.0f} s" if seconds else "answers"
        return f"the signer at {config.signer_address}, which {state}"

    node_admin = admin.NodeAdmin(workloads, where, blocking)
    admin_server = await admin.serve_admin(node_admin.handlers(), config.run_dir / admin_socket.SOCKET)
    services.push_async_callback(admin_server.stop, STOP_GRACE)
    for driver in registrations:
        server = await serve_driver(
            driver.name,
            VERSION,
            node,
            PROFILES[driver.profile],
            _csi_socket(config, driver),
            lambda: serving,
            admin.RefusedPublishes(workloads),
            config.docs_url,
        )
        services.push_async_callback(server.stop, STOP_GRACE)
    serving = True
    for registration in registrations.values():
        await services.enter_async_context(registration.serving())
    try:
        if mountable is not None:
            await unless(stopping, looked(Bounded(LOOK_SECONDS), mountable.check_mount))
    except CsiError as error:
        # Volumes that are there go on being renewed; kubelet is told of no driver, so no new pod comes to fail here.
        _log.error("agent makes no volumes", extra={"reason": error.reason, "error": str(error)})
    else:
        _log.info(
            "agent serving",
            extra={
                "trust_domain": str(config.trust_domain),
                "drivers": [driver.name for driver in config.driver_names],
                "authority": config.authority,
                "jwt_svids": authority.issues_jwt,
                "volumes": node.volumes,
                "waiting": node.waiting,
            },
        )
    return {
        "rotation": workloads.scheduler.run,
        "replaced files": workloads.sweeps.run,
        "trust": workloads.follow_trust,
        "early renewals": workloads.follow_early_renewals,
        "returns": workloads.follow_returns,
        "adoption": lambda: _for_ever(adopting),
        "holdings": workloads.report_holdings,
        # These go on until all that needs them was taken down: sockets are closed by the process that serves them.
        "authority": lambda: asyncio.shield(following),
        "servers": lambda: asyncio.shield(serving_sockets),
        **{f"registration of {driver.name}": each.run for driver, each in registrations.items()},
    }


def _leave_clean(config: AgentConfig) -> None:
    """Without a volume nothing of podsvid stays on the node: the next agent makes all of it anew."""
    journal = config.run_dir / "journal"
    if journal.exists() and any(journal.iterdir()):
        return
    for driver in config.driver_names:
        endpoint = _csi_socket(config, driver)
        endpoint.unlink(missing_ok=True)
        with suppress(OSError):  # somebody else's files are in it
            endpoint.parent.rmdir()
    with suppress(FileNotFoundError):
        journal.rmdir()
    for name in (admin_socket.SOCKET, KEPT_BUNDLES, process.LOCK):
        (config.run_dir / name).unlink(missing_ok=True)


def _csi_socket(config: AgentConfig, driver: DriverName) -> Path:
    return config.kubelet_root / "plugins" / driver.name / "csi.sock"


def bounds_of(config: AgentConfig) -> Bounds:
    """What the settings say a node may hold."""
    return Bounds(config.volumes, config.pod_volumes, config.volumes_memory * MIB, config.memory_headroom * MIB)


def _policy(config: AgentConfig) -> IssuePolicy:
    return IssuePolicy(
        x509_ttl=config.x509_ttl,
        x509_min_ttl=min(config.x509_min_ttl, config.x509_ttl),
        x509_max_ttl=config.x509_max_ttl or config.x509_ttl,
        jwt_ttl=config.jwt_ttl,
        jwt_issuer=config.jwt_issuer or "",
        jwt_id=config.jwt_jti,
        dns_names=config.dns_names,
    )


def _jwt_keys(config: AgentConfig, clock: Clock) -> JwtKeys:
    if config.authority == "file":
        assert config.jwt_key_file is not None
        files = (config.jwt_key_file, config.jwt_bundle_file)
        return FollowedJwtKeys(*files, config.jwt_algorithm, config.trust_domain, config.jwt_ttl)
    policy = KeyringPolicy(
        algorithm=config.jwt_algorithm,
        signing_period=config.jwt_key_period,
        lead=min(JWT_KEY_LEAD, config.jwt_key_period / 4),
        token_ttl=config.jwt_ttl,
    )
    return open_kept(config.state_dir, policy, clock)


def _serving(config: AgentConfig) -> Settings:
    begin = Begin(
        connections=config.socket_connections,
        calls=config.socket_calls,
        rate=config.socket_rate,
        burst=config.socket_burst,
        svid_name=config.sds_svid_name,
        bundle_name=config.sds_bundle_name,
        all_bundles_name=config.sds_all_bundles_name,
        spiffe_validator=config.sds_spiffe_validator,
        log_level=logging.getLogger().getEffectiveLevel(),
        all_connections=budget.CONNECTIONS,
    )
    limits = (config.socket_memory * MIB, budget.descriptors(config.volumes))
    confined = Confinement(config.socket_user, *limits, nice=GIVES_WAY)
    return Settings(confined, begin, quarantine=config.socket_quarantine)


async def _for_ever(task: "asyncio.Task[None]") -> None:
    """It may end, though not by an error. Raises what it raises."""
    await asyncio.shield(task)
    await asyncio.Event().wait()


async def _end(task: "asyncio.Task[None]") -> None:
    await end([task])


async def _local_authority(config: AgentConfig, clock: Clock) -> LocalAuthority:
    """Raises AuthorityDamaged, OSError."""
    reader, federated = Bounded(), FederatedBundles(dict(config.federated_bundles))
    await federated.look()

    def begun() -> LocalAuthority:
        source = _source(config, clock)  # makes the directory in which the keys are
        keys = _jwt_keys(config, clock) if config.issues_jwt else None
        return LocalAuthority(source, _policy(config), clock, reader, keys, federated)

    try:
        return await reader.do(begun)
    except Unanswered:
        raise AuthorityDamaged(f"the authority's files cannot be read: {hung(reader)}") from None


async def _signer_authority(
    config: AgentConfig, clock: Clock, rng: random.Random, spans: Tracing, metrics: Metrics
) -> "SignerAuthority":
    # grpc's client, its status messages and the signer's API: only agents of a signer pay for them.
    from agent.authority.connection import SignerSettings
    from agent.authority.signer import SignerAuthority

    assert config.signer_address is not None
    assert config.signer_bundle is not None
    assert config.agent_token_file is not None
    settings = SignerSettings(
        config.signer_address,
        config.signer_bundle,
        config.agent_token_file,
        config.signer_audience,
        config.trust_domain,
        VERSION,
        run_dir=config.run_dir,
    )
    authority = SignerAuthority(settings, clock, rng, spans, metrics.queue("mint"))
    metrics.watch_queue("mint", lambda: authority.waiting)
    metrics.watch_clock(lambda: authority.clock_behind.total_seconds())
    authority.load()
    return authority


def _source(config: AgentConfig, clock: Clock) -> X509Source:
    if config.authority == "embedded":
        return Kept(open_embedded(config.state_dir, config.trust_domain, clock))
    if config.ca_cert_file is None or config.ca_key_file is None:
        raise AuthorityDamaged("authority is file, which needs ca_cert_file and ca_key_file")
    return GivenX509(config.ca_cert_file, config.ca_key_file, config.ca_bundle_file, config.trust_domain)


async def _run_until(stopping: asyncio.Event, loops: dict[str, Callable[[], Awaitable[None]]]) -> None:
    """Run the loops until told to stop. One that ends by itself is a bug: the process ends and is started again."""
    tasks = [asyncio.ensure_future(loop()) for loop in loops.values()]
    stop = asyncio.ensure_future(stopping.wait())
    try:
        done, _ = await asyncio.wait([stop, *tasks], return_when=asyncio.FIRST_COMPLETED)
        if stop in done:
            _log.info("agent stopping", extra={"grace_seconds": STOP_GRACE})
    finally:
        await end((stop, *tasks))
    for name, task in zip(loops, tasks, strict=True):
        if task in done:
            raise RuntimeError(f"the {name} loop ended") from task.exception()
