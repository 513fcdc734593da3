"""What shims read, answer and serve."""
