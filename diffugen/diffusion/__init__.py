"""Generate images and the heat maps of their words: the home of diffusers and daam. Knows no labels."""
