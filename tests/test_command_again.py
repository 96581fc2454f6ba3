"""The command in a report that trains again, and settings that nothing reads beside the others."""

from __future__ import annotations

from pathlib import Path

from striate.core import settings
from striate.core.runs import Run
from striate.studies import collect
from striate.train.idle import idle_settings
from striate.train.recipe import FREE, Recipe


def test_the_command_names_what_changes_the_result_only(tmp_path: Path) -> None:
    asked = Recipe(epochs=7, keep_every=5, cache=1.0, workers=3, device="cpu", preflight=False)
    written = {"data": {"given": "digits"}, "asked": settings.to_dict(asked), "recipe": {"threads": 2}}
    (_, again), *_ = collect.commands(Run(tmp_path), written)
    assert again == "striate train digits --epochs 7 --threads 2"
    assert set(FREE) | {"device"} == set(collect.LEFT_OUT)


def test_epochs_for_a_net_that_nobody_trains_are_told(tmp_path: Path) -> None:
    """A net to grow from is trained first where it is an architecture only: no file, no published weights."""
    assert idle_settings(Recipe(net="vgg13", grow_from="vgg11", grow_epochs=3)) == []
    for source in ("", str(tmp_path), "airbench_cifar10"):
        (told,) = idle_settings(Recipe(grow_from=source, grow_epochs=3))
        assert told == "grow_epochs has no effect without a net to train first in grow_from"
