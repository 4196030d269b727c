"""What the signer keeps of an object that a test has as JSON, through the same decoder as what an API server sends."""

import json

from signer.cluster import decoding
from signer.cluster.decoding import Kept
from signer.cluster.kube import Object


def typed(kind: type[Kept], body: Object) -> Kept:
    """Raises ApiUnavailable where an API server would have sent something else."""
    return decoding.one(json.dumps(body).encode(), kind)
