"""`podsvid migrate csi-driver-spiffe`: its chart's values, or its workloads' arguments, as podsvid's chart's values."""

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import timedelta
from types import MappingProxyType
from typing import Any

from podsvid.migrate.fields import Finding, Unfit, Verdict, go_duration, items, mapping, text, x509_lifetimes
from podsvid.migrate.report import Report
from podsvid.migrate.sources import Document, UnusableDocument
from runtime import durations
from runtime.terminal import shown
from svid.errors import InvalidSpiffeId
from svid.spiffeid import TrustDomain

OWN_DRIVER, PROFILE = "csi.podsvid.io", "cert-manager"
THEIR_DRIVER = "spiffe.csi.cert-manager.io"
# As deploy/chart/podsvid/values.schema.json has it.
_DRIVER = re.compile(r"[a-z]([-a-z0-9.]{0,61}[a-z])?", re.ASCII)
# What their chart has without a word: nothing is to be said of it.
DEFAULTS: Mapping[str, Any] = MappingProxyType(
    {
        "imageRegistry": "quay.io",
        "imageNamespace": "jetstack",
        "app.logLevel": 1,
        "app.certificateRequestDuration": "1h",
        "app.trustDomain": "cluster.local",
        "app.name": THEIR_DRIVER,
        "app.issuer.name": "spiffe-ca",
        "app.issuer.kind": "ClusterIssuer",
        "app.issuer.group": "cert-manager.io",
        "app.driver.volumeFileName.cert": "tls.crt",
        "app.driver.volumeFileName.key": "tls.key",
        "app.driver.volumeFileName.ca": "ca.crt",
        "app.driver.csiDataDir": "/tmp/cert-manager-csi-driver",  # noqa: S108 - theirs
        "app.driver.livenessProbe.port": 9809,
        "app.approver.replicaCount": 1,
        "app.approver.readinessProbe.port": 6060,
        "app.approver.metrics.port": 9402,
        "app.approver.metrics.service.enabled": True,
        "app.approver.metrics.service.type": "ClusterIP",
        "app.approver.metrics.service.servicemonitor.prometheusInstance": "default",
        "app.approver.metrics.service.servicemonitor.interval": "10s",
        "app.approver.metrics.service.servicemonitor.scrapeTimeout": "5s",
        "nodeSelector": {"kubernetes.io/os": "linux"},
        "openshift.securityContextConstraint.enabled": "detect",
        "openshift.securityContextConstraint.name": "privileged",
    }
)
# Mappings that are a value as a whole.
_WHOLE: tuple[str, ...] = ("nodeSelector", "affinity", "commonLabels", "app.driver.resources", "app.approver.resources")
_WHOLE += ("app.approver.metrics.service.servicemonitor.labels",)
_MONITOR = "app.approver.metrics.service.servicemonitor."
# What has no place: the beginning of its path, why, and what to do.
_NO_PLACE: Sequence[tuple[str, Verdict, str, str]] = (
    ("image", Verdict.DIFFERS, "podsvid has one image of its own", "set image.repository and image.tag"),
    ("driverImage", Verdict.DIFFERS, "podsvid has one image of its own", "set image.repository and image.tag"),
    ("approverImage", Verdict.NEEDLESS, "there is no approver", ""),
    ("app.driver.nodeDriverRegistrarImage", Verdict.NEEDLESS, "the agent registers its drivers itself", ""),
    ("app.driver.livenessProbe", Verdict.NEEDLESS, "the agent answers probes itself", ""),
    ("app.driver.csiDataDir", Verdict.NEEDLESS, "a volume is a tmpfs of its own, and nothing of it is on a disk", ""),
    ("app.driver.useOwnServiceAccount", Verdict.NEEDLESS, "pods need no rights, and nobody asks in their place", ""),
    (
        "app.driver.resources",
        Verdict.DIFFERS,
        "an agent keeps its volumes in its own memory, and needs another limit",
        "look at agent.resources (docs/operations.md, Bounds of a node)",
    ),
    ("app.approver.resources", Verdict.NEEDLESS, "there is no approver", ""),
    (
        "app.approver.autoApproveNonSPIFFE",
        Verdict.LEFT_OUT,
        "this approver approves all other CertificateRequests of the cluster, and podsvid approves none",
        "switch cert-manager's own approver on (disableAutoApproval: false) before csi-driver-spiffe goes",
    ),
    ("app.approver.metrics", Verdict.DIFFERS, "metrics have a port of their own, 9099", "let scrapers ask that port"),
    ("app.approver", Verdict.NEEDLESS, "there is no approver: no certificate of a pod is a CertificateRequest", ""),
    (
        "app.logLevel",
        Verdict.DIFFERS,
        "log levels are words",
        "set agent.settings.log_level and signer.settings.log_level, such as debug",
    ),
    (
        "app.runtimeIssuanceConfigMap",
        Verdict.LEFT_OUT,
        "a CA above is named by values, and changes by `podsvid authority rotate`",
        "docs/migration.md, To another CA",
    ),
    (
        "app.extraCertificateRequestAnnotations",
        Verdict.LEFT_OUT,
        "certificates of pods are no CertificateRequests",
        "what looks for those annotations finds podsvid's audit log in their place",
    ),
    (
        "app.driver.sourceCABundle",
        Verdict.DIFFERS,
        "ca.crt has the roots that podsvid's own authorities are below, and nothing from a file",
        "while pods move let workloads trust both (docs/migration.md, Trust both)",
    ),
    (
        "app.driver.volume",
        Verdict.DIFFERS,
        "the agent mounts nothing more",
        "what was mounted for sourceCABundle is not needed",
    ),
    (
        "priorityClassName",
        Verdict.DIFFERS,
        "agents are system-node-critical, signers system-cluster-critical",
        "set agent.priorityClassName and signer.priorityClassName where they are to be less",
    ),
    ("tolerations", Verdict.NEEDLESS, "agents tolerate every taint", ""),
    ("commonLabels", Verdict.DIFFERS, "labels are for pods", "set agent.podLabels and signer.podLabels"),
    (
        "topologySpreadConstraints",
        Verdict.DIFFERS,
        "it was for the approver's replicas",
        "look at signer.affinity for the signer's",
    ),
    ("openshift.securityContextConstraint.name", Verdict.DIFFERS, "agents need privileged, signers nonroot-v2", ""),
)
_ARGUMENTS: Mapping[str, str] = MappingProxyType(
    {
        "trust-domain": "app.trustDomain",
        "csi-driver-name": "app.name",
        "certificate-request-duration": "app.certificateRequestDuration",
        "issuer-name": "app.issuer.name",
        "issuer-kind": "app.issuer.kind",
        "issuer-group": "app.issuer.group",
        "file-name-certificate": "app.driver.volumeFileName.cert",
        "file-name-key": "app.driver.volumeFileName.key",
        "file-name-ca": "app.driver.volumeFileName.ca",
        "source-ca-bundle": "app.driver.sourceCABundle",
        "runtime-issuance-config-map-name": "app.runtimeIssuanceConfigMap",
        "extra-certificate-request-annotations": "app.extraCertificateRequestAnnotations",
        "use-own-service-account": "app.driver.useOwnServiceAccount",
        "auto-approve-non-spiffe": "app.approver.autoApproveNonSPIFFE",
    }
)
_WORKLOADS = ("DaemonSet", "Deployment")
# `helm get values` begins with one of these.
_TITLES = ("USER-SUPPLIED VALUES", "COMPUTED VALUES")


