"""Keeps the tasks of containers in the state that their labels ask for."""
