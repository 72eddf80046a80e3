"""Methods that train on images and the texts of their classes, a file each."""
