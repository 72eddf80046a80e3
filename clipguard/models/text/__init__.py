"""Class texts: encoded, and tuned ones."""