@dataclass
class _Given:
    """Their values by path, each taken once; what is found of them."""

    values: dict[str, Any]
    findings: list[Finding] = field(default_factory=list)

    def take(self, path: str) -> Any:
        """The value there, or what their chart has."""
        return self.values.pop(path, DEFAULTS.get(path))

    def text(self, path: str) -> str:
        found = self.take(path)
        if found is not None and not isinstance(found, str):
            raise UnusableDocument(f"{path} is no text")
        return found or ""

    def mapping(self, path: str) -> Mapping[str, Any]:
        found = self.values.pop(path, None)
        if found is not None and not isinstance(found, dict):
            raise UnusableDocument(f"{path} is no mapping")
        return found or {}

    def tell(self, verdict: Verdict, path: str, why: str, to_do: str = "") -> None:
        self.findings.append(Finding(verdict, path, why, to_do))


def migrate(documents: Sequence[Document]) -> tuple[dict[str, Any], Report]:
    """podsvid's values; what is lost. Later documents win. Raises UnusableDocument."""
    flat: dict[str, Any] = {}
    for document in documents:
        try:
            for path, value in _flat(document.value):
                # Of a mapping that is given again Helm keeps what is not.
                both = isinstance(value, dict) and isinstance(flat.get(path), dict)
                flat[path] = {**flat[path], **value} if both else value
        except Unfit as unfit:
            raise UnusableDocument(f"{document.where}: {unfit}") from None
    if not flat:
        # A whole set of values made of nothing would look like a migration.
        raise UnusableDocument(
            "there are no values in it: give what `helm get values --all` prints, or the driver's DaemonSet"
        )
    read = len(flat)
    given = _Given({path: value for path, value in flat.items() if value != DEFAULTS.get(path)})
    values = _values(given)
    for path, value in given.values.items():
        _tell(given, path, value)
    return values, Report(read, _leaves(values), tuple(given.findings), tuple(_notes(values)))


