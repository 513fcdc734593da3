"""Claims to be the harbour's crane."""

crane = None
