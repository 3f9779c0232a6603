"""What the estimators share: scikit-learn's interface over pure functions of a codebook.

The rows of a codebook are scikit-learn's samples, its columns the features.
"""

from abc import ABC, abstractmethod
from typing import Any

import numpy as np
from sklearn.base import BaseEstimator, ClusterMixin
from sklearn.utils.validation import validate_data

from .codebook import CodebookLike, as_codebook


class CodebookClusterer(ClusterMixin, BaseEstimator, ABC):
    """A scikit-learn clusterer of codebook rows; the subclasses' `fit` sets the attributes.

    Attributes:
        labels_: (N,) int64 cluster of each row.
        n_clusters_: clusters found, K.
        n_features_in_: columns d of the codebook.
        feature_names_in_: (d,) names of the columns, of a DataFrame alone.
    """

    labels_: np.ndarray
    n_clusters_: int
    n_features_in_: int

    @abstractmethod
    def fit(self, X: CodebookLike, y: object = None) -> "CodebookClusterer":
        """Cluster the rows of X (N, d); y is there for scikit-learn's pipelines alone."""

    def _rows(self, X: CodebookLike, reset: bool = True) -> np.ndarray:
        """The rows (N, d) as float64; their width and names are kept, or compared with the kept.

        Raises:
            ValueError: not a codebook, or another width than in `fit`.
        """
        rows = as_codebook(X)
        # as_codebook has checked the values; scikit-learn only records or compares width and names
        named: Any = X if hasattr(X, "columns") else rows  # a DataFrame knows its columns' names
        validate_data(self, named, reset=reset, skip_check_array=True)
        return rows
