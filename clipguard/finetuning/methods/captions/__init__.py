"""Methods that train on captions: images with the captions that they came with, or captions alone."""
