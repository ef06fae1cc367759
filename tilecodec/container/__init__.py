"""Bytes to Zarr v3 and back: metadata, chunks, stores."""
