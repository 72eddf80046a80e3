"""Intervals, paired and sequential tests, and decisions."""
