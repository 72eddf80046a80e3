"""Attacks on defended classifiers: transferred, adaptive and black-box ones, and who judges them."""
