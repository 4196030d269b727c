"""AWS by boto3, with the credentials that it finds by itself: a role of the pod's service account, or of its node."""

from collections.abc import Mapping
from typing import Any

from runtime.extras import not_installed
from runtime.words import line
from signer.clouds.process import Failed

# Seconds: of one connection, and of one answer's next bytes.
CONNECT_SECONDS, READ_SECONDS = 3, 5
_BUSY = ("Throttl", "TooManyRequests", "RequestLimitExceeded", "InternalFailure", "ServiceUnavailable", "KMSInternal")
_BUSY_TOO = frozenset({"DependencyTimeoutException", "KeyUnavailableException"})
# What is said of credentials that are no good any more.
_CREDENTIALS = ("Expired", "UnrecognizedClient", "InvalidIdentityToken", "InvalidClientTokenId")
_MISSING = frozenset({"NotFoundException", "ResourceNotFoundException"})
# Whose words are told. Those about a signature that is wrong repeat what was signed, the session's token in it.
_TOLD = frozenset(
    {
        "AccessDenied",
        "AccessDeniedException",
        "AlreadyExistsException",
        "DisabledException",
        "ExpiredTokenException",
        "InvalidArgsException",
        "InvalidArnException",
        "InvalidIdentityToken",
        "InvalidKeyUsageException",
        "InvalidRequestException",
        "InvalidStateException",
        "KMSInvalidStateException",
        "LimitExceededException",
        "MalformedCSRException",
        "NotFoundException",
        "RequestFailedException",
        "ResourceNotFoundException",
        "TagException",
        "UnrecognizedClientException",
        "UnsupportedOperationException",
        "ValidationException",
    }
)


class Aws:
    """Implements child.Library: of one service in one region."""

    def __init__(self, service: str, region: str) -> None:
        try:
            import boto3
            import botocore.session
            from botocore.config import Config
            from botocore.exceptions import BotoCoreError
        except ImportError:
            raise Failed("not-installed", not_installed("boto3", "aws")) from None
        # The signer asks again itself, ever more rarely.
        by = Config(connect_timeout=CONNECT_SECONDS, read_timeout=READ_SECONDS, retries={"total_max_attempts": 1})
        try:
            core = botocore.session.get_session()
            # By its default STS is asked, too, which boto3 does by itself.
            core.set_default_client_config(by)
            self._client = boto3.session.Session(botocore_session=core, region_name=region).client(service)
        except (BotoCoreError, OSError, RuntimeError, ValueError) as error:
            raise _unasked(error) from None

    def ask(self, method: str, parameters: Mapping[str, Any], seconds: float) -> Mapping[str, Any]:
        from botocore.exceptions import BotoCoreError, ClientError, HTTPClientError
        from botocore.exceptions import ConnectionError as Unconnected
        from botocore.parsers import ResponseParserError

        try:
            found: dict[str, Any] = getattr(self._client, method)(**parameters)
        except ClientError as error:
            raise _failed(error.response, error.operation_name) from None
        except (HTTPClientError, Unconnected, ResponseParserError) as error:
            # Not its words: they may have what was sent.
            raise Failed("unreached", f"it cannot be reached ({type(error).__name__})") from None
        except (BotoCoreError, OSError, RuntimeError, ValueError) as error:
            raise _unasked(error) from None
        found.pop("ResponseMetadata", None)
        return found


def _unasked(error: Exception) -> Failed:
    """Of a token's file, of a variable that is no address, of credentials that are not there or stay old."""
    name = type(error).__name__
    hint = ": has the signer's service account a role?" if name == "NoCredentialsError" else ""
    return Failed("credentials", f"it was not asked ({name}){hint}")


def _failed(response: Mapping[str, Any], operation: str) -> Failed:
    said = response.get("Error") or {}
    code = line(str(said.get("Code") or "without a code"))
    words = line(str(said.get("Message") or "")) if code in _TOLD else ""
    text = f"{code}: {operation}: {words}" if words else f"{code}: {operation}"
    status = (response.get("ResponseMetadata") or {}).get("HTTPStatusCode") or 0
    if code.startswith(_BUSY) or code in _BUSY_TOO or status == 429 or status >= 500:
        return Failed("busy", f"it answers {status} ({text})", code)
    if code.startswith(_CREDENTIALS):
        return Failed("credentials", text, code)
    if code in _MISSING:
        return Failed("missing", text, code)
    return Failed("there" if code == "AlreadyExistsException" else "refused", text, code)
