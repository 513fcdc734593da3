"""The daemon service: plugins and config as they are, with reasons."""
