"""Sandboxes: their store, and controllers of this daemon's own."""
