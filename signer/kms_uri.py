"""Which key in a cloud's KMS an URI names, and where in it keys are to be made: AWS KMS and Google Cloud KMS."""

import re
from dataclasses import dataclass

MAX_URI = 2048
_REGION = r"[a-z]{2,4}(?:-[a-z]{1,16}){1,3}-[0-9]{1,2}"
_AWS = rf"arn:(?P<partition>aws[a-z-]{{0,16}}):kms:(?P<region>{_REGION}):(?P<account>[0-9]{{12}})"
_AWS_KEY = re.compile(
    rf"{_AWS}:(?P<name>key/(?:mrk-[0-9a-f]{{32}}|[0-9a-f]{{8}}(?:-[0-9a-f]{{4}}){{3}}-[0-9a-f]{{12}})"
    r"|alias/(?!aws/)[A-Za-z0-9/_-]{1,250})",
    re.ASCII,
)
# Below it keys get aliases, and an alias has 256 characters at most.
_PREFIX = r"(?!aws(?:/|$))[A-Za-z0-9_-](?:[A-Za-z0-9/_-]{0,126}[A-Za-z0-9_-])?"
_AWS_PLACE = re.compile(rf"{_AWS}:alias/(?P<prefix>{_PREFIX})", re.ASCII)
_RING = r"projects/[a-z][a-z0-9.:-]{3,80}/locations/[a-z][a-z0-9-]{1,40}/keyRings/[A-Za-z0-9_-]{1,63}"
_GOOGLE_KEY = re.compile(rf"{_RING}/cryptoKeys/[A-Za-z0-9_-]{{1,63}}/cryptoKeyVersions/[1-9][0-9]{{0,9}}", re.ASCII)
_GOOGLE_RING = re.compile(rf"(?P<ring>{_RING})(?:\?protection-level=(?P<level>hsm|software))?", re.ASCII)
_AWS_BEGINS, _GOOGLE_BEGINS = "awskms:///", "gcpkms://"
WANTED_AWS_KEY = "awskms:///arn:aws:kms:REGION:ACCOUNT:key/ID"
WANTED_AWS_PLACE = "awskms:///arn:aws:kms:REGION:ACCOUNT:alias/PREFIX"
WANTED_GOOGLE_KEY = (
    "gcpkms://projects/PROJECT/locations/LOCATION/keyRings/RING/cryptoKeys/KEY/cryptoKeyVersions/VERSION"
)
WANTED_GOOGLE_RING = "gcpkms://projects/PROJECT/locations/LOCATION/keyRings/RING"


@dataclass(frozen=True, slots=True)
class AwsAccount:
    """One account's KMS in one region, where it has to be asked."""

    partition: str
    region: str
    account: str

    def __str__(self) -> str:
        return f"arn:{self.partition}:kms:{self.region}:{self.account}"


@dataclass(frozen=True, slots=True)
class AwsKey:
    """A key of AWS KMS, by its id or an alias."""

    at: AwsAccount
    name: str

    @property
    def arn(self) -> str:
        """What AWS is asked for it by."""
        return f"{self.at}:{self.name}"

    def __str__(self) -> str:
        return f"{_AWS_BEGINS}{self.arn}"


@dataclass(frozen=True, slots=True)
class AwsPlace:
    """Where keys are made in AWS KMS: each gets an alias `alias/PREFIX/…`."""

    at: AwsAccount
    prefix: str

    def __str__(self) -> str:
        return f"{_AWS_BEGINS}{self.at}:alias/{self.prefix}"


@dataclass(frozen=True, slots=True)
class GoogleKey:
    """A version of a key of Google Cloud KMS."""

    version: str

    def __str__(self) -> str:
        return f"{_GOOGLE_BEGINS}{self.version}"


@dataclass(frozen=True, slots=True)
class GoogleRing:
    """A key ring that keys are made in; `hardware`: by an HSM."""

    ring: str
    hardware: bool = True

    def __str__(self) -> str:
        return f"{_GOOGLE_BEGINS}{self.ring}{'' if self.hardware else '?protection-level=software'}"


def parse_aws_key(text: str) -> AwsKey:
    """Raises ValueError."""
    found = _matched(text, _AWS_BEGINS, _AWS_KEY, f"{WANTED_AWS_KEY}, or :alias/NAME in place of :key/ID")
    return AwsKey(_account(found), found["name"])


def parse_aws_place(text: str) -> AwsPlace:
    """Raises ValueError."""
    found = _matched(text, _AWS_BEGINS, _AWS_PLACE, WANTED_AWS_PLACE)
    return AwsPlace(_account(found), found["prefix"])


def parse_google_key(text: str) -> GoogleKey:
    """Raises ValueError."""
    return GoogleKey(_matched(text, _GOOGLE_BEGINS, _GOOGLE_KEY, WANTED_GOOGLE_KEY)[0])


def parse_google_ring(text: str) -> GoogleRing:
    """Raises ValueError."""
    wanted = f"{WANTED_GOOGLE_RING}, and ?protection-level=software where no HSM is to make them"
    found = _matched(text, _GOOGLE_BEGINS, _GOOGLE_RING, wanted)
    return GoogleRing(found["ring"], found["level"] != "software")


def _matched(text: str, begins: str, form: re.Pattern[str], wanted: str) -> re.Match[str]:
    found = form.fullmatch(text.removeprefix(begins)) if text.startswith(begins) and len(text) <= MAX_URI else None
    if found is None:
        raise ValueError(wanted)
    return found


def _account(found: re.Match[str]) -> AwsAccount:
    return AwsAccount(found["partition"], found["region"], found["account"])
