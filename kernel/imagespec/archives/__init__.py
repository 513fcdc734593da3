"""Images as archives: OCI layouts and what `docker save` writes, read into a content store and written from one."""
