"""Keys in a key store: who gets its signatures in which order, what the state keeps of them, and how long they stay."""

import asyncio
import json
import threading
from collections.abc import Callable, Sequence
from dataclasses import replace
from datetime import timedelta
from typing import Any

import pytest
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric import ec, padding, rsa
from cryptography.hazmat.primitives.asymmetric.utils import Prehashed, decode_dss_signature
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from hypothesis import given
from hypothesis import strategies as st

from runtime import child as child_frames
from runtime.child import Gone, Late
from signer.authority.key_care import TIDY_SECONDS, KeyEnd, KeyWatch
from signer.authority.left_keys import KEPT, LeftKey, noted
from signer.authority.lifecycle import Life
from signer.authority.opening import patient
from signer.authority.request import new_request, read_request, request_entry
from signer.authority.slots import KINDS, Stage
from signer.authority.state import AuthorityState
from signer.authority.store import Stored
from signer.errors import Reason, Refused, StateDamaged
from signer.held_key import KeyRef, held, ref_of
from signer.keystore import signing, token
from signer.keystore.keys import Keys
from signer.keystore.signing import Signing
from signer.keystore.store import KeyStoreUnavailable
from signer.keystore.token import TokenStore
from signer.keystore.worker import Worker
from signer.minting.minting import IssuedX509, Minting
from signer.pkcs11_uri import parse_token
from signer.upstream.certify import SelfSigned, UpstreamUnusable
from svid.keys import KeyAlgorithm, PrivateKey, PublicKey
from svid.spiffeid import TrustDomain
from tests.key_store_contract import FOREIGN, OWN
from tests.signer_rig import START, StepClock
from tests.unit.signer.test_held_key import elsewhere
from tests.unit.signer.test_lifecycle import ALL, POLICY, TD, done
from tests.unit.signer.test_minting import GIVEN, POD, REQUEST, SETTINGS, roomy

URI = parse_token("pkcs11:token=hsm?module-path=/lib/p11.so&pin-source=file:/pin")


class Store:
    """Keys in a dictionary, which are given out to nobody."""

    kind = "shelf"

    def __init__(self) -> None:
        self.keys: dict[str, PrivateKey] = {}
        self.away = False
        # Keys that it does not destroy, and whether it names any.
        self.stuck: set[str] = set()
        self.names_none = False

    def create(self, name: str, algorithm: KeyAlgorithm) -> PrivateKey:
        self._look()
        assert name not in self.keys
        self.keys[name] = algorithm.generate()
        return self.open(KeyRef(self.kind, name), self.keys[name].public_key())

    def open(self, ref: KeyRef, public: PublicKey) -> PrivateKey:
        def sign(scheme: Any, data: bytes) -> bytes:
            self._look()
            if ref.name not in self.keys:
                raise KeyStoreUnavailable(f"no key {ref.name}")
            return elsewhere(self.keys[ref.name])(scheme, data)

        return held(public, sign, ref)

    def delete(self, name: str) -> bool:
        self._look()
        if name in self.stuck:
            raise KeyStoreUnavailable(f"{name} is left")
        return self.keys.pop(name, None) is not None

    def names(self, prefix: str) -> Sequence[str]:
        self._look()
        if self.names_none:
            raise KeyStoreUnavailable("no names")
        return [each for each in self.keys if each.startswith(prefix)]

    def probe(self, algorithm: KeyAlgorithm) -> None:
        self._look()

    def _look(self) -> None:
        if self.away:
            raise KeyStoreUnavailable("it is away")


def kept(store: Store, **changes: Any) -> Keys:
    return Keys(TD, store, Signing(Worker("shelf")), **changes)


def life(keys: Keys, **changes: Any) -> Life:
    return Life(replace(POLICY, **changes), SelfSigned(), TD, keys=keys)


# The order of signatures.


