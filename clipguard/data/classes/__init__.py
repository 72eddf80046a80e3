"""Class names: where they are from, what labels mean in them, how they are written."""
