"""Terms beside the loss of any method, a file each."""
