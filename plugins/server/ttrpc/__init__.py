"""The ttrpc listener, for shims."""
