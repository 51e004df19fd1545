"""A model compiled, exported and run by another runtime: how far its logits are from its own.

One trace serves as many checks as torch allows: with a free batch and a free size where that can
be, and from it the ONNX model; with a free batch alone else.
"""

import copy
import io
import math
import warnings

import torch

from tests.models.contract import picture, relative

#: the largest difference that is none, as a share of the largest logit
EXPORTED, ONNX = 1e-5, 1e-4
#: family -> why its size is not free, and the words of torch that say so
FIXED_SIZE = {
    "dinov3": ("timm divides its rotary positions by float(height), a fixed number", "Guard failed")
}


def compiled(model, backend="aot_eager"):
    """One graph without a break: the difference of logits, and of parameters' gradients.

    Where nothing is rewritten the numbers are float64: in float32 a rounding that crosses the kink
    of one ReLU is seen in the gradients.
    """
    torch._dynamo.reset()
    image = picture(3, (64, 64))
    if backend == "aot_eager":
        model, image = copy.deepcopy(model).double(), image.double()
    whole = torch.compile(model, fullgraph=True, backend=backend)
    found = []
    for network in (model, whole):
        model.zero_grad()
        logits = network(image)
        logits.square().mean().backward()
        found.append([logits, *(p.grad.clone() for p in model.parameters() if p.requires_grad)])
    model.zero_grad()
    # gradients that are nothing but noise are compared with the largest of all
    ours, theirs = found
    largest = max(float(grad.abs().max()) for grad in ours[1:])
    backward = max(float((a - b).abs().max()) for a, b in zip(ours[1:], theirs[1:], strict=True))
    return max(relative(theirs[0], ours[0]), backward / largest)


def unit(encoder):
    """Of which a free height and width are multiples, from two times on.

    The windows of a Swin pad a map that they do not fill, and shrink, unshifted, to one that is not
    larger: what is traced where they do neither holds where they do neither.
    """
    windows = [side for part in encoder.modules() for side in getattr(part, "window", ())]
    return math.lcm(32, encoder.multiple, *(32 * side for side in windows))


def export(model, *, free_size):
    """The model's `ExportedProgram`, traced with a batch of two, and cases it must hold for."""
    batch = torch.export.Dim("batch")
    if not free_size:
        shapes, size = {0: batch}, (64, 64)
        cases = [(3, size), (1, size)]
    else:
        side = unit(model.encoder)
        height, width = (torch.export.Dim(n, min=2) for n in ("height", "width"))
        shapes = {0: batch, 2: side * height, 3: side * width}
        size = 3 * side, 4 * side
        cases = [(3, (2 * side, 4 * side)), (1, (5 * side, 2 * side))]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch's own, about itself
        program = torch.export.export(
            model, (picture(3, size),), dynamic_shapes=(shapes,), strict=False
        )
    return program, cases


def exported(program, model, cases):
    """The difference of an exported program's logits at other batches and sizes."""
    return _apart(program.module(), model, cases)


def through_onnx(program, model, cases):
    """The difference of onnxruntime's logits."""
    import onnxruntime

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the exporter's own, about itself
        translated = torch.onnx.export(program, dynamo=True, verbose=False)
    buffer = io.BytesIO()
    translated.save(buffer)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    session = onnxruntime.InferenceSession(buffer.getvalue(), options)
    (name,) = (given.name for given in session.get_inputs())
    return _apart(
        lambda image: torch.from_numpy(session.run(None, {name: image.numpy()})[0]), model, cases
    )


def _apart(run, model, cases):
    worst = 0.0
    for batch, size in cases:
        image = picture(3, size, batch, seed=batch)
        with torch.no_grad():
            given, wanted = run(image), model(image)
        assert given.shape == wanted.shape
        worst = max(worst, relative(given, wanted))
    return worst
