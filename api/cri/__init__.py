"""Kubernetes' Container Runtime Interface."""
