"""Services, for the DNS names of their pods: which may select a pod, which of a namespace give no names, and why."""

from bisect import bisect_left, insort
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import chain
from typing import TypeAlias

from signer.cluster.objects import MAX_SELECTOR, MAX_SELECTOR_CHARACTERS, ServiceObject, few_selected
from signer.cluster.places import Age, Places
from signer.model import LivePod

# Services of one pod that are looked at; a certificate has room for the names of ten.
MAX_SERVICES = 256
_Key: TypeAlias = tuple[str, str, str]


@dataclass(frozen=True, slots=True)
class Service:
    """A Service's selector, for DNS names.

    `large`: it selects by more labels than are kept. `left_out`: its namespace has more Services than count; of it is
    kept what says so. Either selects nobody.
    """

    namespace: str
    name: str
    selector: tuple[tuple[str, str], ...]
    uid: str = ""
    created: str = ""
    large: bool = False
    left_out: bool = False

    @property
    def age(self) -> Age:
        """The oldest of a namespace count."""
        return (self.created, self.name, self.uid)

    def selects(self, pod: LivePod) -> bool:
        """Whether the pod is behind it; one without a selector has no pods of its own."""
        return (
            bool(self.selector)
            and pod.namespace == self.namespace
            and all(pod.labels.get(key) == value for key, value in self.selector)
        )

    def outline(self) -> "Service":
        """Of one that does not count."""
        return replace(self, selector=(), left_out=True)


def read_service(body: ServiceObject) -> Service | None:
    """A Service; None for one that selects no pods."""
    metadata, spec = body.metadata, body.spec
    if not metadata.name or spec is None or spec.type == "ExternalName" or not spec.selector:
        return None
    found = Service(
        metadata.namespace or "", metadata.name, (), metadata.uid or "", metadata.creation_timestamp or "", large=True
    )
    few = few_selected(spec.selector)
    return replace(found, selector=tuple(sorted(spec.selector.items())), large=False) if few else found


class ServiceIndex:
    """Kept by what a mirror observes. Of a namespace's Services the oldest `most` count.

    Whoever may write Services makes names for their pods, and is the one who has too many of them: fewer names are no
    danger to anybody else. But nobody is left to wonder where they are.
    """

    def __init__(self, most: int) -> None:
        self._most = most
        self._by_label: dict[_Key, list[Service]] = {}
        self._places: dict[str, Places[Service]] = {}
        self._large: Counter[str] = Counter()
        # Namespaces with a place for one that is still an outline.
        self._free: set[str] = set()
        self._left_out = 0

    def read(self, body: ServiceObject) -> Service | None:
        """What is to be kept of an object: the whole Service where it counts, else its outline."""
        found = read_service(body)
        if found is None or found.large:
            return found
        places = self._places.get(found.namespace)
        return found if places is None or places.room(found.age) else found.outline()

    def changed(self, old: Service | None, new: Service | None) -> Service | None:
        """A Service came, changed or went. Answers with one that was kept whole and counts no more, if there is one."""
        if old is not None:
            self._drop(old)
        if new is None:
            return None
        self._left_out += new.large or new.left_out
        if new.large:
            self._large[new.namespace] += 1
            return None
        if new.selector:
            insort(self._by_label.setdefault(_key(new), []), new, key=_name)
        places = self._places.setdefault(new.namespace, Places(self._most, _age))
        places.add(new)
        self._note_free(new.namespace, places)
        return places.over

    def due(self) -> list[Service]:
        """Outlines of Services that count, to be read again: one of each namespace that has some."""
        return [found for each in sorted(self._free) if (found := self._places[each].due) is not None]

    def of(self, pod: LivePod) -> Iterator[Service]:
        """All that select the pod are among them: by label, then by name."""
        keys = ((pod.namespace, key, value) for key, value in pod.labels.items())
        return chain.from_iterable(self._by_label[key] for key in keys if key in self._by_label)

    @property
    def left_out(self) -> int:
        """How many give no names, of all namespaces."""
        return self._left_out

    def unread(self, namespace: str) -> tuple[str, ...]:
        """For people: which of a namespace give no names. In words that stay the same however many there are."""
        places = self._places.get(namespace)
        found = []
        if places is not None and places.left_out:
            found.append(f"all but the oldest {self._most} of the namespace (services_per_namespace)")
        if namespace in self._large:
            most = f"{MAX_SELECTOR} labels or {MAX_SELECTOR_CHARACTERS} characters"
            found.append(f"those of the namespace that select by more than {most}")
        return tuple(found)

    def _drop(self, old: Service) -> None:
        self._left_out -= old.large or old.left_out
        if old.large:
            self._large[old.namespace] -= 1
            if not self._large[old.namespace]:
                del self._large[old.namespace]
            return
        if old.selector:
            bucket = self._by_label[_key(old)]
            # One of the same name may have come before this one's end was told.
            first = bisect_left(bucket, old.name, key=_name)
            at = next(number for number in range(first, len(bucket)) if bucket[number].uid == old.uid)
            del bucket[at]
            if not bucket:
                del self._by_label[_key(old)]
        places = self._places[old.namespace]
        places.remove(old)
        self._note_free(old.namespace, places)
        if places.empty:
            del self._places[old.namespace]

    def _note_free(self, namespace: str, places: Places[Service]) -> None:
        if places.due is not None:
            self._free.add(namespace)
        else:
            self._free.discard(namespace)


def _key(service: Service) -> _Key:
    # Any of its labels will do: the pod must have all.
    return (service.namespace, *service.selector[0])


def _name(service: Service) -> str:
    return service.name


def _age(service: Service) -> Age:
    return service.age
