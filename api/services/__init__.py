"""The daemon's services."""
