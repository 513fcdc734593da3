"""The debug listener: pages about the daemon's inside over HTTP on a unix socket."""
