"""The command line: one verb, one call into a floor below.

A verb is a typed function: its signature and docstring are the flags, the help and the settings file.
"""

from __future__ import annotations

import io
import json
import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Literal

from striate.core.answer import Answer
from striate.core.errors import StriateError
from striate.studies.bench_verb import bench
from striate.studies.data_verb import data
from striate.studies.ensemble_verb import ensemble
from striate.studies.show_units import units
from striate.studies.synthesis import dream, stylize
from striate.train.recipe import Recipe

ListKind = Literal[
    "nets", "layers", "initialisations", "stages", "weights", "formats", "augmentations", "inputs", "tasks",
    "optimizers", "schedules", "samplers", "pruners", "protocols", "methods", "objectives", "engines",
]  # fmt: skip


def train(
    data: str | None = None, recipe: Recipe = Recipe(), *, out: str | None = None,  # noqa: B008
    resume: bool | str = False, repeats: int = 1, dry_run: bool = False,
    range_test: bool = False, report: bool = True, search: int = 0, space: dict[str, Any] | None = None,
    sampler: str | None = None, pruner: str | None = None, ablate: list[str] | str | None = None,
    given: frozenset[str] = frozenset(),
) -> Answer:  # fmt: skip
    """Train a network on a data set, test it, look inside it, and write the report.

    Args:
        data: a folder, .zip, .tar, .csv or IDX file, or a name: digits, fashion-mnist, cifar10
        out: the run folder; by default runs/NET-DATA-N
        resume: continue this run folder (none named: `out`, or the last run); more `epochs` extend a run
        repeats: train so many times, with seeds from `seed` on, and give mean and spread
        dry_run: make all checks, train nothing
        range_test: train nothing, but try rising learning rates, plot the loss and suggest a rate
        report: write report.html when done
        search: search settings in so many trials; all processes with the same `out` work on one study
        space: what a search may choose from, such as --space.lr "log(1e-3,1)" --space.batch 64,128
        sampler: how a search proposes settings ('striate list samplers'); by default tpe
        pruner: when a search ends a trial early ('striate list pruners'); by default median
        ablate: train the recipe, and again without each of these parts, and compare: settings, such as
            augment,ema,schedule=constant, and steps of the augmentation, such as augment.flip
    """
    from striate.studies import job

    result = job.train_verb(
        data, recipe, out=out, resume=resume, repeats=repeats, dry_run=dry_run, range_test=range_test,
        report=report, given=given, search=search, space=space, sampler=sampler, pruner=pruner, ablate=ablate,
    )  # fmt: skip
    return Answer(result.lines(), result.to_dict())


def evaluate(
    model: str, data: str, *, split: str = "test", protocol: str = "center", grid: str | None = None,
    trained_side: str | None = None, corruptions: bool = False, batch: int = 64, threads: int = 0,
    device: str = "auto", engine: str = "auto", label_column: str | None = None, out: str | None = None,
) -> Answer:  # fmt: skip
    """Test a model by a protocol: scores with 95% intervals, and what they cost.

    Args:
        model: a run folder, a .safetensors file, or a published net's name; several as A+B are fused
        data: a folder, .zip, .tar, .csv or IDX file, or a name
        split: train, val, test or all
        protocol: the views that the network sees and how they are pooled, such as dense@256,384+flip
        grid: a table of several protocols: vgg, or their forms joined by ';'
        trained_side: for --grid vgg, the shorter side S of the training images, such as 256 or 256,512
        corruptions: accuracy under noise, blur, low contrast and JPEG, and consistency under shifts
        batch: images a forward pass
        threads: processor threads; 0 takes all
        device: auto, cpu, cuda or mps
        engine: auto for the fastest with the same answers, or one of 'striate list engines'
        label_column: the column of a table that holds the class, where it is not found by itself
        out: write the scores, with one entry an image, to this .json or .npz file too; tables, .json or .csv
    """
    from striate.core.files import check_target
    from striate.evaluate.evaluate import given_models
    from striate.evaluate.verb import evaluate_verb

    if out:
        rows = grid or corruptions or len(given_models(model)) > 1
        check_target(out, [".json", ".csv" if rows else ".npz"])
    result = evaluate_verb(
        model, data, split=split, protocol=protocol, grid=grid, trained_side=trained_side,
        corruptions=corruptions, batch=batch, threads=threads, device=device, engine=engine,
        label_column=label_column,
    )  # fmt: skip
    if out:
        result.save(out)
    return Answer(result.lines(), result.brief())


