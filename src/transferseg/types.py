"""Types that several floors share."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal, TypeAlias

import numpy as np
from numpy.typing import NDArray

#: How the classes of a mask relate: one foreground class, exclusive classes, overlapping classes.
TargetMode: TypeAlias = Literal["binary", "multiclass", "multilabel"]

#: What a batch is trained towards: its mask, its label vector, or the image itself.
Target: TypeAlias = Literal["mask", "label", "image"]

#: What a data loader yields: stacked tensors and lists of strings by name.
#: `image` (B, C, H, W) float32; `mask` (B, H, W) int64 for multiclass, (B, K, H, W) uint8 else;
#: `label` (B, K) float32, NaN where missing; `id` and `group`, lists of B strings.
Batch: TypeAlias = Mapping[str, Any]

#: Any NumPy array; docstrings give shape, dtype and value range.
Array: TypeAlias = NDArray[np.generic]
