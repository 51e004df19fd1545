"""Random weights that are a pure function of their names, so that a listing is a checkpoint.

Every tensor comes from (key, shape, sibling keys): NumPy's frozen legacy generator, seeded by the
key's checksum.
"""

import hashlib
import math
import re
import zlib

import numpy as np
import torch


def relative_position_index(count):
    """Swin's index of a window of `count` tokens, as MMSegmentation builds it."""
    side = round(math.sqrt(count))
    index = (np.arange(side)[:, None] * (2 * side - 1) + np.arange(side)[None]).reshape(1, -1)
    return torch.from_numpy(np.ascontiguousarray((index + index.T)[:, ::-1])).long()


def gain_of(key, dimensions, keys):
    match = re.search(r"\.\d+\.(conv[23])\.weight$", key)
    if match and (
        match.group(1) == "conv3" or key[: -len("conv2.weight")] + "conv3.weight" not in keys
    ):
        return 0.4  # the last convolution of a residual block
    if "fuse_layers" in key:
        return 0.5
    if "downsample" in key or "conv_seg" in key or "projection" in key or key.startswith("neck."):
        return 1.0
    return math.sqrt(2.0) if dimensions == 4 else 1.0


def fill(key, shape, keys):
    random = np.random.RandomState(zlib.crc32(key.encode()) & 0xFFFFFFFF)
    if key.endswith("num_batches_tracked"):
        return torch.tensor(int(random.randint(1, 10000)), dtype=torch.int64)
    if key.endswith("relative_position_index"):
        return relative_position_index(shape[0])
    if key.endswith("running_var"):
        values = random.random_sample(shape) + 0.5
    elif key.endswith("running_mean"):
        values = random.standard_normal(shape) * 0.1
    elif re.search(r"(relative_position_bias_table|pos_embed|cls_token)$", key):
        values = random.standard_normal(shape) * 0.02
    elif len(shape) >= 2:
        fan_in = int(np.prod(shape[1:]))
        gain = gain_of(key, len(shape), keys)
        values = random.standard_normal(shape) * (gain / math.sqrt(fan_in))
    elif key.endswith("weight"):
        values = 1.0 + 0.1 * random.standard_normal(shape)
    elif key.endswith("bias"):
        values = 0.1 * random.standard_normal(shape)
    else:
        raise KeyError(key)
    return torch.from_numpy(np.ascontiguousarray(values)).to(torch.float32)


def read_keys(path):
    """The (key, shape) pairs of a listing."""
    lines = [line.rstrip("\n").split("\t") for line in path.read_text("utf-8").splitlines()]
    return [
        (key, tuple(int(side) for side in shape.strip("()").split(",") if side.strip()))
        for key, _, shape in lines
    ]


def build(listing):
    """The state dict of (key, shape) pairs."""
    keys = {key for key, _ in listing}
    return {key: fill(key, shape, keys) for key, shape in listing}


def sha(state):
    """A checksum of every name and value."""
    digest = hashlib.sha256()
    for key in sorted(state):
        digest.update(key.encode())
        digest.update(state[key].contiguous().numpy().tobytes())
    return digest.hexdigest()


def make_input(seed, shape):
    """A normalised image."""
    values = np.random.RandomState(seed).standard_normal(tuple(shape))
    return torch.from_numpy(values).to(torch.float32)
