"""Nothing that a file says is run: not in any format, not by any of pickle's steps."""

import os
import pickle
import time

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file

from tests.transfer.writers import legacy_around, tensor_program, zip_around
from transferseg.errors import CheckpointError
from transferseg.transfer import read_listing, read_source

MARK = "was_run"


def text(value):
    return b"X" + len(value).to_bytes(4, "little") + value.encode()


def attacks(mark):
    """Programs that would make the file `mark` if any of their steps were taken in earnest."""
    call = f"touch {mark}"
    source = f"open({str(mark)!r}, 'w').close()"
    return {
        "reduce": b"cos\nsystem\n(" + text(call) + b"tR.",
        "reduce posix": b"cposix\nsystem\n(" + text(call) + b"tR.",
        "stack global": b"\x8c\x08builtins\x8c\x04eval\x93(" + text(source) + b"tR.",
        "python 2": b"c__builtin__\neval\n(" + text(source) + b"tR.",
        "newobj": b"csubprocess\nPopen\n(" + text(call) + b"t\x81.",
        "newobj_ex": b"csubprocess\nPopen\n(" + text(call) + b"t}" + text("shell") + b"\x88s\x92.",
        "inst": b"(" + text(call) + b"ios\nsystem\n.",
        "obj": b"(cos\nsystem\n" + text(call) + b"o.",
        "build": b"ctypes\nFunctionType\n)\x81}" + text("__setstate__") + b"cos\nsystem\nsb.",
        "dotted": b"\x8c\x05numpy\x8c\x17f2py.os.system\x93(" + text(call) + b"tR.",
        "within": b"}" + text("state_dict") + b"}" + text("w") + b"cos\nsystem\n("
        + text(call) + b"tRss.",
        "getattr": b"cbuiltins\ngetattr\n(cos\n__name__\n" + text("system") + b"tR.",
        "partial": b"cfunctools\npartial\n(cos\nsystem\n" + text(call) + b"tR)R.",
        "torch": b"ctorch.hub\nload_state_dict_from_url\n(" + text("file:///x") + b"tR.",
        "persistent": b"cos\nsystem\n(" + text(call) + b"tRQ.",
    }  # fmt: skip


@pytest.mark.parametrize("form", ["zip", "legacy", "plain"])
@pytest.mark.parametrize("attack", sorted(attacks("x")))
def test_nothing_is_run(attack, form, tmp_path):
    mark = tmp_path / MARK
    program = b"\x80\x04" + attacks(mark)[attack]
    file = tmp_path / "model.pth"
    if form == "zip":
        zip_around(file, program)
    elif form == "legacy":
        legacy_around(file, program)
    else:
        file.write_bytes(program)
    for read in (read_source, read_listing):
        with pytest.raises(CheckpointError, match=r"model\.pth"):
            read(file)
    assert not mark.exists()


def test_the_attacks_are_real(tmp_path):
    mark = tmp_path / MARK
    for name in ("reduce", "inst", "obj", "stack global", "within"):
        pickle.loads(b"\x80\x04" + attacks(mark)[name])
        assert mark.exists(), name
        mark.unlink()


class Evil:
    def __reduce__(self):
        return (os.system, ("exit 1",))


def test_a_refusal_names_the_global(tmp_path):
    for zipped in (True, False):
        torch.save(
            {"state_dict": {"w": torch.ones(1)}, "args": Evil()},
            tmp_path / "args.pth",
            _use_new_zipfile_serialization=zipped,
        )
        with pytest.raises(CheckpointError, match=r"args\.pth holds Python .*: (posix|nt)\.system"):
            read_source(tmp_path / "args.pth")


