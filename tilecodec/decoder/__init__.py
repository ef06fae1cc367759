"""Container to pixels: which windows a read needs, their latents, their pixels, the blend."""
