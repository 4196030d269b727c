"""`python -m agent` is `podsvid`."""

import sys

from agent.cli import main

sys.exit(main())
