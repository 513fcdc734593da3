"""The OCI image format as data: media types, platforms, references, manifests and how to walk them."""
