"""The local introspection service: plugins and identity."""
