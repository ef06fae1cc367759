"""Blending decoded windows: integer weights that sum to one exactly."""

from tilecodec.blend.weights import UNIT, axis_weights

__all__ = ["UNIT", "axis_weights"]
