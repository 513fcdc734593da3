"""Version 1, the only one that kubelets still speak."""
