"""The engine: recipes over a stream of images, at every eps, as many at once as fit."""
