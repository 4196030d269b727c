"""What the signer counts, in one registry that is made and handed in. Labels name outcomes, never pods or nodes."""

from collections.abc import Callable, Mapping

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

from runtime.shown import Shown

# How an older Secret came to be noticed.
ROLLBACKS = ("restored", "replaced", "abandoned")
KEY_STORE_RESULTS = ("ok", "failed", "late", "full")
UPSTREAM_ANSWERS = ("issued", "pending", "denied", "away", "unusable", "unfit")
CERTIFICATE_RESULTS = ("issued", "denied", "put_off")
FEDERATION_RESULTS = ("newer", "same", "unnumbered", "older", "failed")
_LAG_BUCKETS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10)
_MINT_BUCKETS = (0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30)


class Metrics:
    """The signer's metrics."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self._mints = Histogram(
            "podsvid_signer_mint_duration_seconds",
            "Time of a mint by kind of SVID (x509, jwt, pod_certificate, istio) and result (ok, degraded, or a reason "
            "code).",
            ["kind", "result"],
            buckets=_MINT_BUCKETS,
            registry=self.registry,
        )
        self._minted: dict[tuple[str, str], Histogram] = {}
        self._lag = Histogram(
            "podsvid_signer_loop_lag_seconds",
            "How much later than wanted a task of the event loop has its turn, measured ten times a second.",
            buckets=_LAG_BUCKETS,
            registry=self.registry,
        )
        self._turned_away = Counter(
            "podsvid_signer_turned_away",
            "What the front did not take or ended, by kind: connections (address, strangers, agents, node, silent, "
            "unauthenticated), mints (mints, batches, message) and trust streams (streams, report); and calls after "
            "which a connection is not read for a while, as its node calls too often (calls). The same with istio_ "
            "before it of Istio's proxies.",
            ["kind"],
            registry=self.registry,
        )
        self._tokens = Counter(
            "podsvid_signer_token_reviews",
            "What became of tokens whose review was not at hand, by result: accepted, refused or unanswered by the API "
            "server; forged (refused by the cluster's keys alone); busy_stranger, busy_proxy, busy_agent, busy_proven "
            "(not asked about: too many that such a caller brought, or that were signed for the same pod, were "
            "refused).",
            ["result"],
            registry=self.registry,
        )
        self._tokens_told: dict[str, Counter] = {}
        self._keys_read = Counter(
            "podsvid_signer_token_key_reads",
            "Reads of the cluster's token keys by why (start, time, unknown_key: a token named one that was not read) "
            "and result (ok, failed).",
            ["why", "result"],
            registry=self.registry,
        )
        self._connections = Gauge(
            "podsvid_signer_connections",
            "Open connections: of agents, and of strangers, on which no agent has proven itself yet; of Istio's "
            "proxies, and proxy_strangers at their port.",
            ["of"],
            registry=self.registry,
        )
        self._aside = Gauge(
            "podsvid_signer_addresses_aside",
            "Addresses that connected far too often: they have a queue of their own, of which little is taken.",
            registry=self.registry,
        )
        self._agents = Gauge("podsvid_signer_agents", "Agents that watch this replica.", registry=self.registry)
        self._unacknowledged = Gauge(
            "podsvid_signer_agents_unacknowledged",
            "Live agents that do not have the newest trust bundle (leader only, else 0).",
            registry=self.registry,
        )
        self._leading = Gauge("podsvid_signer_leader", "1 while this replica leads.", registry=self.registry)
        self._authority_ends = Gauge(
            "podsvid_signer_authority_expiry_timestamp_seconds",
            "When the active X.509 authority ends, as Unix time.",
            registry=self.registry,
        )
        self._authority_life = Gauge(
            "podsvid_signer_authority_lifetime_seconds",
            "Lifetime of the active X.509 authority; it is replaced at half of it.",
            registry=self.registry,
        )
        self._upstream_ends = Gauge(
            "podsvid_signer_upstream_ends_timestamp_seconds",
            "When the CA above the active X.509 authority ends, or its root, as Unix time; 0 without one.",
            registry=self.registry,
        )
        self._authority_wanted = Gauge(
            "podsvid_signer_authority_wanted_timestamp_seconds",
            "Since when a new X.509 authority is wanted in vain, as Unix time; 0 while none is (leader only, else 0).",
            registry=self.registry,
        )
        self._roots_refused = Gauge(
            "podsvid_signer_upstream_roots_refused",
            "1 while roots that the CA above names are not taken, or cannot be read, and those of before stay (leader "
            "only, else 0).",
            registry=self.registry,
        )
        self._build = Gauge(
            "podsvid_signer_build_info", "1, with the version as a label.", ["version"], registry=self.registry
        )
        self._contact = Gauge(
            "podsvid_signer_api_server_contact_timestamp_seconds",
            "When the API server last answered, as Unix time.",
            registry=self.registry,
        )
        self._services_left_out = Gauge(
            "podsvid_signer_services_left_out",
            "Services that give their pods no DNS names: beyond services_per_namespace, or with too large a selector.",
            registry=self.registry,
        )
        self._pods_left_out = Gauge(
            "podsvid_signer_pods_left_out",
            "Pods that get no SVIDs since their namespace has more than pods_per_namespace.",
            registry=self.registry,
        )
        self._clock_ahead = Gauge(
            "podsvid_signer_clock_ahead_seconds",
            "By how much this replica's clock is ahead of the API server's; beyond a minute, either way, the "
            "authorities are held as they are.",
            registry=self.registry,
        )
        self._steps = Counter(
            "podsvid_signer_authority_steps",
            "Steps in the authorities' life by kind (x509, jwt, or both and all) and step.",
            ["kind", "step"],
            registry=self.registry,
        )
        self._upstream_answers = Counter(
            "podsvid_signer_upstream_answers",
            "What a CA elsewhere said to a request, by result: issued, pending, denied, away, unusable; unfit: what it "
            "issued cannot serve.",
            ["result"],
            registry=self.registry,
        )
        self._key_store = Counter(
            "podsvid_signer_key_store_requests",
            "What was asked of the key store that has the authorities' keys, by result: ok, failed, late (nobody "
            "waited any more), full (too many waited).",
            ["result"],
            registry=self.registry,
        )
        self._key_store_down = Gauge(
            "podsvid_signer_key_store_unavailable",
            "1 while the key store that has the authorities' keys does not sign for this replica; 0 without one.",
            registry=self.registry,
        )
        self._federation_looks = Counter(
            "podsvid_signer_federation_looks",
            "Looks at other trust domains' bundle endpoints (leader only), by result: newer, same, unnumbered (it "
            "changed and its sequence did not), older (ignored), failed.",
            ["result"],
            registry=self.registry,
        )
        self._federation_age = Gauge(
            "podsvid_signer_federation_age_seconds",
            "Since the bundle of another trust domain was fetched, of each that is fetched.",
            ["trust_domain"],
            registry=self.registry,
        )
        self._http_refused = Counter(
            "podsvid_signer_http_refused",
            "Connections cut off and pages refused, by listener (health, metrics; bundle, oidc: of strangers) and why "
            "(address, crowded, deadline, head, leave, rate, request; of strangers also bytes, certificate, tls).",
            ["listener", "why"],
            registry=self.registry,
        )
        self._public_answers = Counter(
            "podsvid_signer_public_answers",
            "Answers to whoever fetches the trust bundle or OpenID Connect's documents, by listener (bundle, oidc) and "
            "status.",
            ["listener", "status"],
            registry=self.registry,
        )
        self._public_trouble = Gauge(
            "podsvid_signer_public_trouble",
            "1 while a public listener that is on serves nobody, or its newest certificate files cannot be used.",
            ["listener"],
            registry=self.registry,
        )
        self._public_ends = Gauge(
            "podsvid_signer_public_certificate_expiry_timestamp_seconds",
            "When the certificate ends that a public listener has from files, as Unix time; 0 without one.",
            ["listener"],
            registry=self.registry,
        )
        self._certificates = Counter(
            "podsvid_signer_pod_certificate_decisions",
            "What became of PodCertificateRequests (leader only), by result: issued, denied, put_off (each try).",
            ["result"],
            registry=self.registry,
        )
        self._certificates_waiting = Gauge(
            "podsvid_signer_pod_certificates_waiting",
            "PodCertificateRequests that are not decided (leader only, else 0).",
            registry=self.registry,
        )
        self._certificates_oldest = Gauge(
            "podsvid_signer_pod_certificate_wait_seconds",
            "For how long the oldest PodCertificateRequest that is not decided has waited (leader only, else 0).",
            registry=self.registry,
        )
        self._rollbacks = Counter(
            "podsvid_signer_rollbacks_detected",
            "Older Secrets that were noticed and mended, by how (restored: while no signer ran; replaced: under one; "
            "abandoned: what was abandoned was in service again).",
            ["how"],
            registry=self.registry,
        )
        self._workers = Gauge(
            "podsvid_signer_workers",
            "Worker processes that serve agents; 0 where the signer serves them by itself (workers 1).",
            registry=self.registry,
        )
        self._worker_restarts = Counter(
            "podsvid_signer_worker_restarts",
            "Worker processes that ended before the signer did, and were started anew.",
            registry=self.registry,
        )
        for result in KEY_STORE_RESULTS:
            self._key_store.labels(result)
        for result in UPSTREAM_ANSWERS:
            self._upstream_answers.labels(result)
        for result in CERTIFICATE_RESULTS:
            self._certificates.labels(result)
        for result in FEDERATION_RESULTS:
            self._federation_looks.labels(result)
        for how in ROLLBACKS:
            # There from the start: an increase from nothing is none to Prometheus.
            self._rollbacks.labels(how)
        # What is watched is asked on the event loop, by these.
        self._shown = Shown()
        self.refresh = self._shown.refresh
        self.keep_fresh = self._shown.run

    def lagged(self, seconds: float) -> None:
        """Count how long the event loop kept a task waiting."""
        self._lag.observe(seconds)

    def minted(self, kind: str, result: str, seconds: float) -> None:
        """Count a mint, allowed or refused."""
        told = self._minted.get((kind, result))
        if told is None:
            # Kept, as finding it takes as long as telling it.
            told = self._minted[kind, result] = self._mints.labels(kind, result)
        told.observe(seconds)

    def turned_away(self, kind: str) -> None:
        """Count a connection or call that was not taken, or that was ended."""
        self._turned_away.labels(kind).inc()

    def token_checked(self, result: str) -> None:
        """Count a token that was reviewed, or why it was not."""
        told = self._tokens_told.get(result)
        if told is None:
            told = self._tokens_told[result] = self._tokens.labels(result)
        told.inc()

    def keys_read(self, why: str, done: bool) -> None:
        """Count a read of the cluster's token keys."""
        self._keys_read.labels(why, "ok" if done else "failed").inc()

    def stepped(self, kind: str, step: str) -> None:
        """Count a step of an authority's life that this replica did."""
        self._steps.labels(kind, step).inc()

    def upstream_answered(self, result: str) -> None:
        """Count an answer of a CA elsewhere, by one of UPSTREAM_ANSWERS."""
        self._upstream_answers.labels(result).inc()

    def key_store_asked(self, result: str) -> None:
        """Count what was asked of a key store, by one of KEY_STORE_RESULTS."""
        self._key_store.labels(result).inc()

    def certified(self, result: str) -> None:
        """Count a try of a PodCertificateRequest, by one of CERTIFICATE_RESULTS."""
        self._certificates.labels(result).inc()

    def watch_certificates(self, waiting: Callable[[], float], oldest: Callable[[], float]) -> None:
        """Ask these of the requests that wait, every two seconds."""
        self._shown.add(self._certificates_waiting, waiting)
        self._shown.add(self._certificates_oldest, oldest)

    def federation_looked(self, result: str) -> None:
        """Count a look at another trust domain's bundle endpoint."""
        self._federation_looks.labels(result).inc()

    def watch_federation(self, ages: Callable[[], Mapping[str, float]]) -> None:
        """Ask this for the ages of bundles, every two seconds."""
        self._shown.add_each(self._federation_age, ages)

    def http_refused(self, listener: str, why: str) -> None:
        """Count a connection that was cut off, or a page that was refused; from any thread."""
        self._http_refused.labels(listener, why).inc()

    def public_counted(self, listener: str, kind: str, which: str, times: int) -> None:
        """Count what became of strangers' connections: answered with a status, or refused and why."""
        counter = self._public_answers if kind == "answered" else self._http_refused
        counter.labels(listener, which).inc(times)

    def rolled_back(self, how: str) -> None:
        """Count an older Secret that was mended, by one of ROLLBACKS."""
        self._rollbacks.labels(how).inc()

    def built(self, version: str) -> None:
        """Say which version runs."""
        self._build.labels(version).set(1)

    def watch_connections(
        self, agents: Callable[[], float], strangers: Callable[[], float], aside: Callable[[], float]
    ) -> None:
        """Ask these for the numbers of connections and of addresses put aside, every two seconds."""
        self._shown.add(self._aside, aside)
        self._shown.add(self._connections.labels("agents"), agents)
        self._shown.add(self._connections.labels("strangers"), strangers)

    def watch_proxies(self, proxies: Callable[[], float], strangers: Callable[[], float]) -> None:
        """Ask these for the numbers of connections at the port for Istio's proxies, every two seconds."""
        self._shown.add(self._connections.labels("proxies"), proxies)
        self._shown.add(self._connections.labels("proxy_strangers"), strangers)

    def watch_workers(self, serving: Callable[[], float]) -> None:
        """Ask this for the number of worker processes that serve, every two seconds."""
        self._shown.add(self._workers, serving)

    def worker_ended(self) -> None:
        """Count a worker process that is started anew."""
        self._worker_restarts.inc()

    def watch_public(self, listener: str, trouble: Callable[[], float], ends: Callable[[], float]) -> None:
        """Ask these of a public listener that is on, every two seconds."""
        self._shown.add(self._public_trouble.labels(listener), trouble)
        self._shown.add(self._public_ends.labels(listener), ends)

    def watch(
        self,
        *,
        agents: Callable[[], float],
        unacknowledged: Callable[[], float],
        leading: Callable[[], float],
        authority_ends: Callable[[], float],
        authority_life: Callable[[], float],
        upstream_ends: Callable[[], float],
        authority_wanted: Callable[[], float],
        roots_refused: Callable[[], float],
        contact: Callable[[], float],
        services_left_out: Callable[[], float],
        pods_left_out: Callable[[], float],
        clock_ahead: Callable[[], float],
        key_store_down: Callable[[], float],
    ) -> None:
        """Ask these for the values of the gauges, every two seconds."""
        self._shown.add(self._agents, agents)
        self._shown.add(self._unacknowledged, unacknowledged)
        self._shown.add(self._leading, leading)
        self._shown.add(self._authority_ends, authority_ends)
        self._shown.add(self._authority_life, authority_life)
        self._shown.add(self._upstream_ends, upstream_ends)
        self._shown.add(self._authority_wanted, authority_wanted)
        self._shown.add(self._roots_refused, roots_refused)
        self._shown.add(self._contact, contact)
        self._shown.add(self._services_left_out, services_left_out)
        self._shown.add(self._pods_left_out, pods_left_out)
        self._shown.add(self._clock_ahead, clock_ahead)
        self._shown.add(self._key_store_down, key_store_down)