def predict(
    model: str, images: list[str], *, top: int = 5, batch: int = 32, threads: int = 0,
    device: str = "auto", engine: str = "auto", skip_bad: bool = False, out: str | None = None,
) -> Answer:  # fmt: skip
    """Say what is on images: the likeliest classes, or the mask of every class.

    Args:
        model: a run folder, a .safetensors file, or a published net's name
        images: image files or folders of them
        top: how many classes to name for each image
        batch: images a forward pass
        threads: processor threads; 0 takes all
        device: auto, cpu, cuda or mps
        engine: auto for the fastest with the same answers, or one of 'striate list engines'
        skip_bad: name unreadable files and go on, instead of stopping
        out: write the answers to this .csv or .json file too; masks go into this folder as .png
    """
    from striate.studies import answers

    result = answers.predict_files(
        model, images, top=top, batch=batch, threads=threads, device=device, engine=engine,
        skip_bad=skip_bad, out=out,
    )  # fmt: skip
    return Answer(result.lines(), result.brief())


def visualize(
    method: str, model: str, images: list[str] | None = None, *, out: str | None = None,
    options: dict[str, Any] | None = None,
) -> Answer:  # fmt: skip
    """Look inside a network: filters, feature maps, saliency.

    Args:
        method: one of 'striate list methods'
        model: a run folder, a .safetensors file, or a published net's name
        images: image files or folders of them, where the method needs any
        out: the file to write: .png, .svg, .npz or .json; by default METHOD.png
        options: the method's own options, such as --options.stage conv2 or --options.target cat
    """
    from striate.core.files import check_target
    from striate.model import load
    from striate.studies.answers import expand
    from striate.visualize.method import SUFFIXES
    from striate.visualize.method import visualize as run

    target = check_target(out or f"{method}.png", SUFFIXES)
    picture = run(method, load(model), list(expand(images)) if images else None, **(options or {}))
    path = picture.save(target)
    return Answer(
        [f"{picture.title}: {path}", *picture.lines()],
        {**picture.brief(), "path": str(path)},
    )


def weights(
    action: Literal["list", "fetch", "verify"], name: str | None = None,
) -> Answer:  # fmt: skip
    """List, fetch and verify the published weights of nets.

    Args:
        action: list shows every file; fetch brings one to this machine; verify compares files and cards
        name: a published net's name; for list, a part of names; for verify, also a file, and none means all
    """
    from striate.studies import shelf

    verbs: dict[str, Callable[[str | None], Any]] = {
        "list": shelf.listing, "fetch": shelf.fetch, "verify": shelf.verify,
    }  # fmt: skip
    result = verbs[action](name)
    return Answer(result.lines(), result.to_dict())


def report(run: str) -> Answer:
    """Write the report of a run or of a search anew.

    Args:
        run: the run folder, or the folder of a search
    """
    from striate.studies.job import make_report

    path = make_report(Path(run))
    return Answer([f"report: {path}"], {"report": str(path)})


def list_(kind: ListKind, model: str | None = None) -> Answer:
    """List what there is: nets, weights, data formats, protocols, methods, and the stages of a model.

    Args:
        kind: what to list
        model: for stages, a run folder, a .safetensors file, a published net or a net's name
    """
    from striate.studies.catalogue import rows

    found = rows(kind, model)
    return Answer(found.lines(), found.to_dict())


def nets(
    action: Literal["show"], name: str, *, size: int | tuple[int, int] | None = None,
    classes: int | None = None, in_channels: int | None = None, options: dict[str, Any] | None = None,
    out: str | None = None,
) -> Answer:  # fmt: skip
    """Show a network: the table of its paper, parameters, operations, memory, receptive fields, a drawing.

    Args:
        action: what to do
        name: one of 'striate list nets', a published weight file, a run folder or a .safetensors file
        size: side of the pictures, or [height, width]; by default the net's own
        classes: number of classes; by default the net's usual one
        in_channels: channels of the pictures; by default the net's usual number
        options: the net's own options, such as --options.width 32
        out: write the drawing to this .svg file, or the table to this .csv or .json file
    """
    from striate.studies.show_net import show_net

    page = show_net(name, size=size, classes=classes, in_channels=in_channels, options=options)
    written = [f"written:       {page.save(out)}"] if out else []
    return Answer([*page.lines(), *written], page.to_dict())