async def _blocked(worker: Worker) -> Callable[[], None]:
    """Have the worker do nothing until that is called."""
    begun, free = threading.Event(), threading.Event()

    def wait() -> None:
        begun.set()
        free.wait(30)

    worker.begin(wait)
    await asyncio.to_thread(begun.wait, 30)
    return free.set


def test_of_each_holder_one_in_turn() -> None:
    async def work() -> None:
        worker, order = Worker("a"), list[str]()
        many = Signing(worker)
        free = await _blocked(worker)
        asked = [("greedy", number) for number in range(20)] + [("modest", 0), ("other", 0)]
        tasks = [
            asyncio.create_task(many.do(lambda each=each: order.append(each[0]), each[0], 30.0))  # type: ignore[misc]
            for each in asked
        ]
        await asyncio.sleep(0)
        free()
        await asyncio.gather(*tasks)
        # Two were with the worker before the others came.
        assert set(order[:5]) == {"greedy", "modest", "other"}
        assert len(order) == len(asked)

    done(work())


def test_so_many_wait_and_no_more() -> None:
    async def work() -> None:
        told: list[str] = []
        worker = Worker("a")
        many = Signing(worker, told.append)
        free = await _blocked(worker)
        # Those that are with the worker wait no more here.
        asked = [asyncio.create_task(many.do(int, "one", 30.0)) for _ in range(signing.MOST_OF_ONE + signing.AT_ONCE)]
        await asyncio.sleep(0)
        with pytest.raises(KeyStoreUnavailable, match="as many wait"):
            await many.do(int, "one")
        others = [
            asyncio.create_task(many.do(int, str(number % 50), 30.0))
            for number in range(signing.MOST_WAITING - signing.MOST_OF_ONE)
        ]
        await asyncio.sleep(0)
        with pytest.raises(KeyStoreUnavailable, match="as many wait"):
            await many.do(int, "another")
        # What is done for the authorities themselves has its turn all the same: without it no replica is ready.
        own = asyncio.create_task(many.do(int, seconds=30.0))
        await asyncio.sleep(0)
        assert not own.done()
        free()
        assert await own == 0
        assert await asyncio.gather(*asked, *others) == [0] * (len(asked) + len(others))
        assert (told.count("full"), told.count("ok")) == (2, len(asked) + len(others) + 1)
        assert not many._lines

    done(work())


def test_nobody_waits_longer_than_its_time_and_what_it_wanted_is_not_begun() -> None:
    async def work() -> None:
        told: list[str] = []
        worker, order = Worker("a"), list[str]()
        many = Signing(worker, told.append)
        free = await _blocked(worker)
        first = [asyncio.create_task(many.do(int, "one", 30.0)) for _ in range(signing.AT_ONCE)]
        await asyncio.sleep(0)
        with pytest.raises(KeyStoreUnavailable, match=r"did not sign within 0\.01 s"):
            await many.do(lambda: order.append("late"), "two", 0.01)
        free()
        await asyncio.gather(*first)
        assert await many.do(lambda: "next", "two", 30.0) == "next"
        assert (order, told.count("late"), many._waiting) == ([], 1, 0)

    done(work())


def test_what_the_store_signed_with_another_key_is_its_failure() -> None:
    async def work() -> None:
        told: list[str] = []

        def fail(error: Exception) -> None:
            raise error

        many = Signing(Worker("a"), told.append)
        with pytest.raises(KeyStoreUnavailable, match="another key"):
            await many.do(lambda: fail(InvalidSignature()))
        with pytest.raises(ValueError, match="mine"):
            await many.do(lambda: fail(ValueError("mine")))
        with pytest.raises(KeyStoreUnavailable, match="away"):
            await many.do(lambda: fail(KeyStoreUnavailable("away")))
        assert told == ["failed", "ok", "failed"]

    done(work())


