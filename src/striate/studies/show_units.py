"""What `striate units` does: the pass over the data, then the atlas, the page, the sheet or the numbers."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from striate.core.answer import Answer
from striate.core.counting import counting
from striate.core.errors import StriateError

if TYPE_CHECKING:
    from striate.data.samples import Split
    from striate.model import Model
    from striate.visualize.atlas import StageTiles
    from striate.visualize.units import Units

SUFFIXES = (".html", ".png", ".jpg", ".npz", ".json")
# Stages watched where none is named, evenly spaced over the depth.
STAGES = 4


def units(
    model: str, data: str, *, stages: str | None = None, split: str = "all", k: int = 9,
    units: str = "all", rule: str = "deconvnet,guided", side: int = 64, over_training: bool = False,
    limit: int | None = None, batch: int = 64, threads: int = 0, device: str = "auto",
    out: str | None = None,
) -> Answer:  # fmt: skip
    """Find the images that excite every unit most; show their patches and projections as an atlas.

    Args:
        model: a run folder, a .safetensors file, or a published net's name
        data: a folder, .zip, .tar, .csv or IDX file, or a name; a folder of unlabelled images too
        stages: stages, with commas between them; all: every stage with maps; none: four over the depth
        split: train, val, test or all
        k: strongest images of each unit
        units: numbers of the units to draw, such as 0-15,40; all units otherwise
        rule: how signals run back: deconvnet, guided, plain, with commas between them, or none
        side: longer side of a tile at most, in pixels
        over_training: of a run that kept models (--keep-every), the strongest image at each of them
        limit: look at so many images at most, evenly spaced
        batch: images a forward pass
        threads: processor threads; 0 takes all
        device: auto, cpu, cuda or mps
        out: a folder for the atlas, or a .html, .png, .jpg, .npz or .json file; by default units-MODEL
    """
    from striate.core import machine
    from striate.core.files import check_target
    from striate.core.folders import check_free
    from striate.evaluate.reading import check_counts, computing
    from striate.model import load
    from striate.visualize.atlas_folder import FACTS
    from striate.visualize.method import SUFFIXES as PICTURED

    rules, allowed = _rules(rule), PICTURED if over_training else SUFFIXES
    place = check_target(out, allowed, folder=not over_training) if out else Path()
    suffix = place.suffix.lower() if place.suffix.lower() in allowed else ""
    if out and not suffix:
        check_free(place, FACTS)
    numbers = _numbers(units)
    machine.keep_heap()
    check_counts(batch, threads)
    with computing(threads):
        shown = load(model, device=device)
        images, name = _images(data, split, shown, limit)
        names = _stages(shown, stages)
        how: dict[str, Any] = {"batch": batch, "workers": threads or None, "data": name}
        if over_training:
            if len(names) != 1:
                raise StriateError("--over-training shows one stage", hint="name one with --stages")
            return _evolution(model, images, names[0], numbers, rules, device, out, how)
        from striate.visualize.units import find_units

        with counting("images") as tell:
            found = find_units(shown, images, names, k=k, tell=tell, **how)
        target = Path(out or "units-" + re.sub(r"[^A-Za-z0-9._-]+", "-", found.model))
        if suffix in (".npz", ".json"):
            path = found.save(target)
        else:
            path = _draw(shown, images, found, target, suffix, numbers, rules, side)
    lines = [*found.lines(), f"written: {path}"]
    return Answer(lines, {"path": str(path), "images": found.images, "stages": _facts(found)})


def _draw(
    model: Model, images: Split, found: Units, target: Path, suffix: str,
    numbers: Sequence[int] | None, rules: Sequence[str], side: int,
) -> Path:  # fmt: skip
    from striate.visualize.atlas import draw_stage
    from striate.visualize.atlas_folder import write_folder, write_page, write_sheet

    def drawn() -> Iterator[StageTiles]:
        for stage in found.stages:
            own = None if numbers is None else [n for n in numbers if n < len(stage)]
            if own == []:
                raise StriateError(
                    f"no unit of {stage.stage!r} is asked for", allowed=f"0 to {len(stage) - 1}"
                )
            with counting(f"patches of {stage.stage}") as tell:
                yield draw_stage(model, images, stage, rules=rules, numbers=own, side=side, tell=tell)

    write = {"": write_folder, ".html": write_page}.get(suffix)
    return write(found, drawn(), target) if write else write_sheet(drawn(), target)


def _evolution(
    run: str, images: Split, stage: str, numbers: Sequence[int] | None, rules: Sequence[str],
    device: str, out: str | None, how: dict[str, Any],
) -> Answer:  # fmt: skip
    from striate.visualize.evolution import evolution

    with counting("models") as tell:
        picture = evolution(
            run, images, stage, numbers, rule=rules[0] if rules else "none", device=device, tell=tell, **how,
        )  # fmt: skip
    path = picture.save(out or f"evolution-{stage}.png")
    return Answer(
        [f"{picture.title}: {path}", picture.note],
        {"path": str(path), "title": picture.title, "epochs": picture.arrays["epochs"].tolist()},
    )


def _images(data: str, split: str, model: Model, limit: int | None) -> tuple[Split, str]:
    """The images to look at, and what they are called; labels do not matter."""
    from striate.data.formats import open_data

    if limit is not None and limit < 1:
        raise StriateError(f"limit is {limit}", allowed="a whole number, at least 1")
    try:
        opened = open_data(data, strict=False)
        images, name = opened.split(split), opened.name
    except StriateError:
        if split != "all" or not Path(data).is_dir():
            raise
        images, name = _unlabelled(Path(data))
    if limit is not None and limit < len(images):
        import numpy as np

        images = images.select(np.linspace(0, len(images) - 1, limit).round().astype(np.int64))
    return images, name


def _unlabelled(folder: Path) -> tuple[Split, str]:
    """All image files of a folder."""
    import numpy as np

    from striate.data.pools import FilePool
    from striate.data.samples import Split
    from striate.model import image_files

    names = [path.relative_to(folder).as_posix() for path in image_files(folder)]
    pool = FilePool(folder, names)
    return Split("all", pool, np.arange(len(names)), None), folder.absolute().name


def _stages(model: Model, text: str | None) -> list[str]:
    """The stages asked for; raises StriateError for an unknown one, with near matches."""
    from striate.nets.taps import stage
    from striate.visualize.stages import with_maps

    if text is None or text.strip() == "all":
        names = with_maps(model)
        if not names:
            raise StriateError("the net does not name its stages", hint="name some of its modules: --stages")
        if text is None and len(names) > STAGES:
            places = [round((i + 1) * (len(names) - 1) / STAGES) for i in range(STAGES)]
            names = [names[place] for place in dict.fromkeys(places)]
        return names
    names = [name.strip() for name in text.split(",") if name.strip()]
    for name in names:
        stage(model.net, name)
    return names


def _rules(text: str) -> tuple[str, ...]:
    from striate.core.errors import unknown

    known = ("deconvnet", "guided", "plain")
    names = tuple(dict.fromkeys(name.strip() for name in text.split(",") if name.strip()))
    if names == ("none",):
        return ()
    for name in names:
        if name not in known:
            raise unknown("rule", name, (*known, "none"))
    return names


def _numbers(text: str) -> list[int] | None:
    """Numbers such as 0-15,40; None for all."""
    if text.strip() == "all":
        return None
    found: list[int] = []
    for part in text.split(","):
        first, dash, last = part.strip().partition("-")
        if not first.isdigit() or (dash and not last.isdigit()):
            raise StriateError(f"units is {text!r}", allowed="all, or numbers such as 0-15,40")
        found += range(int(first), int(last if dash else first) + 1)
    return list(dict.fromkeys(found))


def _facts(found: Units) -> dict[str, Any]:
    return {
        stage.stage: {"units": len(stage), "dead": stage.dead.tolist(), "active": float(stage.active.mean())}
        for stage in found.stages
    }
