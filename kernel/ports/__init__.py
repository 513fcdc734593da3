"""The ports: one file each, with a Protocol, its terms and errors, and the typed key of the plugins implementing it."""
