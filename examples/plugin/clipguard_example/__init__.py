"""What a package can add to clipguard."""
