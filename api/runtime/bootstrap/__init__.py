"""Input and output of a shim's start command."""
