"""`podsvid signer --check`: what this host lacks for a signer with these settings. Nobody is asked, but for a token
or a KMS that has the key of the CA above, or is to have the authorities'."""

import asyncio
import socket
import time
from collections.abc import Iterator
from datetime import UTC, datetime
from functools import partial

from runtime import host
from runtime.federation import read_bundle
from runtime.host import Lack
from runtime.loading import Examined
from signer import public_settings
from signer.authority.store import read_cipher
from signer.authority.timing import lifecycle_policy
from signer.authority.trial import Cause, admit
from signer.cluster.kube_client import KubeClient
from signer.config import ADDRESSES, SignerConfig
from signer.key_settings import JWT_KEYS
from signer.keystore.chosen import opened, probe_seconds
from signer.keystore.worker import Worker
from signer.policy.template import path_template
from signer.public.pairs import read_pair
from signer.upstream.certify import SelfSigned
from signer.upstream.chosen import at_hand, key_seconds, needed
from signer.upstream_settings import PREFIXES

_UPSTREAM = (
    "upstream",
    "upstream_cert_file",
    "upstream_key_file",
    "upstream_key_uri",
    "upstream_bundle_file",
    "upstream_dir",
)
# A key of RSA is made for it, beside the files that are read.
_TRIAL_SECONDS = 10.0
# A kubeconfig may name a program that logs in, or have a token that is asked for anew, over the network.
_LOGIN_SECONDS = 10.0
_LOGIN = "does the program that it logs in by end (users: exec), and is it on a file system that answers?"
_KEYS = ("authority_algorithm", "jwt_algorithm", "jwt_svids", "authority_keys_return")
_LIFETIMES = ("authority_ttl", "x509_ttl", "x509_max_ttl")


def lacks(examined: Examined[SignerConfig]) -> list[Lack]:
    """All of it. What depends on a setting that is refused itself is left out. Blocks."""
    config = examined.config
    parts = (
        _addresses(examined),
        _files(examined),
        _upstream(examined),
        _authority_keys(examined),
        iter([host.tracing(examined.shown("tracing_endpoint"), config.tracing_endpoint)]),
    )
    return [each for part in parts for each in part if each is not None]


def running(config: SignerConfig) -> bool:
    """Whether a signer listens at that admin socket now, and has the ports with it."""
    return host.seen(lambda: _listens(str(config.admin_socket)))


def _listens(path: str) -> bool:
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        try:
            probe.connect(path)
        except OSError:
            return False
    return True


def _sound(examined: Examined[SignerConfig], *names: str) -> bool:
    return not examined.bad.intersection(names)


def _addresses(examined: Examined[SignerConfig]) -> Iterator[Lack | None]:
    config = examined.config
    if _sound(examined, "admin_socket"):
        yield host.directory(examined.shown("admin_socket"), config.admin_socket.parent)
        if running(config):
            return
    for name in ADDRESSES:
        if _sound(examined, name):
            yield host.port(examined.shown(name), getattr(config, name))


def _files(examined: Examined[SignerConfig]) -> Iterator[Lack | None]:
    config = examined.config
    if _sound(examined, "kubeconfig"):

        async def connect() -> None:
            await (await KubeClient.connect(config.kubeconfig)).close()

        yield host.usable(examined.shown("kubeconfig"), lambda: asyncio.run(connect()), _LOGIN_SECONDS, _LOGIN)
    if _sound(examined, "state_key_file"):
        yield host.usable(examined.shown("state_key_file"), lambda: read_cipher(config.state_key_file))
    if _sound(examined, "default_path"):
        found = host.usable(examined.shown("default_path"), lambda: path_template(config.default_path))
        yield None if found is None else Lack("INVALID_SETTING", found.text)
    for chain, key in (("bundle_cert_file", "bundle_key_file"), ("oidc_cert_file", "oidc_key_file")):
        pair = public_settings.files(getattr(config, chain), getattr(config, key))
        if pair is not None and _sound(examined, chain, key):
            yield host.usable(examined.shown(chain), partial(read_pair, *pair, datetime.now(UTC)))
    if _sound(examined, "federated_bundles"):
        for domain, path in config.federated_bundles:
            shown = f"federated_bundles: {domain.name}={path}"
            yield host.usable(shown, lambda domain=domain, path=path: read_bundle(domain, path))  # type: ignore[misc]


def _upstream(examined: Examined[SignerConfig]) -> Iterator[Lack | None]:
    """Whether the CA above certifies what a first start takes: tried with a key that is thrown away.

    Of one elsewhere only the files are looked at: it is not asked.
    """
    config = examined.config
    if not _sound(examined, *_UPSTREAM, "trust_domain", *_LIFETIMES):
        return
    if not _sound(examined, *(name for name in config.__dataclass_fields__ if name.startswith(PREFIXES))):
        return
    for name, read in needed(config.above).items():
        yield host.usable(examined.shown(name), read)
    above = at_hand(config.above.files)
    if isinstance(above, SelfSigned) or config.above.kind != "files":
        return
    now, policy = datetime.now(UTC), lifecycle_policy(config)

    async def first() -> None:
        made = await above.certify(config.trust_domain, policy.key_algorithm.generate(), policy.authority_ttl, now)
        admit(made, None, Cause.FIRST, policy, now)

    named = next(each for each in ("upstream_dir", "upstream_cert_file") if getattr(config, each) is not None)
    seconds = _TRIAL_SECONDS + key_seconds(config.upstream_key_uri)
    yield host.usable(examined.shown(named), lambda: asyncio.run(first()), seconds)


def _authority_keys(examined: Examined[SignerConfig]) -> Iterator[Lack | None]:
    """Whether a token makes keys as the settings have them, which are not kept, and signs with them; a KMS answers."""
    config = examined.config
    place = config.authority_key_uri
    if place is None or config.authority_keys_return or not _sound(examined, "authority_key_uri", *_KEYS):
        return
    kinds = [config.authority_algorithm, *([JWT_KEYS[config.jwt_algorithm]] if config.jwt_svids else [])]

    def work() -> None:
        store = opened(place, Worker("keys"), time.monotonic)
        try:
            for kind in dict.fromkeys(kinds):
                store.probe(kind)
        finally:
            store.close()

    yield host.usable(examined.shown("authority_key_uri"), work, probe_seconds(place))
