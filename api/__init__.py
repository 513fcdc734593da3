"""The api room of moored; imported as `moored.api` only."""

if __name__ == "api":
    raise ImportError("import moored.api, not api: put contrib/dev (or an installed moored) on the path")
