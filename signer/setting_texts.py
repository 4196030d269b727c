"""How the texts of the signer's own kinds of settings are read."""

from svid.keys import KeyAlgorithm


def path_template(text: str) -> str:
    """A template of SPIFFE IDs' paths. Raises ValueError, as all of these do."""
    if not text.startswith("/") or len(text) > 1024:
        raise ValueError("a path such as /ns/{namespace}/sa/{service_account}")
    return text


def key_algorithm(text: str) -> KeyAlgorithm:
    """A key algorithm by its word."""
    try:
        return KeyAlgorithm(text)
    except ValueError:
        raise ValueError("one of " + ", ".join(KeyAlgorithm)) from None
