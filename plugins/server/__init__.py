"""Listeners: the sockets that clients connect to."""
