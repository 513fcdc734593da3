"""Sources, destinations and progress of transfers."""
