"""What `podsvid doctor` must not call wrong, and what looks well and is not."""

import argparse
import json
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from podsvid.by_kubeconfig import NotAllowed, NotTold
from podsvid.doctor import command, looking, nodes, trust
from podsvid.doctor.finding import Finding
from podsvid.doctor.kinds import Weight
from podsvid.doctor.looking import look
from podsvid.doctor.rules import findings
from podsvid.waiting import Waiting
from runtime.version import VERSION
from tests.unit.podsvid.doctoring import (
    ADMISSION,
    AGENTS,
    DRIVERS,
    EVENTS,
    LEASES,
    NOW,
    OTHER,
    OWN,
    PEM,
    PODS,
    SIGNERS,
    TRUST_BUNDLES,
    FakeCluster,
    Objects,
    at,
    change,
    gone,
    healthy,
    jwks,
    named,
    pod,
    seen,
)

ROOT = Path(__file__).parents[3]
MAPS = "/api/v1/configmaps"


def after(*changes: Callable[[Objects], None]) -> list[Finding]:
    objects = healthy()
    for each in changes:
        each(objects)
    return seen(objects)


def the_only(*changes: Callable[[Objects], None]) -> tuple[str, str]:
    (found,) = after(*changes)
    return found.reason, found.seen


def added(path: str, *items: Any) -> Callable[[Objects], None]:
    return lambda objects: objects[path].extend(items)


def forged(name: str, text: str) -> Objects:
    labels = {"podsvid.io/trust-domain": "example.org", "app.kubernetes.io/managed-by": "podsvid"}
    metadata = {"name": name, "namespace": "tenant", "labels": labels}
    return {"metadata": metadata, "data": {"ca.crt": text, "bundle.json": "{}"}}


def test_a_text_of_anybodys_takes_time_by_its_length_only() -> None:
    began = time.process_time()
    assert trust.certificates("-----BEGIN CERTIFICATE-----\n" * 36_000) == frozenset()
    assert time.process_time() - began < 2
    assert len(trust.certificates(PEM + OTHER + PEM)) == 2


def test_a_map_of_another_name_is_no_bundle() -> None:
    assert after(added(MAPS, forged("mine", OTHER))) == []


def test_a_root_above_that_is_replaced_in_time_is_not_ending() -> None:
    def roots(*there: Objects) -> Callable[[Objects], None]:
        return change("authority", "upstream_roots", to=list(there))

    def root(subject: str, ends: float, since: float, *leads: str) -> Objects:
        return {"subject": subject, "not_after": at(days=-ends), "since": at(days=since), "authorities": list(leads)}

    # As SPIRE above has it: 25 days in all, and 24 hours.
    assert after(roots(root("CN=spire", 20, 5, "a1"))) == []
    assert after(roots(root("CN=spire", 0.5, 0.5, "a1"))) == []
    # An old one on its way out, to which nothing leads any more, or beside its successor.
    assert after(roots(root("CN=old", 5, 900), root("CN=new", 3000, 1, "a1"))) == []
    assert after(roots(root("CN=old", 5, 900, "a1"), root("CN=new", 3000, 1))) == []
    assert after(roots(root("CN=unused", 5, 900))) == []
    assert the_only(roots(root("CN=last", 5, 900, "a1")))[0] == "AUTHORITY_ENDS"
    assert the_only(roots(root("CN=spire", 1, 24, "a1")))[0] == "AUTHORITY_ENDS"


def test_a_signer_that_holds_its_steps_says_why() -> None:
    untimely = "the API server's clock and this one differ by 300 s"
    held = (change("authority", "unknown", to=untimely), change("authority", "next", to=[f"held: {untimely}"]))
    assert the_only(*held) == ("CLOCKS_DIFFER", f"the signer holds all steps: {untimely}")
    assert the_only(held[0])[0] == "SIGNER_WARNS"
    # For a minute after each start, which nobody is to mend.
    said = "agents have until 2026-11-29T12:00:30Z to tell this replica, which has just started or begun to lead"
    lacking = change("authority", "waiting_nodes", to=["n1"])
    assert after(change("authority", "unknown", to=said), lacking) == []
    source = (ROOT / "signer/authority/knowledge.py").read_text().replace('"\n                f"', "")
    assert trust.SETTLING in source.replace('"\n                "', "")


