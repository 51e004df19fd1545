"""Several source tensors that become one, and names that collide."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from transferseg.errors import TransferError
from transferseg.transfer import Declarations, SourceFormat, apply_plan, make_plan
from transferseg.transfer.naming import name_keys, whole_name

SCHEME = SourceFormat("parts", {}, rules={r"^part(\d)of(\d)$": r"head.weight[\1/\2]"})


@settings(max_examples=40, deadline=None)
@given(st.lists(st.integers(1, 4), min_size=1, max_size=5), st.randoms(use_true_random=False))
def test_parts_are_joined_in_the_order_of_their_numbers(rows, random):
    values = [np.random.default_rng(i).normal(size=(n, 3)) for i, n in enumerate(rows)]
    source = {f"part{i}of{len(rows)}": torch.tensor(v) for i, v in enumerate(values)}
    keys = list(source)
    random.shuffle(keys)
    source = {key: source[key] for key in keys}
    target = nn.ModuleDict({"head": nn.Linear(3, sum(rows), bias=False)}).double()
    plan = make_plan(
        {key: tuple(value.shape) for key, value in source.items()},
        {"head.weight": (sum(rows), 3)},
        parts=["head"], source_format=SCHEME, declared=Declarations(),
    )  # fmt: skip
    apply_plan(plan, source, target)
    assert np.array_equal(target["head"].weight.detach().numpy(), np.concatenate(values))
    assert set(plan.moves[0].sources) == set(source)
    assert plan.moves[0].covered == 3 * sum(rows)


@pytest.mark.parametrize(
    ("names", "shapes", "message"),
    [
        ({"a": "w[0/2]"}, {"a": (2, 3)}, "made of 2 tensors, but there are a alone"),
        ({"a": "w[0/2]", "b": "w[2/2]"}, {"a": (2,), "b": (2,)}, "made of 2 tensors"),
        ({"a": "w[0/2]", "b": "w[1/3]"}, {"a": (2,), "b": (2,)}, "made of 2 tensors"),
        ({"a": "w[0/2]", "b": "w"}, {"a": (2,), "b": (2,)}, "made of"),
        ({"a": "w[0/2]", "b": "w[1/2]"}, {"a": (2, 3), "b": (2, 4)}, "cannot be joined"),
        ({"a": "w[0/2]", "b": "w[1/2]"}, {"a": (), "b": ()}, "cannot be joined"),
    ],
)
def test_parts_that_make_no_tensor_are_told(names, shapes, message):
    named = name_keys(names, shapes)
    assert message in named.broken["w"]
    assert "w" not in named.sources
    assert set(map(whole_name, names.values())) == {"w"}


def test_two_tensors_of_one_part_are_refused():
    with pytest.raises(TransferError, match=r"'a' and 'b' both become 'w\[0/2\]'"):
        name_keys({"a": "w[0/2]", "b": "w[0/2]"}, {"a": (1,), "b": (1,)})


def test_a_broken_whole_that_the_caller_leaves_is_no_problem():
    source, target = {"part0of2": (2, 3)}, {"head.weight": (4, 3), "head.bias": (4,)}
    scheme = SourceFormat("parts", {}, rules=SCHEME.rules)
    plan = make_plan(
        source, target, parts=["head"], source_format=scheme,
        declared=Declarations(leave=["head.*"]),
    )  # fmt: skip
    assert plan.moves == ()
    assert set(plan.unused) == {"part0of2"}
    with pytest.raises(TransferError, match="made of 2 tensors"):
        make_plan(source, target, parts=["head"], source_format=scheme,
                  declared=Declarations(leave=["head.bias"]))  # fmt: skip
