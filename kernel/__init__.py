"""The kernel room of moored; imported as `moored.kernel` only."""

if __name__ == "kernel":
    raise ImportError("import moored.kernel, not kernel: put contrib/dev (or an installed moored) on the path")
