"""Passes of the model: batches, precision, and rounding that does not depend on neighbours."""
