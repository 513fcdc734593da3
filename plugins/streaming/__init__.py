"""The open streams between clients and the daemon."""
