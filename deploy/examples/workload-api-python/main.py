"""Prints each SVID that this pod gets, as it gets it. SPIFFE_ENDPOINT_SOCKET says where the Workload API is."""

import threading

from spiffe import X509Source

changed = threading.Event()

with X509Source() as source:
    source.subscribe_for_updates(changed.set)
    seen = None
    while True:
        svid = source.get_x509_context().default_svid
        if svid.leaf.serial_number != seen:
            seen = svid.leaf.serial_number
            print(
                f"{svid.spiffe_id} serial {seen:x} until {svid.leaf.not_valid_after_utc:%Y-%m-%dT%H:%M:%SZ}", flush=True
            )
        changed.wait(30)
        changed.clear()