def test_a_mint_that_the_store_does_not_sign_may_be_tried_again() -> None:
    store = Store()
    keys = kept(store)
    state = roomy(done(life(keys).first(START)))
    minting = Minting(lambda: state, SETTINGS, StepClock(), None, keys)

    async def mint() -> IssuedX509:
        return await minting.signed("x509", "node", lambda: minting.x509(POD, GIVEN, REQUEST, None, ()))

    assert done(mint()).chain
    store.away = True
    with pytest.raises(Refused) as caught:
        done(mint())
    assert (caught.value.reason, bool(caught.value.retry_after)) == (Reason.AUTHORITY_KEY_STORE_UNAVAILABLE, True)
    store.away = False
    # Another key of that name.
    active = ref_of(state.active_x509.private_key)
    assert active is not None
    store.keys[active.name] = KeyAlgorithm.EC_P256.generate()
    with pytest.raises(Refused) as caught:
        done(mint())
    assert caught.value.reason is Reason.AUTHORITY_KEY_STORE_UNAVAILABLE


def test_keys_in_memory_sign_where_they_are_asked() -> None:
    async def work() -> None:
        key = KeyAlgorithm.EC_P256.generate()
        assert await Keys().do(key, threading.current_thread) is threading.current_thread()
        assert await kept(Store()).do(key, threading.current_thread) is threading.current_thread()

    done(work())


# What the state keeps.


def test_the_state_has_names_in_the_place_of_keys_and_one_of_before_refuses_it() -> None:
    store = Store()
    keys = kept(store)
    state = done(life(keys).first(START))
    text = state.to_json()
    assert b"PRIVATE KEY" not in text
    assert json.loads(text)["version"] == 5
    assert AuthorityState.from_json(text, TD, open_key=keys.open).to_json() == text
    assert state.key_refs == {KeyRef("shelf", name) for name in store.keys}
    with pytest.raises(StateDamaged, match="set authority_key_uri as the other signers have it"):
        AuthorityState.from_json(text, TD)
    with pytest.raises(StateDamaged, match="set authority_key_uri as the other signers have it"):
        AuthorityState.from_json(text.replace(b'"shelf"', b'"cupboard"'), TD, open_key=keys.open)


def test_a_request_keeps_the_name_of_its_key() -> None:
    keys = kept(Store())
    made = done(keys.x509(KeyAlgorithm.EC_P256, []))
    request = new_request("there", TD, made, timedelta(days=1), START, wished=False)
    entry = request_entry(request)
    assert "PRIVATE KEY" not in str(entry)
    assert request_entry(read_request(entry, keys.open)) == entry
    with pytest.raises(KeyError):
        read_request({name: value for name, value in entry.items() if name != "key_ref"})


def test_a_key_of_another_algorithm_than_its_certificate_signs_nothing() -> None:
    store = Store()
    keys = kept(store)
    state = done(life(keys).first(START))
    document = json.loads(state.to_json())
    for change in ({"name": 7}, {"store": None}, {}):
        document["x509"][0]["key_ref"] = change
        with pytest.raises(StateDamaged):
            AuthorityState.from_json(json.dumps(document).encode(), TD, open_key=keys.open)


def test_a_rotation_makes_its_key_in_the_store_and_remembers_the_one_before() -> None:
    store = Store()
    keys = kept(store)
    by = life(keys)
    before = done(by.first(START))
    prepared, _ = done(by.prepare(before, "x509", START))
    later = START + timedelta(hours=1)
    after = by.activate(prepared, "x509", ALL, later, forced=True)[0].noting(prepared, later)
    gone = before.key_refs - after.key_refs
    assert [each.ref for each in after.left] == sorted(gone)
    assert len(gone) == 1
    assert {each.left_at for each in after.left} == {later}
    again = AuthorityState.from_json(after.to_json(), TD, open_key=keys.open)
    assert again.left == after.left
    # Of one owner, though the names are random.
    assert len(keys.own([*after.key_refs, *gone])) == 1
    # What came back is not left.
    assert before.noting(after, later).left[0].ref in after.key_refs
    assert replace(before, left=after.left).noting(before, later).left == ()


