"""The verb `striate ensemble`."""

from __future__ import annotations

from typing import Literal

from striate.core.answer import Answer


def ensemble(
    models: list[str], *, out: str = "ensemble.safetensors",
    average: Literal["posteriors", "weights"] = "posteriors", data: str | None = None,
    split: str | None = None, last: int = 0, protocol: str = "center", batch: int = 64, threads: int = 0,
    device: str = "auto",
) -> Answer:  # fmt: skip
    """Join trained models into one: their posteriors averaged, or their weights.

    Args:
        models: run folders, .safetensors files, or a folder of them; a run alone stands for its snapshots
        out: the file to write
        average: posteriors keeps all nets in the file; weights gives one net, of members of one net
        data: test it on these data, against its best member; for weights also the training images
        split: of the data to test it on: train, val, test (the default) or all
        last: so many of the models at the end of the list only; 0 takes all
        protocol: how it is tested, see 'striate list protocols'
        batch: images a forward pass of the test
        threads: processor threads; 0 takes all
        device: auto, cpu, cuda or mps, for the test
    """
    from striate.core import machine
    from striate.studies.ensemble import ensemble as join

    machine.keep_heap()
    result = join(
        models, out=out, average=average, data=data, split=split, last=last, protocol=protocol, batch=batch,
        threads=threads, device=device,
    )  # fmt: skip
    return Answer(result.lines(), result.to_dict())