def unstarted(reason: str) -> Callable[[Objects], None]:
    new = pod("signer", "n1")
    new["metadata"]["name"] = "podsvid-signer-new"
    state = {"waiting": {"reason": reason, "message": "back-off"}}
    new["status"] = {"phase": "Running", "containerStatuses": [{"name": "signer", "state": state}]}
    return added(PODS, new)


def test_an_upgrade_that_does_not_go_on_is_seen_while_all_is_served() -> None:
    assert the_only(unstarted("CrashLoopBackOff"))[0] == "UPGRADE_STUCK"
    assert after(unstarted("ContainerCreating")) == []
    for kind, status in (("Progressing", "False"), ("ReplicaFailure", "True")):
        said = [{"type": kind, "status": status, "reason": "Why", "message": "because"}]
        reason, text = the_only(change(SIGNERS, "status", "conditions", to=said))
        assert (reason, text) == ("UPGRADE_STUCK", "Deployment podsvid-signer: Why because")
    ended = [{"type": "Progressing", "status": "True"}, {"type": "ReplicaFailure", "status": "False"}]
    assert after(change(SIGNERS, "status", "conditions", to=ended)) == []


@pytest.mark.parametrize(
    ("breaking", "said"),
    [
        (change(MAPS, to=[]), "ConfigMap podsvid/podsvid-bundle (it is not there)"),
        (change(MAPS, 1, "metadata", "labels", to={}), "ConfigMap podsvid/podsvid-bundle (it is not podsvid's)"),
        (change(MAPS, 1, "data", to={}), "ConfigMap podsvid/podsvid-bundle"),
        (change(MAPS, 0, "data", to=None), "ConfigMap shop/podsvid-bundle"),
        (change(MAPS, 1, "data", "bundle.json", to=jwks("a", "b", sequence=4)), "ConfigMap podsvid/podsvid-bundle"),
        (change(MAPS, 1, "data", "bundle.json", to="[" * 100_000), "ConfigMap podsvid/podsvid-bundle"),
        (change(TRUST_BUNDLES, to=[]), "ClusterTrustBundle podsvid.io:spiffe:example.org (it is not there)"),
    ],
)
def test_a_bundle_is_compared_in_each_of_its_places(breaking: Callable[[Objects], None], said: str) -> None:
    assert the_only(breaking) == ("BUNDLE_STALE", said)


def test_where_no_trust_bundles_are_served_none_is_missed() -> None:
    assert after(gone(TRUST_BUNDLES)) == []
    # As well a ConfigMap of that name that somebody has for himself.
    own = {"metadata": {"name": "podsvid-bundle", "namespace": "tenant"}, "data": {"ca.crt": OTHER}}
    assert after(added(MAPS, own)) == []


def test_the_bundle_has_the_name_that_agents_mount() -> None:
    renamed = change(AGENTS, "spec", "template", "spec", "volumes", 1, "configMap", "name", to="trust")
    assert the_only(renamed) == ("BUNDLE_STALE", "ConfigMap podsvid/trust (it is not there)")


class Refusing(BaseHTTPRequestHandler):
    """An API server that lets nobody do anything but read its version."""

    def do_GET(self) -> None:
        allowed = self.path == "/version"
        what = {"gitVersion": "v1.35.0"} if allowed else {"message": "nodes is forbidden: you cannot list"}
        body = json.dumps(what).encode()
        self.send_response(200 if allowed else 403)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: Any) -> None:
        """Not into the tests' output."""


