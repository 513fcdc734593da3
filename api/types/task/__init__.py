"""States of processes."""
