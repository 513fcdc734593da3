"""The shim manager: starts shims, keeps their connections, finds them after a restart, and makes tasks of them."""
