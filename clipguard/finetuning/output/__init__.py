"""What a run leaves on disk: its record, result, curves, checkpoint and card."""
