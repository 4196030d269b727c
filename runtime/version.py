"""Which podsvid this is."""

from importlib.metadata import PackageNotFoundError, version


def own_version() -> str:
    """The installed version: for CSI, metrics and the signer."""
    try:
        return version("podsvid")
    except PackageNotFoundError:
        return "0+unknown"
