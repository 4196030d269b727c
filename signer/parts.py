"""What the settings mean for each part of a replica."""

from signer import istio_settings, public_settings
from signer.attestation.attestor import AttestationSettings
from signer.audience_settings import KEYS_MAX_AGE
from signer.config import SignerConfig
from signer.minting.minting import MintingSettings
from signer.policy.policy import PolicySettings
from signer.public.listeners import BUNDLE, OIDC, Listening, PublicSettings
from signer.publishing.config_maps import Published, bundle_map, root_map
from signer.publishing.documents import Publication


def policy(config: SignerConfig) -> PolicySettings:
    """Which identity a pod gets."""
    return PolicySettings(
        trust_domain=config.trust_domain,
        default_path=config.default_path,
        cluster_domain=config.cluster_domain,
        require_policy=config.require_policy,
        max_per_namespace=config.policies_per_namespace,
        max_services=config.services_per_namespace,
        reserved_ids=frozenset(() if config.spire_spiffe_id is None else (config.spire_spiffe_id,)),
        ttls=config.ttls,
        dns_names=config.dns_names,
        own_names=istio_settings.own_names(config),
    )


def attestation(config: SignerConfig) -> AttestationSettings:
    """Who calls, and for which pod."""
    return AttestationSettings(
        agent_namespace=config.agent_namespace,
        agent_service_account=config.agent_service_account,
        drivers=frozenset(config.driver_names),
        outage_limit=config.outage_limit,
    )


def minting(config: SignerConfig) -> MintingSettings:
    """What is signed."""
    return MintingSettings(
        config.ttls,
        config.jwt_issuer or "",
        config.jwt_jti,
        config.dns_names,
        backdate=config.x509_backdate,
        own_names=istio_settings.own_names(config),
    )


def publication(config: SignerConfig) -> Publication:
    """What verifiers without an agent fetch."""
    try:
        issuer = public_settings.issuer(config)
    except ValueError:
        # Such an issuer was always allowed in tokens; nobody can discover its keys.
        issuer = None
    return Publication(config.bundle_hint, issuer, config.jwt_issuer or "")


def published(config: SignerConfig) -> tuple[Published, ...]:
    """In which ConfigMaps the own trust bundle is found."""
    own = bundle_map(config.bundle_config_map)
    if config.istio_listen is None:
        return (own,)
    return (own, root_map(config.istio_root_config_map, istio_settings.ROOT_KEY))


def public(config: SignerConfig) -> PublicSettings:
    """What is served to anybody."""
    bundle = public_settings.files(config.bundle_cert_file, config.bundle_key_file)
    listening = []
    if config.bundle_listen is not None:
        listening.append(Listening(BUNDLE, config.bundle_listen, bundle))
    if config.oidc_listen is not None:
        pair = public_settings.files(config.oidc_cert_file, config.oidc_key_file)
        listening.append(Listening(OIDC, config.oidc_listen, pair))
    max_age = min(KEYS_MAX_AGE, config.bundle_hint)
    return PublicSettings(tuple(listening), publication(config), int(max_age.total_seconds()))
