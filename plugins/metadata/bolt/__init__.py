"""The object database: containerd's schema of names and labels over one metadata store."""
