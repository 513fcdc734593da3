"""Snapshotters: one flow over records (`snapshotter.py`), and what each kind does on disk (`layers.py`)."""
