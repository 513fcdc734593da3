"""Garbage collection: when it runs; what it removes is the metadata store's to know."""
