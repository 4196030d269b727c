"""Which podsvid this is."""

from typing import Final

# For CSI, metrics and the signer; pyproject.toml takes it from here. To ask the installed package for it would load
# what reads archives and mail, for as long as a daemon lives.
VERSION: Final = "0.1.0"