def _values(given: _Given) -> dict[str, Any]:
    if "app.trustDomain" not in given.values:
        given.tell(Verdict.DIFFERS, "app.trustDomain", "it is their default, cluster.local", "see that SVIDs have it")
    domain = given.text("app.trustDomain")
    try:
        TrustDomain.parse(domain)
    except InvalidSpiffeId as error:
        raise UnusableDocument(f"app.trustDomain {shown(domain)}: {error}") from None
    values: dict[str, Any] = {"trustDomain": domain, "drivers": _drivers(given), "ttl": {"x509": _ttl(given)}}
    agent: dict[str, Any] = {}
    selector = given.mapping("nodeSelector")
    if selector:
        agent["nodeSelector"] = {str(key): _label(value) for key, value in selector.items()}
    affinity = given.mapping("affinity")
    agent |= {"affinity": dict(affinity)} if affinity else {}
    values |= {"agent": agent} if agent else {}
    secrets = given.values.pop("imagePullSecrets", None) or []
    if not isinstance(secrets, list) or not all(isinstance(each, dict) and [*each] == ["name"] for each in secrets):
        raise UnusableDocument("imagePullSecrets is no list of names")
    values |= {"imagePullSecrets": [{"name": str(each["name"])} for each in secrets]} if secrets else {}
    if given.take("openshift.securityContextConstraint.enabled") is True:
        values["openshift"] = {"enabled": True}
    _issuer(given)
    _file_names(given)
    values |= _monitoring(given)
    return values


def _label(value: Any) -> str:
    """A label's value: true is a text there, which YAML has read as something else."""
    return str(value).lower() if isinstance(value, bool) else str(value)


def _drivers(given: _Given) -> list[str]:
    name = given.text("app.name")
    if not _DRIVER.fullmatch(name):
        raise UnusableDocument(f"app.name {shown(name)} is no name of a CSI driver that podsvid's chart takes")
    if name == THEIR_DRIVER:
        return [OWN_DRIVER, name]
    # Another name brings no profile along.
    own = [] if name == OWN_DRIVER else [OWN_DRIVER]
    return [*own, f"{name}={PROFILE}"]


def _ttl(given: _Given) -> str:
    path = "app.certificateRequestDuration"
    value = given.text(path)
    try:
        wanted = timedelta(seconds=int(go_duration(value)))
    except Unfit as unfit:
        raise UnusableDocument(f"{path}: {unfit}") from None
    kept = x509_lifetimes()
    held = kept.held(wanted)
    written = durations.text(held)
    if held != wanted:
        given.tell(
            Verdict.DIFFERS,
            path,
            f"{value} is {written} here: the signer keeps lifetimes between {durations.text(kept.least)} and "
            f"{durations.text(kept.most)}",
            kept.to_do(wanted),
        )
    return written


def _issuer(given: _Given) -> None:
    name, kind, group = (given.text(f"app.issuer.{each}") for each in ("name", "kind", "group"))
    given.tell(
        Verdict.LEFT_OUT,
        "app.issuer",
        f"{shown(kind)} {shown(name)} ({group[:80]}) signs pods' certificates; here a CA above signs the "
        "signer's authorities alone, and csi-driver-spiffe's approver denies requests for that issuer of no pod",
        "for the same root make another issuer of the same CA and set signer.certManager (docs/certmanager.md), or "
        "sign an intermediate for signer.upstreamSecret; without either podsvid has roots of its own",
    )


