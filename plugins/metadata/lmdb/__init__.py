"""The metadata store's foundation: `kernel.ports.metadata.Database` on one LMDB environment."""