def test_what_is_made_for_nothing_is_destroyed_at_once() -> None:
    store = Store()
    keys = kept(store)

    class Refusing(SelfSigned):
        def signed(self, *_: Any) -> Any:
            raise UpstreamUnusable("no")

    with pytest.raises(UpstreamUnusable):
        done(Life(POLICY, Refusing(), TD, keys=keys).first(START))
    assert store.keys == {}


def test_keys_move_by_rotations() -> None:
    store = Store()
    here = done(Life(POLICY, SelfSigned(), TD).first(START))
    inside, back = kept(store), kept(store, returning=True)
    by = life(inside)
    for kind in KINDS:
        step = by.due(here, ALL, START, (kind,))
        assert step is not None
        assert step.action == "prepare"
        assert life(back).due(here, ALL, START, (kind,)) is None
        moved = done(by.do(here, step, START))
        prepared = moved.find(kind, Stage.PREPARED)
        assert prepared is not None
        assert ref_of(prepared.private_key) is not None
    there = done(life(inside).first(START))
    for kind in KINDS:
        assert by.due(there, ALL, START, (kind,)) is None
        step = life(back).due(there, ALL, START, (kind,))
        assert step is not None
        assert step.action == "prepare"


REFS = st.sampled_from([KeyRef("shelf", name) for name in "abcde"])


@given(st.sets(REFS), st.frozensets(REFS), st.frozensets(REFS), st.integers(0, 100))
def test_left_is_what_was_named_and_is_not(
    left: set[KeyRef], before: frozenset[KeyRef], named: frozenset[KeyRef], hours: int
) -> None:
    then, now = START, START + timedelta(hours=hours)
    found = noted([LeftKey(each, then) for each in left], before, named, now)
    assert {each.ref for each in found} == (left | before) - named
    # Nothing is forgotten of how long it was left.
    assert {each.ref for each in found if each.left_at == then} >= left - named


# Who looks at them.


class Cluster:
    """What is stored, and a leader."""

    def __init__(self, state: AuthorityState) -> None:
        self.state = state
        self.leads = True

    @property
    def left(self) -> list[str]:
        return [each.ref.name for each in self.state.left]

    async def load(self) -> Stored:
        return Stored(self.state, "1")

    async def swap(self, stored: Stored, after: AuthorityState, step: Any) -> bool:
        self.state = after
        return True


def tidied(cluster: Cluster, end: KeyEnd) -> None:
    done(end.look(cluster.state, cluster.load, cluster.swap, lambda: cluster.leads))


def test_keys_end_a_week_after_the_last_state_that_named_them() -> None:
    store, clock = Store(), StepClock()
    keys = kept(store)
    cluster = Cluster(done(life(keys).first(START)))
    begun = keys.own(cluster.state.key_refs)[0]
    stray = f"{begun}{0:016x}"
    for name in (stray, FOREIGN, f"{begun}00", "mine"):
        store.keys[name] = KeyAlgorithm.EC_P256.generate()
    others = {FOREIGN, f"{begun}00", "mine"}
    doubt = ["the clock is wrong"]
    end = KeyEnd(keys, lambda: doubt[0], clock)
    tidied(cluster, end)
    assert cluster.left == []
    doubt[0] = ""
    tidied(cluster, end)
    assert cluster.left == [stray]
    clock.pass_by(seconds=KEPT.total_seconds() - 1)
    tidied(cluster, end)
    assert stray in store.keys
    clock.pass_by(seconds=TIDY_SECONDS)
    # It leads no more.
    cluster.leads = False
    tidied(cluster, end)
    assert stray in store.keys
    clock.pass_by(seconds=TIDY_SECONDS)
    cluster.leads = True
    tidied(cluster, end)
    assert cluster.left == []
    assert set(store.keys) == others | {each.name for each in cluster.state.key_refs}


def over(*numbers: int, begun: str = OWN) -> tuple[LeftKey, ...]:
    return tuple(LeftKey(KeyRef("shelf", f"{begun}{each:016x}"), START - 2 * KEPT) for each in numbers)


