"""The native snapshotter: each snapshot is a folder with a full copy of its parent."""
