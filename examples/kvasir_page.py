"""The text of the page that kvasir.py writes; run that file."""

PAGE = """# Polyps: Kvasir-SEG

What ImageNet weights give on a small budget: U-Net and Attention U-Net over MobileNetV2 0.35, with
the weights and without, each trained once.

```bash
python examples/kvasir.py --data FOLDER{flags}
```

`FOLDER/kvasir_seg` holds `train/` and `validation/`, each with `images/` and `masks/`, of
[Kvasir-SEG](https://datasets.simula.no/kvasir-seg/); `FOLDER/../weights` (or `--weights FILE`)
timm's `{encoder}` with ImageNet weights. They want TensorFlow's padding, its epsilon in
batch norm and images from -1 to 1; the script sets these, and checks before it trains that the
encoder's feature maps are those of the original model to the last bit.

## Result

{train} images train, {scored} are scored, after the last epoch; nothing was chosen on
them. Masks are compared at their own {own} px, whatever size the network saw. A score is **pooled**
(the pixels of all images summed first) or **per image** (the mean over images).

<!-- table: begin -->
{table}

Processor seconds of training, with a validation pass after every epoch, on {machine}.
<!-- table: end -->

{gains}

Images are decoded beforehand, in {reading:.0f} s. All numbers: [kvasir.json](kvasir.json).

```{{image}} kvasir.png
:alt: pooled Dice of the scored images by epoch, a line a run
```

## Settings

Ours: {ours} linear
warm-up, then a cosine to 0; BCE + Dice; reflections along both axes, rotations to 20 degrees, zoom
from 0.9 to 1.15; channels-last memory. The size and the epochs are what the peer's seconds pay for.
Batch size, rate and augmentation were chosen in five short trials with `--held-out`, which trains
on four fifths of the training images and scores the rest.
{peer}
## What it says, and what it does not

- One seed a row, {scored} images: a difference of a point or two is none.
- The peer's rate is constant, so its last epoch is better or worse by chance; the curves show
  how much.
- Kvasir-SEG does not tell which images are of one patient, so it is not known whether training and
  validation share patients. No picture is in both (compared by content).
"""

PEER = """
The peer is segmentation-models-pytorch's U-Net as it comes, over the same encoder with the same
weights, in the same loop: {stock}
constant; smp's Dice with cross-entropy; no augmentation.
"""
