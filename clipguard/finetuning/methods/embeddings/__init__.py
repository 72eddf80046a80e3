"""Methods that train on images alone, through their embeddings, a file each."""
