"""What changed between two folder trees, as a layer."""
