"""Where an agent's admin socket is, and how long what it is asked for may take. Loads nothing: who waits for its
turn to ask goes by it, too."""

SOCKET = "admin.sock"
# Seconds that a renewal which was asked for may take: a mint's deadline and a little.
ROTATE_SECONDS = 35.0
