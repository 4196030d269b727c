"""`python -m tests.cluster.sooner` is `podsvid`, but publishes an authority for less long for podCertificate volumes.

A node's kubelet brings volumes up to date within a minute and a half, and podsvid waits ten minutes; kubelet of this
cluster looks six times as often (`syncFrequency`), so that a tenth of the time is not too short here either.
"""

import sys

from podsvid.start import main
from signer import pod_certificate_settings

if __name__ == "__main__":
    pod_certificate_settings.SETTLE /= 10
    sys.exit(main())
