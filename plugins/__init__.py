"""The plugins room of moored; imported as `moored.plugins` only."""

if __name__ == "plugins":
    raise ImportError("import moored.plugins, not plugins: put contrib/dev (or an installed moored) on the path")