def test_a_key_that_cannot_be_destroyed_keeps_no_other(caplog: pytest.LogCaptureFixture) -> None:
    store = Store()
    keys = kept(store)
    cluster = Cluster(done(life(keys).first(START)))
    cluster.state = replace(cluster.state, left=over(1, 2, 3, 4))
    for each in over(1, 2, 3):
        store.keys[each.ref.name] = KeyAlgorithm.EC_P256.generate()
    store.stuck = {f"{OWN}{1:016x}"}
    # Nor does a store that names none.
    store.names_none = True
    with caplog.at_level("INFO", "podsvid"):
        tidied(cluster, KeyEnd(keys, str, StepClock()))
    assert cluster.left == [f"{OWN}{1:016x}"]
    assert set(store.keys) == {f"{OWN}{1:016x}"} | {each.name for each in cluster.state.key_refs}
    said = {each.message: each.key for each in caplog.records if hasattr(each, "key") and "destroyed" in each.message}
    assert said == {
        "authority key destroyed": f"{OWN}{3:016x}",
        "authority key not destroyed: its store has none of that name": f"{OWN}{4:016x}",
    }


@pytest.mark.parametrize("domain", ["example.org-eu", "example.org-00112233", "example.org-00112233-0011223344556677"])
def test_a_key_of_a_trust_domain_whose_name_begins_the_same_is_not_ours(domain: str) -> None:
    store = Store()
    keys = kept(store)
    others = over(1, begun=f"podsvid-{domain}-00112233-")
    store.keys[others[0].ref.name] = KeyAlgorithm.EC_P256.generate()
    assert not keys.is_own(others[0].ref)
    assert keys.own([others[0].ref]) == []
    assert Keys(TrustDomain(domain), store).is_own(others[0].ref)
    cluster = Cluster(done(life(keys).first(START)))
    cluster.state = replace(cluster.state, left=others)
    tidied(cluster, KeyEnd(keys, str, StepClock()))
    assert others[0].ref.name in store.keys


def test_what_was_not_made_here_is_destroyed_by_no_state_that_names_it() -> None:
    """Who writes the Secret can name any key of the token, such as the CA's above."""
    store, clock = Store(), StepClock()
    keys = kept(store)
    cluster = Cluster(done(life(keys).first(START)))
    store.keys |= {name: KeyAlgorithm.EC_P256.generate() for name in ("ca", "")}
    named = [LeftKey(KeyRef("shelf", name), START - 2 * KEPT) for name in ("ca", "")]
    cluster.state = replace(cluster.state, left=tuple(named))
    tidied(cluster, KeyEnd(keys, str, clock))
    assert {"ca", ""} <= set(store.keys)
    done(keys.discard(held(store.keys["ca"].public_key(), elsewhere(store.keys["ca"]), KeyRef("shelf", "ca"))))
    assert "ca" in store.keys


def test_a_start_waits_for_the_key_store() -> None:
    """Whoever ends and is begun again tries the PIN anew, and tokens count."""
    left = [KeyStoreUnavailable("away"), KeyStoreUnavailable("away")]
    found = Stored(done(life(kept(Store())).first(START)), "1")

    async def work() -> Stored:
        if left:
            raise left.pop()
        return found

    assert done(patient(work, 0.0)) is found


def test_keys_are_tried_before_they_are_needed() -> None:
    store = Store()
    keys = kept(store)
    state = done(life(keys).first(START))
    watch = KeyWatch(keys)
    assert watch.lacking(state) == "the authorities' keys are not tried yet"
    done(watch.look(state))
    assert watch.lacking(state) == ""
    store.away = True
    done(watch.look(state))
    assert watch.lacking(state) == "AUTHORITY_KEY_STORE_UNAVAILABLE: it is away"
    store.away = False
    done(watch.look(state))
    assert watch.lacking(state) == ""
    in_memory = done(Life(POLICY, SelfSigned(), TD).first(START))
    assert KeyWatch(keys).lacking(in_memory) == ""


# The process that has the session.


