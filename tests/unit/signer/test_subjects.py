"""The subject of certificates by a policy's subjectTemplate: who may be called what, and where it is seen."""

import logging
import re
from dataclasses import replace
from typing import Any

import pytest
import yaml
from cryptography import x509
from cryptography.x509.oid import NameOID
from hypothesis import example, given
from hypothesis import strategies as st

from signer.errors import InvalidPolicy, Reason, Refused
from signer.model import LivePod
from signer.policy.template import subject_template
from svid.authority import MAX_COMMON_NAME
from svid.certificates import certificates_from_der
from tests.unit.signer.door import Door, at_the_door, lines
from tests.unit.signer.istio_door import IstioDoor, at_istios_door
from tests.unit.signer.test_minting import GIVEN, HOUR, REQUEST, minting
from tests.unit.signer.test_minting import POD as MINTED
from tests.unit.signer.test_minting import refused as not_minted
from tests.unit.signer.test_policy import CRDS, POD, given_to, policy, refused
from tests.unit.signer.test_policy_status import Rig, followed, pod, told

USUAL = "CN={service_account}@{namespace}"
PIECES = st.lists(
    st.sampled_from(
        ["CN=", "a", "@", "@{namespace}", "{namespace}", "{labels['a@b']}", "{pod}", ".", "-", "+", ",O=", "/", "{x}"]
    ),
    max_size=6,
).map("".join)
MOST = st.lists(st.sampled_from(["a", "@", "@{namespace}", "{service_account}", "{labels['a@b']}", "_"]), max_size=5)


def rules(kind: str) -> list[re.Pattern[str] | str]:
    """By which the API server judges a subject: a regular expression, then what it has to end with."""
    document = yaml.safe_load((CRDS / f"{kind}.yaml").read_text())
    spec = document["spec"]["versions"][0]["schema"]["openAPIV3Schema"]["properties"]["spec"]["properties"]
    first, *more = [each["rule"] for each in spec["subjectTemplate"]["x-kubernetes-validations"]]
    matches = re.fullmatch(r'self\.matches\(r"(.*)"\)', first)
    assert matches
    ends = [re.fullmatch(r"self\.endsWith\('(.*)'\)", each) for each in more]
    return [re.compile(matches[1]), *(each[1] for each in ends if each)]


RULES = {False: rules("clusterworkloadidentities"), True: rules("workloadidentities")}


@given(PIECES | MOST.map(lambda pieces: "CN=" + "".join(pieces)), st.booleans())
@example("CN={labels['a@b']}", False)
@example("CN=db@shop", False)
@example("CN={pod}@shop", False)
@example("CN={pod}@s{namespace}", False)
@example("CN=db@{namespace}", False)
@example("CN={service_account}@{namespace}", True)
@example("CN=@{namespace}", True)
@example("CN=a@{namespace}@{namespace}", True)
@example("CN=billing\n", False)
def test_the_api_server_refuses_what_the_signer_would(text: str, namespaced: bool) -> None:
    pattern, *ends = RULES[namespaced]
    assert isinstance(pattern, re.Pattern)
    assert len(ends) == namespaced
    ended = all(text.endswith(str(each)) for each in ends)
    at_the_api_server = bool(pattern.search(text)) and not text.endswith("\n") and ended
    try:
        subject_template(text, namespaced=namespaced)
    except InvalidPolicy:
        assert not at_the_api_server, text
    else:
        assert at_the_api_server, text


