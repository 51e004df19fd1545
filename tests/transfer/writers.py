"""Checkpoints as other programs write them: their classes exist only while the file is written."""

import contextlib
import io
import pickle
import sys
import types
import zipfile
from collections import OrderedDict

import torch


@contextlib.contextmanager
def classes(*names):
    """Classes under their modules' names, gone afterwards: a reader cannot import them."""
    made, before = [], dict(sys.modules)
    for name in names:
        module, _, own = name.rpartition(".")
        parts = module.split(".")
        for depth in range(1, len(parts) + 1):
            path = ".".join(parts[:depth])
            sys.modules[path] = (
                sys.modules[path] if path in sys.modules and path in STUBBED else stub(path)
            )
        made.append(type(own, (dict,) if own in DICTS else (), {"__module__": module}))
        setattr(sys.modules[module], own, made[-1])
    try:
        yield made
    finally:
        STUBBED.clear()
        for path in set(sys.modules) - set(before):
            del sys.modules[path]
        sys.modules.update(before)


STUBBED: set[str] = set()
DICTS = ("AttributeDict", "ConfigDict")


def stub(path):
    STUBBED.add(path)
    return types.ModuleType(path)


def with_state(kind, **state):
    made = kind.__new__(kind)
    made.__dict__.update(state)
    return made


def runner_file(path, weights):
    """What mmengine's Runner saves: logs as HistoryBuffer, optimizer, schedulers, meta."""
    import numpy as np

    with classes("mmengine.logging.history_buffer.HistoryBuffer") as (buffer,):
        history = with_state(
            buffer,
            _log_history=np.array([0.5, 0.25]),
            _count_history=np.array([1, 1]),
            _max_length=1000000,
            _statistics_methods=OrderedDict(),
        )
        torch.save(
            {
                "meta": {
                    "epoch": 0,
                    "iter": 160000,
                    "dataset_meta": {
                        "classes": ("road", "wall"),
                        "palette": [[1, 2, 3], [4, 5, 6]],
                    },
                    "cfg": "model = dict(type='EncoderDecoder')",
                    "mmengine_version": "0.10.7",
                },
                "state_dict": OrderedDict(weights),
                "message_hub": {
                    "log_scalars": {"train/loss": history},
                    "runtime_info": {"loop_stage": "train", "last": np.float64(0.5)},
                    "resumed_keys": {"train/loss": True},
                },
                "optimizer": {"state": {0: {"momentum_buffer": torch.ones(2)}}, "param_groups": []},
                "param_schedulers": [{"by_epoch": False, "_global_step": 160000}],
            },
            path,
        )


def zip_around(path, program, storages=(), name="archive"):
    """A file in torch's zip format around any program."""
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr(f"{name}/data.pkl", program)
        archive.writestr(f"{name}/byteorder", "little")
        for key, content in dict(storages).items():
            archive.writestr(f"{name}/data/{key}", content)
        archive.writestr(f"{name}/version", "3\n")


def legacy_around(path, program, storages=()):
    """A file in the format from before torch 1.6 around any program; storages: key -> floats."""
    file = io.BytesIO()
    for part in (0x1950A86A20F9469CFC6C, 1001, {"protocol_version": 1001, "little_endian": True}):
        pickle.dump(part, file, 2)
    file.write(program)
    pickle.dump(list(dict(storages)), file, 2)
    for content in dict(storages).values():
        file.write((len(content) // 4).to_bytes(8, "little") + content)
    path.write_bytes(file.getvalue())


def tensor_program(shape, stride, offset=0, count=4, key="0", view=b""):
    """A dict with one tensor `w`, as protocol 2 says it; `view` ends its storage's identifier."""

    def whole(values):
        return b"(" + b"".join(pickle.dumps(v, 2)[2:-1] for v in values) + b"t"

    def text(value):
        return b"X" + len(value).to_bytes(4, "little") + value.encode()

    storage = b"(" + text("storage") + b"ctorch\nFloatStorage\n" + text(key)
    storage += text("cpu") + pickle.dumps(count, 2)[2:-1] + view + b"tQ"
    given = storage + pickle.dumps(offset, 2)[2:-1] + whole(shape) + whole(stride) + b"\x89}"
    return b"\x80\x02}" + text("w") + b"ctorch._utils\n_rebuild_tensor_v2\n(" + given + b"tRs."