class Child:
    """Answers as it is told to."""

    def __init__(self, *answers: Any) -> None:
        self.answers = list(answers)
        self.asked: list[dict[str, Any]] = []
        self.ended = False

    def ask(self, message: bytes, seconds: float) -> bytes:
        self.asked.append(json.loads(message))
        answer = self.answers.pop(0)
        if isinstance(answer, Exception):
            raise answer
        return answer if isinstance(answer, bytes) else json.dumps(answer).encode()

    def end(self) -> None:
        self.ended = True


def asked(*children: Child) -> tuple[TokenStore, list[float]]:
    """A store whose processes these are, one after the other, and its clock."""
    left, clock = list(children), [1000.0]
    return TokenStore(URI, Worker("token"), lambda: clock[0], lambda: left.pop(0), b"salt"), clock


FINE: dict[str, Any] = {}


def test_a_session_of_before_is_replaced_at_once_and_only_for_what_may_be_asked_twice() -> None:
    ours = KeyAlgorithm.EC_P256.generate()
    assert isinstance(ours, ec.EllipticCurvePrivateKey)
    for end in (Gone("ended (status -9)"), Late(), {"failed": "failed", "detail": "SessionHandleInvalid"}, b"\xff"):
        old, new = Child(FINE, {"names": []}, end), Child(FINE, {"signature": "00"})
        store, _ = asked(old, new)
        assert list(store.names("")) == []
        # What came is no signature: the store asked, and that is enough here.
        with pytest.raises(InvalidSignature):
            signs = store.open(KeyRef("pkcs11", "a"), ours.public_key())
            assert isinstance(signs, ec.EllipticCurvePrivateKey)
            signs.sign(b"data", ec.ECDSA(SHA256()))
        assert old.ended
        assert new.asked[1]["name"] == "a"
    old, new = Child(FINE, {"names": []}, Gone("ended (status -9)")), Child(FINE, {"public": "00"})
    store, _ = asked(old, new)
    store.names("")
    with pytest.raises(KeyStoreUnavailable, match=r"ended \(status -9\)"):
        store.create("a", KeyAlgorithm.EC_P256)
    assert new.asked == []


def test_a_key_that_is_missing_takes_the_session_from_no_other() -> None:
    """Once it is looked for in a new session; then it is believed for a while."""
    key = KeyAlgorithm.EC_P256.generate().public_key()
    gone, fine = {"failed": "no-key", "detail": ""}, {"signature": "00"}
    old = Child(FINE, {"names": []}, gone)
    new = Child(FINE, gone, fine, gone, {"failed": "several-keys", "detail": ""})
    last = Child(FINE, fine)
    store, clock = asked(old, new, last)

    def sign(name: str) -> None:
        signs = store.open(KeyRef("pkcs11", name), key)
        assert isinstance(signs, ec.EllipticCurvePrivateKey)
        with pytest.raises(InvalidSignature):
            signs.sign(b"data", ec.ECDSA(SHA256()))

    store.names("")
    with pytest.raises(KeyStoreUnavailable, match="has no key lost"):
        sign("lost")
    assert old.ended
    sign("good")
    for _ in range(2):
        with pytest.raises(KeyStoreUnavailable, match=r"has no key lost|several private keys"):
            sign("lost")
    assert not new.ended
    # It may have come.
    clock[0] += token.MOST_PAUSE
    new.answers.append(gone)
    sign("lost")
    assert new.ended


def test_what_is_too_long_for_the_session_does_not_end_it() -> None:
    child = Child(FINE, {"names": []}, {"names": []})
    store, _ = asked(child)
    store.names("")
    with pytest.raises(KeyStoreUnavailable, match="too long"):
        store.names("x" * child_frames.MAX_FRAME)
    store.names("")
    assert not child.ended


