"""Which files a volume holds and what is in them (DESIGN: The volume, layout `spiffe`)."""

from collections.abc import Callable, Mapping

from svid.bundle import TrustBundle
from svid.errors import SvidError
from svid.identity import WorkloadIdentity
from svid.x509svid import X509Svid

CHAIN, KEY, BUNDLE = "tls.crt", "tls.key", "ca.crt"
COMBINED, BUNDLE_JWKS = "credential-bundle.private-key.pem", "bundle.json"
SOCKET, SOCKET_LINKS = "socket", ("spire-agent.sock", "api.sock")


def render(identity: WorkloadIdentity) -> Mapping[str, bytes]:
    """File name to content for the default SVID and its bundle: PEM chain leaf first, PKCS#8 PEM key, JWKS."""
    svid = identity.default
    chain, key = svid.chain_pem(), svid.key_pem()
    return {
        CHAIN: chain,
        KEY: key,
        BUNDLE: identity.bundle.to_pem(),
        COMBINED: key + chain,
        BUNDLE_JWKS: identity.bundle.to_jwks(),
    }


def parse(read: Callable[[str], bytes]) -> WorkloadIdentity:
    """The identity that `render` wrote, from files by name. Raises SvidError or OSError."""
    svid = X509Svid.from_pem(read(CHAIN), read(KEY))
    bundle = TrustBundle.from_jwks(svid.spiffe_id.trust_domain, read(BUNDLE_JWKS))
    if not bundle.x509_authorities:
        raise SvidError(f"{BUNDLE_JWKS} holds no X.509 authority")
    return WorkloadIdentity(svids=(svid,), bundle=bundle)
