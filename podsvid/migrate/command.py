"""`podsvid migrate`: from the configuration of SPIRE or csi-driver-spiffe to podsvid's own, and what is lost."""

import argparse
import sys
from pathlib import Path
from typing import Any

from podsvid.options import add_output

_SPIRE = """\
read objects of spire-controller-manager and registration entries; write
policies and federations to the standard output, and what cannot be carried
over to the standard error. No policy is for a pod that its source was not
for, but for what the report says: namespaces by pattern, and what is taken
to be so."""
_SPIRE_EXAMPLE = """\
  kubectl get -o json > objects.json \\
    clusterspiffeids,clusterfederatedtrustdomains,clusterstaticentries
  kubectl -n spire-server get configmap spire-controller-manager -o json \\
    > controller.json
  kubectl -n spire-server exec spire-server-0 -c spire-server -- \\
    spire-server entry show -output json > entries.json
  podsvid migrate spire objects.json controller.json entries.json > new.yaml
"""
_CSI = """\
read values of csi-driver-spiffe's chart, or its DaemonSet and Deployment;
write values of podsvid's chart to the standard output, and what cannot be
carried over to the standard error."""
_CSI_EXAMPLE = """\
  helm get values csi-driver-spiffe -n cert-manager -o yaml > values.yaml
  podsvid migrate csi-driver-spiffe values.yaml > podsvid.yaml
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The subcommands, and their flags."""
    commands = parser.add_subparsers(dest="action", required=True, metavar="PRODUCT")
    for name, text, example in (
        ("spire", _SPIRE, _SPIRE_EXAMPLE),
        ("csi-driver-spiffe", _CSI, _CSI_EXAMPLE),
    ):
        each = commands.add_parser(
            name,
            help=text.partition(";")[0].replace("\n", " "),
            description=text,
            epilog=f"such as:\n{example}",
            formatter_class=argparse.RawDescriptionHelpFormatter,
        )
        each.add_argument("files", nargs="+", metavar="FILE", help="YAML or JSON; - is the standard input")
        each.add_argument("--report", metavar="FILE", type=Path, help="write the report there")
        add_output(each)
        if name == "spire":
            _add_spire(each)


def _add_spire(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--output-dir", metavar="DIR", type=Path, help="write each object into a file of its own, in a new directory"
    )
    parser.add_argument("--trust-domain", metavar="NAME", help="SPIRE's, where the objects do not say it")
    parser.add_argument(
        "--cluster-name", metavar="NAME", help="the cluster's, as SPIRE's agents and controller have it"
    )
    parser.add_argument("--cluster-domain", metavar="NAME", help="the cluster's DNS domain, for templates that have it")
    parser.add_argument("--class-name", metavar="NAME", help="the controller's className")
    parser.add_argument(
        "--watch-classless", action="store_true", help="the controller acts on objects without className, too"
    )
    parser.add_argument(
        "--ignored-namespaces",
        metavar="LIST",
        help="all that the controller ignores, separated by commas (default: by its configuration, or its own default)",
    )


def run(parsed: argparse.Namespace) -> int:
    """Write what can be carried over, and the report; the exit code. Raises CommandError, OSError."""
    # Not above: --help waits for none of it.
    from podsvid.migrate import csi_driver_spiffe, spire, written
    from podsvid.migrate.report import Report, as_document, write
    from podsvid.migrate.sources import read
    from podsvid.outcome import WrongUsage

    if parsed.files.count("-") > 1:
        raise WrongUsage("the standard input can be read once: give - once")
    folder = parsed.output_dir if parsed.action == "spire" else None
    if folder is not None and parsed.output != "text":
        raise WrongUsage("--output-dir has files of YAML: leave out either it or --output")
    documents = read(parsed.files)
    made: dict[str, Any]
    report: Report
    if parsed.action == "spire":
        migration = spire.migrate(documents, parsed)
        objects, report = spire.documents_of(migration), migration.report
        made, new = {"objects": objects}, objects
    else:
        values, report = csi_driver_spiffe.migrate(documents)
        objects, made, new = [], {"values": values}, [values]
    told = "\n".join(report.lines()) + "\n"
    if folder is not None:
        named = ((written.file_name(number, each), each) for number, each in enumerate(objects, 1))
        write(folder, [(name, written.as_yaml([each])) for name, each in named])
    if parsed.report is not None:
        parsed.report.write_text(told, encoding="utf-8")
    if folder is None and parsed.output == "text":
        sys.stdout.write(written.as_yaml(new))
    elif parsed.output != "text":
        print(as_document(parsed.output, made, report))
    if parsed.report is None and parsed.output == "text":
        sys.stdout.flush()
        print(told, end="", file=sys.stderr)
    return report.code
