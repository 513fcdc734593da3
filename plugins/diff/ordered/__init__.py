"""All differs of the daemon as one."""
