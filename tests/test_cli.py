"""The command line: help, arguments from signatures, one-line errors, exit codes."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from striate import cli
from striate.arguments import make_parser, parse
from striate.core.errors import StriateError


def run(*words: str) -> int:
    return cli.main(list(words))


@pytest.mark.parametrize("verb", sorted(cli.VERBS))
def test_every_verb_has_help_made_from_its_signature(verb: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(verb, "--help") == 0
    text = capsys.readouterr().out
    assert text.startswith(f"usage: striate {verb}")
    assert "None" not in text.partition("options:")[0]
    parser = make_parser(f"striate {verb}", cli.VERBS[verb])
    assert [action.dest for action in parser._actions if not (action.help or "").strip()] == []


def test_every_setting_of_a_recipe_is_a_flag_with_its_own_help(capsys: pytest.CaptureFixture[str]) -> None:
    import dataclasses

    from striate.train.recipe import Recipe

    run("train", "--help")
    text = " ".join(capsys.readouterr().out.split())
    for field in dataclasses.fields(Recipe):
        assert f"--{field.name}" in text
        assert " ".join(str(field.metadata["help"]).split()[:3]) in text


def test_flags_reach_the_recipe_in_both_spellings() -> None:
    words = ["set", "--weight-decay", "0.01", "--net_options.width=32", "--batch", "8", "--resume"]
    values, as_json = parse("striate train", cli.train, words)
    assert values is not None
    assert not as_json
    recipe = values["recipe"]
    assert (recipe.weight_decay, recipe.batch, recipe.net_options) == (0.01, 8, {"width": 32})
    assert values["data"] == "set"
    assert values["resume"] is True
    assert values["given"] >= {"weight_decay", "batch", "net_options", "resume", "data"}
    assert "epochs" not in values["given"]


def test_resume_takes_a_folder_or_none() -> None:
    values, _ = parse("striate train", cli.train, ["--resume", "runs/a", "--epochs", "5"])
    assert values is not None
    assert (values["data"], values["resume"]) == (None, "runs/a")
    assert parse("striate train", cli.train, ["set"])[0]["resume"] is False  # type: ignore[index]


def test_a_settings_file_is_read_and_flags_win_over_it(tmp_path: Path) -> None:
    file = tmp_path / "recipe.yaml"
    file.write_text("epochs: 7\nlr: 0.5\naugment: flip\n")
    values, _ = parse("striate train", cli.train, ["set", "--config", str(file), "--lr", "0.25"])
    assert values is not None
    recipe = values["recipe"]
    assert (recipe.epochs, recipe.lr, recipe.augment) == (7, 0.25, "flip")
    file.write_text("data: named\nepochs: 7\n")
    values, _ = parse("striate train", cli.train, ["--config", str(file)])
    assert values is not None
    assert values["data"] == "named"
    for text, held in (("", "holds nothing"), ("a text", "holds the text 'a text'")):
        file.write_text(text)
        with pytest.raises(StriateError, match=held):
            parse("striate train", cli.train, ["set", "--config", str(file)])


def test_printed_settings_can_be_read_back(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("train", "set", "--epochs", "9", "--print_config") == 0
    file = tmp_path / "printed.yaml"
    file.write_text("\n".join(line for line in capsys.readouterr().out.splitlines() if "data:" not in line))
    values, _ = parse("striate train", cli.train, ["set", "--config", str(file)])
    assert values is not None
    assert values["recipe"].epochs == 9


@pytest.mark.parametrize(
    ("words", "parts"),
    [
        (["evalute", "x"], ["unknown verb 'evalute'", "did you mean 'evaluate'"]),
        (["train", "x", "--epoch", "3"], ["unknown argument '--epoch'", "did you mean --epochs"]),
        (["train", "x", "--epochs", "three"], ["--epochs", "three"]),
        (["train", "x", "--batch", "0"], ["batch is 0", "at least 1"]),
        (["evaluate", "x"], ["missing", "data"]),
        (["list", "netts"], ["netts", "nets"]),
        (["list", "stages"], ["which net"]),
        (["report", "no/such/run"], ["no/such/run", "run folder"]),
        (["predict", "no/such/model", "x.png"], ["no/such/model"]),
    ],
)
def test_mistakes_are_one_line_with_what_to_do_and_exit_code_2(
    words: list[str], parts: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(*words) == 2
    told = capsys.readouterr().err
    assert told.count("\n") == 1
    for part in parts:
        assert part in told


def test_an_unknown_key_in_a_settings_file_is_refused_with_the_nearest(tmp_path: Path) -> None:
    file = tmp_path / "recipe.yaml"
    file.write_text("epochs: 7\nlabel_smothing: 0.1\n")
    with pytest.raises(StriateError, match=r"label_smothing.*label_smoothing"):
        parse("striate train", cli.train, ["set", "--config", str(file)])


def test_json_is_one_object_on_standard_output(capsys: pytest.CaptureFixture[str]) -> None:
    assert run("doctor", "--json") == 0
    found = json.loads(capsys.readouterr().out)
    assert len(found["names"]) == len(found["findings"]) > 5


def test_importing_striate_and_its_help_is_light() -> None:
    code = (
        "import sys, striate, striate.cli; striate.cli.main(['--help']);"
        "heavy = {'torch', 'matplotlib', 'sklearn', 'cv2', 'numpy', 'jsonargparse'} & set(sys.modules);"
        "sys.exit(', '.join(sorted(heavy)) or 0)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("striate ")
