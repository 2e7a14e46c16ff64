"""The commands as a user types them: what they print, write, and say when something is wrong."""

import dataclasses
import inspect
import json
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, get_type_hints

import pytest
import torch
import typer.main
from safetensors.torch import load_file

from spaner import cache as caches
from spaner.align.train.config import parts_of
from spaner.cli import app
from spaner.cli.options import parse
from spaner.extract.config import ExtractConfig
from spaner.settings import axes
from tests.conftest import Outcome, make_toy_cache

Cli = Callable[..., Outcome]


@pytest.fixture(autouse=True)
def _elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def options_of(command: str) -> dict[str, Any]:
    root: Any = typer.main.get_command(app)
    with root.commands[command].make_context(command, [], resilient_parsing=True) as context:
        return {p.name: p for p in context.command.params}


# --- options are the configuration ---


@pytest.mark.parametrize(
    ("command", "config"),
    [("extract", (ExtractConfig,)), ("train", parts_of("spaner")), ("sweep", parts_of("spaner"))],
)
def test_every_field_is_an_option_with_help(command: str, config: tuple[type, ...]) -> None:
    options, lists = options_of(command), axes(*config) if command == "sweep" else {}
    assert set(lists) <= set(options)
    for field in (f for part in config for f in dataclasses.fields(part)):
        assert field.name in options or field.name in lists, f"{command} lacks --{field.name}"
        assert field.metadata["help"].strip(), f"{field.name} has no help"


@pytest.mark.parametrize(
    ("words", "field", "value"),
    [
        (["--prompt-length", "8"], "prompt_length", 8),
        (["--lam", "0"], "lam", 0.0),
        (["--logit-scale", "50"], "logit_scale", 50.0),
        (["--attend", "prompt"], "attend", "prompt"),
        (["--out-dim", "16"], "out_dim", 16),
        (["--seed", "7"], "seed", 7),
        (["--recipe", "anchored"], "init", "identity"),
    ],
)
def test_an_option_reaches_the_stored_configuration(
    cli: Cli, toy_cache: Path, words: list[str], field: str, value: object
) -> None:
    done = cli("train", "--cache", toy_cache, "--out", "run", "--epochs", 1, *words)
    assert done.status == 0, done.err
    assert json.loads(Path("run/config.json").read_text())[field] == value


def test_lists_and_paths_are_parsed() -> None:
    kind = get_type_hints(ExtractConfig).__getitem__
    assert parse(kind("shots"), "1,2,4", "--shots") == (1, 2, 4)
    assert parse(kind("shots"), "all", "--shots") == "all"
    assert parse(kind("splits"), "train,val", "--splits") == ("train", "val")
    assert parse(kind("cache"), "x.h5", "--cache") == Path("x.h5")


def test_commands_have_help_with_an_example() -> None:
    root = typer.main.get_command(app)
    commands = dict(root.commands)  # pyright: ignore[reportAttributeAccessIssue]
    for group in ("cache", "ablate"):
        commands |= {f"{group} {name}": sub for name, sub in commands.pop(group).commands.items()}
    for name, command in commands.items():
        assert f"`spaner {name}" in (inspect.getdoc(command.callback) or ""), f"{name} shows no example"


# --- train, eval, sweep ---


WAITS = """
import signal, sys, time
from spaner import cli
signal.signal(signal.SIGINT, signal.SIG_IGN)  # as a shell starts what a script puts in the background
@cli.app.command()
def wait():
    print("here", flush=True)
    time.sleep(60)
sys.argv = ["spaner", "wait"]
cli.main()
"""


