"""The sandbox store as a plugin."""
