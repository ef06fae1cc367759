"""Training of DiT-IC models. Needs the ``train`` extra (compressai); nothing else in the package imports it."""
