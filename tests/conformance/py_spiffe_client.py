"""A workload that uses the `spiffe` package from PyPI; in a process of its own, one JSON object a line."""

import json
import queue
import sys
from collections.abc import Callable

from spiffe import TrustDomain, WorkloadApiClient, X509Source
from spiffe.workloadapi.x509_context import X509Context

OWN = TrustDomain("example.org")


def say(**line: object) -> None:
    print(json.dumps(line), flush=True)


def refused(call: Callable[[], object]) -> str:
    """What the client makes of a call that the server does not have."""
    try:
        call()
    except Exception as error:
        return f"{type(error).__name__}: {error}"
    return "answered"


def verified(context: X509Context) -> str:
    """The serial of the default SVID, whose signature one of the context's own authorities made."""
    svid = context.default_svid
    bundle = context.x509_bundle_set.get_bundle_for_trust_domain(OWN)
    if bundle is None:
        raise RuntimeError("the context has no bundle of the own trust domain")
    (authority,) = bundle.x509_authorities
    # The client checks neither of these by itself.
    svid.leaf.verify_directly_issued_by(authority)
    if svid.private_key.public_key() != svid.leaf.public_key():
        raise RuntimeError("the key does not fit the certificate")
    return f"{svid.leaf.serial_number:x}"


def main(socket: str, rotations: int) -> None:
    with WorkloadApiClient(socket) as client:
        svid = client.fetch_x509_svid(timeout=30)
        say(id=str(svid.spiffe_id), serial=f"{svid.leaf.serial_number:x}", chain=len(svid.cert_chain))
        context = client.fetch_x509_context(timeout=30)
        say(id=str(context.default_svid.spiffe_id), serial=verified(context))
        bundle = client.fetch_x509_bundles(timeout=30).get_bundle_for_trust_domain(OWN)
        say(authorities=len(bundle.x509_authorities) if bundle else 0)
        say(
            fetch_jwt_svid=refused(lambda: client.fetch_jwt_svid(audience={"test"}, timeout=30)),
            fetch_jwt_bundles=refused(lambda: client.fetch_jwt_bundles(timeout=30)),
            validate_jwt_svid=refused(lambda: client.validate_jwt_svid("e30.e30.AA", "test", timeout=30)),
        )
    updates: queue.Queue[None] = queue.Queue()
    with X509Source(socket_path=socket, timeout_in_seconds=30) as source:
        source.subscribe_for_updates(lambda: updates.put(None))
        seen = [verified(source.get_x509_context())]
        while len(seen) <= rotations:
            updates.get(timeout=60)
            serial = verified(source.get_x509_context())
            # An update that came between the first look and the subscription is told of twice.
            if serial != seen[-1]:
                seen.append(serial)
        say(serials=seen)


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]))
