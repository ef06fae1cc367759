"""Tile geometry, and rows of pixels that wait for their neighbours."""

from tilecodec.tiles.grid import Margin, TileGrid, TilePosition, Window

__all__ = ["Margin", "TileGrid", "TilePosition", "Window"]
