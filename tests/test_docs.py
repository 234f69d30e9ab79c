"""docs/ and the results: links lead somewhere, commands are taken by their scripts, the worked example works."""

import csv
import importlib.util
import math
import os
import re
import shlex
import shutil
import subprocess
import sys
import tomllib
from itertools import permutations
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
import tyro
from torch.func import vmap

ROOT = Path(__file__).resolve().parents[1]
DOCS = sorted((ROOT / "docs").glob("*.md"))
LINKED = [*DOCS, ROOT / "README.md", *sorted(ROOT.glob("results/**/README.md"))]
FENCE = re.compile(r"^```(\w*)\n(.*?)^```$", re.M | re.S)


def load(path: Path):
    spec = importlib.util.spec_from_file_location(path.stem, path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def commands(text: str) -> list[list[str]]:
    """Script and arguments, of fenced blocks and of `python ...` in the text; N stands for a number."""
    lines = [line for _, block in FENCE.findall(text) for line in block.replace("\\\n", " ").splitlines()]
    lines += re.findall(r"`(python [^`\n]+)`", FENCE.sub("", text))
    words = [shlex.split(line, comments=True)[1:] for line in lines if line.startswith("python ")]
    return [["5000" if word == "N" else word for word in line] for line in words]


def anchors(path: Path) -> set[str]:
    """Names of the headings as GitHub makes them."""
    headings = re.findall(r"^#+ (.+)$", FENCE.sub("", path.read_text()), re.M)
    return {re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("path", LINKED, ids=lambda path: str(path.relative_to(ROOT)))
def test_links_lead_somewhere(path):
    for link, anchor in re.findall(r"\]\(([^)#:]*)(?:#([^)]*))?\)", FENCE.sub("", path.read_text())):
        target = path.parent / link if link else path
        assert target.exists() and (not anchor or anchor in anchors(target)), f"{link}#{anchor}"


@pytest.mark.parametrize("path", LINKED, ids=lambda path: str(path.relative_to(ROOT)))
def test_rows_of_a_table_have_as_many_cells_as_its_head(path):
    for table in re.findall(r"(?:^\|.*\n)+", FENCE.sub("", path.read_text()), re.M):
        assert len({row.replace("\\|", "").count("|") for row in table.splitlines()}) == 1, table


@pytest.mark.parametrize("path", DOCS, ids=lambda path: path.stem)
def test_a_page_is_short_and_its_commands_are_taken(path):
    assert len(path.read_text().splitlines()) <= 90
    for script, *arguments in commands(path.read_text()):
        if script == "-c":
            continue
        script = ROOT / script.replace("edac.py", "offline_pretrain_sac.py")  # the example has its options
        assert script.is_file(), script
        if script.parent == ROOT:
            tyro.cli(load(script).Args, args=arguments)


def test_every_experiment_is_listed_with_its_minutes():
    text = (ROOT / "docs/experiments.md").read_text()
    for path in ROOT.glob("experiments/*.toml"):
        minutes = sum(run["minutes"] for run in tomllib.loads(path.read_text())["run"] if not run.get("gpu"))
        assert re.search(rf"^\| `{path.name}` \|.*\| {minutes or 'needs a GPU.*'} \|$", text, re.M), path.name


def test_the_worked_example_updates_what_it_should(tmp_path):
    page = (ROOT / "docs/adding-an-algorithm.md").read_text()
    (diff,) = [block for kind, block in FENCE.findall(page) if kind == "diff"]
    shutil.copy(ROOT / "offline_pretrain_sac.py", tmp_path / "edac.py")
    subprocess.run(["git", "apply", "-"], cwd=tmp_path, input=diff, text=True, check=True)
    edac = load(tmp_path / "edac.py")
    torch.manual_seed(0)
    algorithm = edac.SAC(edac.Args(batch_size=8, hidden_dim=8), 3, 2, 8, num_critics=4, layer_norm=False)
    obs, next_obs, action = torch.randn(2, 8, 3), torch.randn(2, 8, 3), 2 * torch.rand(2, 8, 2) - 1
    batch = edac.Batch(obs, action, torch.randn(2, 8), next_obs, torch.zeros(2, 8))
    state = edac.stack([algorithm.init(seed) for seed in (1, 2)])
    for _ in range(5):
        noise = {name: torch.randn(2, *shape) for name, shape in algorithm.update_noise.items()}
        critic = edac.tree_map(lambda leaf: leaf[0], state["critic"])
        new, metrics = vmap(lambda *one: algorithm.update(*one, policy_turn=True))(state, batch, noise)
        state = state | new
    assert all(leaf.isfinite().all() for leaf in edac.tree_leaves(state))
    inputs = action[0].clone().requires_grad_()  # the last update's term again, in a plain loop
    q = algorithm.critics(critic, obs[0], inputs).sum(1)
    slopes = [F.normalize(torch.autograd.grad(one, inputs, retain_graph=True)[0]) for one in q]
    products = [(one * other).sum(1).mean() for one, other in permutations(slopes, 2)]
    torch.testing.assert_close(metrics["q/similarity"][0], sum(products) / 3)


@pytest.mark.slow
def test_one_command_draws_the_results_from_their_csvs(tmp_path):
    """The tables come out as they are committed, and every figure anew."""
    shutil.copytree(ROOT / "results", tmp_path / "results")
    shutil.copy(ROOT / "plot_curves.py", tmp_path)
    drawn = [path for path in tmp_path.glob("results/**/*.png") if path.stem != "growth"]
    for path in drawn:
        path.unlink()
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    subprocess.run(["bash", "results/figures.sh"], cwd=tmp_path, env=os.environ | {"PATH": path}, check=True)
    assert all(path.is_file() for path in drawn)
    for path in tmp_path.glob("results/**/*.csv"):
        old = list(csv.reader((ROOT / path.relative_to(tmp_path)).open()))
        for row, old_row in zip(csv.reader(path.open()), old, strict=True):
            assert [is_close(*cells) for cells in zip(row, old_row, strict=True)] == [True] * len(row), path


def is_close(cell: str, old: str) -> bool:
    try:
        return math.isclose(float(cell), float(old), rel_tol=1e-3, abs_tol=0.1) or cell == old
    except ValueError:
        return cell == old
