"""`python -m transferseg`: the commands of `load`, and `predict`, which needs `training` too."""

from __future__ import annotations

import argparse
import sys
from typing import Any

from transferseg.errors import TrainingError
from transferseg.load.cli import json_value, main


def add_predict(commands: Any) -> None:  # noqa: ANN401 - argparse does not name its type
    """Add the command `predict MODEL IMAGES OUT`."""
    parser = commands.add_parser("predict", help="write the masks of a folder of images")
    parser.add_argument("model", metavar="MODEL", help="a checkpoint file or folder")
    parser.add_argument("images", metavar="IMAGES", help="a folder, a file or a glob pattern")
    parser.add_argument("target", metavar="OUT", help="where masks are written")
    parser.add_argument("--overlays", metavar="FOLDER", help="where pictures are written too")
    parser.add_argument("--resume", action="store_true", help="leave out what is there")
    parser.add_argument("--overwrite", action="store_true", help="replace what is there")
    parser.add_argument(
        "--with",
        dest="options",
        nargs=2,
        action="append",
        default=[],
        metavar=("NAME", "VALUE"),
        help="another keyword of predict, its value as JSON: window 512, precision bf16",
    )
    parser.set_defaults(run=_predict)


def _predict(given: argparse.Namespace) -> int:
    """Status 1 if an image has no mask."""
    from transferseg.load import load_checkpoint
    from transferseg.training import predict_folder

    options: dict[str, Any] = {name: json_value(text) for name, text in given.options}
    taken = {"model", "source", "target", "overlays", "resume", "overwrite", "postprocess"}
    if taken & {*options}:
        raise TrainingError(f"--with names another keyword than {', '.join(sorted(taken))}.")
    report = predict_folder(
        load_checkpoint(given.model)[0],
        given.images,
        given.target,
        overlays=given.overlays,
        resume=given.resume,
        overwrite=given.overwrite,
        **options,
    )
    print(report)
    return 1 if report.failed else 0


if __name__ == "__main__":
    sys.exit(main(more=[add_predict]))
