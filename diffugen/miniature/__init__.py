"""The miniature: a renderer with exact masks, and a small diffusion model and detector trained on it."""