def test_a_command_that_is_asked_to_stop_stops_and_says_what_is_kept() -> None:
    process = subprocess.Popen([sys.executable, "-c", WAITS], stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    assert process.stdout is not None
    assert process.stdout.readline() == b"here\n"
    process.send_signal(signal.SIGTERM)
    _, said = process.communicate(timeout=30)
    assert process.returncode == 130
    assert b"finished work is kept, the same command continues" in said
    assert b"Traceback" not in said


def test_train_prints_spaner_beside_zero_shot_and_writes_the_run(cli: Cli, toy_cache: Path) -> None:
    done = cli("train", "--cache", toy_cache, "--epochs", 3, "--batch-size", 32)
    assert done.status == 0, done.err
    assert "zero-shot" in done.out
    assert "SPANER" in done.out
    assert "next: spaner sweep" in done.err
    (folder,) = Path("runs").iterdir()
    names = {file.name for file in folder.iterdir()}
    assert names == {"config.json", "loss.csv", "loss.png", "model.safetensors", "result.json"}


def test_a_list_is_for_sweeps_alone(cli: Cli, toy_cache: Path) -> None:
    done = cli("train", "--cache", toy_cache, "--shots", "1,2")
    assert done.status == 1
    assert "error: --shots: found '1,2', expected int; type for example `--shots 2`" in done.err


def test_train_json_is_only_json(cli: Cli, toy_cache: Path) -> None:
    done = cli("train", "--cache", toy_cache, "--epochs", 1, "--json")
    result = json.loads(done.out)
    assert result["schema"] == "spaner-run/1"
    assert result["draw"]["sha256"]
    assert 0 <= result["metrics"]["text"]["accuracy"] <= 1


def test_eval_repeats_the_numbers_of_training(cli: Cli, toy_cache: Path) -> None:
    trained = json.loads(cli("train", "--cache", toy_cache, "--epochs", 2, "--out", "run", "--json").out)
    scored = json.loads(cli("eval", "--run", "run", "--cache", toy_cache, "--json").out)
    assert scored == trained["metrics"]


def test_eval_refuses_another_encoder_and_names_the_difference(cli: Cli, toy_cache: Path) -> None:
    cli("train", "--cache", toy_cache, "--epochs", 1, "--out", "run")
    make_toy_cache(Path("other"), weights_sha256="cd")
    done = cli("eval", "--run", "run", "--cache", "other")
    assert done.status == 1
    assert "weights_sha256: run 'ab', cache 'cd'" in done.err
    assert "Traceback" not in done.err


def test_a_failing_cell_is_recorded_and_the_others_finish(cli: Cli, toy_cache: Path) -> None:
    done = cli(
        "sweep",
        "--cache",
        toy_cache,
        "--epochs",
        1,
        "--template-sets",
        "mined,nothing",
        "--out",
        "s",
        "--workers",
        1,
        "--json",
    )
    cells = {cell["varied"]["templates"]: cell for cell in json.loads(done.out)}
    assert cells["mined"]["status"] == "ok"
    assert cells["nothing"]["status"] == "failed"
    assert "text/nothing" in cells["nothing"]["reason"]
    assert done.status == 1


def test_the_same_bits_twice(cli: Cli, toy_cache: Path) -> None:
    for name in ("a", "b"):
        cli("train", "--cache", toy_cache, "--epochs", 2, "--out", name)
    weights = [load_file(f"{name}/model.safetensors") for name in ("a", "b")]
    assert weights[0].keys() == weights[1].keys()
    assert all(torch.equal(tensor, weights[1][name]) for name, tensor in weights[0].items())


# --- cache ---


def test_cache_info_verify_copy_export(cli: Cli, toy_cache: Path) -> None:
    info = cli("cache", "info", toy_cache)
    assert "image/train" in info.out
    assert "SYNTHETIC" in info.out
    assert "every byte as it was sealed" in cli("cache", "verify", toy_cache).out
    assert cli("cache", "copy", toy_cache, "copy.h5").status == 0
    facts = [json.loads(cli("cache", "info", path, "--json").out) for path in (toy_cache, "copy.h5")]
    assert facts[0] == facts[1]
    assert cli("cache", "export", "copy.h5", "exported").status == 0
    assert list(Path("exported").rglob("*.npy"))


def test_caches_made_apart_are_merged_and_trained_from(cli: Cli, toy_cache: Path) -> None:
    with caches.open(toy_cache) as toy:
        for name in toy.tables():
            table, modality = toy.table(name), name.split("/")[0]
            with caches.create(modality, toy.dataset, toy.class_names) as part:
                listing = table.labels, table.ids.tolist()
                spec = table.manifest
                part.add(modality, spec.split, table.read(), *listing, encoder=spec.encoder, views=spec.views)
    done = cli("cache", "merge", "image", "text", "--into", "both")
    assert done.out.splitlines()[-1] == "both: image and text in one"
    assert "every byte as it was sealed" in cli("cache", "verify", "both").out
    assert cli("train", "--cache", "both", "--epochs", 1, "--out", "run").status == 0
    refused = cli("cache", "merge", "image", "--into", "one")
    assert refused.status == 1
    assert "at least two caches, found 1" in refused.err


def test_verify_finds_a_flipped_bit_and_says_what_to_type(cli: Cli, toy_cache: Path) -> None:
    shutil.copytree(toy_cache, "broken")
    chunk = Path("broken/image/test/features/c.0.0.0")
    data = bytearray(chunk.read_bytes())
    data[100] ^= 1
    chunk.write_bytes(data)
    done = cli("cache", "verify", "broken")
    assert done.status == 1
    assert "spaner cache repair broken" in done.err
    assert "image/test" in done.err


# --- one line for a mistake ---


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["train"], "no cache at cache/imagenet16"),
        (["sweep", "--prompt-lengths", "1,2,4,8"], "no cache at cache/imagenet16"),
        (["extract", "--modality", "image"], "ImageNet not found at data/imagenet"),
        (["extract", "--dataset", "nothing"], "expected one of"),
        (["extract", "--precision", "int8"], "--precision: found 'int8'"),
        (["train", "--cache", "TOY", "--attend", "nobody"], "--attend: found 'nobody', expected all|prompt"),
        (["train", "--cache", "TOY", "--prompt-length", "-1"], "prompt_length is -1"),
        (["train", "--cache", "TOY", "--prompt-length", "two"], "--prompt-length: found 'two', expected int"),
        (["train", "--cache", "TOY", "--heads", "5"], "heads"),
        (["train", "--cache", "TOY", "--recipe", "anchord"], "'anchored'"),
        (["train", "--cache", "TOY", "--device", "tpu"], "device"),
        (["train", "--cache", "TOY", "--shots", "0"], "shots is 0"),
        (["sweep", "--cache", "TOY", "--prompt-lengths", "1,x"], "--prompt-lengths: found 'x'"),
        (["sweep", "--cache", "TOY", "--prompt-lengths", "-1"], "prompt_length is -1"),
        (["sweep", "--cache", "TOY", "--seeds", ","], "the list for seed is empty"),
        (["sweep", "--cache", "TOY", "--on", "spark", "--seeds", "1"], "--on spark: expected ray, ray:HOST"),
        (["eval", "--run", "nowhere", "--cache", "TOY"], "no run folder at nowhere"),
        (["eval", "--run", "TOY", "--cache", "TOY"], "is not a run folder"),
        (["cache", "info", "nowhere"], "no cache at nowhere"),
        (["cache", "copy", "TOY", "TOY"], "give a new place for the copy"),
    ],
)
def test_a_mistake_ends_in_one_line(cli: Cli, toy_cache: Path, words: list[str], said: str) -> None:
    done = cli(*[toy_cache if word == "TOY" else word for word in words])
    assert done.status == 1, done
    lines = [line for line in done.err.splitlines() if line.startswith("error:")]
    assert len(lines) == 1
    assert said in lines[0]
    assert "Traceback" not in done.err


