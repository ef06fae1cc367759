"""Pixels to latents and back: the DiT-IC network, assembled from a config, and its weights."""
