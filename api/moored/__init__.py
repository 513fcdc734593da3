"""What is moored's own on the wire."""
