"""The btrfs snapshotter: each snapshot is a subvolume."""
