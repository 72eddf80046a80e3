"""The methods, a file each. They see embeddings and logits."""
