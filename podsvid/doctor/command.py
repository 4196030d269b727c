"""`podsvid doctor`: its options, and what it prints."""

import argparse
from collections.abc import Sequence
from datetime import UTC, datetime
from typing import TYPE_CHECKING

from podsvid.interrupts import unwinding
from podsvid.options import add_kubeconfig, add_output, add_timeout, as_yaml
from podsvid.output import console
from podsvid.waiting import Waiting
from runtime.terminal import printable

if TYPE_CHECKING:
    from podsvid.doctor.rules import Finding

# Seconds for all of it: some twenty answers of the API server, and two processes in a signer's pod.
GIVEN_UP = 60.0


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Its flags."""
    add_kubeconfig(parser)
    add_output(parser)
    add_timeout(parser, GIVEN_UP)


def run(parsed: argparse.Namespace) -> int:
    """Print what is wrong; the exit code: 0 nothing is, 3 something is or may be. Raises SignerError."""
    # The kubernetes package takes as long to load as everything else.
    from podsvid.by_kubeconfig import KubeconfigCluster
    from podsvid.doctor.kinds import Weight
    from podsvid.doctor.looking import look
    from podsvid.doctor.rules import as_json, findings

    # The kubernetes package keeps what the kubeconfig holds, keys as well, in temporary files until it ends.
    with unwinding():
        cluster = KubeconfigCluster(parsed.kubeconfig, parsed.context, parsed.podsvid_namespace, "authority show")
        found = findings(look(cluster, Waiting(parsed.timeout)), datetime.now(UTC))
    if parsed.output == "text":
        _show(found)
    else:
        print(as_json(found) if parsed.output == "json" else as_yaml(as_json(found)), end="")
    return 3 if any(each.weight < Weight.NOTE for each in found) else 0


def _show(found: "Sequence[Finding]") -> None:
    screen = console()
    for each in found:
        screen.print(printable(f"{each.weight.name} {each.reason}: {each.seen}"))
        screen.print(printable(f"  do: {each.to_do}"))
        screen.print(f"  see {each.link}")
    if not any(each.weight.name != "NOTE" for each in found):
        screen.print("nothing is wrong" + (", but for what is noted above" if found else ""))
