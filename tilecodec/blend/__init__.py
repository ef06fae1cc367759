"""Blending decoded windows: integer weights that sum to one exactly."""

from tilecodec.blend.strips import Strips
from tilecodec.blend.weights import UNIT, axis_weights

__all__ = ["UNIT", "Strips", "axis_weights"]
