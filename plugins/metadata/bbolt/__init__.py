"""bbolt's files, format version 2: a bounded reader, a writer, and copies from and to a metadata store."""
