"""A run and the store: under which key outcomes are, what is known, and what becomes known."""
