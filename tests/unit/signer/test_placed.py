"""Which pods of an account are on a node, through every change; compared with going through all of them."""

from hypothesis import given
from hypothesis import strategies as st

from signer.attestation.placed import PlacedPods
from signer.model import LivePod

PODS = st.builds(
    LivePod,
    namespace=st.sampled_from(["a", "b"]),
    name=st.just("p"),
    uid=st.sampled_from([f"u{number}" for number in range(6)]),
    node_name=st.sampled_from(["", "n1", "n2"]),
    service_account=st.sampled_from(["x", "y"]),
    finished=st.booleans(),
    mirror=st.booleans(),
)


@given(st.lists(st.tuples(PODS, st.booleans()), max_size=40))
def test_it_is_what_going_through_all_pods_finds(changes: list[tuple[LivePod, bool]]) -> None:
    placed, live = PlacedPods(), dict[str, LivePod]()
    for pod, gone in changes:
        old = live.pop(pod.uid, None)
        new = None if gone else pod
        if new is not None:
            live[pod.uid] = new
        placed.pod_changed(old, new)
    for node in ("n1", "n2"):
        for namespace in ("a", "b"):
            for account in ("x", "y"):
                wanted = {
                    uid
                    for uid, each in live.items()
                    if (each.node_name, each.namespace, each.service_account) == (node, namespace, account)
                    and not each.finished
                    and not each.mirror
                }
                assert {each.uid for each in placed.of(node, namespace, account)} == wanted
    # Nothing is kept of what is gone.
    assert all(placed._pods.values())
