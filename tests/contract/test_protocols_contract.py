"""What every test protocol must hold, whichever file it comes from."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch

from little_models import CLASSES, conv_model, found, pictures, sharp
from striate.core.errors import StriateError
from striate.data.samples import Dataset, Split
from striate.evaluate.evaluate import evaluate
from striate.evaluate.protocols import MODIFIERS, PROTOCOLS, Protocol, parse_protocol
from striate.evaluate.runner import Runner

NAMES = PROTOCOLS.names()


def forms() -> list[str]:
    """Each protocol plain, and with each ending that it takes."""
    found = []
    for name in NAMES:
        kind = PROTOCOLS.get(name)
        flips = ["", "+flip"] if kind.takes_flip else [""]
        sizes = ["", "@8,12", "@x1,x1.5"] if kind.takes_scales else [""]
        found += [f"{kind()}{flip}{size}" for flip in flips for size in sizes]
    return found


FORMS = forms()
TASKS = ("classification", "multi-label", "segmentation")


def fits(form: str, task: str) -> bool:
    """Whether the protocol can test nets for the task."""
    return task != "segmentation" or parse_protocol(form).takes_maps


CASES = [(form, task) for form in FORMS for task in TASKS if fits(form, task)]


def little_set(images: list[np.ndarray], task: str = "classification") -> Dataset:
    count, (height, width) = len(images), images[0].shape[:2]
    draws = np.random.default_rng(1)
    targets = {
        "classification": draws.integers(0, 3, count),
        "multi-label": draws.integers(0, 2, (count, 3)),
        "segmentation": None,
    }[task]
    masks = draws.integers(0, 3, (count, height, width)) if task == "segmentation" else None
    split = Split.from_arrays("test", np.stack(images), targets, masks=masks)
    return Dataset("little", task, CLASSES, [split])


@pytest.mark.parametrize("form", FORMS)
def test_written_form_parses_and_prints_back(form: str) -> None:
    protocol = parse_protocol(form)
    assert str(protocol) == form
    assert parse_protocol(str(protocol)) == protocol
    assert parse_protocol(f"  {form.upper().replace('+', ' + ')} ") == protocol
    assert parse_protocol(protocol) is protocol
    assert hash(protocol) == hash(parse_protocol(form))


@pytest.mark.parametrize("name", NAMES)
def test_registered_under_its_own_name_with_help(name: str) -> None:
    kind = PROTOCOLS.get(name)
    assert kind.name == name
    assert name not in MODIFIERS
    assert issubclass(kind, Protocol)
    assert PROTOCOLS.entry(name).summary
    assert all(field.metadata["help"] for field in dataclasses.fields(kind))


@pytest.mark.parametrize("form", [form for form in FORMS if not fits(form, "segmentation")])
def test_nets_that_answer_in_maps_are_refused_with_what_is_allowed(form: str) -> None:
    with pytest.raises(StriateError, match="center") as told:
        Runner(parse_protocol(form), conv_model("segmentation"), batch=3)
    assert "\n" not in str(told.value)


@pytest.mark.parametrize("name", [name for name in NAMES if PROTOCOLS.get(name).takes_scales])
def test_a_size_below_the_windows_is_one_line_with_what_is_allowed(name: str) -> None:
    with pytest.raises(StriateError, match="a crop of 8 pixels from an image of 7") as told:
        Runner(parse_protocol(f"{name}@12,7"), conv_model(), batch=3)
    assert "@8" in (told.value.allowed or "")


@pytest.mark.parametrize(("form", "task"), CASES)
def test_posteriors_are_the_mean_of_those_of_all_views_run_one_by_one(form: str, task: str) -> None:
    model, images, protocol = sharp(conv_model(task), 20), pictures(5, 12, 10), parse_protocol(form)
    runner, network = Runner(protocol, model, batch=3), protocol.network(model)
    done = []
    for places, outputs in runner.outputs([runner.views(image) for image in images]):
        done += places
        assert len(outputs) == len(places)
        assert outputs.dtype == torch.float32
        for place, posterior in zip(places, model.task.posterior(outputs), strict=True):
            views = protocol.all_views(images[place], model.preprocess, network.trim)
            each = [model.task.posterior(network(torch.from_numpy(view[None])))[0] for view in views]
            if protocol.flip and task == "segmentation":
                half = len(each) // 2
                each[half:] = [mirrored.flip(-1) for mirrored in each[half:]]
            torch.testing.assert_close(posterior, torch.stack(each).mean(0), rtol=0, atol=1e-5)
    assert sorted(done) == list(range(5))


@pytest.mark.parametrize(("form", "task"), CASES)
def test_cost_is_reported_and_the_net_left_as_found(form: str, task: str) -> None:
    model = conv_model(task)
    model.net.train()
    before = found(model.net)
    result = evaluate(model, little_set(pictures(6), task), protocol=form, batch=4)
    assert found(model.net) == before
    assert result.protocol == form
    assert result.n == result.scores.n == 6
    assert result.views >= 1
    assert result.multiply_adds is not None
    assert result.multiply_adds > 0
    assert result.images_per_second > 0
    assert result.network_images_per_second >= result.images_per_second
    text = "\n".join(result.lines())
    assert "multiply-adds" in text
    assert form in text


@pytest.mark.parametrize("form", FORMS)
def test_the_batch_size_does_not_change_the_answer(form: str) -> None:
    # The colours differ, so that answers do.
    tints = np.random.default_rng(2).uniform(0.1, 1, (7, 3))
    images = [(image * tint).astype(np.uint8) for image, tint in zip(pictures(7), tints, strict=True)]
    model, data = sharp(conv_model()), little_set(images)
    one, many = (evaluate(model, data, protocol=form, batch=batch).scores for batch in (1, 64))
    assert len(set(one.predicted)) > 1
    np.testing.assert_array_equal(one.predicted, many.predicted)
    np.testing.assert_allclose(one.sample_score, many.sample_score, rtol=1e-5)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize(
    "wrong",
    [
        "{}+flop",
        "{}+flip+flip",
        "{}@",
        "{}@big",
        "{}@0",
        "{}@8,8",
        "{}@x0",
        "{}@x",
        "{}@xnan",
        "{}@99999",
        "{}(nonsense=1)",
        "{}(",
        "{}++{}",
        "+{}",
    ],
)
def test_wrong_text_is_one_line_with_what_is_allowed(name: str, wrong: str) -> None:
    with pytest.raises(StriateError) as told:
        parse_protocol(wrong.format(name, name))
    assert "\n" not in str(told.value)
    assert told.value.allowed


ENDINGS = {"+flip": "takes_flip", "@8": "takes_scales"}


@pytest.mark.parametrize(
    ("name", "ending"),
    [(n, end) for n in NAMES for end, taken in ENDINGS.items() if not getattr(PROTOCOLS.get(n), taken)],
)
def test_endings_that_a_protocol_does_not_take_are_refused(name: str, ending: str) -> None:
    with pytest.raises(StriateError, match="takes no"):
        parse_protocol(name + ending)
