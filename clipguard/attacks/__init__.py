"""Threat models, attacks, and the engine that runs them. Knows nothing of CLIP: a model maps pixels to logits."""
