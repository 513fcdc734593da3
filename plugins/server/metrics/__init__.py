"""The metrics listener: Prometheus scrapes it over HTTP."""
