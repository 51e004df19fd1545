"""Both formats of torch.save, each kind of broken file by its own words, and nothing copied."""

import struct
import subprocess
import sys
import zipfile

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from tests.transfer.writers import legacy_around, tensor_program, zip_around
from transferseg.errors import CheckpointError
from transferseg.transfer import read_listing, read_source
from transferseg.transfer.torchfiles import read_torch_file

DTYPES = (
    torch.float64, torch.float32, torch.float16, torch.bfloat16, torch.int64, torch.int32,
    torch.int16, torch.int8, torch.uint8, torch.bool, torch.float8_e4m3fn, torch.uint16,
)  # fmt: skip


def many():
    """Every dtype, odd sizes, views of one storage, expanded, transposed, empty, scalar."""
    base = torch.arange(24.0)
    tensors = {str(dtype): torch.arange(5).to(dtype) for dtype in DTYPES}
    return tensors | {
        "whole": base,
        "part": base[3:7],
        "transposed": base.view(4, 6).t(),
        "expanded": torch.tensor([2.0]).expand(3, 4),
        "empty": torch.zeros(0, 3),
        "scalar": torch.tensor(7.0),
        "parameter": torch.nn.Parameter(torch.ones(2, 2)),
        "strided": base[::5],
    }


@pytest.mark.parametrize("zipped", [True, False])
@pytest.mark.parametrize("ours", [True, False])
def test_tensors_are_what_torch_loads(zipped, ours, tmp_path):
    file = tmp_path / "many.pth"
    tensors = many()
    if not zipped or torch.__version__ < "2.6":  # torch does not read its own legacy files with
        # these, and version 2.5 writes none
        tensors = {k: v for k, v in tensors.items() if v.dtype not in DTYPES[-2:]}
    torch.save({"state_dict": tensors}, file, _use_new_zipfile_serialization=zipped)
    expected = torch.load(file, weights_only=True)["state_dict"]
    if ours:
        read = read_torch_file(file, tensors=False)
        found = read.tensors(read.values["state_dict"])
    else:
        found = read_source(file).tensors
    assert list(found) == list(expected)
    for key, value in expected.items():
        got = found[key]
        assert (got.dtype, got.shape) == (value.dtype, value.shape)
        bits = [np.asarray(t.contiguous().view(-1).view(torch.uint8)) for t in (got, value)]
        np.testing.assert_array_equal(*bits, err_msg=key)
    infos = read_listing(file).tensors
    assert {k: (i.shape, i.dtype) for k, i in infos.items()} == {
        k: (tuple(v.shape), v.dtype) for k, v in expected.items()
    }


def test_a_view_of_a_storage_in_a_legacy_file(tmp_path):
    file, numbers = tmp_path / "old.pth", {"0": torch.arange(6.0).numpy().tobytes()}

    def write(start, length):
        view = b"(X\x01\x00\x00\x00vK" + bytes([start]) + b"K" + bytes([length]) + b"t"
        legacy_around(file, tensor_program((2,), (1,), 1, count=6, view=view), numbers)

    write(2, 3)
    assert torch.load(file, weights_only=True)["w"].tolist() == [3.0, 4.0]  # torch's word for it
    assert read_source(file).tensors["w"].tolist() == [3.0, 4.0]
    write(2, 2)
    refused(file, "reaches beyond its 2 stored values")
    write(4, 3)
    refused(file, "a view reaches beyond its storage")


def test_a_file_does_not_change_with_what_was_read(tmp_path):
    for zipped in (True, False):
        torch.save({"w": torch.ones(9)}, tmp_path / "a.pth", _use_new_zipfile_serialization=zipped)
        before = (tmp_path / "a.pth").read_bytes()
        read_source(tmp_path / "a.pth").tensors["w"].zero_()
        assert (tmp_path / "a.pth").read_bytes() == before


