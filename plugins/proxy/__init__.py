"""Ports that live in another process, behind a socket."""