def bombs():
    doubled = (
        b"\x80\x02" + text("x") + b"\x85q\x00" + b"".join(b"h\x00h\x00\x86q\x00" for _ in range(60))
    )
    nested = b"\x80\x02)" + b"\x85" * 200_000
    return {
        "a key that takes forever to hash": b"\x80\x02}" + doubled[2:] + b"K\x01s.",
        "a key that overflows the stack": b"\x80\x02}" + nested[2:] + b"K\x01s.",
        "a text of 4 GiB": b"\x80\x02X\xff\xff\xff\xffabc.",
        "a text of 8 EiB": b"\x80\x04\x8d\xff\xff\xff\xff\xff\xff\xff\x7fabc.",
        "a bytearray of 1 TiB": b"\x80\x02cbuiltins\nbytearray\n(\x8a\x06" + bytes(5) + b"\x01tR.",
        "a dict in itself": b"\x80\x02}q\x00" + text("state_dict") + b"h\x00s.",
        "a list in itself": b"\x80\x02}" + text("a") + b"]q\x00h\x00as.",
        "a set of what overflows the stack": b"\x80\x04}\x8f(" + nested[2:] + b"\x900.",
        "a frozen set of it": b"\x80\x04}(" + nested[2:] + b"\x910.",
        "a state that overflows the stack": b"\x80\x02ccollections\nOrderedDict\n)R]"
        + nested[2:] + b"K\x01\x86ab.",
        "a key of a million digits": b"\x80\x02}\x8b" + (500_000).to_bytes(4, "little")
        + b"\x7f" * 500_000 + b"K\x01s.",
        "a long list many times": b"\x80\x02}" + text("meta") + b"](" + b"K\x01" * 100_000
        + b"eq\x000](" + b"h\x00" * 50_000 + b"es.",
        "a dict of lists made of one list": b"\x80\x02}" + text("meta") + b"](" + b"K\x01" * 100_000
        + b"eq\x000ccollections\nOrderedDict\n](" + b"h\x00" * 50_000 + b"e\x85Rs.",
        "copies of a long list": b"\x80\x02}" + text("meta") + b"](" + b"K\x01" * 100_000
        + b"eq\x000](" + b"cbuiltins\nlist\nh\x00\x85R" * 5_000 + b"es.",
        "a key of many items": b"\x80\x02](" + b"K\x01" * 100_000 + b"tq\x000}(" + b"h\x00N" * 9
        + b"u.",
        "a doubled list": b"\x80\x02}" + text("meta") + doubled[2:] + b"s.",
    }  # fmt: skip


@pytest.mark.parametrize("bomb", sorted(bombs()))
@pytest.mark.parametrize("write", [zip_around, legacy_around])
def test_bombs_are_refused_in_no_time(bomb, write, tmp_path):
    write(tmp_path / "bomb.pth", bombs()[bomb])
    start = time.process_time()
    with pytest.raises(CheckpointError, match=r"bomb\.pth"):
        read_source(tmp_path / "bomb.pth")
    assert time.process_time() - start < 5


def test_tensors_lie_within_their_storage(tmp_path):
    file = tmp_path / "t.pth"
    numbers = torch.arange(4.0).numpy().tobytes()
    zip_around(file, tensor_program((2, 2), (1, 2)), {"0": numbers})
    assert read_source(file).tensors["w"].tolist() == [[0.0, 2.0], [1.0, 3.0]]
    huge = 2**62
    for shape, stride, offset, count in (
        ((3, 2), (2, 1), 0, 4),
        ((2, 2), (2, 1), 1, 4),
        ((-2, 2), (2, 1), 0, 4),
        ((2, 2), (-2, 1), 3, 4),
        ((2, 2), (2, 1), -1, 4),
        ((2, 2), (2, 1), 0, 8),
        ((2, 2), (2, 1), 0, huge),
        ((huge, huge), (huge, huge), huge, 4),
        ((huge, 2), (0, 1), 0, 4),
        ((2**64, 2), (0, 1), 0, 4),
        ((10**6, 10**6), (0, 0), 0, 4),
        ((2.0, 2), (2, 1), 0, 4),
        ((2, 2), (2,), 0, 4),
        ((1,) * 65, (1,) * 65, 0, 4),
    ):
        zip_around(file, tensor_program(shape, stride, offset, count), {"0": numbers})
        for read in (read_source, read_listing):
            with pytest.raises(CheckpointError, match=r"t\.pth"):
                read(file)


