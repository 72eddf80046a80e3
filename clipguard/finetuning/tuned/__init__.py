"""The model while it is tuned: its image tower, its class texts, its low-rank weights."""
