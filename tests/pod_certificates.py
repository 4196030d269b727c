"""Pods with projected podCertificate volumes, and what kubelet asks for them."""

from __future__ import annotations

import base64
from collections.abc import Mapping
from datetime import datetime
from typing import Any

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, padding, rsa
from cryptography.hazmat.primitives.serialization import Encoding

from svid.certificates import certificates_from_pem
from svid.keys import KeyAlgorithm, PrivateKey, public_bytes

Object = dict[str, Any]

SIGNER = "podsvid.io/spiffe"
TYPES = (KeyAlgorithm.EC_P256, KeyAlgorithm.EC_P384, KeyAlgorithm.ED25519, KeyAlgorithm.RSA_3072)


def source(key_type: str = "ECDSAP256", **more: Any) -> Object:
    """Of a projected volume."""
    return {
        "podCertificate": {
            "signerName": SIGNER,
            "keyType": key_type,
            "credentialBundlePath": "credentials.pem",
            "certificateChainPath": "tls.crt",
            "keyPath": "tls.key",
            **more,
        }
    }


def trust(trust_domain: str) -> Object:
    """The source of what verifies it."""
    selector = {"matchLabels": {"podsvid.io/trust-domain": trust_domain}}
    return {"clusterTrustBundle": {"signerName": SIGNER, "labelSelector": selector, "path": "ca.crt"}}


def pod_of(name: str, account: str, node: str, *sources: Object) -> Object:
    """A pod that is bound to a node, which nobody runs."""
    return {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": name},
        "spec": {
            "serviceAccountName": account,
            "nodeName": node,
            "containers": [{"name": "main", "image": "none"}],
            "volumes": [{"name": "identity", "projected": {"sources": list(sources)}}] if sources else [],
        },
    }


def proof(key: PrivateKey, uid: str) -> bytes:
    """As kubelet of 1.35 signs it."""
    message = uid.encode()
    if isinstance(key, ec.EllipticCurvePrivateKey):
        return key.sign(message, ec.ECDSA(hashes.SHA256()))
    if isinstance(key, rsa.RSAPrivateKey):
        scheme = padding.PSS(padding.MGF1(hashes.SHA256()), padding.PSS.DIGEST_LENGTH)
        return key.sign(message, scheme, hashes.SHA256())
    assert isinstance(key, ed25519.Ed25519PrivateKey)
    return key.sign(message)


def body(pod: Object, account: Object, node: Object, key: PrivateKey | None = None, **change: Any) -> Object:
    """What kubelet of 1.35 would ask for a pod."""
    key = key or KeyAlgorithm.EC_P256.generate()
    uid = pod["metadata"]["uid"]
    spec: Object = {
        "signerName": SIGNER,
        "podName": pod["metadata"]["name"],
        "podUID": uid,
        "serviceAccountName": account["metadata"]["name"],
        "serviceAccountUID": account["metadata"]["uid"],
        "nodeName": node["metadata"]["name"],
        "nodeUID": node["metadata"]["uid"],
        "maxExpirationSeconds": 86400,
        "pkixPublicKey": base64.b64encode(public_bytes(key.public_key())).decode(),
        "proofOfPossession": base64.b64encode(proof(key, change.get("podUID", uid))).decode(),
        **change,
    }
    return {
        "apiVersion": "certificates.k8s.io/v1beta1",
        "kind": "PodCertificateRequest",
        "metadata": {"generateName": "req-", "namespace": "default"},
        "spec": spec,
    }


def outcome(status: Mapping[str, Any]) -> tuple[str, str]:
    """Type and reason."""
    (condition,) = status["conditions"]
    return condition["type"], condition["reason"]


def leaf(status: Mapping[str, Any]) -> x509.Certificate:
    """What was issued."""
    return certificates_from_pem(status["certificateChain"].encode())[0]


def spiffe_id(certificate: x509.Certificate) -> str:
    """Of a certificate."""
    names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    (found,) = names.get_values_for_type(x509.UniformResourceIdentifier)
    return str(found)


def csr(key: PrivateKey) -> str:
    """As kubelet of 1.36 asks, in base64."""
    request = x509.CertificateSigningRequestBuilder().subject_name(x509.Name([]))
    signed = request.sign(key, None if isinstance(key, ed25519.Ed25519PrivateKey) else hashes.SHA256())
    return base64.b64encode(signed.public_bytes(Encoding.DER)).decode()


def instant(text: str) -> datetime:
    """Of a status."""
    return datetime.fromisoformat(text)
