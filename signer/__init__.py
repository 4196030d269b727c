"""The cluster CA as a service."""
