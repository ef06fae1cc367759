"""Rate and quality on anyone's pictures: our codec beside JPEG, JPEG 2000, WebP, AVIF and JPEG XL."""

from __future__ import annotations

from tilecodec.evaluation.options import EvaluationOptions
from tilecodec.evaluation.report import EvaluationReport
from tilecodec.evaluation.run import evaluate

__all__ = ["EvaluationOptions", "EvaluationReport", "evaluate"]
