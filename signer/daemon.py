"""`podsvid signer`: builds one replica in reading order, runs it, and takes it down in reverse."""

import asyncio
import logging
import random
from collections.abc import Callable, Coroutine
from contextlib import AsyncExitStack, ExitStack, suppress
from datetime import timedelta
from functools import partial
from typing import Any

from runtime import heap, pages
from runtime.clock import Clock, SystemClock
from runtime.collector import tracing
from runtime.feed import Feed
from runtime.listening import ANY, shown
from runtime.stopping import Stopped, asked_to_stop, unless
from runtime.tracing import NO_TRACING, Tracing
from runtime.version import VERSION
from signer import gauges, istio_settings, loops, parts, pod_certificate_settings, process, readiness
from signer.attestation.accounts import Accounts
from signer.attestation.attestor import Attestor
from signer.attestation.certified import CertifiedPods
from signer.attestation.pods import AgentAddresses, AgentNodes, Holders, Pods
from signer.attestation.tokens import OfflineTokens, TokenReviews
from signer.authority.abandonments import Abandonments
from signer.authority.acknowledgements import Agents
from signer.authority.key_care import KeyEnd, KeyWatch
from signer.authority.knowledge import Sources
from signer.authority.lifecycle import Life
from signer.authority.lifetimes import Lifetimes
from signer.authority.rotation import Rotation
from signer.authority.state import AuthorityState
from signer.authority.store import SecretStore, read_cipher
from signer.authority.timing import lifecycle_policy
from signer.authority.trust import Broadcast, trust_domains
from signer.authority.watched import WatchedSecret
from signer.cluster.events import Events
from signer.cluster.kube import KubeApi
from signer.cluster.kube_client import KubeClient
from signer.cluster.leader import Leader
from signer.cluster.taints import StartupTaint
from signer.cluster.witness import Witness
from signer.config import SignerConfig
from signer.federation.domains import Domains
from signer.federation.endpoint import HttpsEndpoint
from signer.federation.polling import Polling
from signer.front import budget
from signer.front.admin import AdminService, serve_admin
from signer.front.agents import SignerService
from signer.front.audit import Audit
from signer.front.istio_listener import IstioListener
from signer.front.limits import NodeLimits
from signer.front.pod_certificates import PodCertificates
from signer.front.server import AgentServer, counted
from signer.keystore import chosen as keystore
from signer.metrics import Metrics
from signer.minting.minting import Minting
from signer.pod_certificate_settings import SIGNER_NAME
from signer.policy.policies import Policies
from signer.public.listeners import PublicListeners
from signer.publishing.config_maps import Publisher, published_sequence
from signer.telling import REFRESH_SECONDS, Telling
from signer.upstream.chosen import chosen
from signer.workers.chosen import chosen as chosen_workers

_log = logging.getLogger("podsvid.signer")
# Seconds that calls in flight get at a stop.
STOP_GRACE = 5.0
# How often each replica reads the authorities' Secret, beside watching it.
CONFIRM = timedelta(seconds=15)


async def run_signer(config: SignerConfig) -> None:
    """Serve until a signal. Raises SignerError, OSError."""
    stopping = asked_to_stop()
    process.prepare()
    async with AsyncExitStack() as services:
        client = await KubeClient.connect(config.kubeconfig)
        services.push_async_callback(client.close)
        facts = {"service.instance.id": config.identity, "service.version": VERSION}
        spans = services.enter_context(tracing(config.tracing_endpoint, "podsvid-signer", facts))
        replica = Replica(config, client, SystemClock(), random.SystemRandom(), spans)
        client.dated = replica.witness.heard
        with suppress(Stopped):
            await replica.run(stopping, services)
        _log.info("signer stopping", extra={"grace_seconds": STOP_GRACE})
    _log.info("signer stopped")


