"""`striate bench train|load|predict`: where the time goes, and how close it comes to the limit."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from striate.core.errors import unknown
from striate.studies.bench_load import profile_loading
from striate.studies.bench_predict import profile_prediction
from striate.studies.bench_train import profile_training
from striate.studies.profiles import Profile, Wanted
from striate.train.devices import threads

ACTIONS = ("train", "load", "predict")


def bench_verb(action: str, target: str, **how: Any) -> Profile:
    """Profile a training step of a net, the loading of a data set, or a prediction with a model or net.

    target: for train a net; for load a data set; for predict a model or a net (with random weights). data:
    what to train on or predict for; random pictures in memory by default. Further keywords as of `Wanted`.

    Raises:
        StriateError: an unknown action, net, model, data set, device or engine, or a number out of range.
    """
    actions: dict[str, Callable[[Wanted], Profile]] = {
        "train": profile_training,
        "load": profile_loading,
        "predict": profile_prediction,
    }
    if action not in actions:
        raise unknown("action", action, ACTIONS)
    wanted = Wanted(target, **how)
    with threads(wanted.threads or None):
        return actions[action](wanted)
