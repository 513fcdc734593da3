"""Sandboxes as pause containers: a task that does nothing, whose id is the sandbox id."""
