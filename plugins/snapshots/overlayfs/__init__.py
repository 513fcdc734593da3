"""The overlayfs snapshotter: each snapshot is a folder with what differs from its parent."""
