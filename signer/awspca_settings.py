"""Which AWS Private CAs are above the authorities, by which template they certify, and what contradicts that."""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from runtime.settings import Conflict

# The first is AWS' own for such a CA. By the other the usages are what the request says.
TEMPLATES = ("SubordinateCACertificate_PathLen0/V1", "BlankSubordinateCACertificate_PathLen0_APICSRPassthrough/V1")
MAX_ARNS = 8
_ARN = re.compile(
    r"arn:(aws[a-z-]{0,16}):acm-pca:([a-z]{2,4}(?:-[a-z]{1,16}){1,3}-[0-9]{1,2}):[0-9]{12}:certificate-authority/[0-9a-f-]{36}",
    re.ASCII,
)


def arn(text: str) -> str:
    """Of a private CA. Raises ValueError."""
    if not _ARN.fullmatch(text):
        raise ValueError("the ARN of a private CA: arn:aws:acm-pca:REGION:ACCOUNT:certificate-authority/ID")
    return text


def partition_of(arn: str) -> str:
    """In which part of AWS it is: aws, aws-cn, ..."""
    return arn.split(":")[1]


def region_of(arn: str) -> str:
    """In which region it is, where it has to be asked."""
    return arn.split(":")[3]


@dataclass(frozen=True, slots=True)
class AwsPcaSettings:
    """As the settings `aws_pca_*` have them; `roots` is upstream_bundle_file."""

    arns: tuple[str, ...]
    template: str
    roots: Path | None

    def conflicts(self) -> Iterator[Conflict]:
        """What keeps these from being used."""
        if not self.arns:
            yield Conflict(("upstream", "aws_pca_arns"), "say which private CA certifies: its ARN")
        if len(set(self.arns)) != len(self.arns):
            yield Conflict(("aws_pca_arns",), "it has an ARN twice; leave one out")
        if len(self.arns) > MAX_ARNS:
            yield Conflict(("aws_pca_arns",), f"each is asked for its root; name {MAX_ARNS} at most")
