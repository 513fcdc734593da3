"""The content store in a local folder, laid out on disk as containerd lays out its own."""
