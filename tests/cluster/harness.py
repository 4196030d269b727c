"""The cluster of the tests, by hand.

python -m tests.cluster.harness build      install packages, build the programs
python -m tests.cluster.harness up         start a cluster with podsvid's image, and leave it running
python -m tests.cluster.harness run CMD…   start a cluster, run a command with KUBECONFIG, take it down
python -m tests.cluster.harness down       take down whatever is left

With --dir DIR before the verb it is another cluster, beside the first one; each has the name that DIR ends with.
"""

from __future__ import annotations

import argparse
import os
import shlex
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import MappingProxyType

from tests import go_tools
from tests.go_tools import BuildError
from tests.interop import tools
from tests.interop.suites import SuiteError, load

from . import installation, product_image
from .cluster import Cluster
from .host import ClusterError, install_packages, which
from .layout import DEFAULT_DIR, Layout
from .network import NODE_ADDRESS
from .programs import PROGRAMS, program
from .waiting import say

VERBS: Mapping[str, str] = MappingProxyType(
    {
        "packages": "install the packages that the cluster needs",
        "build": "install packages, build the programs",
        "up": "start a cluster with podsvid's image, and leave it running",
        "run": "start a cluster, run a command with KUBECONFIG, take it down",
        "down": "take down whatever is left",
    }
)


def _up(cluster: Cluster) -> None:
    install_packages(say)
    go_tools.build(PROGRAMS, say)
    image = product_image.build(product_image.ROOT, "now", say)
    with cluster:
        product_image.load(cluster, [image])
        write_enter(cluster.layout)
        cluster.detach()
    print(by_hand(cluster, image))


def write_enter(layout: Layout) -> None:
    """A program that runs a command as if it were on the cluster's node: its network, its names, its Helm."""
    search = "default.svc.cluster.local svc.cluster.local cluster.local"
    layout.resolv_conf.write_text(f"nameserver {NODE_ADDRESS}\nsearch {search}\noptions ndots:5\n")
    inside = 'mount --bind "$0" /etc/resolv.conf && exec "$@"'
    layout.enter.write_text(
        f"""\
#!/bin/sh
# Runs a command in the network of the test's cluster, with its names and its administrator's rights.
export KUBECONFIG={shlex.quote(str(layout.kubeconfig))}
export PATH={shlex.quote(str(program("helm").parent))}:"$PATH"
exec {which("nsenter")} --net={layout.network} {which("unshare")} --mount \\
  sh -c {shlex.quote(inside)} {layout.resolv_conf} "$@"
"""
    )
    layout.enter.chmod(0o755)


def by_hand(cluster: Cluster, image: str) -> str:
    """What a person types who works with a cluster that was left running."""
    layout, helm = cluster.layout, program("helm")
    flags = shlex.join(installation.settings(cluster, image, "cluster.test"))
    where = "" if layout.directory == DEFAULT_DIR else f"--dir {shlex.quote(str(layout.directory))} "
    return f"""
export KUBECONFIG={layout.kubeconfig}
nsenter --net={layout.network} COMMAND    runs a command in its network: kubectl reaches it from there only
{layout.enter} COMMAND    the same with the names of Services, KUBECONFIG, and Helm in PATH
helm is {helm}; podsvid is {image}:
  {layout.enter} helm install podsvid deploy/chart/podsvid --namespace podsvid --create-namespace --wait {flags}
  {layout.enter} kubectl --namespace podsvid get pods
python -m tests.cluster.harness {where}down    takes it down"""


def _run(cluster: Cluster, command: Sequence[str]) -> int:
    with cluster:
        environment = {**os.environ, "KUBECONFIG": str(cluster.kubeconfig)}
        return subprocess.run(command, env=environment, check=False).returncode


def main(arguments: Sequence[str] | None = None) -> int:
    """The command; its exit status."""
    parser = argparse.ArgumentParser(prog="tests.cluster.harness", description="A real single-node cluster.")
    parser.add_argument("--dir", type=Path, default=DEFAULT_DIR, help="where it keeps its files, by whose name it goes")
    verbs = parser.add_subparsers(dest="action", metavar="VERB", required=True)
    # Each has a parser of its own: what does not belong to it is refused, and its --help starts no cluster.
    for verb, text in VERBS.items():
        of_verb = verbs.add_parser(verb, help=text, description=f"{verb}: {text}.", allow_abbrev=False)
        if verb == "run":
            of_verb.add_argument("first", metavar="CMD", help="what to run")
            of_verb.add_argument("rest", metavar="...", nargs=argparse.REMAINDER, help="its arguments")
    options = parser.parse_args(arguments)
    cluster = Cluster(options.dir)
    try:
        if options.action == "packages":
            install_packages(say)
        elif options.action == "build":
            install_packages(say)
            go_tools.build(PROGRAMS, say)
            # Not when the cluster runs, whose name server knows the cluster's names alone.
            tools.get(load("openbao"), say)
        elif options.action == "up":
            _up(cluster)
        elif options.action == "run":
            return _run(cluster, [options.first, *options.rest])
        else:
            cluster.stop()
    except (ClusterError, BuildError, SuiteError) as error:
        say(f"failed: {error}")
        return 1
    except KeyboardInterrupt:
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
