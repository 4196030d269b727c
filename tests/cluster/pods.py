"""Pods of a cluster, as a test needs them."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

from . import cgroups
from .api import ApiError, KubeApi, Object
from .host import ClusterError


class Pods:
    """The pods that an API server knows; their processes are found in the cgroups of the cluster at a directory."""

    def __init__(self, api: KubeApi, directory: Path) -> None:
        self._api = api
        self._directory = directory

    def create(self, body: Object, namespace: str = "default") -> Object:
        """Create a pod; what the API server made of it. Raises ApiError."""
        return self._api.create(f"/api/v1/namespaces/{namespace}/pods", body)

    def find(self, name: str, namespace: str = "default") -> Object | None:
        """A pod, or None if there is none of the name."""
        return self._api.find(f"/api/v1/namespaces/{namespace}/pods/{name}")

    def delete(self, name: str, namespace: str = "default") -> None:
        """Ask for a pod's deletion with its own grace period."""
        self._api.delete(f"/api/v1/namespaces/{namespace}/pods/{name}")

    def log(self, name: str, namespace: str = "default") -> str:
        """What the pod's container has printed so far; empty while there is no container."""
        try:
            return self._api.text(f"/api/v1/namespaces/{namespace}/pods/{name}/log")
        except ApiError as error:
            if error.status in (400, 404):
                return ""
            raise

    def describe(self, name: str, namespace: str = "default") -> str:
        """A pod's status, events and log: what a failed test shows."""
        pod = self.find(name, namespace) or {}
        events = self._api.get(f"/api/v1/namespaces/{namespace}/events")["items"]
        lines = [json.dumps(pod.get("status", {}))]
        lines += [
            f"{event.get('reason')}: {event.get('message')}"
            for event in events
            if event["involvedObject"].get("name") == name
        ]
        return "\n".join([*lines, self.log(name, namespace)])

    def process(self, name: str, namespace: str = "default") -> int:
        """The host's id of the first process in a running pod's first container. Raises ClusterError."""
        pod = self.find(name, namespace) or {}
        for status in pod.get("status", {}).get("containerStatuses", []):
            container = str(status.get("containerID", "")).rpartition("/")[2]
            found = sorted(_started(self._directory, container)) if container else []
            if found:
                return found[0][1]
        raise ClusterError(f"pod {name} has no running container")


def _started(directory: Path, container: str) -> Iterator[tuple[int, int]]:
    """A container's processes, each with when it began, in ticks of the clock: by their ids it is not known who came
    first, as ids begin anew after the highest one."""
    for group in cgroups.of(directory):
        # Others' groups are removed meanwhile, which this walk passes over.
        for folder, below, _ in os.walk(group):
            if container in below:
                with suppress(FileNotFoundError):  # has ended
                    for line in (Path(folder) / container / "cgroup.procs").read_text().split():
                        with suppress(OSError):  # one that has ended
                            stat = Path(f"/proc/{line}/stat").read_text()
                            # What comes before may have blanks in it: the program's name.
                            yield int(stat.rpartition(")")[2].split()[19]), int(line)
                return
