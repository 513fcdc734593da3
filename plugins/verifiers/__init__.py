"""Programs that decide which images may be pulled."""
