"""Pulling and pushing, as the daemon does it for its clients and the client library where the daemon does not."""
