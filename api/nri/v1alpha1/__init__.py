"""Version v1alpha1 of the Node Resource Interface."""
