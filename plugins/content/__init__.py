"""Content stores: blobs by digest (port: `moored.kernel.ports.content`)."""
