"""The small language of policies: fixed text and placeholders over the live pod, nothing else.

`{namespace}`, `{service_account}`, `{pod}`, `{pod_uid}`, `{node}` and `{labels['key']}`. No functions, no conditions:
what a template can become is seen by looking at it.
"""

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from types import MappingProxyType

from signer.errors import InvalidPolicy
from signer.model import LivePod
from svid.authority import MAX_COMMON_NAME, is_common_name

MAX_TEMPLATE = 1024
_PLACEHOLDER = re.compile(r"\{([a-z_]+)(?:\['([^'\]{}]{1,317})'\])?\}", re.ASCII)
_SEGMENT = re.compile(r"[a-zA-Z0-9._-]+", re.ASCII)
_PATH_TEXT = re.compile(r"[a-zA-Z0-9._/-]*", re.ASCII)
_LABEL_VALUE = re.compile(r"[a-z0-9]([-a-z0-9]*[a-z0-9])?", re.ASCII)
_DNS_TEXT = re.compile(r"[a-z0-9.-]*", re.ASCII)
_SUBJECT_TEXT = re.compile(r"CN=[a-zA-Z0-9._-]+", re.ASCII)
SUBJECT_END = "@{namespace}"
_FIELDS: Mapping[str, Callable[[LivePod], str]] = MappingProxyType(
    {
        "namespace": lambda pod: pod.namespace,
        "service_account": lambda pod: pod.service_account,
        "pod": lambda pod: pod.name,
        "pod_uid": lambda pod: pod.uid,
        "node": lambda pod: pod.node_name,
    }
)


@dataclass(frozen=True, slots=True)
class Template:
    """One that can be parsed. Only its text is kept: in parts it would be twenty times as large, so that only one that
    is not one of very many is `prepared`."""

    text: str
    _kept: tuple[tuple[str, str], ...] = field(default=(), compare=False, repr=False)

    @property
    def parts(self) -> tuple[tuple[str, str], ...]:
        """Texts and placeholders in turn. A placeholder is a field's name, or a label's key."""
        return self._kept or _parts(self.text)

    def prepared(self) -> "Template":
        """The same, to be rendered often."""
        return Template(self.text, self.parts)

    @classmethod
    def parse(cls, text: str) -> "Template":
        """Raises InvalidPolicy."""
        _parts(text)
        return cls(text)

    def render(self, pod: LivePod, accepts: Callable[[str], bool], what: str) -> str:
        """With each placeholder's value, of which `accepts` must approve: `what` says what it should be.

        Raises InvalidPolicy; never leaves a value out.
        """
        rendered = []
        for kind, value in self.parts:
            if kind == "text":
                rendered.append(value)
                continue
            found = _FIELDS[value](pod) if kind == "field" else pod.labels.get(value)
            if found is None:
                raise InvalidPolicy(f"pod {pod} has no label {value!r}, which {self.text[:120]!r} needs")
            if not accepts(found):
                raise InvalidPolicy(f"{value} of pod {pod} is {found[:80]!r}, which is not {what}")
            rendered.append(found)
        return "".join(rendered)

    def common_name(self, pod: LivePod) -> str:
        """What a template of a subject becomes, without its CN=. Raises InvalidPolicy, also where it is too long."""
        found = self.render(pod, is_segment, "made of a-z A-Z 0-9 . _ -").removeprefix("CN=")
        if not is_common_name(found):
            raise InvalidPolicy(
                f"the subject would be CN={found[:120]} of {len(found)} characters, and a common name has "
                f"{MAX_COMMON_NAME} at most: shorten the template; nothing is cut off"
            )
        return found


def path_template(text: str, prefix: str = "/") -> Template:
    """A template of a SPIFFE ID's path that begins with `prefix`, as written. Raises InvalidPolicy."""
    template = Template.parse(text)
    if not text.startswith(prefix):
        raise InvalidPolicy(f"the path must begin with {prefix}")
    fixed = "".join(value if kind == "text" else "x" for kind, value in template.parts)
    segments = fixed[1:].split("/")
    if not _PATH_TEXT.fullmatch(fixed) or any(segment in ("", ".", "..") for segment in segments):
        raise InvalidPolicy("the path must be segments of a-z A-Z 0-9 . _ - with a / before each, none empty, . or ..")
    return template


def dns_template(text: str) -> Template:
    """A template of a DNS name. Raises InvalidPolicy."""
    template = Template.parse(text)
    fixed = "".join(value if kind == "text" else "x" for kind, value in template.parts)
    if not _DNS_TEXT.fullmatch(fixed) or "" in fixed.split("."):
        raise InvalidPolicy("a DNS name has labels of a-z 0-9 - with dots between them")
    return template


def subject_template(text: str, *, namespaced: bool) -> Template:
    """A template of a certificate's subject: one common name, as RFC 4514 has it. Raises InvalidPolicy.

    What stands behind an @ is the pod's namespace, whoever wrote the policy, so that nobody of another has that name.
    And a program that knows no SPIFFE ID may hold a common name against the host that it calls: what pods' authors
    choose stands beside an @, which no host's name has. Only an administrator's fixed text has none.
    """
    template = Template.parse(text)
    ended = text.endswith(SUBJECT_END)
    if not ended and (namespaced or any(kind != "text" for kind, _ in template.parts)):
        raise InvalidPolicy(f"the subject must end with {SUBJECT_END}, such as CN={{service_account}}{SUBJECT_END}")
    fixed = "".join(value if kind == "text" else "x" for kind, value in template.parts)
    if not _SUBJECT_TEXT.fullmatch(fixed.removesuffix("@x") if ended else fixed):
        raise InvalidPolicy(
            f"the subject must be CN= and a-z A-Z 0-9 . _ - or placeholders, with no @ but that of {SUBJECT_END}"
        )
    return template


def is_segment(value: str) -> bool:
    """Whether it is one segment of a SPIFFE ID's path."""
    return _SEGMENT.fullmatch(value) is not None and value not in (".", "..")


def is_dns_label(value: str) -> bool:
    """Whether it is one label of a DNS name: a dot in it would make two."""
    return len(value) <= 63 and _LABEL_VALUE.fullmatch(value) is not None


def _parts(text: str) -> tuple[tuple[str, str], ...]:
    if not text or len(text) > MAX_TEMPLATE:
        raise InvalidPolicy(f"a template has 1 to {MAX_TEMPLATE} characters")
    parts: list[tuple[str, str]] = []
    at = 0
    for found in _PLACEHOLDER.finditer(text):
        parts.append(("text", text[at : found.start()]))
        name, key = found[1], found[2]
        if name == "labels" and key is not None:
            parts.append(("label", key))
        elif name in _FIELDS and key is None:
            parts.append(("field", name))
        else:
            known = ", ".join(f"{{{name}}}" for name in _FIELDS)
            raise InvalidPolicy(f"{found[0][:80]!r} is no placeholder; there are {known} and {{labels['key']}}")
        at = found.end()
    parts.append(("text", text[at:]))
    if any(kind == "text" and ("{" in value or "}" in value) for kind, value in parts):
        raise InvalidPolicy(f"{text[:80]!r} has a brace that belongs to no placeholder")
    return tuple((kind, value) for kind, value in parts if value)