class Replica:
    """One signer: what it knows of the cluster, how it decides, and what it serves."""

    def __init__(
        self,
        config: SignerConfig,
        api: KubeApi,
        clock: Clock,
        rng: random.Random,
        spans: Tracing = NO_TRACING,
    ) -> None:
        self._config = config
        self._clock = clock
        agents, drivers = (config.agent_namespace, config.agent_service_account), frozenset(config.driver_names)
        self.metrics = Metrics()
        self.metrics.built(VERSION)
        self.witness = Witness(clock)
        ours = pod_certificate_settings.name(config)
        self._pods = Pods(api, clock, agents, config.pods_per_namespace, drivers, ours)
        files = dict(config.federated_bundles)
        self._domains = Domains(api, config.namespace, config.trust_domain, files, clock)
        self._trust: Feed[Broadcast] = Feed()
        told_of = partial(trust_domains, self._trust)
        self._policies = Policies(api, parts.policy(config), config.outage_limit, clock, told_of)
        self._holders = Holders(drivers)
        places, nodes = AgentAddresses(), AgentNodes(agents)
        self._pods.observers += self._policies.statuses.pod_changed, self._holders.pod_changed
        self._pods.observers += places.pod_changed, nodes.pod_changed
        # What the API server has dated is judged by its clock.
        self._offline = OfflineTokens(api, config.audience, self.witness, self.metrics.keys_read)
        reviews = TokenReviews(api, config.audience, self._offline, self.witness, told=self.metrics.token_checked)
        accounts = Accounts(api)
        attestor = Attestor(parts.attestation(config), reviews, self._offline, self._pods, accounts, self.witness)
        self._ending = ExitStack()
        told = self.metrics.key_store_asked
        self._keys = keystore.chosen(config.keys, config.trust_domain, clock.monotonic, told, self._ending)
        self._key_watch = KeyWatch(self._keys)
        self._key_end = KeyEnd(self._keys, lambda: self.witness.doubt, clock)
        cipher = read_cipher(config.state_key_file)
        self._store = SecretStore(
            api, config.namespace, config.state_secret, config.trust_domain, cipher, self._keys.open
        )
        self._secret = WatchedSecret(api, self._store, config.namespace, config.state_secret, clock)
        self._agents = Agents(api, config.namespace, config.identity, clock)
        self._leader = Leader(api, config.namespace, "podsvid-signer", config.identity, config.lease, clock, rng)
        self._leader.unfit = lambda: bool(self.witness.doubt or self._rotation.requests.gives_way)
        ca = chosen(config.above, api, clock)
        published = partial(
            published_sequence, api, config.agent_namespace, config.bundle_config_map, config.trust_domain
        )
        self._rotation = Rotation(
            self._store,
            Abandonments(api, config.namespace, config.state_secret, config.trust_domain, clock),
            Life(lifecycle_policy(config), ca.above, config.trust_domain, lambda: self._holders.count, self._keys),
            self._leader,
            self._agents,
            Sources(lambda: nodes.names, self._pods.unread, published, lambda: self.witness.doubt),
            self.metrics,
            clock,
            rng,
            ca.remote,
            ca.roots,
        )
        self._publisher = Publisher(
            api, config.bundle_namespaces, parts.published(config), SIGNER_NAME, config.trust_domain, clock
        )
        self._polling = Polling(
            api,
            self._domains,
            HttpsEndpoint(clock.now),
            lambda: self._rotation.state.bundle if self._rotation.state else None,
            clock,
            rng,
            self.metrics.federation_looked,
        )
        self._events = Events(api, config.identity, clock, config.docs_url)
        self._taint = StartupTaint(api, drivers, clock) if config.startup_taint else None
        audit = self._audit = Audit(clock)
        self._rotation.heard = audit.changed
        self._rotation.requests.refused = partial(self._events.gave_up, config.namespace, config.state_secret)
        self._rotation.roots.refused = partial(self._events.roots_refused, config.namespace, config.state_secret)
        self._rotation.roots.said = partial(self._events.root_revoked, config.namespace, config.state_secret)
        lifetimes = Lifetimes(self._rotation, clock)
        minting = Minting(self._signing_state, parts.minting(config), clock, lifetimes, self._keys)
        self._certificates = PodCertificates(
            api,
            CertifiedPods(self._pods, accounts, config.outage_limit, clock),
            self._policies,
            minting,
            self._events,
            audit,
            self.metrics,
            clock,
            rng,
        )
        limits = NodeLimits(config.node_rate, config.node_burst, config.node_concurrency, clock)
        door = counted(self.metrics, config.address_rate, config.node_rate, config.node_burst, places)
        self._service = SignerService(
            attestor,
            self._policies,
            minting,
            limits,
            door,
            self._agents,
            self._trust,
            self._events,
            audit,
            self.metrics,
            self.witness,
            rng,
            spans,
        )
        behind = chosen_workers(config, self._service, door, self.metrics)
        at = config.listen or (ANY, 0)
        self._server = AgentServer(behind, door, at, config.admin_socket.parent, clock, self._keys)
        istio = istio_settings.of(config)
        self._istio = None
        if istio is not None:
            self._istio = IstioListener(
                istio,
                api,
                self._offline,
                self._pods,
                self._policies,
                minting,
                self._events,
                audit,
                self.metrics,
                self._keys,
                clock,
                self.witness,
            )
        renewals = [each.renew for each in (self._server, self._istio) if each is not None]
        self._telling = Telling(self._rotation, self._domains, self._publisher, self._trust, *renewals)
        self._public = PublicListeners(parts.public(config), self._keys, clock, self.metrics)
        gauges.watch(
            self.metrics,
            self._rotation,
            self._leader,
            self._agents,
            self._pods,
            self._policies,
            self.witness,
            self._key_watch,
            self._domains,
            self._certificates,
        )

    async def run(self, stopping: asyncio.Event, services: AsyncExitStack) -> None:
        """Serve until `stopping`. Raises SignerError when it cannot start, RuntimeError when a loop ends."""
        config = self._config
        services.enter_context(self._ending)
        # Serving the page first: a signer that cannot start says why there.
        checks = pages.Checks(asyncio.get_running_loop(), readiness.alive, self.not_ready)
        metrics = self.metrics
        services.enter_context(
            pages.serving(config.health_listen, config.metrics_listen, checks, metrics.registry, metrics.http_refused)
        )
        services.enter_context(self._public.bound())
        # Who leads asks a CA elsewhere for the first authority, however long that takes; events say what it answers.
        early = {"leader election": self._leader.run(), "events": self._events.run()}
        tasks = {name: asyncio.create_task(loop, name=name) for name, loop in early.items()}
        services.push_async_callback(self._leader.release)
        services.push_async_callback(loops.cancel, tasks)
        await unless(stopping, loops.beside(tasks, self._rotation.open()))
        if self._rotation.state is not None:
            self._audit.followed(self._rotation.state)
        statuses = self._policies.statuses
        background: dict[str, Callable[[], Coroutine[Any, Any, None]]] = {
            "pods": self._pods.run,
            "policies": self._policies.run,
            "heap": lambda: heap.settle(
                self._pods.wait_synced,
                self._policies.wait_synced,
                in_use=lambda: self._agents.connected * budget.OF_AGENT,
            ),
            "gauges": lambda: gauges.keep(self.metrics),
            "offline tokens": self._offline.run,
            "authority Secret": lambda: self._secret.run(self._rotation.follow),
            "agents": self._agents.run,
            "rotation": self._rotation.run,
            "CA above": self._rotation.ask_above,
            "authority keys": lambda: self._key_watch.run(self._rotation.states),
            "left keys": lambda: self._key_end.run(self._rotation.seat),
            "confirmation": lambda: self._rotation.confirm(min(CONFIRM, self._config.outage_limit / 3)),
            "trust": self._telling.follow,
            "port": self._serve_agents,
            "public listeners": lambda: self._public.run(self._rotation.states, self._signing_state),
            "federation": self._domains.run,
            "bundle endpoints": lambda: self._leader.lead(self._polling.lead),
            "publishing": lambda: self._leader.lead(self._telling.publish),
            "policy status": lambda: self._lead(lambda: statuses.lead(self._pods, REFRESH_SECONDS)),
        }
        if config.pod_certificates:
            background["pod certificates"] = lambda: self._lead(self._certificates.lead)
        if (istio := self._istio) is not None:
            background["Istio's port"] = lambda: istio.serve(self._pods.wait_synced, self._policies.wait_synced)
            services.push_async_callback(istio.close, STOP_GRACE)
        if (taint := self._taint) is not None:
            background |= {"nodes": taint.follow, "start-up taint": lambda: self._leader.lead(taint.remove)}
        tasks |= {name: asyncio.create_task(loop(), name=name) for name, loop in background.items()}
        services.push_async_callback(self._server.close, STOP_GRACE)
        services.callback(self._service.end_streams)
        await self._telling.refresh()
        asked = AdminService(
            self._rotation,
            self._policies,
            self._pods,
            frozenset(config.driver_names),
            self._clock,
            parts.publication(config),
            namespace=config.namespace,
            proxies=istio is not None,
        )
        admin = await serve_admin(asked, config.admin_socket)
        services.push_async_callback(admin.stop, STOP_GRACE)
        await loops.until(stopping, tasks)

    async def _serve_agents(self) -> None:
        await self._server.open(self._pods.wait_synced, self._policies.wait_synced)
        state = self._rotation.state
        assert state is not None
        _log.info(
            "signer serving",
            extra={
                "address": shown(*self._config.listen or ("", 0)),
                "trust_domain": str(self._config.trust_domain),
                "sequence": state.sequence,
                "authority": state.active_x509_id,
                "authority_ends": state.active_x509.not_after.isoformat(),
                "jwt_svids": state.active_jwt is not None,
            },
        )
        await asyncio.Event().wait()  # the stop

    async def not_ready(self) -> str | None:
        """What keeps this replica from signing; None when nothing does."""
        needed = {
            "pods": self._pods.synced,
            "policies": self._policies.synced,
            "authorities": self._signing_state() is not None,
            "the trust bundle": self._trust.current is not None,
            self._server.lacks: self._server.serving,
            "its certificate for Istio's proxies": self._istio is None or self._istio.serving,
        }
        return readiness.lacking(needed, self._rotation, self._key_watch)

    def _signing_state(self) -> AuthorityState | None:
        """The state, while it is fresh enough to sign by, and to show: another replica may have revoked since."""
        return self._rotation.state if self._rotation.confirmed_within(self._config.outage_limit) else None

    async def _lead(self, work: Callable[[], Coroutine[Any, Any, None]]) -> None:
        """What looks at pods and policies, for ever; only while leading."""
        await self._policies.wait_synced()
        await self._pods.wait_synced()
        await self._leader.lead(work)
