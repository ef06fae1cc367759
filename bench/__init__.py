"""Measurements of tilecodec: one module per question, run as ``python -m bench.NAME``."""
