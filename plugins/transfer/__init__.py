"""Moves images between registries, archives and the image store, and unpacks them."""
