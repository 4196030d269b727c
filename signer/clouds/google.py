"""Google Cloud by its own libraries, with the credentials that they find by themselves: the pod's service account."""

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from types import MappingProxyType
from typing import Any

from runtime.extras import not_installed
from runtime.words import line
from signer.clouds.process import Failed

# Seconds by which an answer is given up before its process is ended.
EARLIER_SECONDS = 1.0
# Statuses by HTTP's numbers: another attempt may get past these, beside 5xx.
_BUSY = (408, 429, 499)
# Whose words are told: those of others may be about a credential.
_TOLD = (400, 403, 404, 409, 412, 429)
# What gRPC says where no token was to be had, as its own 503; what follows may have an answer to a credential.
_NO_TOKEN = "Getting metadata from plugin failed"
# Milliseconds: by its default it would not connect again for two minutes, however soon it is asked.
RECONNECT_MS = 5000
_KINDS = {401: "credentials", 404: "missing"}


def _kms() -> Any:
    from google.cloud import kms_v1
    from google.cloud.kms_v1.services.key_management_service.transports import KeyManagementServiceGrpcTransport

    return kms_v1.KeyManagementServiceClient(transport=_reconnecting(KeyManagementServiceGrpcTransport))


def _privateca() -> Any:
    from google.cloud.security import privateca_v1
    from google.cloud.security.privateca_v1.services.certificate_authority_service.transports import (
        CertificateAuthorityServiceGrpcTransport,
    )

    return privateca_v1.CertificateAuthorityServiceClient(
        transport=_reconnecting(CertificateAuthorityServiceGrpcTransport)
    )


def _reconnecting(transport: Any) -> Callable[..., Any]:
    """The library's own transport, which connects again as often as it is asked."""

    def connect(*args: Any, options: Sequence[Any] = (), **kwargs: Any) -> Any:
        return transport.create_channel(
            *args, options=[*options, ("grpc.max_reconnect_backoff_ms", RECONNECT_MS)], **kwargs
        )

    return partial(transport, channel=connect)


# By service: what makes its client, and the package that has it.
_SERVICES: Mapping[str, tuple[Callable[[], Any], str]] = MappingProxyType(
    {"kms": (_kms, "google-cloud-kms"), "privateca": (_privateca, "google-cloud-private-ca")}
)


class Google:
    """Implements child.Library: of one service. `region` is in the names that are asked for."""

    def __init__(self, service: str, region: str, connect: Callable[[], Any] | None = None) -> None:
        known, package = _SERVICES[service]
        try:
            import google.api_core.exceptions
            import google.auth.exceptions

            self._client = (connect or known)()
        except ImportError:
            raise Failed("not-installed", not_installed(package, "google")) from None
        except (google.auth.exceptions.GoogleAuthError, OSError, ValueError) as error:
            raise _unasked(error) from None

    def ask(self, method: str, parameters: Mapping[str, Any], seconds: float) -> Mapping[str, Any]:
        from google.api_core.exceptions import GoogleAPIError
        from google.auth.exceptions import GoogleAuthError

        within = max(seconds - EARLIER_SECONDS, seconds / 2)
        try:
            found = getattr(self._client, method)(dict(parameters), timeout=within, retry=None)
        except GoogleAuthError as error:
            raise _unasked(error) from None
        except GoogleAPIError as error:
            if _NO_TOKEN in str(error.message if hasattr(error, "message") else error):
                raise _unasked(error) from None
            raise _failed(error) from None
        # Of a list the page that was asked for; it says itself where the next one begins.
        page = next(iter(found.pages)) if hasattr(found, "pages") else found
        answer: Mapping[str, Any] = type(page).to_dict(page, use_integers_for_enums=False)
        return answer


def _unasked(error: Exception) -> Failed:
    # Not its words: they may have an answer to a credential.
    hint = ": has the signer's service account an identity at Google?"
    return Failed("credentials", f"it was not asked ({type(error).__name__}){hint}")


def _failed(error: Any) -> Failed:
    status = int(getattr(error, "code", None) or 0)
    words = line(str(getattr(error, "message", ""))) if status in _TOLD else ""
    said = ": ".join(each for each in (type(error).__name__, words) if each)
    if status >= 500 or status in _BUSY or not status:
        return Failed("busy", f"it answers {status} ({said})")
    code = type(error).__name__
    return Failed("there" if code == "AlreadyExists" else _KINDS.get(status, "refused"), said, code)
