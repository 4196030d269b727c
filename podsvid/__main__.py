"""`python -m podsvid` is `podsvid`."""

import sys

from podsvid.start import main

sys.exit(main())
