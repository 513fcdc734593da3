"""Version 1 of the introspection service."""
