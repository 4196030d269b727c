"""Options that several commands have, each with one spelling and one meaning."""

import argparse
import json
import re
from collections.abc import Sequence
from typing import Any

from podsvid.outcome import WrongUsage
from podsvid.waiting import GIVEN_UP
from runtime import durations

FORMS = ("text", "json", "yaml")
# Of who prints a table.
TABLE_FORMS = ("text", "wide", "json", "yaml")
_MOST = 86400.0 * 365
_TEXT = "tag:yaml.org,2002:str"
# How no number, date, null or merge begins; and the words that mean something else to some reader.
_PLAIN = re.compile("[A-Za-z/]")
_WORDS = frozenset({"y", "n", "yes", "no", "on", "off", "true", "false", "null"})


def seconds(text: str) -> float:
    """A duration such as 10s or 1m30s; a number alone is seconds. For argparse."""
    try:
        return durations.parse(text).total_seconds() or _refused(text)
    except durations.InvalidDuration:
        pass
    try:
        value = float(text)
    except ValueError:
        value = 0.0
    return value if 0 < value < _MOST else _refused(text)


def _refused(text: str) -> float:
    raise argparse.ArgumentTypeError(
        f"{text[:40]!r} is no time to wait: give whole numbers of d, h, m and s, such as 10s or 1m30s, or seconds"
    )


def add_timeout(parser: argparse.ArgumentParser, default: float | None = GIVEN_UP, what: str = "all in all") -> None:
    """--timeout, after which a command gives up."""
    shown = "waits for ever" if default is None else f"{default:g}s"
    parser.add_argument(
        "--timeout",
        type=seconds,
        default=default,
        metavar="DURATION",
        help=f"give up after this, {what}, such as 10s or 1m (default: {shown})",
    )


# Characters.
_MAX_FORMS = 24


def add_output(parser: argparse.ArgumentParser, forms: Sequence[str] = FORMS) -> None:
    """-o: the form of what is printed; the first one where none is said."""
    wide = "wide is the table with more columns, " if "wide" in forms else ""
    # Twice in a line of --help; a list that is longer stands in the text.
    long = sum(map(len, forms)) > _MAX_FORMS
    named = f"{', '.join(forms)}; " if long else ""
    parser.add_argument(
        "-o",
        "--output",
        choices=forms,
        metavar="FORM" if long else None,
        default=forms[0],
        help=f"how to print it: {named}{wide}json and yaml are for programs (default: {forms[0]})",
    )


def as_yaml(document: str) -> str:
    """A JSON document as YAML, with its members in their order."""
    return yaml_of(json.loads(document))


def yaml_of(value: object) -> str:
    """What JSON can say, as YAML that kubectl, Helm and every other reader take for the same.

    Readers of YAML 1.1 and Go's take texts such as y, 0o17 and 12345e6 for a truth or a number, and PyYAML writes them
    bare: a selector by such a label would be for other pods. All that they can mistake begins with no letter or is a
    word; so whatever is not plainly a text has quotes.
    """
    import yaml

    # Nothing is shared: a value that stands twice would become an alias, which is no JSON.
    node = yaml.representer.SafeRepresenter(default_flow_style=False, sort_keys=False).represent_data(
        json.loads(json.dumps(value))
    )
    waiting: list[Any] = [node]
    while waiting:
        each = waiting.pop()
        if isinstance(each, yaml.MappingNode):
            waiting += [one for pair in each.value for one in pair]
        elif isinstance(each, yaml.SequenceNode):
            waiting += each.value
        elif each.tag == _TEXT and (not _PLAIN.match(each.value) or each.value.lower() in _WORDS):
            each.style = "'"
    return yaml.serialize(node, Dumper=yaml.SafeDumper, allow_unicode=False, width=1000)


def add_kubeconfig(parser: argparse.ArgumentParser) -> None:
    """Which cluster, and where in it podsvid is."""
    parser.add_argument("--kubeconfig", metavar="FILE", help="kubeconfig (default: $KUBECONFIG, ~/.kube/config)")
    parser.add_argument("--context", metavar="NAME", help="context of the kubeconfig (default: the current one)")
    parser.add_argument(
        "--podsvid-namespace",
        default="podsvid",
        metavar="NAMESPACE",
        help="where podsvid is installed (default: podsvid)",
    )


def add_cluster(parser: argparse.ArgumentParser, socket: str) -> None:
    """By what a signer is found: a kubeconfig, or its admin socket."""
    add_kubeconfig(parser)
    parser.add_argument(
        "--socket",
        metavar="SOCKET",
        help=f"ask only this signer's admin socket (default: {socket}, where it exists) [PODSVID_ADMIN_SOCKET]",
    )


def add_pod(parser: argparse.ArgumentParser) -> None:
    """Which pod: NAMESPACE/POD, NAMESPACE POD, or POD with -n."""
    parser.add_argument("pod", metavar="NAMESPACE/POD", help="or NAMESPACE POD, or -n NAMESPACE POD")
    parser.add_argument("name", nargs="?", metavar="POD", help=argparse.SUPPRESS)
    parser.add_argument("-n", "--namespace", metavar="NAMESPACE", help="the pod's namespace")


def which_pod(parsed: argparse.Namespace) -> tuple[str, str]:
    """Its namespace and name. Raises WrongUsage."""
    named, name = getattr(parsed, "namespace", None), getattr(parsed, "name", None)
    parts = [parsed.pod] if name is None else [parsed.pod, name]
    parts = parts if named is None else [named, *parts]
    found = "/".join(parts).split("/")
    # Of a path of the API those two would be something else.
    if len(found) != 2 or not all(found) or {".", ".."} & {*found}:
        raise WrongUsage("say which pod as NAMESPACE/POD, NAMESPACE POD, or -n NAMESPACE POD")
    return found[0], found[1]
