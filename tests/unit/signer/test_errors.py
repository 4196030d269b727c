"""Every reason has a status and is explained; every test that the threat model names exists."""

import re
from pathlib import Path

from signer.errors import HELP, Reason
from signer.front.statuses import STATUS_CODES

ROOT = Path(__file__).parents[3]
SHORT = {
    "C": "tests/cluster/test_signer.py",
    "A": "tests/unit/signer/test_attestation.py",
    "B": "tests/unit/signer/test_bad_tokens.py",
    "P": "tests/unit/signer/test_policy.py",
    "N": "tests/node/test_signer_authority.py",
    "O": "tests/cluster/test_outage.py",
    "S": "tests/unit/signer/test_store.py",
    "G": "tests/unit/signer/test_agreement.py",
    "E": "tests/unit/signer/test_cluster_services.py",
    "K": "tests/cluster/test_alone.py",
    "D": "tests/node/test_door.py",
    "M": "tests/unit/signer/test_admission.py",
    "L": "tests/unit/runtime/test_log.py",
    "F": "tests/unit/agent/test_proven_signer.py",
    "T": "tests/unit/agent/test_trust_stream.py",
    "R": "tests/unit/signer/test_abandonments.py",
    "Q": "tests/unit/signer/test_policy_schema.py",
    "W": "tests/unit/signer/test_policy_places.py",
    "U": "tests/unit/signer/test_policy_cost.py",
    "Y": "tests/unit/agent/test_false_trust.py",
    "X": "tests/node/test_exposed.py",
    "V": "tests/unit/agent/test_servers.py",
    "Z": "tests/unit/csi/test_node_full.py",
    "H": "tests/unit/csi/test_adoption.py",
    "J": "tests/unit/signer/test_leaving.py",
    "I": "tests/node/test_headers.py",
}


def test_every_reason_is_explained_and_has_a_status() -> None:
    assert set(HELP) == set(Reason) - {Reason.INTERNAL}
    assert set(STATUS_CODES) == set(Reason)


def test_the_threat_model_names_tests_that_exist() -> None:
    text = (ROOT / "docs" / "threat-model.md").read_text()
    named = re.findall(r"`([A-Z]|tests/[\w/]+\.py)::(\w+)`", text)
    assert len(named) > 20
    for file, test in named:
        source = (ROOT / SHORT.get(file, file)).read_text()
        assert re.search(rf"^(def {test}\(|{test} = )", source, re.MULTILINE), f"{file}::{test}"