def test_version_and_unknown_command(cli: Cli) -> None:
    assert cli("--version").out.startswith("spaner 0.")
    assert cli("trian").status == 2


# --- compare ---


def test_compare_prints_one_table_and_says_where_the_figures_are(cli: Cli, toy_cache: Path) -> None:
    words = ["compare", "--cache", toy_cache, "--methods", "zero_shot,linear_probe", "--shots", "1,4"]
    done = cli(*words, "--seeds", "1,2", "--workers", 1)
    assert done.status == 0, done.err
    heading, *rows = done.out.splitlines()
    assert heading.split()[:5] == ["method", "shots", "text", "semantic", "gap"]
    assert rows[0].startswith("zero_shot ")
    assert [row.split()[1] for row in rows[:4]] == ["1", "1", "4", "4"]
    assert " – " in rows[1], "a head that ignores the query has no semantic score"
    assert Path("compare/toy/shots.png").exists()
    again = cli(*words, "--seeds", "1,2", "--json")
    assert [row["cells"] for row in json.loads(again.out)[0]["rows"]] == [2, 2, 2, 2]


def test_compare_on_two_caches_gives_a_block_each_and_the_average(cli: Cli, toy_cache: Path) -> None:
    make_toy_cache(Path("other"), 7)
    both = ["--cache", toy_cache, "--cache", "other", "--methods", "zero_shot", "--shots", 1, "--seeds", 1]
    done = cli("compare", *both, "--out", "both", "--workers", 1)
    assert done.status == 0, done.err
    assert [line.split()[0] for line in done.out.splitlines()[1:7]] == [
        "toy", "zero_shot", "toy", "zero_shot", "average", "zero_shot"
    ]  # fmt: skip
    assert Path("both/compare.csv").exists()
    assert Path("both/other/compare.json").exists()


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--methods", "gdaa"], "did you mean gda?"),
        (["--methods", ","], "the list for methods is empty"),
        (["--shots", ""], "the list for shots is empty"),
        (["--seeds", "one"], "--seeds: found 'one', expected int,…"),
        (["--select", "test"], "select is 'test'"),
        (["--methods", "anchored", "--batch-size", "1"], "batch_size is 1"),
    ],
)
def test_compare_refuses_in_one_line(cli: Cli, toy_cache: Path, words: list[str], said: str) -> None:
    done = cli("compare", "--cache", toy_cache, *words)
    assert done.status == 1
    (line,) = done.err.splitlines()
    assert said in line
    assert not Path("compare").exists()


