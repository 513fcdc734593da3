"""ttrpc: containerd's small RPC protocol between the daemon and its shims; this file imports nothing."""
