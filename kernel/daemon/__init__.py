"""The only composition root: arguments, logging, process state, signals, and the order in which a daemon comes up."""
