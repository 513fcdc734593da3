"""Measurements of moored beside Debian's containerd in one run; `python -m contrib.bench` prints a table."""
