"""Services that the daemon serves over ttrpc."""