def corrupt(folder):
    """File name -> (what makes it, what the error says)."""
    tensors = {"w": torch.arange(40.0)}
    save_file(tensors, folder / "whole.safetensors")
    torch.save(tensors, folder / "whole.pth")
    torch.save(tensors, folder / "old.pth", _use_new_zipfile_serialization=False)
    safe, whole, old = (
        (folder / n).read_bytes() for n in ("whole.safetensors", "whole.pth", "old.pth")
    )
    zip_around(
        folder / "quantised", b"\x80\x02}X\x01\x00\x00\x00wctorch._utils\n_rebuild_qtensor\n)Rs."
    )
    quantised = (folder / "quantised").read_bytes()
    return {
        "empty.pth": (b"", "it is empty"),
        "empty.safetensors": (b"", "not a whole safetensors file"),
        "cut.safetensors": (safe[:-4], "not a whole safetensors file"),
        "cut.pth": (whole[: len(whole) // 2], "cut short.*Download or copy it again"),
        "cut_old.pth": (old[:-4], "cut short: numbers are missing"),
        "cut_program.pth": (old[:120], "cannot be read as a checkpoint"),
        "hello.pth": (b"hello world\n", "it is a text file"),
        "page.pth": (b"<!DOCTYPE html><html>", "a web page.*download went wrong"),
        "lfs.pth": (b"version https://git-lfs.github.com/spec/v1\n", "git lfs pull"),
        "image.pth": (b"\x89PNG\r\n\x1a\n" + bytes(40), "it is an image"),
        "keras.h5": (b"\x89HDF\r\n\x1a\n" + bytes(40), "HDF5"),
        "packed.pth.gz": (b"\x1f\x8b" + bytes(40), "unpack it first"),
        "noise.pth": (bytes(range(128, 256)), "cannot be read as a checkpoint"),
        "pickle.pth": (b"\x80\x02]K\x01a.", "a pickle, but not one that torch.save wrote"),
        "list.pth": ([1, 2], "holds a list, expected a dict"),
        "number.pth": (3, "holds a int, expected a dict"),
        "tensor.pth": (torch.ones(2), "expected a dict"),
        "module.pth": (torch.nn.Linear(1, 1), "holds a torch.nn.modules.linear.Linear.*state_dict"),
        "other.pth": ({"epoch": 3}, "0 tensors and 1 other values .epoch"),
        "texts.pth": ({"w": torch.ones(1), "b": "x"}, "1 tensors and 1 other values .b."),
        "quantised.pth": (quantised, "'w' is a quantised tensor.*dequantize"),
        "sparse.pth": ({"w": torch.eye(2).to_sparse()}, "'w' is a sparse tensor.*to_dense"),
        "complex.pth": ({"w": torch.ones(1, dtype=torch.complex64)}, "'w' is a complex tensor"),
        "object.pth": ({"w": np.array(["a"], dtype=object)}, "0 tensors and 1 other values .w."),
    }


def test_every_broken_file_has_its_own_words(tmp_path):
    for name, (content, words) in corrupt(tmp_path).items():
        file = tmp_path / name
        if isinstance(content, bytes):
            file.write_bytes(content)
        else:
            torch.save(content, file)
        for read in (read_source, read_listing):
            with pytest.raises(CheckpointError, match=words) as caught:
                read(file)
            assert str(file) in str(caught.value)
    with pytest.raises(CheckpointError, match=r"no\.pth does not exist"):
        read_source(tmp_path / "no.pth")


def refused(file, words):
    for read in (read_source, read_listing):
        with pytest.raises(CheckpointError, match=words):
            read(file)


def test_zip_files_that_torch_never_writes(tmp_path):
    file, numbers = tmp_path / "odd.pth", torch.ones(4).numpy().tobytes()
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr("readme.txt", "no program")
    refused(file, r"not one that torch\.save wrote")
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr("a/data.pkl", b"\x80\x02}.")
        archive.writestr("a/constants.pkl", b"")
    refused(file, "TorchScript archive")
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("a/data.pkl", bytes(2**27))  # a bomb: 128 KiB that would be 128 MiB
    refused(file, "compressed or encrypted")
    zip_around(file, tensor_program((2, 2), (2, 1)))
    refused(file, "storage '0' are missing")
    zip_around(file, tensor_program((2, 2), (2, 1)), {"0": numbers[:-1]})
    refused(file, "storage '0' is shorter")
    zip_around(file, tensor_program((2, 2), (2, 1)), {"0": numbers})
    assert read_source(file).tensors["w"].tolist() == [[1.0, 1.0], [1.0, 1.0]]
    whole = file.read_bytes()
    at = whole.rindex(b"PK\x01\x02", 0, whole.rindex(b"archive/data/0"))
    far = whole[: at + 42] + struct.pack("<I", 2**31) + whole[at + 46 :]
    file.write_bytes(far)
    refused(file, r"odd\.pth")
    end = whole.rindex(b"PK\x05\x06")
    file.write_bytes(whole[: end + 12] + struct.pack("<I", 2**31) + whole[end + 16 :])
    refused(file, "zip directory has 2,147,483,648 bytes")
    zip_around(file, tensor_program((2, 2), (2, 1)), {"0": numbers})
    file.write_bytes(file.read_bytes().replace(b"little", b"bigger"))
    refused(file, "another order of bytes")


def test_names_of_a_zip_file_that_differ_in_their_case_alone(tmp_path):
    file, numbers = tmp_path / "odd.pth", torch.ones(4).numpy().tobytes()
    zip_around(file, tensor_program((2, 2), (2, 1)), {"0": numbers})
    with zipfile.ZipFile(file, "a") as archive:
        archive.writestr("archive/DATA/0", bytes(16))
    refused(file, "two entries of its zip directory have the same name")


def test_a_zip_directory_that_says_little_of_itself(tmp_path):
    file, length = tmp_path / "odd.pth", 20_000_000
    end = b"PK\x05\x06" + struct.pack("<4H2IH", 0, 0, 1, 1, length, 0, 0)
    file.write_bytes(b"PK" + bytes(length) + end)
    refused(file, "zip directory has 20,000,000 bytes")
    long = b"PK\x06\x06" + struct.pack("<Q2H2I4Q", 44, 45, 45, 0, 0, 1, 1, length, 0)
    seeming = b"PK\x06\x07" + struct.pack("<IQI", 0, int.from_bytes(b"PK\x06\x06", "little"), 1)
    file.write_bytes(b"PK" + bytes(99) + long + seeming + end[:12] + bytes(4) + end[16:])
    refused(file, "zip directory has 20,000,000 bytes")


def test_views_of_a_misaligned_storage_share_it(tmp_path):
    file, numbers = tmp_path / "old.pth", {"0": torch.arange(100.0).numpy().tobytes()}
    starts = range(0, 50, 5)
    for shift in range(4):  # puts the numbers at each of four places
        program = b"\x80\x02}X" + bytes([shift, 0, 0, 0]) + b"a" * shift + b"0"
        for start in starts:
            view = b"(X\x01\x00\x00\x00vK" + bytes([start]) + b"K\x32t"
            whole = tensor_program((50,), (1,), count=100, view=view)
            program += b"X\x01\x00\x00\x00" + chr(65 + start).encode() + whole[9:-1]
        legacy_around(file, program + b".", numbers)
        read = read_source(file).tensors
        assert [value[0].item() for value in read.values()] == list(starts)
        places = [value.data_ptr() for value in read.values()]
        assert [place - places[0] for place in places] == [4 * start for start in starts]


MEASURE = """
import resource, sys
from transferseg.transfer import read_listing, read_source
peak = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
before = peak()
for name in sys.argv[1:]:
    assert read_listing(name).shapes == {"w": (2**23,)}
for name in sys.argv[2:]:
    assert read_source(name).tensors["w"].shape == (2**23,)
print(peak() - before)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="ru_maxrss is in KiB on Linux alone")
def test_inspecting_copies_nothing(tmp_path):
    """32 MiB in each format: names and shapes, and mapped tensors too, take a fraction of it."""
    tensors = {"w": torch.zeros(2**23)}
    save_file(tensors, tmp_path / "a.safetensors")
    torch.save(tensors, tmp_path / "a.pth")
    torch.save(tensors, tmp_path / "old.pth", _use_new_zipfile_serialization=False)
    files = [str(tmp_path / name) for name in ("old.pth", "a.safetensors", "a.pth")]
    run = [sys.executable, "-c", MEASURE, *files]
    done = subprocess.run(run, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) < 12 * 1024


def test_of_a_safetensors_file_the_header_alone_is_read(tmp_path):
    """A file whose numbers are a hole of 500 MB on the disk, behind a header that names them."""
    count = 125_000_000
    header = b'{"w":{"dtype":"F32","shape":[%d],"data_offsets":[0,%d]}}' % (count, 4 * count)
    header += b" " * (-len(header) % 8)
    with (tmp_path / "hole.safetensors").open("wb") as file:
        file.write(struct.pack("<Q", len(header)) + header)
        file.truncate(8 + len(header) + 4 * count)
    assert read_listing(tmp_path / "hole.safetensors").shapes == {"w": (count,)}
