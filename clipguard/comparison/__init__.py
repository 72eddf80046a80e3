"""`clipguard compare`: two results, image by image."""
