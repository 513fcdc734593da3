"""The event exchange of the daemon."""
