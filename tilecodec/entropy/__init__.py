"""Latents to bytes and back: entropy parameters, CDF tables, rANS, the tile payload."""
