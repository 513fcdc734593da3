"""Version 1 of the leases service."""
