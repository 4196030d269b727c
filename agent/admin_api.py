"""What both ends of the node's admin socket go by; its commands load this and nothing else of the agent."""

from agent.pb import node_admin_pb2 as pb

SERVICE: str = pb.DESCRIPTOR.services_by_name["NodeAdmin"].full_name
SOCKET = "admin.sock"
# Seconds that a renewal which was asked for may take: a mint's deadline and a little.
ROTATE_SECONDS = 35.0
