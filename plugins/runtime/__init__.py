"""Running containers: the shim manager, shims of our own, and the drivers of OCI runtimes."""
