"""Exact average linkage (UPGMA); `average.py` is its front door, the rest is private."""

from .average import average_labels, average_linkage, cut

__all__ = ["average_labels", "average_linkage", "cut"]