def test_compare_ends_with_the_reason_of_a_failed_cell(cli: Cli, toy_cache: Path) -> None:
    shutil.copytree(toy_cache, "toy")
    shutil.rmtree("toy/text/mined")
    done = cli("compare", "--cache", "toy", "--methods", "gda", "--shots", 1, "--seeds", 1, "--workers", 1)
    assert done.status == 1
    assert "gda (1 failed)" in done.out
    assert "1 of 1 cells failed" in done.err.splitlines()[-1]


def test_compare_takes_a_logit_scale_where_the_encoder_has_none(cli: Cli) -> None:
    rows, labels = torch.eye(4).repeat(5, 1).numpy(), torch.arange(4).repeat(5).tolist()
    with caches.create("arrays", "arrays", list("abcd")) as made:
        for split in ("train", "test"):
            made.add("image", split, rows, labels, encoder="mine")
        for templates in ("mined", "vanilla", "classname"):
            made.add("text", templates, rows[:4], labels[:4], encoder="mine")
    words = [
        "compare",
        "--cache",
        "arrays",
        "--methods",
        "zero_shot",
        "--shots",
        1,
        "--seeds",
        1,
        "--workers",
        1,
    ]
    done = cli(*words)
    assert done.status == 1
    assert "has no scale of its own; pass a number, for example --logit-scale 100" in done.err
    done = cli(*words, "--logit-scale", 20)
    assert done.status == 0, done.err
    assert done.out.splitlines()[1].split()[:3] == ["zero_shot", "1", "100.0"]
