"""An API server with its etcd and nothing else: for what only an API server can say, in seconds."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from podsvid.uninstall_check import DEFINED
from tests.go_tools import Progress
from tests.permissions import Call
from tests.ports import free_port

from . import chart, control_plane, kubeconfig
from .api import ApiError, KubeApi, Object
from .layout import Layout
from .pki import ClusterAuthority
from .processes import Processes
from .signing import NAMESPACE
from .waiting import wait_for

TRUST_DOMAIN = "alone.test"
POLICIES = "/apis/podsvid.io/v1alpha1"


@dataclass(frozen=True)
class Alone:
    """It, and its administrator's connection."""

    api: KubeApi
    layout: Layout
    progress: Progress
    # Ends it and starts it anew with these flags beside its own: of one name the last counts, or each.
    restart: Callable[..., None]
    authority: ClusterAuthority

    def rotate_tokens_key(self) -> None:
        """Sign tokens with a new key, and take those of the old one too."""
        key = self.authority.new_tokens_key("service-accounts-2.key")
        self.restart(f"--service-account-key-file={key}", f"--service-account-signing-key-file={key}")

    def kubeconfig(self, account: str) -> Path:
        """A file for that service account of podsvid's namespace."""
        path = self.layout.directory / f"{account}.kubeconfig"
        kubeconfig.with_token(path, self.layout.kubeconfig, self.api.token(account, NAMESPACE))
        return path

    def install(self, *values: str) -> None:
        """Everything that the chart ships, the hooks as well, until the custom resources are served."""
        self.api.apply(chart.render(f"trustDomain={TRUST_DOMAIN}", *values, namespace=NAMESPACE))
        wait_for("the custom resources", self.served, progress=self.progress)

    def served(self) -> bool:
        """Whether there are the custom resources."""
        try:
            return all(self.api.find(f"{POLICIES}/{each}") for each in DEFINED)
        except ApiError:
            return False


@contextmanager
def api_server(folder: Path, progress: Progress) -> Iterator[Alone]:
    """Start it in a folder, with ClusterTrustBundles and PodCertificateRequests, on the loopback; end it."""
    layout = Layout(folder / "alone")
    for each in (layout.directory, layout.logs):
        each.mkdir(mode=0o700)
    processes = Processes(layout)
    authority = ClusterAuthority(layout.pki)
    etcd_port, peer_port, port = free_port(), free_port(), free_port()
    try:
        processes.start("etcd", control_plane.etcd(layout, authority, etcd_port, peer_port))
        command = control_plane.api_server(layout, authority, port, etcd_port)
        command.append("--bind-address=127.0.0.1")
        processes.start("kube-apiserver", command)
        url, admin = f"https://127.0.0.1:{port}", authority.issue("admin", "admin", "system:masters")
        kubeconfig.write(layout.kubeconfig, url, authority.ca_cert, admin)
        api = KubeApi(url, str(authority.ca_cert), admin)

        def ready() -> None:
            wait_for("the API server", api.ready, progress=progress, alive=processes.check)

        def restart(*flags: str) -> None:
            processes.end(("kube-apiserver",))
            processes.start("kube-apiserver", [*command, *flags])
            ready()

        ready()
        yield Alone(api, layout, progress, restart, authority)
    finally:
        processes.end(("kube-apiserver", "etcd"))


def audited(log: Path, account: str) -> Iterator[tuple[Call, int]]:
    """What a service account of podsvid asked by an API server's audit log, with the status that it got."""
    user = f"system:serviceaccount:{NAMESPACE}:{account}"
    for event in events(log):
        # What tests ask in somebody's name, to be refused, is not theirs.
        if event["user"]["username"] == user and not event.get("userAgent", "").startswith("Python-urllib"):
            yield _call(event), int((event.get("responseStatus") or {}).get("code", 0))


def events(log: Path) -> Iterator[Object]:
    """What an API server's audit log has."""
    with log.open(encoding="utf-8") as lines:
        for line in lines:
            try:
                yield json.loads(line)
            except ValueError:
                continue  # cut off in the middle: a test killed the API server


def _call(event: Object) -> Call:
    about = event.get("objectRef")
    if about is None:
        return Call(event["verb"], path=event["requestURI"].partition("?")[0])
    resource = "/".join(filter(None, [about["resource"], about.get("subresource")]))
    group, namespace = about.get("apiGroup", ""), about.get("namespace", "")
    # A namespace is its own: RBAC sees it by its name only.
    namespace = "" if resource == "namespaces" else namespace
    # What is created has no name yet, for RBAC.
    name = "" if event["verb"] == "create" else about.get("name", "")
    return Call(event["verb"], group, resource, namespace, name)
