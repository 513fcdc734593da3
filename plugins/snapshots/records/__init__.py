"""What a snapshotter knows of its snapshots, in a database with the schema of containerd's metadata.db."""
