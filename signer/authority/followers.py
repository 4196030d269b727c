"""What of the authorities some verifiers cannot follow, for whoever runs the cluster: ML-DSA, which not all know."""

from collections.abc import Iterable

from cryptography.hazmat.primitives import hashes

from signer.authority.slots import Stage
from signer.authority.state import AuthorityState
from svid.postquantum import Part, Verifier, refusing, signs_below, unused_roots

_SEE = "docs/post-quantum.md"


def warnings(state: AuthorityState) -> list[str]:
    """A line each; none where nothing is of ML-DSA. What signs no more is none of it: its SVIDs end by themselves."""
    lines = []
    refused = _named(refusing(Part.ABOVE))
    for slot in state.x509:
        if not signs_below(slot.authority):
            continue
        if slot.stage is Stage.PREPARED:
            lines.append(
                f"x509: SVIDs of the prepared authority {slot.id} take verifiers that know ML-DSA; as soon as it signs "
                f"these refuse all of them: {refused}. Change these first; or give the signer a CA above, or an "
                "authority_algorithm, that is not ML-DSA, and then take this one back, else another is made: podsvid "
                f"authority revoke {slot.id} ({_SEE})"
            )
        elif slot.stage is Stage.ACTIVE:
            lines.append(
                f"x509: SVIDs of the active authority {slot.id} take verifiers that know ML-DSA; these refuse them: "
                f"{refused}. Change these, or change to a CA above, or an authority_algorithm, that is not ML-DSA, and "
                f"rotate ({_SEE})"
            )
    for root in unused_roots(state.bundle.x509_authorities, [slot.authority for slot in state.x509]):
        lines.append(
            f"x509: the trust bundle has the ML-DSA root {root.fingerprint(hashes.SHA256()).hex()}, which nothing "
            "leads to yet: no verifier that was tried minds. Before an authority below it signs, change these: "
            f"{refused} ({_SEE})"
        )
    return lines


def _named(verifiers: Iterable[Verifier]) -> str:
    return "; ".join(f"{each.name} (instead: {each.instead})" for each in verifiers)
