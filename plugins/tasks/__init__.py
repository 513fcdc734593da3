"""Tasks of containers: the records of containers, the runtime's tasks and the content of checkpoints as one port."""
