"""Metadata stores: nested buckets on LMDB, and bbolt's files to and from them."""
