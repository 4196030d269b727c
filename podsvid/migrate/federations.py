"""A ClusterFederatedTrustDomain as a FederatedTrustDomain."""

from collections.abc import Mapping
from typing import Any

from podsvid.migrate.fields import Finding, Unfit, Verdict, known, mapping, text
from podsvid.migrate.settings import Spire
from podsvid.migrate.written import Written, checked
from signer.federation.relation import KIND as FEDERATION
from signer.federation.relation import Profile

KIND = "ClusterFederatedTrustDomain"
_FIELDS = ("trustDomain", "bundleEndpointURL", "bundleEndpointProfile", "trustDomainBundle", "className")


def carried(name: str, spec: Mapping[str, Any], spire: Spire) -> tuple[Written, list[Finding]]:
    """Its object here, and what differs. Raises Unfit."""
    source = f"{KIND} {name}"
    spire.check_active(KIND, text(spec, "className"))
    known(spec, _FIELDS)
    if text(spec, "trustDomain") == spire.names.trust_domain != "":
        raise Unfit("it is the trust domain itself", "nothing", Verdict.NEEDLESS)
    given = mapping(spec, "bundleEndpointProfile")
    known(given, ("type", "endpointSPIFFEID"), "bundleEndpointProfile's")
    profile = {"type": text(given, "type")}
    findings = []
    if text(given, "endpointSPIFFEID"):
        if profile["type"] == Profile.WEB:
            why = "its endpointSPIFFEID is left out: https_web has none, and SPIRE does not look at it"
            findings.append(Finding(Verdict.DIFFERS, source, why))
        else:
            profile["endpointSPIFFEID"] = text(given, "endpointSPIFFEID")
    bundle = text(spec, "trustDomainBundle")
    if profile["type"] == Profile.SPIFFE and not bundle:
        why = "it has no trustDomainBundle: the first look at the endpoint has nothing to know it by"
        to_do = "add the partner's bundle (docs/federate.md, By SPIFFE)"
        findings.append(Finding(Verdict.DIFFERS, source, why, to_do))
    written = checked(
        Written(
            FEDERATION,
            name,
            {
                "trustDomain": text(spec, "trustDomain"),
                "bundleEndpointURL": text(spec, "bundleEndpointURL"),
                "bundleEndpointProfile": profile,
                **({"trustDomainBundle": bundle} if bundle else {}),
            },
            source,
        )
    )
    return written, findings
