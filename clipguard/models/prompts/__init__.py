"""Learned prompts: context vectors in the place of a prompt's words, and of patches in an image tower."""
