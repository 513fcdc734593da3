"""Sandboxes of shims: the controller that starts a shim for each, and speaks the sandbox API with it."""
