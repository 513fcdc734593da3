"""Decompression of layers by their first bytes, in pieces of bounded size, whatever the input says."""
