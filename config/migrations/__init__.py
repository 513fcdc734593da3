"""One pure step for each version of the configuration file; `moored.config.migrate` runs them in order."""
