"""Drawing: fonts, styles, the grid of images. Knows no results."""
