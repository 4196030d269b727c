"""What both ends of the node's admin socket go by; its commands load this and nothing else of the agent."""

import re

from agent.pb import node_admin_pb2 as pb

SERVICE: str = pb.DESCRIPTOR.services_by_name["NodeAdmin"].full_name
_CODE = re.compile(r"([A-Z][A-Z0-9_]{2,63}): ", re.ASCII)


def code_of(message: str, reason: str) -> str:
    """The most specific reason code of a problem: the one that its message begins with, where an authority gave one."""
    found = _CODE.match(message)
    return found.group(1) if found else reason
