"""Images moved between registries, archives and the image store: by the daemon where it can, else by the client."""
