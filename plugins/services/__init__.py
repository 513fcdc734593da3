"""Faces on the wire: each subroom serves one gRPC service over ports."""
