"""Write docs/conformance.md, and say what the rows lack."""

import argparse
import sys

from tests.checklist import document
from tests.checklist.rows import ChecklistError

argparse.ArgumentParser(prog="python -m tests.checklist", description=__doc__).parse_args()
try:
    checklist, marks = document.current()
except ChecklistError as error:
    sys.exit(f"checklist: {error}")
document.DOCUMENT.write_text(document.render(checklist, marks), encoding="utf-8")
for row in document.missing(checklist, marks):
    print(f"{row.id}: neither a test nor a reason")
for row in document.contradicted(checklist, marks):
    print(f"{row.id}: a test, and a reason for having none; remove one")
