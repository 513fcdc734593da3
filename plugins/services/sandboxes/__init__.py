"""The sandboxes services."""
