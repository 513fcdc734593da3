"""The introspection service."""
