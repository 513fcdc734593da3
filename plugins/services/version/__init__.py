"""The version service."""
