"""The blockfile snapshotter: each snapshot is a file with a whole file system in it."""
