"""The CA above the authorities, put together of all settings that say something of it."""

from typing import TYPE_CHECKING

from signer.awspca_settings import AwsPcaSettings
from signer.certmanager_settings import CertManagerSettings
from signer.googlecas_settings import GoogleCasSettings
from signer.openbao_settings import OpenBaoSettings
from signer.spire_settings import SpireSettings
from signer.upstream_settings import FileSettings, UpstreamSettings

if TYPE_CHECKING:
    from signer.config import SignerConfig


def of(config: "SignerConfig") -> UpstreamSettings:
    """What these settings say of it."""
    roots = config.upstream_bundle_file
    return UpstreamSettings(
        config.upstream,
        FileSettings(
            config.upstream_cert_file, config.upstream_key_file, roots, config.upstream_dir, config.upstream_key_uri
        ),
        OpenBaoSettings(
            config.openbao_address,
            config.openbao_mount,
            config.openbao_issuer,
            config.openbao_namespace,
            config.openbao_ca_file,
            config.openbao_auth,
            config.openbao_auth_mount,
            config.openbao_role,
            config.openbao_token_file,
            config.openbao_role_id,
            config.openbao_secret_id_file,
            config.openbao_cert_file,
            config.openbao_key_file,
            roots,
        ),
        CertManagerSettings(
            config.cert_manager_issuer_name,
            config.cert_manager_issuer_kind,
            config.cert_manager_issuer_group,
            config.cert_manager_namespace,
            roots,
        ),
        AwsPcaSettings(config.aws_pca_arns, config.aws_pca_template, roots),
        GoogleCasSettings(config.google_cas_pool, config.google_cas_ca, roots),
        SpireSettings(
            config.trust_domain,
            config.spire_address,
            config.spire_agent_socket,
            config.spire_svid_dir,
            config.spire_spiffe_id,
            roots,
        ),
    )
