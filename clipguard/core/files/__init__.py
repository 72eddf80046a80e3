"""Files: written whole, locked, and read as configuration."""
