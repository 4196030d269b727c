"""The shapes of what commands print with `-o json`: the page says them, and a test compares them with what is printed.

What is a message of a .proto file has its shape from there.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from datetime import datetime
from types import MappingProxyType
from typing import Any

from google.protobuf.descriptor import FieldDescriptor

from agent.pb import node_admin_pb2
from podsvid.doctor.kinds import Weight
from signer.pb import admin_pb2
from svid.readers import Standing

_NONE: Mapping[str, "Shape"] = MappingProxyType({})
_NUMBERS = (FieldDescriptor.TYPE_UINT32, FieldDescriptor.TYPE_INT32)


@dataclass(frozen=True, slots=True)
class Shape:
    """What a value may be.

    `kind`: string, digits, number, true or false, time, any, object, list (of `of`), map (its values are `of`).
    `words`: all that a string may be. `name`: it is said once, for all that have it.
    """

    kind: str
    members: Mapping[str, "Shape"] = field(default_factory=lambda: _NONE)
    of: "Shape | None" = None
    words: tuple[str, ...] = ()
    name: str = ""
    absent: bool = False
    null: bool = False

    def faults(self, value: Any, where: str = "") -> Iterator[str]:
        """Where `value` is not of this shape."""
        if value is None:
            if not self.null:
                yield f"{where} is null"
        elif self.kind == "object":
            if not isinstance(value, dict):
                yield f"{where} is no object"
                return
            for name in value.keys() - self.members.keys():
                yield f"{where}.{name} is not described"
            for name, shape in self.members.items():
                if name in value:
                    yield from shape.faults(value[name], f"{where}.{name}")
                elif not shape.absent:
                    yield f"{where}.{name} is not there"
        elif self.kind in ("list", "map"):
            assert self.of is not None
            found = value if self.kind == "list" else list(value.values()) if isinstance(value, dict) else None
            if not isinstance(found, list):
                yield f"{where} is no {self.kind}"
                return
            for each in found:
                yield from self.of.faults(each, f"{where}[]")
        elif not _is(self.kind, value) or (self.words and value not in self.words):
            yield f"{where} is {value!r}, and not {self.text()}"

    def text(self) -> str:
        """What it is, without its members."""
        known = {"digits": "string of digits", "any": "anything"}
        found = self.name or " or ".join(self.words) or known.get(self.kind, self.kind)
        if self.of is not None:
            inner = self.of.text()
            found = f"list of {inner}" if self.kind == "list" else f"{inner}, by trust domain"
        return found + ", or null" * self.null + ", or not there" * self.absent


def _is(kind: str, value: Any) -> bool:
    if kind == "time":
        return isinstance(value, str) and value.endswith("Z") and "T" in value and _parses(value)
    if kind == "digits":
        return isinstance(value, str) and value.isdigit()
    if kind == "number":
        return isinstance(value, int | float) and not isinstance(value, bool)
    return kind == "any" or isinstance(value, {"string": str, "true or false": bool}[kind])


def _parses(text: str) -> bool:
    try:
        datetime.fromisoformat(text)
    except ValueError:
        return False
    return True


def obj(**members: Shape) -> Shape:
    return Shape("object", MappingProxyType(members))


def listed(of: Shape) -> Shape:
    return Shape("list", of=of)


def mapped(of: Shape) -> Shape:
    return Shape("map", of=of)


STRING, NUMBER, TIME, ANY = Shape("string"), Shape("number"), Shape("time"), Shape("any")


def message(descriptor: Any) -> Shape:
    """Of a message's descriptor, whichever library implements it.

    As the JSON form of protobuf has it, with what is unset by its default; a time that is unset is left out.
    """
    return obj(**{each.name: _field(each) for each in descriptor.fields})


def _field(each: FieldDescriptor) -> Shape:
    found = _single(each)
    return listed(replace(found, absent=False)) if each.is_repeated else found


def _single(each: FieldDescriptor) -> Shape:
    if each.message_type is not None:
        if each.message_type.full_name == "google.protobuf.Timestamp":
            return Shape("time", absent=True)
        return replace(message(each.message_type), name=each.message_type.name, absent=True)
    if each.enum_type is not None:
        return Shape("string", words=tuple(value.name for value in each.enum_type.values))
    if each.type == FieldDescriptor.TYPE_UINT64:
        return Shape("digits")
    if each.type == FieldDescriptor.TYPE_BOOL:
        return Shape("true or false")
    return NUMBER if each.type in _NUMBERS else STRING


POLICY = replace(message(admin_pb2.ExplainResponse.DESCRIPTOR), name="Policy")
ON_NODE = replace(message(node_admin_pb2.ExplainResponse.DESCRIPTOR), name="OnNode")
_SVID = obj(spiffe_id=STRING, hint=STRING, serial=STRING, not_before=TIME, not_after=TIME, chain=STRING, bundle=STRING)
_JWT_SVID = obj(
    spiffe_id=STRING,
    hint=STRING,
    audience=listed(STRING),
    issued_at=replace(TIME, null=True),
    expires_at=TIME,
    token=replace(STRING, null=True),
)
_STEPS = (
    *("authority prepare", "authority activate", "authority revoke", "authority rotate"),
    *("authority revoke-upstream", "authority trust-upstream"),
)
# Of which commands, and what each of them prints.
_MIGRATED = {
    "read": NUMBER,
    "written": NUMBER,
    "findings": listed(
        obj(
            verdict=Shape("string", words=("left out", "differs", "overlaps", "needless")),
            source=STRING,
            why=STRING,
            to_do=STRING,
        )
    ),
    "notes": listed(STRING),
}
SHAPES: Mapping[tuple[str, ...], Shape] = MappingProxyType(
    {
        ("node ls", "node rotate"): message(node_admin_pb2.ListResponse.DESCRIPTOR),
        ("node explain",): ON_NODE,
        ("explain",): obj(
            pod=STRING,
            node=STRING,
            policy=replace(POLICY, null=True),
            on_node=replace(ON_NODE, null=True),
            events=listed(obj(at=TIME, reason=STRING, message=STRING, count=STRING)),
            notes=listed(STRING),
            missing=obj(
                policy=replace(STRING, absent=True),
                on_node=replace(STRING, absent=True),
                events=replace(STRING, absent=True),
            ),
        ),
        ("explain --socket",): POLICY,
        ("doctor",): obj(
            findings=listed(
                obj(
                    weight=Shape("string", words=tuple(each.name.lower() for each in Weight)),
                    reason=STRING,
                    seen=STRING,
                    to_do=STRING,
                    link=STRING,
                )
            )
        ),
        ("bundle show",): message(admin_pb2.PublishResponse.DESCRIPTOR),
        ("oidc probe",): obj(
            trust_domain=STRING,
            sequence=Shape("digits"),
            issuer=STRING,
            at=TIME,
            documents=listed(
                obj(
                    name=Shape("string", words=("discovery", "keys")),
                    url=STRING,
                    kept=replace(NUMBER, null=True),
                    age=NUMBER,
                    error=STRING,
                )
            ),
            keys=listed(
                obj(
                    id=STRING,
                    outside=Shape("string", words=(*(each.value for each in Standing), "missing")),
                    stage=STRING,
                )
            ),
            kept_until=replace(TIME, null=True),
            findings=listed(obj(reason=STRING, text=STRING)),
            to_do=listed(STRING),
        ),
        ("authority show",): message(admin_pb2.AuthorityStatus.DESCRIPTOR),
        _STEPS: message(admin_pb2.StepResponse.DESCRIPTOR),
        ("api fetch x509", "api watch"): obj(svids=listed(_SVID), federated_bundles=mapped(STRING)),
        ("api fetch jwt",): obj(svids=listed(_JWT_SVID)),
        ("api fetch bundle",): obj(bundles=mapped(obj(x509=STRING, jwt=ANY))),
        ("api validate jwt",): obj(spiffe_id=STRING, claims=ANY),
        ("uninstall-check",): obj(
            pods=listed(STRING), policies=listed(STRING), said=listed(obj(text=STRING, items=listed(STRING)))
        ),
        ("migrate spire",): obj(objects=listed(ANY), **_MIGRATED),
        ("migrate csi-driver-spiffe",): obj(values=ANY, **_MIGRATED),
    }
)


def of(command: str) -> Shape:
    """What it prints. Raises KeyError where nobody has described that."""
    return {name: shape for names, shape in SHAPES.items() for name in names}[command]


def page() -> str:
    """All of them for the page: a part each, and then what they name."""
    named: dict[str, Shape] = {}
    parts = [_part(", ".join(f"`{each}`" for each in names), shape, named) for names, shape in SHAPES.items()]
    done: set[str] = set()
    while rest := [name for name in named if name not in done]:
        done.add(rest[0])
        parts.append(_part(rest[0], replace(named[rest[0]], name=""), named))
    return "\n".join(parts)


def _part(title: str, shape: Shape, named: dict[str, Shape]) -> str:
    if shape.name:
        named.setdefault(shape.name, shape)
        return f"{title}: {shape.name}\n"
    return f"{title}:\n\n" + "".join(f"    {line}\n" for line in _lines(shape, 0, named))


def _lines(shape: Shape, depth: int, named: dict[str, Shape]) -> Iterator[str]:
    for name, each in shape.members.items():
        yield f"{'  ' * depth + name:<21}{each.text()}"
        inner = each.of or each
        if inner.name:
            named.setdefault(inner.name, inner)
        else:
            yield from _lines(inner, depth + 1, named)
