"""Layers: reading and writing tar, unpacking a layer into a folder, and making one of what two folders differ in.

    blob -> stream processors -> decompress + hash (a thread) -> pipe -> apply.process (chrooted, one for each layer)
    compare.process (walks lower and upper) -> pipe -> hash + compress (a thread) -> blob

Nothing that a layer says is interpreted inside the daemon: tar is parsed and trees are walked by child processes.
"""
