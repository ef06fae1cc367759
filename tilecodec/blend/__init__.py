"""Blending decoded windows: integer weights that sum to one exactly."""

from tilecodec.blend.rows import RowBlender
from tilecodec.blend.weights import UNIT, axis_weights

__all__ = ["UNIT", "RowBlender", "axis_weights"]
