"""Measures of images and of clusters: pure functions of tensors and arrays."""