def compare(
    what: Literal["nets"], names: list[str] | None = None, *, measure: bool = False,
    size: int | None = None, rounds: int = 5, threads: int = 0, device: str = "auto", out: str | None = None,
) -> Answer:  # fmt: skip
    """Compare networks: accuracy, parameters, operations; measured: time, throughput, memory, energy.

    Args:
        what: what to compare
        names: nets, or published weight files; none: every net with published scores
        measure: time them on this machine too
        size: side of the pictures for all of them; by default each one's own
        rounds: rounds of the measurement, in each of which every net has its turn
        threads: processor threads; 0 takes all
        device: auto, cpu or cuda
        out: write to this .csv, .json, .png or .svg file, or all four into this folder
    """
    from striate.core.files import check_target
    from striate.studies.compare_nets import SUFFIXES, compare_nets

    if out:
        check_target(out, SUFFIXES, folder=True)
    result = compare_nets(
        names or None, measure=measure, size=size, rounds=rounds, threads=threads, device=device
    )
    written = ["", f"written: {result.save(out)}"] if out else []
    return Answer([*result.lines(), *written], result.to_dict())


def demo(*, out: str = "runs/demo", seed: int = 0) -> Answer:
    """Train LeNet-5 on embedded digits, test it, explain it, and recognise two photographs.

    Args:
        out: the run folder, made anew each time
        seed: the seed of all random draws
    """
    from striate.studies.demo import demo as run

    result = run(out, seed=seed)
    return Answer(result.lines(), result.to_dict())


def doctor() -> Answer:
    """Say what Striate finds on this machine: versions, devices, threads, optional parts."""
    from striate.studies.doctor import examine

    result = examine()
    return Answer(result.lines(), result.to_dict())


VERBS: dict[str, Any] = {
    "train": train, "evaluate": evaluate, "predict": predict, "visualize": visualize, "units": units,
    "dream": dream, "stylize": stylize, "ensemble": ensemble,
    "data": data, "nets": nets, "compare": compare, "bench": bench, "weights": weights, "report": report,
    "list": list_, "demo": demo, "doctor": doctor,
}  # fmt: skip
# These compute nothing: the memory allocator stays as it is. All others keep large blocks (`keep_heap`).
LIGHT = ("data", "nets", "weights", "report", "list", "doctor")


def usage() -> str:
    """The text of `striate --help`."""
    from striate import __version__

    rows = [f"  {name:<10} {(verb.__doc__ or '').splitlines()[0]}" for name, verb in VERBS.items()]
    return "\n".join(
        [
            f"striate {__version__}: a workbench for convolutional networks on images",
            "",
            "usage: striate VERB [ARGUMENTS]   (striate VERB --help tells its arguments)",
            "",
            *rows,
            "",
            "Start with:  striate demo",
            "Your images: striate train FOLDER    (one sub folder a class)",
        ]
    )


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; the exit code: 0 done, 1 trouble inside, 2 the user's mistake, 130 interrupted."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            # A file name that the terminal's encoding cannot show is told by escapes.
            stream.reconfigure(errors="backslashreplace")
    arguments = list(sys.argv[1:] if argv is None else argv)
    if not arguments or arguments[0] in ("-h", "--help", "help"):
        print(usage())
        return 0 if arguments else 2
    if arguments[0] in ("-V", "--version"):
        from striate import __version__

        print(__version__)
        return 0
    try:
        return _run(arguments[0], arguments[1:])
    except StriateError as error:
        print(f"striate: {error}", file=sys.stderr)
        return getattr(error, "exit_code", 2)
    except KeyboardInterrupt:
        print("striate: interrupted", file=sys.stderr)
        return 130
    except BrokenPipeError:
        # The reader of a pipe went away: keep the interpreter from complaining at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except OSError as error:
        if error.filename is None or not error.strerror:
            raise
        print(f"striate: cannot use {str(error.filename)[:200]!r}: {error.strerror}", file=sys.stderr)
        return 2


def _run(name: str, arguments: list[str]) -> int:
    from striate.arguments import parse

    if name not in VERBS:
        from striate.core.errors import unknown

        raise unknown("verb", name, VERBS, hint="'striate --help' tells what each does")
    values, as_json = parse(f"striate {name}", VERBS[name], arguments)
    if values is None:
        return 0
    if name not in LIGHT:
        from striate.core import machine

        machine.keep_heap()
    answer = VERBS[name](**values)
    if int(os.environ.get("RANK", "0")) != 0:
        # Of several processes only the first speaks.
        return 0
    if as_json:
        from striate.core.results import plain

        print(json.dumps(plain(answer.values), ensure_ascii=False))
    else:
        print("\n".join(answer.lines))
    return 0


if __name__ == "__main__":
    sys.exit(main())
