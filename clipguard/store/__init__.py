"""Outcomes by content, on disk."""
