"""The embedded world: a renderer with exact masks, and a small diffusion model trained on it."""
