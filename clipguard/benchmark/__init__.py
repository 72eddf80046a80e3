"""`clipguard bench`: a plan, run cell by cell, becomes a result."""
