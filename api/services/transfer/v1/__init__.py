"""Version 1 of the transfer service."""
