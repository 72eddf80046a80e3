"""What a run found: rows, cells, tables and the files they become."""
