"""`moorctl doctor`: checks of the host and the daemon, each of which says how to mend what it finds."""
