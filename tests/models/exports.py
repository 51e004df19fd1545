"""A model compiled, exported and run by another runtime: how far its logits are from its own.

Each check returns that, as a share of the largest logit. What cannot be is in `LIMITS`.
"""

import io
import warnings

import pytest
import torch

from tests.models.contract import picture, relative
from tests.models.families import FAMILIES
from transferseg.models import DECODERS

#: (check, family) -> why it is not tried
LIMITS = {
    (check, family): "windows follow the size: tracing with a free one did not end in minutes"
    for check in ("exported_size", "onnx_size")
    for family in ("swin", "swinv2")
}


def compiled(model, backend="inductor"):
    """Logits and parameters' gradients of one graph without a break."""
    torch._dynamo.reset()
    image = picture(3, (64, 64))
    whole = torch.compile(model, fullgraph=True, backend=backend)
    found = []
    for network in (model, whole):
        model.zero_grad()
        logits = network(image)
        logits.square().mean().backward()
        found.append([logits, *(p.grad.clone() for p in model.parameters() if p.requires_grad)])
    # gradients that are nothing but noise are compared with the largest of all
    ours, theirs = found
    largest = max(float(grad.abs().max()) for grad in ours[1:])
    backward = max(float((a - b).abs().max()) for a, b in zip(ours[1:], theirs[1:], strict=True))
    return max(relative(theirs[0], ours[0]), backward / largest)


def exported_batch(model):
    """`torch.export` at a batch of 2, run at 3 and 1."""
    batch = torch.export.Dim("batch")
    program = torch.export.export(model, (picture(3, (64, 64)),), dynamic_shapes=({0: batch},))
    return _apart(program.module(), model, [(3, (64, 64)), (1, (64, 64))])


def exported_size(model):
    """`torch.export` with height and width any multiples of 32, run at other ones."""
    program = torch.export.export(model, (picture(3, (96, 160)),), dynamic_shapes=_any_size())
    return _apart(program.module(), model, [(2, (64, 224)), (3, (160, 96)), (1, (256, 64))])


def onnx_batch(model):
    """ONNX with a free batch, run by onnxruntime at another."""
    shapes = ({0: torch.export.Dim("batch")},)
    return _apart(_onnx(model, (64, 64), shapes), model, [(3, (64, 64)), (1, (64, 64))])


def onnx_size(model):
    """ONNX with height and width any multiples of 32, run by onnxruntime at other ones."""
    run = _onnx(model, (96, 160), _any_size())
    return _apart(run, model, [(2, (64, 224)), (3, (160, 96)), (1, (256, 64))])


def _any_size():
    batch, height, width = (torch.export.Dim(name) for name in ("batch", "height", "width"))
    return ({0: batch, 2: 32 * height, 3: 32 * width},)


def _onnx(model, size, shapes):
    """A function of the image that onnxruntime runs."""
    runtime = pytest.importorskip("onnxruntime")
    pytest.importorskip("onnxscript")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the exporter's own, about itself
        program = torch.onnx.export(
            model, (picture(3, size),), dynamo=True, dynamic_shapes=shapes, verbose=False
        )
    buffer = io.BytesIO()
    program.save(buffer)
    options = runtime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    session = runtime.InferenceSession(buffer.getvalue(), options)
    (name,) = (given.name for given in session.get_inputs())
    return lambda image: torch.from_numpy(session.run(None, {name: image.numpy()})[0])


def _apart(run, model, cases):
    worst = 0.0
    for batch, size in cases:
        image = picture(3, size, batch, seed=batch)
        with torch.no_grad():
            given, wanted = run(image), model(image)
        assert given.shape == wanted.shape
        worst = max(worst, relative(given, wanted))
    return worst


#: check -> the largest difference that is none
CHECKS = {
    "compiled": (compiled, 1e-5),
    "exported_batch": (exported_batch, 1e-5),
    "exported_size": (exported_size, 1e-5),
    "onnx_batch": (onnx_batch, 1e-4),
    "onnx_size": (onnx_size, 1e-4),
}


def cells(check):
    """Every architecture and family; what is not tried is skipped and says why."""
    for architecture in sorted(DECODERS):
        for family in FAMILIES:
            why = LIMITS.get((check, family))
            marks = [] if why is None else [pytest.mark.skip(reason=why)]
            yield pytest.param(architecture, family, marks=marks)
