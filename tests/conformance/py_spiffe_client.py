"""A workload that uses the `spiffe` package from PyPI; in a process of its own, one JSON object a line."""

import json
import queue
import re
import sys
import time

from spiffe import JwtSource, JwtSvid, TrustDomain, WorkloadApiClient, X509Source
from spiffe.workloadapi.x509_context import X509Context

OWN = TrustDomain("example.org")


def say(**line: object) -> None:
    print(json.dumps(line), flush=True)


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


def tokens(socket: str) -> None:
    """JWT-SVIDs through the source that programs use, checked here and by the server, until one was renewed."""
    with JwtSource(socket_path=socket, timeout_in_seconds=30) as source, WorkloadApiClient(socket) as client:
        svid = source.fetch_svid({"db", "cache"}, timeout=30)
        bundle = source.get_bundle_for_trust_domain(OWN)
        if bundle is None:
            raise RuntimeError("the source has no JWT bundle of the own trust domain")
        JwtSvid.parse_and_validate(svid.token, bundle, {"db", "cache"})
        asked = client.validate_jwt_svid(svid.token, "db", timeout=30)
        try:
            client.validate_jwt_svid(svid.token, "wrong", timeout=30)
        except Exception as error:
            wrong = str(error)
        else:
            wrong = "accepted"
        cached = source.fetch_svid({"cache", "db"}, timeout=30).token == svid.token
        say(id=str(svid.spiffe_id), asked=str(asked.spiffe_id), cached=cached, wrong=wrong, token=svid.token)
        deadline = time.monotonic() + 60
        while (fresh := source.fetch_svid({"db", "cache"}, timeout=30)).token == svid.token:
            if time.monotonic() > deadline:
                raise RuntimeError("the token was never renewed")
            time.sleep(0.05)
        say(renewed=fresh.expiry > svid.expiry)


def end(socket: str) -> None:
    """The status that an open stream ends with."""
    ended: queue.Queue[Exception] = queue.Queue()
    with WorkloadApiClient(socket) as client:
        client.stream_x509_contexts(lambda context: say(id=verified(context)), ended.put, retry_connect=False)
        say(ended=str(ended.get(timeout=60)))


def follow(socket: str) -> None:
    """Each SVID of a stream that is opened again whenever it ends, and the status it ended with.

    At each line that it is sent it asks once more, and says what an X509Source holds beside it.
    """
    with WorkloadApiClient(socket) as client, X509Source(socket_path=socket, timeout_in_seconds=30) as source:

        def again() -> None:
            # The library's own retries, which the source makes, tell nobody what they are for.
            client.stream_x509_contexts(lambda context: say(serial=verified(context)), ended, retry_connect=False)

        def ended(error: Exception) -> None:
            say(ended=status(error))
            time.sleep(0.2)
            again()

        again()
        for _ in sys.stdin:
            try:
                fetched = f"{client.fetch_x509_svid(timeout=10).leaf.serial_number:x}"
            except Exception as error:
                fetched = status(error)
            say(fetched=fetched, held=verified(source.get_x509_context()))


def status(error: Exception) -> str:
    """The gRPC code that the library's text names."""
    found = re.search(r"StatusCode\.([A-Z_]+)", f"{error} {error.__cause__}")
    return found.group(1) if found else str(error)


if __name__ == "__main__":
    if sys.argv[1] == "end":
        end(sys.argv[2])
    elif sys.argv[1] == "follow":
        follow(sys.argv[2])
    elif sys.argv[1] == "jwt":
        tokens(sys.argv[2])
    else:
        main(sys.argv[1], int(sys.argv[2]))
