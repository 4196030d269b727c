"""What certificates of an authority may be used for: the extensions that say so (X509-SVID.md 4, appendix A)."""

from cryptography import x509
from cryptography.x509.oid import ExtendedKeyUsageOID

from svid.certificates import ExtensionT


def key_usage(
    *,
    digital_signature: bool = False,
    key_encipherment: bool = False,
    key_cert_sign: bool = False,
    crl_sign: bool = False,
) -> x509.KeyUsage:
    """With these bits, and no other."""
    return x509.KeyUsage(
        digital_signature=digital_signature,
        content_commitment=False,
        key_encipherment=key_encipherment,
        data_encipherment=False,
        key_agreement=False,
        key_cert_sign=key_cert_sign,
        crl_sign=crl_sign,
        encipher_only=False,
        decipher_only=False,
    )


def stated(value: ExtensionT, *, critical: bool) -> x509.Extension[ExtensionT]:
    """It as a certificate states it."""
    return x509.Extension(value.oid, critical, value)


# What is the same in every leaf.
END_ENTITY = stated(x509.BasicConstraints(ca=False, path_length=None), critical=True)
USAGE = stated(key_usage(digital_signature=True), critical=True)
USAGE_OF_RSA = stated(key_usage(digital_signature=True, key_encipherment=True), critical=True)
EXTENDED_USAGE = stated(
    x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH, ExtendedKeyUsageOID.CLIENT_AUTH]), critical=False
)
