"""What a socket's process is told of its workload after it was opened."""

from contextlib import suppress

from agent.channel import messages
from agent.channel.snapshots import Writer
from agent.servers.link import Link, LinkLost
from runtime.feed import Feed
from svid.identity import WorkloadIdentity


async def follow(link: Link, number: int, feed: Feed[WorkloadIdentity], version: int, writer: Writer) -> None:
    """Have it told what is newer than `version`, until it is lost.

    What waits for its turn is written when that has come: the newest there is then, and nothing is kept before.
    """
    told = version

    def newest() -> messages.Changed:
        nonlocal told
        identity = feed.current
        assert identity is not None
        changed = messages.Changed(number, writer.snapshot(identity))
        told = feed.version
        return changed

    with suppress(LinkLost):
        while True:
            version = await feed.wait_beyond(version)
            # What came while it waited for its turn went with it.
            if told < version:
                link.tell(number, newest)
