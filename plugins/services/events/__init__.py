"""The events services: one on gRPC, one for shims on ttrpc."""
