"""The README: its commands are taken by their scripts, and those that train are run, shortened, in its order."""

import importlib
import importlib.util
import re
import shlex
import tomllib
from pathlib import Path

import pytest
import tyro

ROOT = Path(__file__).resolve().parents[1]
README = (ROOT / "README.md").read_text()
COMMAND = re.compile(r"\bpython ((?:\w+/)*\w+\.py[^\n`#|()]*)")
TRAINING = ["sac_scratch", "offline_pretrain_sac", "online_finetune_sac"]
TRAINING += ["td3_bc", "td3_c", "cql_sac", "iql", "awac", "awr", "bear", "o3f_select"]
SHORT = {"offline_steps": 6, "online_steps": 6, "num_candidates": 4, "updates_per_step": 2, "cql_actions": 2}
SMALL = {
    "batch_size": 4,
    "hidden_dim": 8,
    "eval_every": 6,
    "eval_episodes": 1,
    "compile": "off",
    "warmup_steps": 0,
}


def commands() -> list[list[str]]:
    """Those in code blocks and in the text: script, then its arguments."""
    found = [shlex.split(match[1].rstrip(" ,;.")) for match in COMMAND.finditer(README)]
    return [[word.replace("N", "5000") if word == "N" else word for word in command] for command in found]


def load(script: str):
    if (ROOT / script).parent == ROOT:
        return importlib.import_module(Path(script).stem)
    spec = importlib.util.spec_from_file_location(Path(script).stem, ROOT / script)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_readme_names_what_there_is():
    for path in re.findall(r"\]\(([^)#:]+)\)", README):
        assert (ROOT / path).exists(), path
    for path in re.findall(r"`(\w+\.(?:py|toml))`", README):
        assert list(ROOT.glob(path)) + list(ROOT.glob(f"*/{path}")), path
    for path in [*ROOT.glob("*.py"), *ROOT.glob("docs/*.md")]:
        assert path.name in README, f"{path} is not in it"


def test_the_readmes_diff_is_that_of_the_scripts():
    (diff,) = re.findall(r"```diff\n(.*?)```", README, re.S)
    old, new = ((ROOT / name).read_text().splitlines() for name in ("td3_bc.py", "td3_c.py"))
    for line in diff.splitlines():
        assert line[1:] in new and (line[1:] in old) == (line[0] == " "), line


def test_the_readme_is_short():
    assert len(README.splitlines()) <= 200 and len(README.split()) <= 1700


@pytest.mark.parametrize("path", sorted(ROOT.glob("experiments/*.toml")), ids=lambda path: path.stem)
def test_the_page_on_experiments_tells_their_minutes(path):
    page = (ROOT / "docs" / "experiments.md").read_text()
    (row,) = [line for line in page.splitlines() if line.startswith(f"| `{path.name}`")]
    runs = tomllib.loads(path.read_text())["run"]
    minutes = sum(run["minutes"] for run in runs if not run.get("gpu"))
    assert row.endswith(f"| {minutes} |" if minutes else "|") and ("needs a GPU" in row) == (minutes == 0)


@pytest.mark.parametrize("script", TRAINING)
def test_the_readme_tells_the_scripts_lengths(script):
    (row,) = [
        line for line in README.splitlines() if line.startswith(f"| `{script}.py`") and " / " in line
    ] or [""]
    algorithm, whole = (int(number.replace(",", "")) for number in row.split("|")[-2].split("/"))
    lines = (ROOT / f"{script}.py").read_text().splitlines()
    (rule,) = [i for i, line in enumerate(lines) if line.startswith("# ---- plumbing")]
    assert algorithm == pytest.approx(rule, abs=10) and whole == pytest.approx(len(lines), abs=50)


def test_every_command_is_one_that_its_script_takes():
    assert len(commands()) >= 10
    for script, *arguments in commands():
        assert (ROOT / script).is_file(), script
        if script.startswith("tests/") or "--help" in arguments:
            continue
        module = load(script)
        if hasattr(module, "Args"):
            tyro.cli(module.Args, args=arguments)


def test_the_commands_that_train_do_train(call, monkeypatch, capsys):
    """In one folder, one after the other, as a reader would; those that name a run of another length are left out."""
    ran = []
    for script, *arguments in commands():
        name = Path(script).stem
        missing = any("runs/" in word and not Path(word).exists() for word in arguments)
        if name not in TRAINING or missing or ":" in " ".join(arguments):
            continue
        module = load(script)
        args = tyro.cli(module.Args, args=arguments)
        from_nothing = (
            name == "sac_scratch" or getattr(args, "offline_steps", 0) or getattr(args, "scratch", False)
        )
        for field, value in SHORT.items():
            if getattr(args, field, 0):
                setattr(args, field, min(value, getattr(args, field)))
        for field, value in SMALL.items():
            if hasattr(args, field) and (field != "hidden_dim" or from_nothing):
                setattr(args, field, value)
        args.overwrite = True
        monkeypatch.setattr(module, "DEFAULT_DATASETS", {"Hopper": "hopper/tiny-v0"})
        module.main(args)
        assert "finished in" in capsys.readouterr().out
        ran.append(name)
    elsewhere = {"cql_sac", "awac", "awr", "bear", "o3f_select"}  # test_methods.py runs them
    assert {*ran} == {*TRAINING} - elsewhere
    plot_curves = load("plot_curves.py")
    plot_curves.main(tyro.cli(plot_curves.Args, args=["runs/"]))
    assert Path("runs/curves.png").is_file()
