"""Counts gRPC calls under the names of go-grpc-prometheus."""