@contextmanager
def refusing(folder: Path) -> Iterator[Path]:
    server = ThreadingHTTPServer(("127.0.0.1", 0), Refusing)
    serving = threading.Thread(target=server.serve_forever)
    serving.start()
    config = folder / "config"
    where = {"server": f"http://127.0.0.1:{server.server_port}"}
    text = {
        "clusters": [{"name": "c", "cluster": where}],
        "users": [{"name": "u", "user": {"token": "x"}}],
        "contexts": [{"name": "there", "context": {"cluster": "c", "user": "u"}}],
        "current-context": "there",
    }
    config.write_text(json.dumps(text))
    try:
        yield config
    finally:
        server.shutdown()
        serving.join()
        server.server_close()


def test_who_may_not_look_is_advised_no_right_that_he_does_not_lack(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with refusing(tmp_path) as config:
        parsed = argparse.Namespace(
            kubeconfig=str(config), context=None, podsvid_namespace="podsvid", timeout=60.0, output="text"
        )
        assert command.run(parsed, lambda _: None) == 3
    out = capsys.readouterr().out
    assert "UNKNOWN COULD_NOT_LOOK: nodes: nodes is forbidden: you cannot list\n" in out
    assert "pods/exec" not in out


def test_pods_that_ended_are_nobody() -> None:
    for phase in ("Failed", "Succeeded"):
        old = pod("signer", "n1")
        old["metadata"]["name"] = "podsvid-signer-evicted"
        old["spec"]["containers"][0]["image"] = "podsvid:0"
        old["status"] = {"phase": phase}
        assert after(lambda objects, old=old: objects[PODS].insert(0, old)) == []  # type: ignore[misc]
        fewer = change(SIGNERS, "status", "readyReplicas", to=1)
        unready = change(PODS, -1, "status", to={"phase": "Pending"})
        (found,) = after(lambda objects, old=old: objects[PODS].insert(0, old), unready, fewer)  # type: ignore[misc]
        assert "podsvid-signer-n2" in found.seen


def test_agents_that_nothing_creates_are_said_to_be_none() -> None:
    reason, text = the_only(change(AGENTS, "status", to={"desiredNumberScheduled": 0, "numberReady": 0}))
    assert (reason, text.split(";")[0]) == ("AGENTS_NOT_READY", "no node is to run an agent")
    none = change(PODS, to=[pod("signer", "n1"), pod("signer", "n2")])
    reason, text = the_only(none, change(AGENTS, "status", "numberReady", to=0))
    assert reason == "AGENTS_NOT_READY"
    assert "2 have no pod: `kubectl -n podsvid describe daemonset podsvid-agent`" in text
    said = [{"type": "ReplicaFailure", "status": "True", "reason": "FailedCreate", "message": "exceeded quota"}]
    status = {"readyReplicas": 0, "conditions": said}
    reason, text = the_only(change(SIGNERS, "status", to=status), change(PODS, to=healthy()[PODS][:2]))
    assert (reason, "FailedCreate exceeded quota" in text) == ("SIGNERS_NOT_READY", True)


def test_a_tainted_node_that_gets_no_agent_is_found_once_it_had_time() -> None:
    def joined(ago: timedelta) -> Callable[[Objects], None]:
        ready = {"conditions": [{"type": "Ready", "status": "True"}]}
        node = named("n9", spec={"taints": [{"key": nodes.TAINT}]}, status=ready)
        node["metadata"]["creationTimestamp"] = f"{NOW - ago:%Y-%m-%dT%H:%M:%SZ}"
        return added("/api/v1/nodes", node)

    assert the_only(joined(timedelta(days=3))) == ("TAINT_LEFT", "on n9, where no agent's pod is")
    assert after(joined(timedelta(minutes=2))) == []
    assert after(joined(timedelta(days=3)), added(PODS, {**pod("agent", "n9"), "status": {}})) == []


def test_an_agent_of_a_node_that_is_away_is_not_what_is_broken() -> None:
    def away(objects: Objects) -> None:
        objects["/api/v1/nodes"][1]["status"] = {"conditions": [{"type": "Ready", "status": "Unknown"}]}
        objects[AGENTS]["status"]["numberReady"] = 1
        objects[PODS][1]["status"]["conditions"] = [{"type": "Ready", "status": "False"}]

    (found,) = after(away)
    assert (found.reason, found.weight) == ("NODES_AWAY", Weight.NOTE)
    # And another is still found.
    both = after(away, change(AGENTS, "status", "numberReady", to=0), change(PODS, 0, "status", "conditions", to=[]))
    assert [each.reason for each in both] == ["AGENTS_NOT_READY", "NODES_AWAY"]
    assert "pod podsvid-agent-n1 on node n1" in both[0].seen


def unmounted(pod: str, message: str, **ago: float) -> Objects:
    """An event as kubelet makes it."""
    return {
        **named(f"{pod}.{message[:4]}"),
        "involvedObject": {"kind": "Pod", "name": pod},
        "reason": "FailedMount",
        "message": message,
        "lastTimestamp": at(**ago) if ago else None,
    }


def making(objects: Objects) -> None:
    waiting = {"waiting": {"reason": "ContainerCreating"}}
    status = {"phase": "Pending", "containerStatuses": [{"name": "agent", "state": waiting}]}
    change(PODS, 1, "status", to=status)(objects)
    change(AGENTS, "status", "numberReady", to=1)(objects)


def test_what_kubelet_cannot_mount_for_an_agent_is_told_and_what_to_set() -> None:
    """Where its directory is elsewhere: helm waits until its deadline, and only the pod's events say for what."""
    why = "hostPath type check failed: /var/lib/kubelet/plugins_registry is not a directory"
    told = (
        unmounted("podsvid-agent-n2", "no date"),
        unmounted("podsvid-agent-n2", why, minutes=1),
        unmounted("podsvid-agent-n2", "over by now", minutes=5),
        unmounted("podsvid-signer-n2", "another's", seconds=1),
    )
    (found,) = after(making, change(EVENTS, to=list(told)))
    assert found.reason == "AGENTS_NOT_READY"
    assert found.seen == f"1 of 2 agents are ready; pod podsvid-agent-n2 on node n2: ContainerCreating; {why}"
    assert "`hostPath type check failed`, set the chart's `kubelet.root`" in found.to_do
    (found,) = after(making, change(EVENTS, to=[]))
    assert found.seen.endswith("on node n2: ContainerCreating")
    # Whoever may not read them has all the rest.
    both = after(making, change(EVENTS, to=NotAllowed("you may not list events")))
    assert [each.reason for each in both] == ["AGENTS_NOT_READY", "COULD_NOT_LOOK"]
    assert both[1].seen == "events of podsvid's pods: you may not list events"


def test_events_are_no_matter_where_no_pod_is_being_made() -> None:
    assert after(change(EVENTS, to=NotAllowed("you may not list events"))) == []


def test_some_signers_of_several_are_less_than_broken() -> None:
    (found,) = after(change(SIGNERS, "status", "readyReplicas", to=1))
    assert (found.reason, found.weight) == ("SIGNERS_TOO_FEW", Weight.WRONG)


def test_a_clock_that_costs_nobody_anything_is_not_told() -> None:
    assert after(change(LEASES, 1, "spec", "renewTime", to="2026-11-29T12:00:30Z")) == []
    assert after(change(LEASES, 1, "spec", "renewTime", to="2026-11-29T11:59:50")) == []


def test_another_installation_beside_it_is_another_one() -> None:
    theirs = healthy()[DRIVERS][0]
    theirs["metadata"] = {"name": "csi.other", "annotations": {"meta.helm.sh/release-namespace": "elsewhere"}}
    assert after(added(DRIVERS, theirs)) == []
    labels = "app.kubernetes.io/instance"
    theirs["metadata"] = {"name": "csi.other", "labels": {labels: "other"}}
    assert after(added(DRIVERS, theirs), change(AGENTS, "metadata", "labels", to={labels: "podsvid"})) == []
    assert the_only(added(DRIVERS, theirs))[0] == "DRIVER_UNREGISTERED"


def test_definitions_that_are_not_there_leave_a_default() -> None:
    (found,) = after(change(OWN, "resources", 2, to={"name": "other"}))
    assert (found.reason, found.weight) == ("DEFINITIONS_MISSING", Weight.WRONG)


def test_tokens_of_an_audience_that_the_signer_refuses() -> None:
    reason, text = the_only(change(DRIVERS, 0, "spec", "tokenRequests", to=[{"audience": "b"}]))
    assert (reason, text) == ("DRIVER_WRONG", "CSIDriver csi.podsvid.io: tokenRequests lacks the signer's audience a")
    assert after(change(DRIVERS, 0, "spec", "tokenRequests", to=[{"audience": "b"}, {"audience": "a"}])) == []


def test_a_binding_that_only_audits_bounds_nothing() -> None:
    binding = f"{ADMISSION}/validatingadmissionpolicybindings/podsvid-signer"
    reason, text = the_only(change(binding, "spec", "validationActions", to=["Audit"]))
    assert (reason, "without Deny" in text) == ("ADMISSION_MISSING", True)


def test_a_policy_of_what_is_switched_off_may_be_absent_but_not_half() -> None:
    policy, binding = (
        f"{ADMISSION}/{kind}/podsvid-pod-certificates"
        for kind in ("validatingadmissionpolicies", "validatingadmissionpolicybindings")
    )
    there = change(policy, to={}), change(binding, to={"spec": {"validationActions": ["Deny"]}})
    assert after(*there) == []
    for half in ((there[0],), (there[1],), (*there, change(binding, to={"spec": {"validationActions": ["Warn"]}}))):
        reason, text = the_only(*half)
        assert (reason, "podsvid-pod-certificates" in text) == ("ADMISSION_MISSING", True)


def test_roots_that_cannot_be_read_are_the_ca_aboves() -> None:
    said = f"{trust.ROOTS_KEPT}{trust.UNREAD}UPSTREAM_AWAY: no answer"
    assert the_only(change("authority", "next", to=["jwt: prepare a new authority", said])) == ("UPSTREAM_AWAY", said)
    source = (ROOT / "signer/authority/roots.py").read_text()
    assert f'f"{trust.ROOTS_KEPT}' in source
    assert f'f"{trust.UNREAD}' in source


def test_roots_that_are_not_taken_are_no_ca_that_is_away() -> None:
    """Neither those of another CA, nor some that are left out beside others."""
    for why in ("UPSTREAM_ROOTS_REFUSED: no root of the active authority", "CN=two is no CA's"):
        reason, text = the_only(change("authority", "next", to=[f"{trust.ROOTS_KEPT}{why}"]))
        assert (reason, text) == ("UPSTREAM_ROOTS_REFUSED", trust.ROOTS_KEPT + why.rpartition("REFUSED: ")[2])


def test_a_step_that_the_signer_could_not_do_is_told() -> None:
    for code, reason in (("UPSTREAM_AWAY", "UPSTREAM_AWAY"), ("CONFLICT", "SIGNER_WARNS")):
        said = f"x509: {trust.FAILED}prepare: {code}: no answer; tried again at 2026-11-29T12:00:30Z"
        assert the_only(change("authority", "next", to=[said])) == (reason, said)
    assert f'f"{trust.FAILED}' in (ROOT / "signer/authority/attempts.py").read_text()


def test_the_version_of_the_chart_is_that_of_the_command() -> None:
    label = {"app.kubernetes.io/version": VERSION}
    assert after(change(SIGNERS, "metadata", "labels", to=label)) == []


def test_the_signer_that_leads_is_asked_too() -> None:
    def led(leader: str) -> Callable[[Objects], None]:
        def changed(objects: Objects) -> None:
            objects["authority"]["leader"] = leader
            asked = {"at": "OpenBao", "said": ["permission denied"]}
            objects[f"authority of {leader}"] = {**objects["authority"], "requested_x509": asked}

        return changed

    assert the_only(led("podsvid-signer-n2"))[0] == "UPSTREAM_AWAY"
    # What a signer says is no name of a pod until there is one.
    assert after(led("../secrets")) == []


@pytest.mark.parametrize(
    "answer",
    [
        {"authorities": "x"},
        {"authorities": [None]},
        {"to_do": [{}]},
        {"agents_waiting": "x"},
        {"upstream_roots": ["x"]},
        {"requested_x509": []},
        [],
    ],
)
def test_an_odd_answer_is_one_part_that_could_not_be_had(answer: Any) -> None:
    reason, text = the_only(change("authority", to=answer))
    assert (reason, text.startswith("the authorities: pod signer-1 answered")) == ("COULD_NOT_LOOK", True)


def test_no_list_and_no_time_of_a_signer_ends_the_others_findings() -> None:
    lists = ("authorities", "waiting_nodes", "to_do", "warnings", "upstream_roots", "requested_x509", "next")
    assert after(change("authority", to=dict.fromkeys(lists))) == []
    assert after(change("authority", "authorities", 0, "not_after", to="9999-12-31T23:59:59-12:00")) == []


def test_one_list_that_hangs_leaves_the_others_their_time(monkeypatch: pytest.MonkeyPatch) -> None:
    # Each of the others has to be read within it, by a thread.
    monkeypatch.setattr(looking, "SHARE", 0.5)
    ended = threading.Event()

    class Hanging(FakeCluster):
        def read(self, path: str, query: Any, kind: type[Any]) -> Any:
            if path == "/api/v1/nodes":
                ended.wait()
            return super().read(path, query, kind)

    cluster: Any = Hanging(healthy())
    try:
        (found,) = findings(look(cluster, Waiting(60.0)), NOW)
    finally:
        ended.set()
    assert found.reason == "COULD_NOT_LOOK"
    assert found.seen.endswith("within 0.5 s")
    assert found.seen.startswith("nodes: ")


def looked(*states: Objects) -> tuple[list[str], list[float]]:
    """What is found of a cluster that changes while it is waited."""
    cluster: Any = FakeCluster(states[0])
    paused: list[float] = []

    def pause(seconds: float) -> None:
        paused.append(seconds)
        cluster.objects = states[1]

    return [each.reason for each in command.looked(cluster, Waiting(60.0), pause)], paused


def test_what_passes_by_itself_is_looked_at_twice() -> None:
    def waiting(node: str) -> Objects:
        objects = healthy()
        objects["authority"] |= {"waiting_nodes": [node], "agents_waiting": 1}
        objects["authority"]["authorities"] = []
        return objects

    assert looked(waiting("n1"), healthy()) == ([], [command.AGAIN])
    # Of two agents that each took a moment, none is silent.
    assert looked(waiting("n1"), waiting("n2"))[0] == []
    assert looked(waiting("n1"), waiting("n1"))[0] == ["AGENTS_SILENT"]
    objects = healthy()
    gone(AGENTS)(objects)
    assert looked(objects, healthy())[1] == []
    # What began in between is told where nothing ends it by itself.
    assert looked(waiting("n1"), objects)[0] == ["AGENTS_MISSING"]


def test_where_no_time_is_left_for_it_once_is_enough() -> None:
    objects = healthy()
    change(TRUST_BUNDLES, to=[])(objects)
    cluster: Any = FakeCluster(objects)

    def pause(_: float) -> None:
        raise NotTold("it was waited")

    (found,) = command.looked(cluster, Waiting(command.AGAIN), pause)
    assert found.reason == "BUNDLE_STALE"
