"""What Go programs offer under /debug/pprof, as far as it has a meaning for Python."""
