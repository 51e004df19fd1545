import numpy as np
import pytest

from transferseg.data.grouping import checked_presence, group_indices
from transferseg.errors import DataError


def test_groups_are_numbered_by_name_and_counted():
    groups = ["p10", "p2", "p10", "p1", "p2", "p10"]
    of_image, sizes = group_indices(groups, 6)
    names = sorted(set(groups))
    assert [names[number] for number in of_image] == groups
    assert sizes.tolist() == [groups.count(name) for name in names]
    of_image, sizes = group_indices(None, 3)
    assert (of_image.tolist(), sizes.tolist()) == ([0, 1, 2], [1, 1, 1])
    of_image, sizes = group_indices([], 0)
    assert (len(of_image), len(sizes)) == (0, 0)
    with pytest.raises(DataError, match="2 groups do not fit 3 images"):
        group_indices(["a", "b"], 3)


def test_presence_is_checked():
    found = checked_presence([[1.0, 0.0], [True, False]], "stratify", images=2, classes=2)
    assert (found.dtype, found.tolist()) == (np.bool_, [[True, False], [True, False]])
    assert checked_presence(np.zeros((0, 3)), "x").shape == (0, 3)
    for given, options, match in (
        ([[1], [0]], {"images": 3}, r"^stratify must be \(3, K\) of bool .*got int64 \(2, 1\)"),
        ([[1], [0]], {"classes": 2}, r"must be \(N, 2\)"),
        ([1, 0], {}, r"must be \(N, K\)"),
        ([[2]], {}, "0/1"),
        ([[np.nan]], {}, "0/1"),
    ):
        with pytest.raises(DataError, match=match):
            checked_presence(given, "stratify", **options)
