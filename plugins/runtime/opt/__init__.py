"""Optional programs beside the system's own."""
