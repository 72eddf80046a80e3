"""The images of training: which, in which order, and how they become batches."""
