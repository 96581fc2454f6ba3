"""The verbs that make pictures, `dream` and `stylize`: from file names to files."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from striate.core.answer import Answer
from striate.core.errors import StriateError
from striate.core.files import check_target
from striate.visualize.wishes import Dream, Style

PICTURES = (".png", ".jpg", ".jpeg")
FILMS = (".gif", ".webp", ".mp4")


def dream(
    model: str, image: str, wish: Dream = Dream(), *, out: str | None = None,  # noqa: B008
    state: str | None = None, resume: bool = False, preview: str | None = None, preview_every: int = 20,
    progress: bool = True, threads: int = 0, device: str = "auto",
) -> Answer:  # fmt: skip
    """Deep dream: raise what a network sees in an image, as a picture or a zoom.

    Args:
        model: a run folder, a .safetensors file, or a published net's name
        image: the image to dream at
        out: the file to write, .png or .jpg, with --frames also .gif, .webp or .mp4; by default dream.png
        state: keep the state of the run in this file, now and then and at Ctrl-C
        resume: go on from the state of a stopped run
        preview: write the picture to this .png or .jpg file every few steps
        preview_every: steps between two previews
        progress: tell the progress on a terminal
        threads: processor threads; 0 takes all
        device: auto, cpu, cuda or mps
    """
    target = _target(out or ("dream.gif" if wish.frames > 1 else "dream.png"), film=wish.frames > 1)
    opened, watch = _open(model, threads, device), _watch(preview, preview_every, progress)
    from striate.visualize.dream import dream as run

    made = run(opened, image, wish, watch=watch, state=_state(state, resume, target), resume=resume)
    path = made.save(target)
    return Answer([*made.lines(), f"written: {path}"], {**made.to_dict(), "path": str(path)})


def stylize(
    content: str, styles: list[str], wish: Style = Style(), *, model: str = "auto",  # noqa: B008
    out: str | None = None, state: str | None = None, resume: bool = False, preview: str | None = None,
    preview_every: int = 20, progress: bool = True, threads: int = 0, device: str = "auto",
) -> Answer:  # fmt: skip
    """Neural style: paint an image in the manner of others.

    Args:
        content: the image to paint
        styles: the images whose manner is taken, one or more
        model: a run folder, a .safetensors file or a published net; auto: VGG-19 where it is here
        out: the .png or .jpg file to write; by default styled.png
        state: keep the state of the run in this file, now and then and at Ctrl-C
        resume: go on from the state of a stopped run
        preview: write the picture to this .png or .jpg file every few steps
        preview_every: steps between two previews
        progress: tell the progress on a terminal
        threads: processor threads; 0 takes all
        device: auto, cpu, cuda or mps
    """
    target = _target(out or "styled.png", film=False)
    name = _backbone() if model == "auto" else model
    opened, watch = _open(name, threads, device), _watch(preview, preview_every, progress)
    from striate.visualize.style import stylize as run

    made = run(opened, content, styles, wish, watch=watch, state=_state(state, resume, target), resume=resume)
    path = made.save(target)
    return Answer([*made.lines(), f"written: {path}"], {**made.to_dict(), "model": name, "path": str(path)})


def _target(name: str, *, film: bool) -> str:
    """The file to write, checked before hours of work."""
    allowed = (*PICTURES, *FILMS) if film else PICTURES
    if Path(name).suffix.lower() not in allowed:
        raise StriateError(f"cannot write {name!r}", allowed=allowed, hint="give --out with such an ending")
    check_target(name, allowed)
    return name


def _state(state: str | None, resume: bool, target: str) -> str | None:
    """Where the state lies: as named; for --resume alone beside the picture."""
    return f"{target}.state" if state is None and resume else state


def _open(model: str, threads: int, device: str) -> Any:
    from striate.core import machine
    from striate.model import load

    machine.keep_heap()
    if machine.check_threads(threads):
        import torch

        torch.set_num_threads(threads)
    return load(model, device=device)


def _watch(preview: str | None, every: int, progress: bool) -> Any:
    from striate.visualize.synthesis import Reporter

    return Reporter(preview, every, progress=progress)


def _backbone() -> str:
    """VGG-19's published weights where they are at hand, else EfficientNet-Lite0's."""
    from striate.nets.published import on_disk, published

    card = "vgg19.imagenet1k_v1"
    return card if on_disk(published(card)) is not None else "efficientnet_lite0"
