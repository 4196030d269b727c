"""A workload that uses the `spiffe` package from PyPI; in a process of its own, one JSON object a line."""

import json
import queue
import sys

from spiffe import TrustDomain, WorkloadApiClient, X509Source


def say(**line: object) -> None:
    print(json.dumps(line), flush=True)


def main(socket: str, rotations: int) -> None:
    with WorkloadApiClient(socket) as client:
        svid = client.fetch_x509_svid(timeout=30)
        say(id=str(svid.spiffe_id), serial=f"{svid.leaf.serial_number:x}")
        bundles = client.fetch_x509_bundles(timeout=30)
        bundle = bundles.get_bundle_for_trust_domain(TrustDomain("example.org"))
        say(authorities=len(bundle.x509_authorities) if bundle else 0)
        try:
            client.fetch_jwt_bundles(timeout=30)
        except Exception as error:
            say(jwt=f"{type(error).__name__}: {error}")
    updates: queue.Queue[None] = queue.Queue()
    with X509Source(socket_path=socket, timeout_in_seconds=30) as source:
        source.subscribe_for_updates(lambda: updates.put(None))
        seen = {f"{source.get_x509_context().default_svid.leaf.serial_number:x}"}
        while len(seen) <= rotations:
            updates.get(timeout=60)
            seen.add(f"{source.get_x509_context().default_svid.leaf.serial_number:x}")
        say(serials=sorted(seen))


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]))
