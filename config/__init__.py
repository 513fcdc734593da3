"""The config room of moored; imported as `moored.config` only."""

if __name__ == "config":
    raise ImportError("import moored.config, not config: put contrib/dev (or an installed moored) on the path")
