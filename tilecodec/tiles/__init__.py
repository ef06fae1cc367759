"""Tile geometry: pure integers, no pixels, no I/O."""

from tilecodec.tiles.grid import TileGrid, TilePosition, Window

__all__ = ["TileGrid", "TilePosition", "Window"]
