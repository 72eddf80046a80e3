"""What surrounds the program: devices, the hub, libraries that talk too much."""
