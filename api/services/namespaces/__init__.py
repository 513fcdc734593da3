"""The namespaces service."""
