"""Options of the runc runtime."""
