"""Write what the documentation says about the code from the code, or with --check say where it is stale.

Run as a script from anywhere: python docs/generate.py [--check]
"""

import argparse
import ast
import dataclasses
import json
import re
import sys
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

import yaml  # noqa: E402
from prometheus_client import CollectorRegistry  # noqa: E402

from agent.config import AgentConfig  # noqa: E402
from agent.metrics import Metrics as AgentMetrics  # noqa: E402
from csi import layout  # noqa: E402
from csi.attributes import ATTRIBUTES, FOREIGN_ATTRIBUTES  # noqa: E402
from csi.profile import PROFILES  # noqa: E402
from docs import reasons as troubles  # noqa: E402
from docs import shapes, sizing, versions  # noqa: E402
from podsvid import outcome  # noqa: E402
from signer.config import SignerConfig  # noqa: E402
from signer.errors import HELP, Reason  # noqa: E402
from signer.front.statuses import STATUS_CODES  # noqa: E402
from signer.metrics import Metrics as SignerMetrics  # noqa: E402
from svid.postquantum import VERIFIERS, Part  # noqa: E402

ALERTS = "deploy/chart/podsvid/monitoring/alerts.yaml"
BEGIN, END = "<!-- generated: {name}, by docs/generate.py -->", "<!-- end of {name} -->"


def table(head: Iterable[str], rows: Iterable[Iterable[str]]) -> str:
    """A Markdown table."""
    cells = [list(head), *map(list, rows)]
    lines = ["| " + " | ".join(each.replace("|", "\\|") for each in row) + " |" for row in cells]
    return "\n".join([lines[0], "|" + "---|" * len(cells[0]), *lines[1:]]) + "\n"


def attributes() -> str:
    return table(
        ("`volumeAttributes` key", "what it is", "accepted", "default"),
        ((f"`{each.name}`", each.help, each.accepted, each.default) for each in (*ATTRIBUTES, *FOREIGN_ATTRIBUTES)),
    )


def layouts() -> str:
    rows = []
    for each in layout.LAYOUTS.values():
        files = [f"`{name}`" for name in (*each.roles.values(), *(layout.KEYSTORE_FILES if each.keystores else ()))]
        rows.append((f"`{each.name}`", each.help, ", ".join(files) or "none"))
    return table(("`layout`", "for", "files"), rows)


def files() -> str:
    names: dict[str, list[str]] = {}
    for each in layout.LAYOUTS.values():
        for role, name in each.roles.items():
            if f"`{name}`" not in names.setdefault(role, []):
                names[role].append(f"`{name}`")
    return table(("files", "content"), ((", ".join(found), layout.ROLES[role]) for role, found in names.items()))


def profiles() -> str:
    return table(
        ("profile", "for", "default layout"), ((f"`{p.name}`", p.help, f"`{p.layout}`") for p in PROFILES.values())
    )


def settings(model: type[Any] = AgentConfig) -> str:
    rows = []
    for each in dataclasses.fields(model):
        if each.metadata["help"].startswith("UNSAFE"):
            continue
        default = each.metadata["default"]
        rows.append((f"`--{each.name.replace('_', '-')}`", f"`{default}`" if default else "", each.metadata["help"]))
    return table(("flag", "default", "meaning"), rows)


def reasons() -> str:
    rows = ((f"`{each.value}`", STATUS_CODES[each].name, HELP[each]) for each in Reason if each is not Reason.INTERNAL)
    return table(("reason", "status", "what it means, what to do"), rows)


def alerts() -> str:
    """What each says, with words where Prometheus puts labels and numbers."""
    document = yaml.safe_load((ROOT / ALERTS).read_text(encoding="utf-8"))
    rows = []
    for rule in (rule for group in document["groups"] for rule in group["rules"]):
        notes = rule["annotations"]
        where = notes["runbook_url"].removeprefix("docs/")
        said = f"{_without_templates(notes['summary'])}. {_without_templates(notes['description'])}"
        rows.append((f"`{rule['alert']}`", rule["labels"]["severity"], said, f"[more]({where})"))
    return table(("alert", "severity", "what it says", ""), rows)


def _without_templates(text: str) -> str:
    named = re.sub(r"{{ \$labels\.(\w+) }}", lambda found: found[1].upper(), text)
    return re.sub(r"{{ \$value[^}]*}}", "N", named)


def exit_codes() -> str:
    return table(("code", "meaning"), outcome.MEANINGS.items())


def metrics(registry: CollectorRegistry) -> str:
    rows = []
    for collector in registry._collector_to_names:
        (family,) = collector.describe()  # type: ignore[attr-defined]
        name = f"{family.name}_total" if family.type == "counter" else family.name
        labels = ", ".join(f"`{each}`" for each in getattr(collector, "_labelnames", ()))
        rows.append((f"`{name}`", family.type, labels, family.documentation))
    return table(("name", "type", "labels", "meaning"), sorted(rows))


_LEVELS = {"debug": "debug", "info": "info", "warning": "warning", "error": "error", "exception": "error"}


