"""The gRPC listeners, on a unix socket and on TCP."""