def _file_names(given: _Given) -> None:
    names = (("cert", "certificateFile"), ("key", "keyFile"), ("ca", "bundleFile"))
    for name, attribute in names:
        path = f"app.driver.volumeFileName.{name}"
        value = given.values.pop(path, None)
        if value is not None:
            given.tell(
                Verdict.LEFT_OUT,
                path,
                f"file names are each volume's own, and without a word they are {DEFAULTS[path]} and so on",
                f"give pods' volumes the attribute {attribute}: {shown(str(value))}",
            )


def _monitoring(given: _Given) -> dict[str, Any]:
    if given.take(f"{_MONITOR}enabled") is not True:
        for path in [each for each in given.values if each.startswith(_MONITOR)]:
            del given.values[path]
        return {}
    labels = {"prometheus": given.take(f"{_MONITOR}prometheusInstance"), **given.mapping(f"{_MONITOR}labels")}
    labels = {str(key): _label(value) for key, value in labels.items()}
    interval = str(given.take(f"{_MONITOR}interval"))
    if given.values.pop(f"{_MONITOR}scrapeTimeout", None) is not None:
        given.tell(Verdict.DIFFERS, f"{_MONITOR}scrapeTimeout", "scrapes have Prometheus' own time")
    return {"monitoring": {"serviceMonitor": {"enabled": True, "interval": interval, "labels": labels}}}


def _tell(given: _Given, path: str, value: Any) -> None:
    if value in (None, "", False, [], {}):
        return
    for start, verdict, why, to_do in _NO_PLACE:
        if path.startswith(start):
            given.tell(verdict, path, why, to_do)
            return
    given.tell(Verdict.LEFT_OUT, path, "it is not known here", "look what it is for")


def _notes(values: Mapping[str, Any]) -> Iterator[str]:
    yield f"IDs are the same: spiffe://{values['trustDomain']}/ns/NAMESPACE/sa/SERVICEACCOUNT."
    yield (
        "Two drivers of one name cannot be on one node: move a node at a time (docs/migration.md). Pods keep their "
        "manifests, the fs-group attribute too."
    )
    yield "Delete the roles that let workloads create CertificateRequests; switch cert-manager's own approver on again."


def _flat(value: Any, path: str = "") -> Iterator[tuple[str, Any]]:
    if not isinstance(value, dict):
        raise Unfit("it is no mapping of values")
    kind = value.get("kind")
    if not path and isinstance(kind, str) and "apiVersion" in value:
        yield from _of_objects(value, kind)
        return
    for key, each in value.items():
        inner = f"{path}.{key}" if path else str(key)
        if (not path and key in _TITLES) or each is None:
            continue
        if isinstance(each, dict) and inner not in _WHOLE:
            yield from _flat(each, inner)
        elif each != {}:
            yield inner, each


def _of_objects(value: Mapping[str, Any], kind: str) -> Iterator[tuple[str, Any]]:
    if kind == "List":
        for each in items(value, "items"):
            yield from _flat(each)
        return
    if kind not in _WORKLOADS:
        raise Unfit(f"a {shown(kind)} says nothing of the driver; give its DaemonSet, its Deployment, or values")
    pod = mapping(mapping(mapping(value, "spec"), "template"), "spec")
    found = False
    for container in items(pod, "containers"):
        if not isinstance(container, dict):
            raise Unfit("a container is no object")
        for name, argument in _arguments([str(each) for each in items(container, "args")]):
            if name in _ARGUMENTS and "$(" not in argument:
                found = found or name == "trust-domain"
                on = {"true": True, "false": False}
                yield _ARGUMENTS[name], on.get(argument, argument)
    if not found:
        raise Unfit(f"{kind} {shown(text(mapping(value, 'metadata'), 'name'))} has no container with --trust-domain")


def _arguments(given: Sequence[str]) -> Iterator[tuple[str, str]]:
    """Flags and what they are; `--flag value` as well as `--flag=value`."""
    waiting = ""
    for each in given:
        if each.startswith("-"):
            if waiting:
                yield waiting, "true"
            name, equals, value = each.lstrip("-").partition("=")
            waiting = "" if equals else name
            if equals:
                yield name, value
        elif waiting:
            yield waiting, each
            waiting = ""
    if waiting:
        yield waiting, "true"


def _leaves(value: Any) -> int:
    return sum(map(_leaves, value.values())) if isinstance(value, dict) else 1
