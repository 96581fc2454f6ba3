"""From a run's files and its evaluation to the words and figures of a report; opens no image."""

from __future__ import annotations

import dataclasses
import json
import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from striate.core.runs import ENVIRONMENT, Run
from striate.report.contents import (
    Calibration,
    ClassTable,
    Confusion,
    Curve,
    Fact,
    Headline,
    Setting,
)
from striate.report.figures import number, percent
from striate.tasks import metrics
from striate.train.fit import column
from striate.train.recipe import FREE, Recipe

BINS = 15
FULL_NAMES = {"top-1": "top-1 accuracy", "mAP": "mean average precision"}
SPLIT_NAMES = {"train": "training", "val": "validation", "test": "test"}
# No part of the command that trains again: settings that change no bit, and the device, which the machine
# that runs it may not have.
LEFT_OUT = (*FREE, "device")


def clock(seconds: float) -> str:
    """Seconds as "8.4 s", "12 min 41 s" or "1 h 02 min"."""
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest:02d} s" if minutes < 60 else f"{minutes // 60} h {minutes % 60:02d} min"


def amount(count: float) -> str:
    """A count with its unit: 272,474, 30.6 M, 4.09 G."""
    for size, unit in ((1e9, "G"), (1e6, "M")):
        if count >= size:
            return f"{count / size:.3g} {unit}"
    return f"{count:,.0f}"


def headline(tested: Mapping[str, Any]) -> Headline:
    """The verdict of an evaluation given as plain values."""
    scores = tested["scores"]
    interval = tested.get("intervals", {}).get(scores["main_name"])
    low_high = (float(interval[0]), float(interval[1])) if interval else None
    split = SPLIT_NAMES.get(tested["split"], tested["split"])
    return Headline(
        FULL_NAMES.get(scores["main_name"], scores["main_name"]),
        float(scores["main"]),
        int(scores["n"]),
        split,
        low_high,
    )


def summary(tested: Mapping[str, Any]) -> tuple[Fact, ...]:
    """The single figures of an evaluation, those that are the complement of another left out."""
    shown = []
    for name, value in tested.get("summary", {}).items():
        if value is None or "error" in name.replace("calibration error", ""):
            continue
        interval = tested.get("intervals", {}).get(name)
        note = f"95\u00a0% interval {100 * interval[0]:.1f}–\u2060{percent(interval[1])}" if interval else ""
        full = FULL_NAMES.get(name, name)
        shown.append(Fact(full[:1].upper() + full[1:], percent(value), note))
    return tuple(shown)


def class_table(scores: Mapping[str, Any]) -> ClassTable | None:
    """One row a class with what the task counts for each."""
    names = scores.get("classes") or ()
    if not names:
        return None
    main, note = _main_column(scores)
    columns: list[tuple[str, str]] = [("Class", "text"), (main, "bar")]
    parts: list[Sequence[Any]] = [names, scores["per_class"]]
    for field, title, kind in (
        ("precision", "Precision", "proportion"),
        ("recall", "Recall", "proportion"),
        ("accuracy", "Recall", "proportion"),
        ("f1", "F1", "proportion"),
        ("counts", "Images", "count"),
        ("pixels", "Pixels", "count"),
    ):
        if scores.get(field) is not None and len(scores[field]) == len(names):
            columns.append((title, kind))
            parts.append(scores[field])
    intervals: tuple[tuple[float, float] | None, ...] = ()
    if scores.get("low") and scores.get("high"):
        intervals = tuple(
            None if low is None or high is None else (low, high)
            for low, high in zip(scores["low"], scores["high"], strict=True)
        )
    return ClassTable(tuple(columns), tuple(zip(*parts, strict=True)), intervals, note)


def _main_column(scores: Mapping[str, Any]) -> tuple[str, str]:
    if "mean_iou" in scores:
        return "IoU", "IoU: pixels in both truth and prediction, divided by the pixels in either."
    if "mean_average_precision" in scores:
        return "Average precision", "Average precision: the area under the curve of precision over recall."
    return (
        "Recall",
        "Recall is the part of a class's images that were recognised, with its 95 % interval; "
        "precision the part of a class's predictions that were right.",
    )


def confusion(scores: Mapping[str, Any]) -> Confusion | None:
    """The confusion matrix, still without images; None for tasks that have none."""
    counts = scores.get("confusion")
    if counts is None:
        return None
    rows = tuple(tuple(int(n) for n in row) for row in counts)
    return Confusion(tuple(scores["classes"]), rows, unit="pixels" if "mean_iou" in scores else "images")


def calibration(scores: Mapping[str, Any]) -> Calibration | None:
    """The reliability diagram in 15 bins; None for tasks without one confidence an image."""
    if scores.get("confidence") is None or not len(scores["confidence"]):
        return None
    sure = np.asarray(scores["confidence"], np.float64)
    right = np.asarray(scores["predicted"]) == np.asarray(scores["true"])
    count, hits, total = metrics.calibration(sure, right, BINS)
    some = np.maximum(count, 1)
    return Calibration(
        counts=tuple(int(n) for n in count),
        confidence=tuple(float(v) if n else None for v, n in zip(total / some, count, strict=True)),
        accuracy=tuple(float(v) if n else None for v, n in zip(hits / some, count, strict=True)),
        ece=float(metrics.ece(sure, right, BINS) or 0.0),
    )


def curves(rows: Sequence[Mapping[str, float]], main_name: str) -> tuple[Curve, ...]:
    """Loss, main validation score and learning rate by epoch, from the rows of metrics.csv."""
    if not rows:
        return ()
    x = tuple(row.get("epoch", k + 1.0) for k, row in enumerate(rows))

    def line(*names: str) -> dict[str, tuple[float | None, ...]]:
        told = {"train_loss": "training", "val_loss": "validation"}
        return {
            told.get(name, "validation" if name.startswith("val_") else name): tuple(
                row.get(name) for row in rows
            )
            for name in names
            if any(name in row for row in rows)
        }

    found = [Curve("Loss", x, line("train_loss", "val_loss"), better="low")]
    keys = list(dict.fromkeys(key for row in rows for key in row))
    wanted = f"val_{column(main_name)}"
    scored = [k for k in keys if k.startswith("val_") and k != "val_loss" and "error" not in k]
    if scored:
        key = wanted if wanted in scored else scored[0]
        title = FULL_NAMES.get(main_name, main_name or key[4:])
        found.append(Curve(title[:1].upper() + title[1:], x, line(key), "proportion", "high"))
    if any("lr" in row for row in rows):
        found.append(Curve("Learning rate", x, {"learning rate": tuple(row.get("lr") for row in rows)}))
    return tuple(found)


def settings(written: Mapping[str, Any]) -> tuple[Setting, ...]:
    """The settled recipe, each setting with its default and its help."""
    recipe, defaults, found = written.get("recipe", {}), Recipe(), []
    for field in dataclasses.fields(Recipe):
        if field.name not in recipe:
            continue
        value, default = recipe[field.name], getattr(defaults, field.name)
        plain_default = list(default) if isinstance(default, tuple) else default
        found.append(
            Setting(
                field.name, told(value), told(plain_default), str(field.metadata.get("help", "")),
                changed=value != plain_default,
            )
        )  # fmt: skip
    return tuple(found)


def told(value: Any) -> str:
    """A setting's value as it is written on the command line; "none" for None."""
    if value is None:
        return "none"
    if isinstance(value, bool):
        return str(value).lower()
    return value if isinstance(value, str) else json.dumps(value)


def commands(run: Run, written: Mapping[str, Any]) -> tuple[tuple[str, str], ...]:
    """The command lines that train again with the same settings, test again, and continue."""
    data = str(written.get("data", {}).get("given", ""))
    words = ["striate", "train", data]
    recipe = written.get("asked", {}) | {"threads": written.get("recipe", {}).get("threads")}
    for setting in settings({"recipe": recipe}):
        if setting.changed and setting.name not in LEFT_OUT:
            words += [f"--{setting.name}", setting.value]
    folder = str(run.path)
    return (
        ("Train again with the same settings and seed; on the CPU the weights are the same to the last bit:",
         shlex.join(words)),
        ("Test the model again:", shlex.join(["striate", "evaluate", folder, data])),
        ("Write this report anew:", shlex.join(["striate", "report", folder])),
    )  # fmt: skip


def environment(run: Run) -> tuple[tuple[str, str], ...]:
    """Versions and machine as the run wrote them down; empty where the file is missing or broken."""
    try:
        found = json.loads((run.path / ENVIRONMENT).read_text("utf-8"))
    except (OSError, ValueError):
        return ()
    rows = [(str(name), str(version)) for name, version in found.get("packages", {}).items()]
    rows += [(key, str(found[key])) for key in ("python", "system", "processors") if key in found]
    command = found.get("command")
    if isinstance(command, list) and command:
        rows.append(("started as", shlex.join(map(str, command))))
    return tuple(rows)


@dataclasses.dataclass(frozen=True)
class Times:
    """Where a run's time went, in seconds; None where the run did not say."""

    training: float | None
    epoch: float | None
    speed: float | None
    waiting: float | None

    @classmethod
    def of(cls, events: Sequence[Mapping[str, Any]]) -> Times:
        """Read from the events of a run; epochs that were trained twice after a kill count once."""
        epochs = {
            event["epoch"]: event for event in events if event.get("event") == "epoch" and "epoch" in event
        }
        if not epochs:
            return cls(None, None, None, None)
        last = epochs[max(epochs)]
        seconds = float(last.get("seconds", 0.0)) or None
        speeds = [float(e["images_per_second"]) for e in epochs.values() if e.get("images_per_second")]
        waits = [float(e["data_wait"]) for e in epochs.values() if e.get("data_wait") is not None]
        return cls(
            training=seconds,
            epoch=seconds / len(epochs) if seconds else None,
            speed=float(np.median(speeds)) if speeds else None,
            waiting=float(np.mean(waits)) if waits else None,
        )

    def facts(self, tested: Mapping[str, Any] | None) -> tuple[Fact, ...]:
        """The timing section: epochs, speed, waiting, testing."""
        found = []
        if self.epoch is not None:
            found.append(Fact("Time per epoch", clock(self.epoch), "validation included"))
        if self.speed is not None:
            found.append(
                Fact("Training speed", f"{number(round(self.speed))} images/s", "median of the epochs")
            )
        if self.waiting is not None:
            found.append(Fact("Waiting for data", percent(self.waiting), "of the training steps' time"))
        if tested and tested.get("images_per_second"):
            speed = tested["images_per_second"]
            text = f"{number(round(speed))} images/s" if speed >= 10 else f"{speed:.1f} images/s"
            found.append(Fact("Testing", text, f"with loading, batches of {tested.get('batch', '?')}"))
        return tuple(found)

    def shares(self, tested: Mapping[str, Any] | None) -> dict[str, float]:
        """Seconds of training, of waiting within it, and of testing."""
        if self.training is None:
            return {}
        waited = self.training * (self.waiting or 0.0)
        found = {"training and validation": self.training - waited, "waiting for data": waited}
        if tested and tested.get("seconds"):
            found["testing"] = float(tested["seconds"])
        return found


def bad_files(
    events: Sequence[Mapping[str, Any]], *more: Sequence[Sequence[str]]
) -> tuple[tuple[str, str], ...]:
    """(name, reason) of every unreadable file that was met, each once."""
    found = {
        str(e["name"]): str(e.get("reason", ""))
        for e in events
        if e.get("event") == "bad-image" and "name" in e
    }
    for rows in more:
        found |= {str(name): str(reason) for name, reason in rows}
    return tuple(sorted(found.items()))


def size_of(path: Path) -> str:
    """A file's size: "1.1 MB", or an empty text where there is none."""
    try:
        size = path.stat().st_size
    except OSError:
        return ""
    return f"{size / 1e6:.1f} MB" if size >= 1e5 else f"{size / 1e3:.1f} kB"
