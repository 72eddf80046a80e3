"""What may be given in place of a name: decided here, for every function of the Python API."""
