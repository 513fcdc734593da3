"""The runtime and image services of the Container Runtime Interface."""
