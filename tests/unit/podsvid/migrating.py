"""What tests of `podsvid migrate` share."""

import argparse
from typing import Any

from podsvid import cli
from podsvid.migrate.fields import Finding, Verdict
from podsvid.migrate.sources import Document
from podsvid.migrate.spire import Migration, migrate


def options(*line: str) -> argparse.Namespace:
    """As the command line has them."""
    return cli._parser("migrate").parse_args(["migrate", "spire", "-", *line])


def document(value: Any) -> Document:
    return Document("here", value)


def migrated(*values: Any, line: tuple[str, ...] = ()) -> Migration:
    return migrate([document(each) for each in values], options(*line))


def told(migration: Migration, verdict: Verdict) -> list[Finding]:
    return [each for each in migration.report.findings if each.verdict is verdict]
