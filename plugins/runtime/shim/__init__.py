"""A shim: the small process beside each container that outlives the daemon and serves the task API over ttrpc."""
