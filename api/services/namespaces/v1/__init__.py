"""Version 1 of the namespaces service."""
