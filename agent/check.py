"""`podsvid agent --check`: what this host lacks for an agent with these settings. Nothing is started, made or kept."""

import os
import pwd
import resource
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

from agent import budget
from agent.authority import jwt_keys
from agent.authority.given import GivenX509
from agent.authority.jwt_keys import open_given, read_kept
from agent.authority.local import STATE_FILE, open_embedded
from agent.config import AgentConfig
from agent.daemon import bounds_of
from agent.process import LOCK
from agent.servers.process import is_mapped
from csi.mount import TmpfsMounts
from csi.mountable import MAY_MOUNT, capabilities, refusal
from csi.reach import LOOK_SECONDS, is_shared_at
from csi.room import MIB
from runtime import host
from runtime.clock import SystemClock
from runtime.federation import read_bundle
from runtime.host import Lack
from runtime.loading import Examined
from runtime.memory import MemoryUse, own_memory

# What is done as root: other users' files and directories, another user for who serves pods' sockets, mounts.
_CAPABILITIES = {"CHOWN": 0, "DAC_OVERRIDE": 1, "FOWNER": 3, "KILL": 5, "SETGID": 6, "SETUID": 7, "SETPCAP": 8}
_CAPABILITIES |= {"SYS_ADMIN": 21}


def lacks(
    examined: Examined[AgentConfig], memory: Callable[[], MemoryUse | None] = own_memory, user: int | None = None
) -> list[Lack]:
    """All of it. What depends on a setting that is refused itself is left out. Blocks."""
    config = examined.config
    parts = (
        _privileges(examined, os.geteuid() if user is None else user),
        _kubelet(examined),
        _places(examined),
        _limits(examined, memory()),
        _authority(examined),
        _federated(examined),
        iter([host.tracing(_shown(examined, "tracing_endpoint"), config.tracing_endpoint)]),
    )
    # What does not answer does not for each who asks.
    return list(dict.fromkeys(each for part in parts for each in part if each is not None))


def running(config: AgentConfig) -> bool:
    """Whether an agent has that run directory now, and with it the ports."""
    return host.seen(lambda: host.is_locked(config.run_dir / LOCK))


def _shown(examined: Examined[AgentConfig], name: str) -> str:
    return examined.shown(name)


def _sound(examined: Examined[AgentConfig], *names: str) -> bool:
    return not examined.bad.intersection(names)


def _privileges(examined: Examined[AgentConfig], user: int) -> Iterator[Lack | None]:
    config = examined.config
    if config.volumes_without_mounts:
        return
    if user != 0:
        yield Lack(
            "NOT_ROOT", f"this is user {user}: the agent has to be root, to mount and to give files to pods' users"
        )
        return
    held = capabilities()
    missing = [f"CAP_{name}" for name, bit in _CAPABILITIES.items() if not held & 1 << bit]
    if missing:
        yield Lack("CAPABILITIES_MISSING", f"{', '.join(missing)}: in a pod the agent's container has to be privileged")
    if not _sound(examined, "socket_user"):
        return
    if not is_mapped(config.socket_user):
        yield Lack("USER_UNUSABLE", f"{_shown(examined, 'socket_user')}: this user namespace has no such user")
    with suppress(KeyError):
        name = pwd.getpwuid(config.socket_user).pw_name
        yield Lack(
            "USER_TAKEN", f"{_shown(examined, 'socket_user')}: it is that of {name}; choose one that nothing has"
        )


def _kubelet(examined: Examined[AgentConfig]) -> Iterator[Lack | None]:
    config = examined.config
    if not _sound(examined, "kubelet_root"):
        return
    shown, pods = _shown(examined, "kubelet_root"), config.kubelet_root / "pods"
    missing = list[str]()

    def started() -> Lack | None:
        missing.extend(each for each in ("plugins_registry", "pods") if not os.path.isdir(config.kubelet_root / each))
        if not missing:
            return None
        return Lack(
            "NO_KUBELET",
            f"{shown}: it has no directory {' and '.join(missing)}, which a kubelet with that --root-dir makes when it "
            "starts; look at kubelet's --root-dir, and at what the agent's pod mounts of it",
        )

    found = host.looked(shown, started)
    yield found
    if _hangs(found):
        return
    for each in ("plugins", "plugins_registry"):
        if each not in missing:
            yield host.directory(shown, config.kubelet_root / each)
    if config.volumes_without_mounts:
        return

    def denied() -> Lack | None:
        why = refusal(str(pods), TmpfsMounts())
        return Lack("MOUNT_DENIED", f"nothing can be mounted here ({why}): {MAY_MOUNT}") if why else None

    def alone() -> Lack | None:
        if is_shared_at(str(pods)) or _kubelet_is_beside():
            return None
        return Lack(
            "MOUNT_NOT_SHARED",
            f"{shown}: {pods} is no shared mount, and no kubelet is seen that has the same mounts: pods would find "
            "their volumes empty. In a pod mount it with mountPropagation Bidirectional; where / of the node is not "
            "shared, `mount --make-rshared /` there",
        )

    found = host.looked(shown, denied, LOOK_SECONDS)
    yield found
    if "pods" not in missing and not _hangs(found):
        yield host.looked(shown, alone)


def _hangs(found: Lack | None) -> bool:
    return found is not None and found.reason == host.NO_ANSWER