@given(
    st.text(max_size=70) | st.text(alphabet="aZ0.-_@", min_size=1, max_size=70),
    st.sampled_from(["shop", "a-b", "x" * 63]),
    st.sampled_from([USUAL, "CN={labels['a']}@{namespace}", "CN=u.{pod}-{labels['a']}@{namespace}"]),
    st.booleans(),
)
@example("db@other", "shop", USUAL, True)
@example("web,O=admins", "shop", "CN={labels['a']}@{namespace}", False)
@example("a" * 60, "shop", USUAL, True)
def test_whatever_a_pods_author_writes_nobody_is_taken_for_somebody_of_another_namespace(
    value: str, namespace: str, template: str, namespaced: bool
) -> None:
    asking = LivePod(namespace, "web-0", "uid", "node", value, {"a": value})
    try:
        found = subject_template(template, namespaced=namespaced).common_name(asking)
    except InvalidPolicy:
        whole = subject_template(template, namespaced=namespaced).text.removeprefix("CN=")
        for name in ("service_account", "pod", "namespace", "labels['a']"):
            known = {"service_account": value, "pod": "web-0", "namespace": namespace, "labels['a']": value}
            whole = whole.replace(f"{{{name}}}", known[name])
        plain = re.fullmatch(r"[a-zA-Z0-9._-]+", value) and value not in (".", "..")
        assert not plain or len(whole) > MAX_COMMON_NAME
        return
    name, at, where = found.rpartition("@")
    assert (at, where) == ("@", namespace)
    assert re.fullmatch(r"[a-zA-Z0-9._-]+", name)
    assert len(found) <= MAX_COMMON_NAME
    # One notation for all: nothing of it is escaped.
    written = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, found)])
    assert written.rfc4514_string() == f"CN={found}"


@given(PIECES | MOST.map(lambda pieces: "CN=" + "".join(pieces)), st.booleans())
@example("CN=db@{labels['team']}", False)
@example("CN={pod}@shop", False)
@example("CN={pod}@{labels['team']}", False)
@example("CN=db@s{namespace}", False)
@example("CN={service_account}.{namespace}@corp", False)
@example("CN=db@shop", False)
def test_behind_an_at_is_the_pods_own_namespace_whoever_wrote_the_policy(text: str, namespaced: bool) -> None:
    """So that whose policy a name comes from makes no difference to who reads it."""
    labels = dict.fromkeys(("a@b", "team"), "shop")
    for namespace in ("evil", "hop", "corp"):
        try:
            found = subject_template(text, namespaced=namespaced).common_name(
                LivePod(namespace, "db", "uid", "node", "shop", labels)
            )
        except InvalidPolicy:
            continue
        assert "@" in found or not namespaced
        assert found.partition("@")[1:] in (("@", namespace), ("", ""))


@pytest.mark.parametrize(
    "text",
    [
        "",
        "web",
        "CN=",
        "cn=web@{namespace}",
        "CN=web",
        "CN={namespace}.web",
        "CN=web@shop",
        "CN=web@{namespace}.x",
        "CN=web,O=x@{namespace}",
        "CN=a b@{namespace}",
        "CN=web@{labels['team']}",
        7,
        False,
        ["CN=web@{namespace}"],
    ],
)
def test_a_namespaces_policy_that_names_others_or_nobody_refuses(text: Any) -> None:
    found = policy("p", "shop", subjectTemplate=text)
    assert found.problem
    assert refused(POD, found, policy("wide")) is Reason.POLICY_UNUSABLE


def test_without_one_there_is_no_subject() -> None:
    assert given_to(POD).common_name == ""
    assert given_to(POD, policy("p", subjectTemplate=None)).common_name == ""


@pytest.mark.parametrize("text", ["CN={service_account}", "CN={namespace}.{pod}", "CN={labels['a@b']}"])
def test_what_pods_authors_choose_is_never_the_name_of_a_host(text: str) -> None:
    """OpenSSL holds the common name against the host where a certificate has no DNS name; also by an administrator."""
    assert "must end with @{namespace}" in policy("p", subjectTemplate=text).problem


def test_an_administrator_may_name_somebody() -> None:
    assert given_to(POD, policy("p", subjectTemplate="CN=billing")).common_name == "billing"
    by_label = policy("p", subjectTemplate="CN=db-{labels['tier']}@{namespace}")
    assert given_to(POD, by_label).common_name == "db-front@shop"
    assert refused(POD, policy("p", subjectTemplate="CN={labels['absent']}@{namespace}")) is Reason.POLICY_UNUSABLE


@pytest.mark.parametrize(
    "text",
    ["CN=db@shop", "CN=db@{labels['tier']}", "CN={pod}@shop", "CN=db@s{namespace}", "CN={pod}.{namespace}@corp"],
)
def test_nor_does_an_administrators_policy_write_another_namespace_behind_an_at(text: str) -> None:
    found = policy("p", subjectTemplate=text)
    assert "@{namespace}" in found.problem
    assert refused(POD, found) is Reason.POLICY_UNUSABLE


