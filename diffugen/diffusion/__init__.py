"""Generate images and the heat maps of their words. The only home of diffusers and daam; returns no
labels.
"""
