"""Version 1 of the containers service."""
