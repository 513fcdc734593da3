"""Version 1 of the start command's messages."""
