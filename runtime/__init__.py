"""What every podsvid process stands on: settings, logs, the HTTP page, time, feeds, threads for blocking work."""
