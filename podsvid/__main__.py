"""`python -m podsvid` is `podsvid`."""

import sys

from podsvid.cli import main

sys.exit(main())
