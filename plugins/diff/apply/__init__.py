"""Unpacking a layer's tar into a folder, by file descriptor, in a process of its own that sees nothing else."""