def originals(folder):
    tensors = {"a.weight": torch.arange(12.0).view(3, 4), "a.bias": torch.zeros(3)}
    whole = {"state_dict": tensors, "epoch": 3, "args": {"lr": 0.1, "names": ["x", "y"]}}
    torch.save(whole, folder / "zip.pth")
    torch.save(whole, folder / "legacy.pth", _use_new_zipfile_serialization=False)
    save_file(tensors, folder / "a.safetensors", metadata={"format": "pt"})
    return {
        name: (folder / name).read_bytes() for name in ("zip.pth", "legacy.pth", "a.safetensors")
    }


@pytest.fixture(scope="module")
def whole_files(tmp_path_factory):
    folder = tmp_path_factory.mktemp("whole")
    return folder, originals(folder)


@pytest.fixture
def in_their_folder(whole_files, monkeypatch):
    """Where a program that is run would leave its mark, and where the check looks for it."""
    monkeypatch.chdir(whole_files[0])


def fuzz(test):
    quiet = [HealthCheck.too_slow, HealthCheck.function_scoped_fixture]
    rules = settings(
        max_examples=150, derandomize=True, deadline=5000, database=None,
        suppress_health_check=quiet,
    )  # fmt: skip
    return rules(test)


def reads_or_refuses(file):
    for read in (read_listing, read_source):
        try:
            found = read(file)
        except CheckpointError as error:
            refusal = str(error)
            assert str(file) in refusal
        else:
            for value in found.tensors.values():
                if read is read_source:
                    value.clone()  # every number is there
    assert not (file.parent / MARK).exists()


@pytest.mark.parametrize("name", ["zip.pth", "legacy.pth", "a.safetensors"])
@pytest.mark.usefixtures("in_their_folder")
@fuzz
@given(data=st.data())
def test_damaged_files_load_or_are_refused(name, whole_files, data):
    folder, wholes = whole_files
    damaged = bytearray(wholes[name])
    for _ in range(data.draw(st.integers(0, 3), label="flips")):
        place = data.draw(st.integers(0, len(damaged) - 1), label="place")
        damaged[place] ^= 1 << data.draw(st.integers(0, 7), label="bit")
    end = data.draw(st.integers(0, len(damaged)) | st.just(len(damaged)), label="end")
    file = folder / f"damaged-{name}"
    file.write_bytes(damaged[:end])
    reads_or_refuses(file)


# steps that a program may have, with what they are given
CODES = b")}](N\x85\x86\x87tRbse\x81\x8f\x90\x91\x92\x93\x94o201uQ"
LONGER = [
    b"cos\nsystem\n",
    b"(ios\nsystem\n",
    b"ctorch._utils\n_rebuild_tensor_v2\n",
    b"ccollections\nOrderedDict\n",
    b"cargparse\nNamespace\n",
    b"cnumpy\ndtype\n",
    b"h\x00",
    b"q\x00",
    b"K\x01",
    text(f"touch {MARK}"),
    text("state_dict"),
]
STEPS = st.sampled_from([bytes([code]) for code in CODES] + LONGER) | st.binary(
    min_size=1, max_size=3
)


@pytest.mark.usefixtures("in_their_folder")
@fuzz
@given(steps=st.lists(STEPS, max_size=40), zipped=st.booleans())
def test_any_program_loads_or_is_refused(whole_files, steps, zipped):
    folder, _ = whole_files
    file = folder / "any.pth"
    (zip_around if zipped else legacy_around)(file, b"\x80\x04" + b"".join(steps) + b".")
    reads_or_refuses(file)
