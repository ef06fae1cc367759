"""Tile geometry, and rows of pixels that wait for their neighbours."""

from tilecodec.tiles.grid import TileGrid, TilePosition, Window

__all__ = ["TileGrid", "TilePosition", "Window"]