@pytest.mark.parametrize("algorithm", [KeyAlgorithm.EC_P256, KeyAlgorithm.EC_P384, KeyAlgorithm.RSA_2048])
def test_a_token_that_is_tried_has_to_sign_with_the_key_that_it_made(algorithm: KeyAlgorithm) -> None:
    made, other = algorithm.generate(), algorithm.generate()
    public = made.public_key().public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo).hex()

    def signature(key: PrivateKey) -> str:
        if isinstance(key, rsa.RSAPrivateKey):
            return key.sign(bytes(32), padding.PKCS1v15(), SHA256()).hex()
        assert isinstance(key, ec.EllipticCurvePrivateKey)
        pair = decode_dss_signature(key.sign(bytes(32), ec.ECDSA(Prehashed(SHA256()))))
        return b"".join(each.to_bytes((key.key_size + 7) // 8) for each in pair).hex()

    store, _ = asked(Child(FINE, {"public": public, "signature": signature(made)}))
    store.probe(algorithm)
    for wrong in (signature(other), ""):
        store, _ = asked(Child(FINE, {"public": public, "signature": wrong}))
        with pytest.raises(KeyStoreUnavailable, match="does not verify"):
            store.probe(algorithm)


def test_a_token_that_fails_is_asked_ever_more_rarely() -> None:
    store, clock = asked(*(Child(Gone("ended")) for _ in range(10)), Child(FINE, {"names": ["a"]}))
    pauses = [0.0, token.FIRST_PAUSE, 2 * token.FIRST_PAUSE, 4 * token.FIRST_PAUSE]
    for pause in pauses:
        with pytest.raises(KeyStoreUnavailable, match=r"ended$"):
            store.names("")
        if pause:
            clock[0] += pause * 0.9
            with pytest.raises(KeyStoreUnavailable, match="asked again in"):
                store.names("")
        clock[0] += pause
    for _ in range(6):
        clock[0] += token.MOST_PAUSE
        with pytest.raises(KeyStoreUnavailable, match=r"ended$"):
            store.names("")
    clock[0] += token.MOST_PAUSE
    assert list(store.names("")) == ["a"]


def test_a_refused_pin_is_told_to_the_next_process() -> None:
    first = Child({"failed": "pin-refused", "detail": "PinIncorrect", "pin": "digest"})
    second, third = Child({"failed": "pin-refused", "detail": "before", "pin": "digest"}), Child(FINE, {"names": []})
    store, clock = asked(first, second, third)
    for _ in range(2):
        with pytest.raises(KeyStoreUnavailable, match="the token refuses the PIN in /pin"):
            store.names("")
        clock[0] += 60.0
    store.names("")
    assert [each.asked[0]["refused"] for each in (first, second, third)] == ["", "digest", "digest"]


@pytest.mark.parametrize(
    "answer", [{}, {"public": "zz"}, {"public": "00"}, {"public": 7}, [], {"public": "00" * 91}, 7, None]
)
def test_a_key_that_is_none_is_not_taken(answer: Any) -> None:
    store, _ = asked(Child(FINE, answer))
    with pytest.raises(KeyStoreUnavailable):
        store.create("a", KeyAlgorithm.EC_P256)


@pytest.mark.parametrize("names", [7, [7], None, "a"])
def test_names_that_are_none_are_not_taken(names: Any) -> None:
    store, _ = asked(Child(FINE, {"names": names}))
    with pytest.raises(KeyStoreUnavailable):
        store.names("")


def test_work_is_done_by_one_thread_in_its_order_and_by_itself_at_once() -> None:
    worker = Worker("a")
    thread = worker.call(threading.current_thread)
    assert thread.daemon
    assert worker.call(lambda: worker.call(threading.current_thread)) is thread
    cancelled, order = list[int](), list[int]()

    def wait() -> None:
        free.wait(30)

    free = threading.Event()
    worker.begin(wait)
    never = worker.begin(lambda: cancelled.append(1))
    last = worker.begin(lambda: order.append(1))
    assert never.cancel()
    free.set()
    last.result(30)
    assert (cancelled, order) == ([], [1])
    worker.end()
    thread.join(30)
    assert not thread.is_alive()
