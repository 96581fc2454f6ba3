"""The verb `data`: check, describe, show or prepare a data set."""

from __future__ import annotations

from typing import Any, Literal

from striate.core.answer import Answer

_SPLITS = frozenset(("val", "test", "contiguous", "label_column", "seed"))
_DRAWN = ("out", "augment", "size", "resize", "crop", "batch", "start_from", "images", "views")
USED = {
    "check": _SPLITS | {"near", "out"},
    "describe": _SPLITS,
    "show": _SPLITS.union(_DRAWN),
    "prepare": frozenset(("out", "workers")),
}


def data(
    action: Literal["check", "describe", "show", "prepare"], path: str, *, near: int = 2,
    out: str | None = None, val: float = 0.1, test: float = 0.2, contiguous: bool | None = None,
    label_column: str | None = None, augment: str = "auto", size: int | tuple[int, int] | None = None,
    resize: str = "auto", crop: float = 1.0, batch: int | None = None, start_from: str = "", seed: int = 0,
    images: int = 6, views: int = 7, workers: int | None = None, given: frozenset[str] = frozenset(),
) -> Answer:  # fmt: skip
    """Check a data set for trouble, draw what a net sees of it in training, or make it quick to load.

    Args:
        action: check reads every image; describe only opens the set; show draws augmented images;
            prepare copies it with its JPEG files rewritten without loss, so that crops of them decode faster
        path: a folder, .zip, .tar, .csv or IDX file, or a name
        near: check: near duplicates differ in at most so many of 64 hash bits; -1 looks for exact ones only
        out: write the findings to this .json or .csv file too; show: the picture, by default augmented.png;
            prepare: the folder to write to
        val: all but prepare: part of the training images held out where there is no validation split
        test: all but prepare: part of all images held out where there are no splits
        contiguous: all but prepare: whether the last images are held out; by default of numbered frames
        label_column: all but prepare: the column of a table that holds the class, if it is not found
        augment: show: the augmentation, such as 'pad-crop(4)+flip+mixup'; auto: what training would take
        size: show: input size in pixels, one number or [height, width]; by default what training would take
        resize: show: how images come to that size: crop, squash, pad or none; by default as in training
        crop: show: part of the image that testing crops, 0 to 1
        batch: show: images a batch, from which mixed samples come; by default what training would take
        start_from: show: the model that training would start from, whose size and mean are taken
        seed: all but prepare: the seed of all random draws, of the splits too
        images: show: how many images, one a row
        views: show: how many views of each
        workers: prepare: how many processes; by default one for each processor
    """
    from striate.core.files import check_target
    from striate.data.checks import check_data
    from striate.data.formats import open_data

    _check_given(action, given)
    splits: dict[str, Any] = {
        "val": val, "test": test, "contiguous": contiguous, "label_column": label_column, "seed": seed
    }  # fmt: skip
    if action == "show":
        from striate.studies.sheet import show_augmented

        sheet = show_augmented(
            path, out=out or "augmented.png", images=images, views=views, augment=augment, size=size,
            resize=resize, crop=crop, batch=batch, start_from=start_from, **splits,
        )  # fmt: skip
        return Answer(sheet.lines(), sheet.to_dict())
    if action == "prepare":
        return _prepare(path, out, workers)
    if out:
        check_target(out, [".json", ".csv"])
    dataset = open_data(path, strict=False, **splits)
    if action == "describe":
        return Answer(dataset.describe().splitlines(), {"path": path, "classes": list(dataset.classes)})
    result = check_data(dataset, near=near)
    if out:
        result.save(out)
    return Answer(result.lines(), result.to_dict())


def _check_given(action: str, given: frozenset[str]) -> None:
    from striate.core.errors import StriateError

    known = frozenset().union(*USED.values())
    for name in sorted(given & known - USED[action]):
        raise StriateError(
            f"'data {action}' takes no --{name}", allowed=sorted(f"--{flag}" for flag in USED[action])
        )


def _prepare(path: str, out: str | None, workers: int | None) -> Answer:
    from striate.core.counting import counting
    from striate.core.errors import StriateError
    from striate.data.prepare import prepare

    if out is None:
        raise StriateError("'data prepare' writes a copy", hint="say where with --out FOLDER")
    with counting("files") as told:
        result = prepare(path, out, workers=workers, told=told)
    return Answer(result.lines(), result.to_dict())