def test_nothing_is_cut_off() -> None:
    fits, longer = (replace(POD, service_account="a" * (MAX_COMMON_NAME - 5 + more)) for more in (0, 1))
    wanted = policy("p", "shop", subjectTemplate=USUAL)
    assert given_to(fits, wanted).common_name == f"{fits.service_account}@shop"
    with pytest.raises(Refused, match=f"65 characters, and a common name has {MAX_COMMON_NAME}") as caught:
        given_to(longer, wanted, policy("wide"))
    assert caught.value.reason is Reason.POLICY_UNUSABLE


def subject(certificate: x509.Certificate) -> str:
    return certificate.subject.rfc4514_string()


def test_it_is_in_what_is_minted_and_the_san_is_no_longer_critical() -> None:
    given = replace(GIVEN, common_name="web@default")
    by_agent = minting().x509(MINTED, given, REQUEST, None, ()).chain[0]
    key = by_agent.public_key()
    by_kubelet = minting().pod_certificate(MINTED, given, key, 2 * HOUR, (), "there").chain[0]  # type: ignore[arg-type]
    for leaf in (by_agent, by_kubelet):
        assert subject(leaf) == "CN=web@default"
        assert not leaf.extensions.get_extension_for_class(x509.SubjectAlternativeName).critical
    assert subject(minting().x509(MINTED, GIVEN, REQUEST, None, ()).chain[0]) == ""


@pytest.mark.parametrize("name", ["a" * 65, "a,O=b", "a/b", "é", "a b", "a\n", "#a"])
def test_what_is_no_common_name_is_not_signed(name: str) -> None:
    assert not_minted(replace(GIVEN, common_name=name)) is Reason.ISSUANCE_REFUSED


@pytest.mark.parametrize(
    "name",
    ["signer.podsvid.internal", "SIGNER.PODSVID.INTERNAL", "signer.podsvid.internal.", "Signer.Podsvid.internal.."],
)
def test_the_signers_own_name_is_nobodys_in_whichever_spelling(name: str) -> None:
    """A program that takes a common name for a host's compares it as DNS does: without case."""
    assert not_minted(replace(GIVEN, common_name=name)) is Reason.DNS_NAME_DENIED


def test_a_policy_with_the_signers_own_name_is_not_ready() -> None:

    async def test(rig: Rig) -> None:
        path = rig.cluster("own", subjectTemplate="CN=signer.podsvid.internal")
        _, conditions = await rig.status(path, pod())
        assert "signer.podsvid.internal is the signer's own" in conditions["Ready"]["message"]

    followed(test)


def test_explain_and_statuses_say_it() -> None:
    async def test(rig: Rig) -> None:
        path = rig.cluster("p", subjectTemplate="CN={service_account}@{namespace}")
        await told()
        asking = pod()
        assert rig.policies.explain(asking).subject == f"CN={asking.service_account}@{asking.namespace}"
        longer = replace(asking, service_account="a" * 70)
        assert rig.policies.explain(longer).subject == ""
        assert "nothing is cut off" in rig.policies.explain(longer).outcome
        _, conditions = await rig.status(path, longer)
        assert (conditions["Ready"]["status"], conditions["Ready"]["reason"]) == ("False", "Unusable")

    followed(test)


def test_an_agents_pod_gets_it_and_the_audit_log_says_so(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)

    async def test(door: Door) -> None:
        claim = door.site.pod("web")
        await door.x509(claim, door.site.token(claim))
        door.policy("named", subjectTemplate=USUAL)
        await door.told()
        answer = await door.x509(claim, door.site.token(claim))
        assert subject(certificates_from_der(answer.chain)[0]) == "CN=web@default"
        assert [each.get("subject") for each in lines(caplog)] == [None, "CN=web@default"]

    at_the_door(test)


def test_istios_proxies_get_it_but_for_a_ztunnel_whose_certificate_is_of_several_pods() -> None:
    async def test(door: IstioDoor) -> None:
        ztunnel, web = door.ztunnel(), door.proxy("web")
        door.proxy("web-2")
        door.policy("named", subjectTemplate="CN={pod}@{namespace}")
        await door.told()
        assert subject((await door.ask(door.token(web))).leaf) == "CN=web@default"
        assert subject((await door.impersonate(door.token(ztunnel), "default", "web")).leaf) == ""

    at_istios_door(test)