def _kubelet_is_beside() -> bool:
    """Whether a kubelet has the mounts of this process."""
    own = os.stat("/proc/self/ns/mnt")
    for folder in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):
            if (folder / "comm").read_text(
                encoding="utf-8", errors="replace"
            ).strip() == "kubelet" and os.path.samestat(own, os.stat(folder / "ns/mnt")):
                return True
    return False


def _places(examined: Examined[AgentConfig]) -> Iterator[Lack | None]:
    config = examined.config
    if _sound(examined, "run_dir"):
        shown = _shown(examined, "run_dir")
        disk = f"{shown}: a reboot has to empty it, and it is on no tmpfs; choose one, as below /run"
        yield from _place(shown, config.run_dir, lambda memory: None if memory else Lack("KEPT_ON_DISK", disk))
    if config.authority == "embedded" and _sound(examined, "state_dir", "authority"):
        shown = _shown(examined, "state_dir")
        tmpfs = f"{shown}: the authority has to survive a reboot, and that is on a tmpfs; choose a disk"
        yield from _place(shown, config.state_dir, lambda memory: Lack("NOT_KEPT", tmpfs) if memory else None)
    if _sound(examined, "run_dir") and running(config):
        return
    for name in ("metrics_listen", "health_listen"):
        if _sound(examined, name):
            yield host.port(_shown(examined, name), getattr(config, name))


def _place(shown: str, path: Path, kept: Callable[[bool], Lack | None]) -> Iterator[Lack | None]:
    """The directory; `kept` says whether it is in memory or not as it has to be."""
    found = host.directory(shown, path)
    yield found
    if not _hangs(found):
        yield host.looked(shown, lambda: kept(host.is_memory(path)))


def _limits(examined: Examined[AgentConfig], memory: MemoryUse | None) -> Iterator[Lack]:
    config = examined.config
    if memory is not None and _sound(examined, "volumes", "volumes_memory", "socket_memory", "memory_headroom"):
        needed = sum(budget.needed(bounds_of(config)).values()) - budget.SOCKETS + config.socket_memory * MIB
        if memory.limit < needed:
            yield Lack(
                "MEMORY_LIMIT",
                f"the memory limit is {memory.limit // MIB} MiB, and {-(-needed // MIB)} MiB can be needed: raise it, "
                "or lower volumes, volumes_memory or socket_memory",
            )
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    if _sound(examined, "volumes") and most != resource.RLIM_INFINITY and most < budget.descriptors(config.volumes):
        yield Lack(
            "FILES_LIMIT",
            f"a process may open {most} files, and {budget.descriptors(config.volumes)} are needed for "
            f"{config.volumes} volumes: raise the limit (LimitNOFILE=), or lower volumes",
        )


def _authority(examined: Examined[AgentConfig]) -> Iterator[Lack | None]:
    config = examined.config
    if not _sound(examined, "authority", "trust_domain"):
        return
    if config.authority == "embedded":
        shown, kept = _shown(examined, "state_dir"), config.state_dir / jwt_keys.STATE_FILE

        def opened() -> None:
            if os.path.exists(config.state_dir / STATE_FILE):
                open_embedded(config.state_dir, config.trust_domain, SystemClock())

        found = host.usable(shown, opened) if _sound(examined, "state_dir") else None
        yield found
        if _sound(examined, "state_dir", "jwt_svids") and config.issues_jwt and not _hangs(found):
            yield host.usable(shown, lambda: read_kept(kept) if os.path.exists(kept) else None)
    elif config.authority == "file":
        yield from _files(examined)
    else:
        if config.signer_bundle is not None and _sound(examined, "signer_bundle"):
            path = config.signer_bundle
            yield host.usable(_shown(examined, "signer_bundle"), lambda: read_bundle(config.trust_domain, path))
        if config.agent_token_file is not None and _sound(examined, "agent_token_file"):
            # Its content is looked at by nobody but the signer.
            yield host.usable(_shown(examined, "agent_token_file"), config.agent_token_file.read_bytes)


def _files(examined: Examined[AgentConfig]) -> Iterator[Lack | None]:
    config = examined.config
    certificate, key, jwt_key = config.ca_cert_file, config.ca_key_file, config.jwt_key_file
    if (
        certificate is not None
        and key is not None
        and _sound(examined, "ca_cert_file", "ca_key_file", "ca_bundle_file")
    ):
        shown = f"{_shown(examined, 'ca_cert_file')} and {_shown(examined, 'ca_key_file')}"
        yield host.usable(shown, lambda: GivenX509(certificate, key, config.ca_bundle_file, config.trust_domain))
    if jwt_key is not None and _sound(examined, "jwt_key_file", "jwt_bundle_file", "jwt_algorithm"):
        yield host.usable(
            _shown(examined, "jwt_key_file"),
            lambda: open_given(jwt_key, config.jwt_bundle_file, config.jwt_algorithm, config.trust_domain),
        )


def _federated(examined: Examined[AgentConfig]) -> Iterator[Lack | None]:
    if _sound(examined, "federated_bundles"):
        for domain, path in examined.config.federated_bundles:
            shown = f"federated_bundles: {domain.name}={path}"
            yield host.usable(shown, lambda domain=domain, path=path: read_bundle(domain, path))  # type: ignore[misc]
