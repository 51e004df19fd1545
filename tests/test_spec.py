import json

import pytest

import transferseg as ts
from transferseg.errors import SpecError


def test_json_round_trip_keeps_every_field():
    spec = ts.ModelSpec(
        "unet", "resnet18", ("a", "b"), mode="multilabel", threshold=0.3, output_stride=32,
        decoder={"channels": (8, 4)},
        input=ts.InputSpec(channels=1, value_range=(0, 255), mean=(120.0,), std=(60.0,)),
    )  # fmt: skip
    again = ts.ModelSpec.from_json(spec.to_json())
    assert again == spec
    assert hash(again) == hash(spec)
    assert json.loads(spec.to_json())["input"]["channel_order"] == "L"


def test_decoder_options_cannot_be_changed_from_outside():
    options = {"channels": [8, 4]}
    spec = ts.ModelSpec("unet", "resnet18", ("a",), mode="binary", decoder=options)
    options["channels"].append(1)
    assert spec.decoder == {"channels": [8, 4]}


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"channels": 0}, "from 1"),
        ({"channels": 3, "mean": (0.5,)}, "1 values for 3"),
        ({"channels": 1, "std": (0.0,)}, "above 0"),
        ({"channels": 1, "channel_order": "RGB"}, "has 3 channels, got 1"),
        ({"channels": 3, "channel_order": "RBG"}, "unknown channel order"),
        ({"value_range": (1, 0)}, "must go up"),
    ],
)
def test_input_specs_that_do_not_fit(fields, message):
    with pytest.raises(SpecError, match=message):
        ts.InputSpec(**fields)


def test_unknown_and_missing_fields_are_named():
    with pytest.raises(SpecError, match="Did you mean 'classes'"):
        ts.ModelSpec.from_dict({"clases": []})
    with pytest.raises(SpecError, match="encoder"):
        ts.ModelSpec.from_dict({"architecture": "unet", "classes": ["a"]})
    with pytest.raises(SpecError, match="chanels"):
        ts.ModelSpec.from_dict({"architecture": "unet", "input": {"chanels": 1}})


@pytest.mark.parametrize(
    "text",
    [
        "{",
        "null",
        '{"input": "abc"}',
        '{"input": {"mean": ["a"]}}',
        '{"input": {"value_range": [1]}}',
    ],
)
def test_texts_that_are_no_spec(text):
    with pytest.raises(SpecError):
        ts.ModelSpec.from_json(text)


def test_values_that_would_be_taken_wrongly():
    for fields in ({"classes": "lung"}, {"classes": (1, 2)}, {"decoder": {"channels": object()}},
                   {"auxiliary": 1}, {"auxiliary": None}, {"auxiliary": {"index": object()}},
    ):  # fmt: skip
        with pytest.raises(SpecError):
            ts.ModelSpec(
                **{"architecture": "unet", "encoder": "r", "classes": ("a", "b"), **fields}
            )
    with pytest.raises(SpecError, match="finite"):
        ts.InputSpec(channels=1, std=(float("nan"),))
    assert ts.ModelSpec("u", "r", ("a",), "binary", decoder={"d": 0}) == ts.ModelSpec(
        "u", "r", ("a",), "binary", decoder={"d": 0.0}
    )


@pytest.mark.parametrize("auxiliary", [False, True, {"channels": 4, "index": -1}])
def test_an_auxiliary_head_is_a_yes_or_its_options(auxiliary):
    spec = ts.ModelSpec("fcn", "r", ("a", "b"), auxiliary=auxiliary)
    again = ts.ModelSpec.from_json(spec.to_json())
    assert again == spec
    assert again.auxiliary == auxiliary
    assert spec.replace(auxiliary={}).auxiliary is True  # its defaults
    if isinstance(auxiliary, dict):
        auxiliary["channels"] = 5
        assert spec.auxiliary["channels"] == 4


def test_encoder_options_are_json_and_older_configs_have_none():
    spec = ts.ModelSpec("unet", "vit", ("a",), "binary", encoder_options={"layers": (1, 2)})
    assert ts.ModelSpec.from_json(spec.to_json()) == spec
    assert spec.encoder_options == {"layers": [1, 2]}
    assert hash(spec) == hash(spec.replace(encoder_options={}))  # equal hashes need not be equal
    assert spec != spec.replace(encoder_options={})
    older = spec.to_dict()
    del older["encoder_options"]
    assert ts.ModelSpec.from_dict(older).encoder_options == {}
    with pytest.raises(SpecError, match="encoder options must be JSON values"):
        ts.ModelSpec("unet", "vit", ("a",), "binary", encoder_options={"layers": object()})
