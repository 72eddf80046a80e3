"""Who computes outcomes: this process, or several on Ray."""
