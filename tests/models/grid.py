"""Every architecture over every family: compile, export, ONNX, then the whole contract.

    python -m tests.models.grid                      # all that docs/exports.json has not as ok
    python -m tests.models.grid --kind exports --architecture unet --family swin --again

Each outcome is written as it ends, so a run cut short goes on; what failed is tried again. It exits
with 1 where something failed.
"""

import argparse
import contextlib
import signal
import sys
import tempfile
import time
from itertools import product

from tests.models import record
from tests.models.contract import check_contract, example
from tests.models.exports import (
    EXPORTED,
    FIXED_SIZE,
    ONNX,
    compiled,
    export,
    exported,
    through_onnx,
)
from tests.models.families import AXES, FAMILIES
from transferseg.models import DECODERS

#: processor seconds that one check may take: some traces would run for hours
LIMIT = 240
#: the most used first
ORDER = ("unet", "deeplabv3", "upernet", *sorted(DECODERS))


class TooLong(BaseException):
    """Not an Exception, which a tracer might catch."""


@contextlib.contextmanager
def limited(seconds):
    def stop(number, frame):
        raise TooLong(f"it took longer than {seconds} s of processor time")

    before = signal.signal(signal.SIGPROF, stop)
    signal.setitimer(signal.ITIMER_PROF, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)
        signal.signal(signal.SIGPROF, before)


def judged(check, most=None, refused=("", None)):
    """What a check ends with; `refused` are a reason and the words of an error that mean it."""
    reason, words = refused
    try:
        with limited(LIMIT):
            difference = check()
    except (Exception, TooLong) as error:
        said = " ".join(f"{type(error).__name__}: {error}".split())
        if words is not None and words in said:
            return f"refused: {reason}"
        return f"failed: {said[:300]}"
    if most is not None and not difference < most:
        return f"failed: the logits differ by {difference:.1e}"
    return "ok"


def try_exports(architecture, family, found):
    """Fill a cell of exports: one trace for all where its size can be free."""
    model = example(architecture, FAMILIES[family].tiny)
    found["compile"] = judged(lambda: compiled(model), EXPORTED)
    checks = {"export": (exported, EXPORTED), "onnx": (through_onnx, ONNX)}
    for free in ("size", "batch"):
        trace = []
        for name, (run, most) in checks.items():
            if free == "batch" and found[f"{name}_size"] == "ok":
                found[f"{name}_batch"] = "ok"  # the same program's, at other batches too
                continue

            def check(run=run, free=free, trace=trace):
                trace[:] = trace or export(model, free_size=free == "size")
                return run(trace[0], model, trace[1])

            if name == "onnx" and found[f"export_{free}"] != "ok":
                found[f"onnx_{free}"] = found[f"export_{free}"]  # it is made of that program
                continue
            why = FIXED_SIZE.get(family, ("", None)) if free == "size" else ("", None)
            found[f"{name}_{free}"] = judged(check, most, why)


def try_inductor(architecture, family, found):
    model = example(architecture, FAMILIES[family].tiny)
    found["compile"] = judged(lambda: compiled(model, "inductor"), EXPORTED)


def try_contracts(architecture, family, found):
    for channels, size in product(*AXES[2:]):
        name = f"{channels}x{size[0]}x{size[1]}"
        if not record.done(found.get(name)):
            with tempfile.TemporaryDirectory() as folder:
                encoder = FAMILIES[family].tiny
                found[name] = judged(
                    lambda e=encoder, c=channels, s=size, f=folder: check_contract(
                        architecture, e, c, s, f
                    )
                )


KINDS = {
    "exports": (try_exports, list(FAMILIES), record.EXPORTS),
    "inductor": (try_inductor, ["resnet"], ("compile",)),
    "contracts": (
        try_contracts,
        list(FAMILIES),
        [f"{c}x{h}x{w}" for c, (h, w) in product(*AXES[2:])],
    ),
}


def main(arguments=None):
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--kind", choices=KINDS, action="append")
    parser.add_argument("--architecture", choices=sorted(DECODERS), action="append")
    parser.add_argument("--family", choices=FAMILIES, action="append")
    parser.add_argument("--again", action="store_true", help="also what is ok already")
    parser.add_argument("--record", default=record.PATH, help="the file of the results")
    given = parser.parse_args(arguments)
    results = record.load(given.record)
    if results["versions"] != record.versions():
        parser.error(
            f"{given.record} is of {results['versions']}, here are {record.versions()}: "
            "delete it, or name another with --record"
        )
    failures = 0
    for kind in given.kind or KINDS:
        run, families, checks = KINDS[kind]
        for architecture, family in product(dict.fromkeys(ORDER), families):
            if architecture not in (given.architecture or ORDER) or family not in (
                given.family or FAMILIES
            ):
                continue
            found = record.cell(results, kind, architecture, family)
            if not given.again and all(record.done(found.get(check)) for check in checks):
                continue
            began = time.perf_counter()
            run(architecture, family, found)
            record.save(results, given.record)
            wrong = {check: why for check, why in found.items() if not record.done(why)}
            failures += bool(wrong)
            print(f"{kind} {architecture} {family} {time.perf_counter() - began:.0f} s", flush=True)
            for check, why in wrong.items():
                print(f"    {check}: {why}", flush=True)
    return 1 if failures else 0


if __name__ == "__main__":
    sys.exit(main())