def _wordings(message: ast.expr) -> list[str]:
    """All that the first argument of a logger's call can be; it must not hold what differs from line to line."""
    match message:
        case ast.Constant(value=str(text)):
            return [text]
        case ast.IfExp():
            return [*_wordings(message.body), *_wordings(message.orelse)]
        case ast.BinOp(op=ast.Add()):
            return [a + b for a in _wordings(message.left) for b in _wordings(message.right)]
    raise SystemExit(f"not the name of an event: {ast.unparse(message)} (what differs belongs into `extra`)")


def _fields(call: ast.Call) -> list[str]:
    found = []
    for keyword in call.keywords:
        if keyword.arg == "extra" and isinstance(keyword.value, ast.Dict):
            # A mapping that is merged in has no key here.
            keys = (ast.literal_eval(key) if key else "…" for key in keyword.value.keys)
            found += [key if key == "…" else f"`{key}`" for key in keys]
        elif keyword.arg == "extra":
            raise SystemExit(f"the fields of an event are written where it is logged: {ast.unparse(call)}")
    traced = any(keyword.arg == "exc_info" for keyword in call.keywords)
    if traced or (isinstance(call.func, ast.Attribute) and call.func.attr == "exception"):
        found.append("`traceback`")
    return found


def events(*packages: str) -> str:
    rows = set()
    for path in (path for package in packages for path in (ROOT / package).rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            match node:
                case ast.Call(func=ast.Attribute(value=ast.Name(id="_log"), attr=method), args=[message, *_]):
                    fields = ", ".join(_fields(node))
                    rows |= {(text, _LEVELS[method], fields) for text in _wordings(message)}
    ordered = sorted(rows, key=lambda row: (row[0].lower(), row))
    return table(("event", "level", "fields"), ordered)


def verifiers() -> str:
    head = ("verifier", *(f"{part}" for part in Part), "instead")
    return table(head, ((each.name, *map(each.answer, Part), each.instead) for each in VERIFIERS.values()))


def examples() -> str:
    """Each folder of deploy/examples: what its README says that it shows, how to apply it, and its files whole."""
    folder = ROOT / "deploy" / "examples"
    shown = dict(re.findall(r"^\| `([\w-]+)` \| (.+) \|$", (folder / "README.md").read_text(encoding="utf-8"), re.M))
    there = {each.name for each in folder.iterdir() if each.is_dir()}
    if there != shown.keys():
        raise SystemExit(
            f"deploy/examples/README.md: {', '.join(sorted(there ^ shown.keys()))} is there or in its table only"
        )
    parts = []
    for name, text in shown.items():
        files = sorted((folder / name).rglob("*"))
        # The table's links are from its own folder.
        parts.append(f"## {name}\n\n{text[0].upper()}{text[1:]}.\n".replace("](../../docs/", "]("))
        if any(path.suffix == ".yaml" for path in files):
            parts.append(f"    kubectl apply -f deploy/examples/{name}\n")
        for path in files:
            kind = _SHOWN.get(path.suffix)
            if kind:
                source = path.read_text(encoding="utf-8").rstrip()
                parts.append(f"`{path.relative_to(folder / name)}`\n\n```{kind}\n{source}\n```\n")
    return "\n" + "\n".join(parts) + "\n"


_SHOWN = {".yaml": "yaml", ".py": "python", ".go": "go", ".java": "java"}
_CLUSTER = (
    "nodes",
    "pods",
    "replicas",
    "memory at rest",
    "at most",
    "limit",
    "mints a second, of all",
    "cores of a replica: alone; the deciding process beside two workers",
    "forced re-issue: asked to take",
)
PARTS: dict[str, tuple[str, Callable[[], str]]] = {
    "attributes": ("docs/volumes.md", attributes),
    "layouts": ("docs/volumes.md", layouts),
    "files": ("docs/volumes.md", files),
    "profiles": ("docs/volumes.md", profiles),
    "settings": ("docs/configuration.md", settings),
    "signer-settings": ("docs/configuration.md", lambda: settings(SignerConfig)),
    "reasons": ("docs/signer.md", reasons),
    "slopes": ("docs/sizing.md", lambda: table(("what", "takes", "measured in"), sizing.slopes())),
    "formulas": ("docs/sizing.md", sizing.formulas),
    "agents-by-volumes": ("docs/sizing.md", lambda: table(("volumes", "memory"), sizing.of_volumes())),
    "agents-at-work": ("docs/sizing.md", lambda: table(("what", "takes"), sizing.at_work())),
    "clusters": ("docs/sizing.md", lambda: table(_CLUSTER, sizing.of_clusters())),
    "on-paper": (
        "docs/sizing.md",
        lambda: table(("of a replica", "reckoned", "SVIDs of an hour", "as advised"), sizing.on_paper()),
    ),
    "advice": ("docs/sizing.md", sizing.advised),
    "versions-needed": (
        "docs/versions.md",
        lambda: table(("what", "version", "said in"), versions.needed()),
    ),
    "versions-tried": (
        "docs/versions.md",
        lambda: table(("what", "version", "what is tried with it", "by", "pinned in"), versions.peers()),
    ),
    "alerts": ("docs/troubleshooting.md", alerts),
    "every-reason": ("docs/troubleshooting.md", troubles.page),
    "agent-metrics": ("docs/metrics.md", lambda: metrics(AgentMetrics().registry)),
    "agent-events": ("docs/logs.md", lambda: events("agent", "csi")),
    "signer-events": ("docs/logs.md", lambda: events("signer")),
    "shared-events": ("docs/logs.md", lambda: events("runtime", "svid")),
    "exit-codes": ("docs/cli.md", exit_codes),
    "shapes": ("docs/output.md", shapes.page),
    "examples": ("docs/examples.md", examples),
    "verifiers": ("docs/post-quantum.md", verifiers),
    "signer-metrics": ("docs/metrics.md", lambda: metrics(SignerMetrics().registry)),
}


# What the chart renders into the settings itself, from values of its own.
_CHART_OWN = {
    "agentSettings": (
        *("trust_domain", "node_name", "driver_names", "kubelet_root", "run_dir", "authority", "signer_address"),
        *("signer_bundle", "agent_token_file", "signer_audience", "metrics_listen", "health_listen", "docs_url"),
        # Of other authorities: the chart's agents have a signer.
        *("state_dir", "ca_cert_file", "ca_key_file", "ca_bundle_file", "jwt_key_file", "jwt_bundle_file"),
        # Which it would not look at, and so are refused: the signer decides them.
        *("x509_ttl", "x509_min_ttl", "x509_max_ttl", "dns_names", "federated_bundles"),
        *("jwt_svids", "jwt_ttl", "jwt_algorithm", "jwt_issuer", "jwt_jti", "jwt_key_period"),
    ),
    "signerSettings": (
        *("trust_domain", "driver_names", "audience", "x509_ttl", "x509_pod_max_ttl", "jwt_ttl", "namespace"),
        *("metrics_listen", "health_listen", "listen", "docs_url"),
        *(
            "startup_taint",
            "pod_certificates",
            "istio_listen",
            "istio_names",
            "istio_ztunnels",
            "istio_clusters",
            "istio_root_config_map",
            "state_key_file",
            "upstream_cert_file",
            "upstream_key_file",
            "identity",
            "kubeconfig",
        ),
        *("upstream_dir", "agent_namespace", "agent_service_account", "admin_socket"),
        # What the chart gives leave for.
        *(f"cert_manager_{each}" for each in ("issuer_name", "issuer_kind", "issuer_group", "namespace")),
    ),
}
SCHEMA = "deploy/chart/podsvid/values.schema.json"
VALUES, DEFAULTS = "deploy/chart/podsvid/values.yaml", "deploy/chart/podsvid/files/defaults.yaml"


def chart_schema(text: str) -> str:
    """The chart's schema with every setting that `agent.settings` and `signer.settings` may have."""
    document = json.loads(text)
    for name, model in (("agentSettings", AgentConfig), ("signerSettings", SignerConfig)):
        properties = {}
        for each in dataclasses.fields(model):
            if each.name in _CHART_OWN[name] or each.metadata["help"].startswith("UNSAFE"):
                continue
            pairs = getattr(each.metadata["parse"], "pairs", False)
            kinds = ["string", "boolean", "integer", "array", *(["object"] if pairs else [])]
            properties[each.name] = {"type": kinds, "description": each.metadata["help"]}
        document["definitions"][name] = {"type": "object", "additionalProperties": False, "properties": properties}
    return json.dumps(document, indent=2) + "\n"


def chart_defaults(values: str) -> str:
    """The chart's values once more, where its templates can read them: Helm shows them no values.yaml."""
    return "# values.yaml, by docs/generate.py: see podsvid.complete.\n" + yaml.safe_dump(
        yaml.safe_load(values), sort_keys=False, width=120
    )


def made(page: str, text: str) -> str:
    """What is to stand in `page`, which says `text`."""
    if page == SCHEMA:
        return chart_schema(text)
    if page == DEFAULTS:
        return chart_defaults((ROOT / VALUES).read_text(encoding="utf-8"))
    return generated(text, page)


def generated(text: str, page: str) -> str:
    """`text` of `page` with its generated parts made anew."""
    for name, (where, make) in PARTS.items():
        if where != page:
            continue
        begin, end = BEGIN.format(name=name), END.format(name=name)
        before, found, rest = text.partition(begin)
        _, found_too, after = rest.partition(end)
        if not found or not found_too:
            raise SystemExit(f"{page} has no place for {name}: it needs the lines {begin} and {end}")
        text = f"{before}{begin}\n{make()}{end}{after}"
    return text


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--check", action="store_true", help="change nothing; exit 1 when a page is stale")
    check = parser.parse_args().check
    stale = 0
    for page in sorted({SCHEMA, DEFAULTS, *(where for where, _ in PARTS.values())}):
        path = ROOT / page
        text = path.read_text(encoding="utf-8")
        wanted = made(page, text)
        if wanted != text and check:
            print(f"stale: {page} (run `python docs/generate.py`)", file=sys.stderr)
            stale = 1
        elif wanted != text:
            path.write_text(wanted, encoding="utf-8")
    return stale


if __name__ == "__main__":
    sys.exit(main())
