"""`moorctl`, the command line of a running daemon: it asks over the gRPC API only and imports no plugin."""
