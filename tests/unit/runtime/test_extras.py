"""What to do where an extra is missing is said once, and the page that it names has it."""

import re
from pathlib import Path

from runtime.extras import not_installed

ROOT = Path(__file__).parents[3]
PRODUCT = ("agent", "csi", "podsvid", "runtime", "signer", "svid")


def test_it_names_the_extra_and_a_section_that_is_there() -> None:
    text = not_installed("boto3", "aws")
    assert text.startswith("boto3 is not installed: pip install 'podsvid[aws]'; ")
    found = re.search(r"\((docs/\S+\.md), (.+)\)$", text)
    assert found is not None
    assert f"\n### {found[2]}\n" in (ROOT / found[1]).read_text()


def test_no_other_text_sends_to_a_pip_that_the_image_does_not_have() -> None:
    own = [each for name in PRODUCT for each in (ROOT / name).rglob("*.py") if each.name != "extras.py"]
    assert len(own) > 300
    assert [str(each) for each in own if "pip install" in each.read_text()] == []
