"""The verb `bench`."""

from __future__ import annotations

from typing import Literal

from striate.core.answer import Answer


def bench(
    action: Literal["train", "load", "predict"], target: str, *, data: str | None = None,
    size: int | None = None, batch: int = 32, steps: int = 10, threads: int = 0, device: str = "auto",
    augment: str = "auto", engine: str = "auto", peak: bool = True, out: str | None = None,
) -> Answer:  # fmt: skip
    """Profile training, loading or prediction: where the time goes, and how close it is to the limit.

    Args:
        action: train: steps of the training loop; load: batches of a data set; predict: batches of pictures
        target: for train a net; for load a data set; for predict a model, or a net with random weights
        data: what to train on or to predict; by default random pictures in memory
        size: side of the pictures in pixels; by default the net's own, 224 for load
        batch: images a batch
        steps: batches that are timed, after two that are not
        threads: processor threads; 0 takes all
        device: auto, cpu, cuda or mps
        augment: augmentation, for load and for train with data; by default the usual one
        engine: for predict, the engines that race: auto for all but compiled, or one of them
        peak: measure the machine's peak before and after
        out: write the profile to this .json file too, or its stages to this .csv file
    """
    from striate.core.files import check_target
    from striate.studies.bench import bench_verb

    if out:
        check_target(out, [".json", ".csv"])
    result = bench_verb(
        action, target, data=data, size=size, batch=batch, steps=steps, threads=threads, device=device,
        augment=augment, engine=engine, with_peak=peak,
    )  # fmt: skip
    written = ["", f"written: {result.save(out)}"] if out else []
    return Answer([*result.lines(), *written], result.to_dict())
