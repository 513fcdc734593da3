"""Options of runtimes that read a configuration file of their own."""
