"""Drivers of OCI runtimes: runc, crun and gVisor's runsc."""
