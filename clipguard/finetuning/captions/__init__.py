"""Captions in training: their tokens and embeddings, and the attack that edits their characters."""
