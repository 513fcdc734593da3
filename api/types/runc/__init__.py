"""What is particular to runc."""
