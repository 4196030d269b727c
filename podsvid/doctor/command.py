"""`podsvid doctor`: its options, and what it prints."""

import argparse
import time
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from typing import TYPE_CHECKING

from podsvid.interrupts import unwinding
from podsvid.options import add_kubeconfig, add_output, add_timeout, as_yaml
from podsvid.output import console
from podsvid.waiting import Waiting, say
from runtime.terminal import printable

if TYPE_CHECKING:
    from podsvid.doctor.finding import Finding
    from podsvid.doctor.looking import Cluster

# Seconds for all of it: some twenty answers of the API server, and two processes in a signer's pod.
GIVEN_UP = 60.0
# Seconds until what may pass by itself is looked at once more: kubelets, agents and signers take less of them.
AGAIN = 10.0


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Its flags."""
    add_kubeconfig(parser)
    add_output(parser)
    add_timeout(parser, GIVEN_UP)


def run(parsed: argparse.Namespace, pause: Callable[[float], None] = time.sleep) -> int:
    """Print what is wrong; the exit code: 0 nothing is, 3 something is or may be. Raises SignerError."""
    # The kubernetes package takes as long to load as everything else.
    from podsvid.by_kubeconfig import KubeconfigCluster
    from podsvid.doctor.kinds import Weight
    from podsvid.doctor.rules import as_json

    # The kubernetes package keeps what the kubeconfig holds, keys as well, in temporary files until it ends.
    with unwinding():
        # Whoever may not look reads in the API server's own words which right it was.
        cluster = KubeconfigCluster(parsed.kubeconfig, parsed.context, parsed.podsvid_namespace, "", "")
        found = looked(cluster, Waiting(parsed.timeout), pause)
    if parsed.output == "text":
        _show(found)
    else:
        print(as_json(found) if parsed.output == "json" else as_yaml(as_json(found)), end="")
    return 3 if any(each.weight < Weight.NOTE for each in found) else 0


def looked(cluster: "Cluster", waiting: Waiting, pause: Callable[[float], None]) -> "Sequence[Finding]":
    """What is wrong, by two looks where something of it may pass by itself. Raises SignerError and GaveUp."""
    from podsvid.doctor.looking import look
    from podsvid.doctor.rules import findings, lasting, passing

    found = findings(look(cluster, waiting), datetime.now(UTC))
    if not passing(found) or waiting.left() < 2 * AGAIN:
        return found
    say(f"looking again in {AGAIN:.0f} s at what may pass by itself")
    pause(AGAIN)
    return lasting(found, findings(look(cluster, waiting), datetime.now(UTC)))


def _show(found: "Sequence[Finding]") -> None:
    screen = console()
    for each in found:
        screen.print(printable(f"{each.weight.name} {each.reason}: {each.seen}"))
        screen.print(printable(f"  do: {each.to_do}"))
        screen.print(f"  see {each.link}")
    if not any(each.weight.name != "NOTE" for each in found):
        screen.print("nothing is wrong" + (", but for what is noted above" if found else ""))
