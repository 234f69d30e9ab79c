"""watch_policy.py: its returns are those of training, its statistics, its pictures, bad input."""

import csv
import importlib
import os
import re
import subprocess
import sys
from dataclasses import asdict
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
import tyro
from PIL import Image
from torch.func import vmap

import sac_scratch
import watch_policy

ROOT = Path(__file__).resolve().parents[1]
TOY = """
import gymnasium as gym
import numpy as np


class Toy(gym.Env):
    '''Rewards are 1; a start with an even number ends after 6 steps, others by the clock after 9.'''

    metadata = {"render_modes": ["rgb_array"], "render_fps": 50}
    observation_space = gym.spaces.Box(-np.inf, np.inf, (2,))
    action_space = gym.spaces.Box(-2, 2, (1,))

    def __init__(self, render_mode=None):
        self.render_mode = render_mode

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.start, self.time = seed or 0, 0
        return np.array([0.0, 1.0], np.float32), {}

    def step(self, action):
        self.time += 1
        over = self.time == 6 and self.start % 2 == 0
        return np.array([self.time, action[0]], np.float32), 1.0, over, False, {}

    def render(self):
        return np.full((20, 40, 3), (0, 20 * self.time, 0), np.uint8)  # green shows the step


gym.register("Toy-v0", Toy, max_episode_steps=9)
"""


def new_checkpoint(script: str, folder: Path, seed: int = 1, **changes) -> Path:
    """checkpoint.pt of an untrained policy for Hopper-v4, with what a run saves in it, in folder/seed<k>."""
    module = importlib.import_module(script)
    args = module.Args(normalize_obs=True) if script == "td3_bc" else module.Args()
    shape = {"obs_dim": 11, "action_dim": 3, "hidden_dim": 8}
    shape |= {} if script == "awr" else {"num_critics": 2}
    shape |= {"network": "layernorm"} if module.FAMILY == "td3" else {"layer_norm": False}
    algorithm = module.ALGORITHM(args, **shape)
    state = algorithm.init(seed + 10 * len(script))  # each script another policy
    if script in ("td3_bc", "o3f_select"):
        state |= algorithm.from_data(np.random.default_rng(0).random((50, 27), np.float32))
    content = {"format": 2, "script": script, "run": folder.name, "family": module.FAMILY, "env": "Hopper-v4"}
    content |= {"args": asdict(args), "shape": shape, "scores": module.D4RL_SCORES["Hopper"], "seed": seed}
    content |= {"phase": "offline", "gradient_step": 4, "env_step": 0, "state": state} | changes
    path = folder / f"seed{seed}" / "checkpoint.pt"
    path.parent.mkdir(parents=True)
    torch.save(content, path)
    return path


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """Folders of runs: before and after a finetuning, TD3+BC, and a real run with the toy."""
    folder, working_directory = tmp_path_factory.mktemp("runs"), os.getcwd()
    (folder / "toy_env.py").write_text(TOY)
    sys.path.insert(0, str(folder))
    os.chdir(folder)
    online = {"phase": "online", "gradient_step": 24, "env_step": 20}
    for seed in (1, 2):
        new_checkpoint("offline_pretrain_sac", folder / "before", seed)
        new_checkpoint("online_finetune_sac", folder / "after", seed, **online)
    new_checkpoint("td3_bc", folder / "td3_bc")
    options = "--env toy_env:Toy-v0 --eval-episodes 1 --batch-size 8 --hidden-dim 8 --online-steps 20"
    words = f"{options} --warmup-steps 10 --compile off --runs-dir .".split()
    sac_scratch.main(tyro.cli(sac_scratch.Args, args=words))
    (toy,) = folder.glob("toy_env_Toy-v0/*")
    yield {"toy": toy} | {name: folder / name for name in ("before", "after", "td3_bc")}
    os.chdir(working_directory)
    sys.path.remove(str(folder))


@pytest.fixture
def work(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MUJOCO_GL", os.environ.get("MUJOCO_GL", ""))  # is set while the tool runs
    return tmp_path


@pytest.fixture
def watch(work, capsys):
    """watch("A B --episodes 3") -> what it printed."""

    def run(*arguments) -> str:
        args = tyro.cli(watch_policy.Args, args=" ".join(map(str, arguments)).split())
        watch_policy.main(args)
        return capsys.readouterr().out

    return run


def table(path):
    with open(path) as file:
        return list(csv.DictReader(file))


def cell(text: str, row: str, column: str) -> float:
    """A number of the printed table; columns are two spaces apart or more."""
    header = next(line for line in text.splitlines() if "95% interval" in line).split("  ")
    names = [name.strip() for name in header if name.strip()]
    (line,) = [line for line in text.splitlines() if line.startswith(f"{row}  ")]
    return float(re.split(r"\s{2,}", line)[1:][names.index(column)])


def load(folder: Path) -> watch_policy.Policy:
    return watch_policy.load_policy(folder / "checkpoint.pt", watch_policy.Args(()))


@pytest.mark.parametrize("script", watch_policy.SCRIPTS)
def test_from_the_same_starts_the_returns_are_those_of_an_evaluation(tmp_path, script):
    module, path = importlib.import_module(script), new_checkpoint(script, tmp_path)
    evaluated = module.evaluate(path, module.Args(eval_episodes=3))
    policy = load(path.parent)
    seeds = [int(np.random.SeedSequence((1, 4, 0, i)).generate_state(1)[0]) for i in range(3)]  # evaluate's
    envs = [module.make_env("Hopper-v4") for _ in range(2)]
    returns, lengths, cut = watch_policy.play(policy, envs, seeds, watch_policy.Args(()))
    assert returns == pytest.approx(evaluated[:, 0], abs=0.05)
    assert lengths.tolist() == evaluated[:, 1].tolist() and not cut.any()
    assert policy.normalise(3234.3) == pytest.approx(100) and policy.normalise(-20.272305) == 0


@pytest.mark.parametrize("script", ["sac_scratch", "cql_sac", "iql", "awac", "td3_c", "o3f_select"])
def test_actions_are_the_policys(tmp_path, script):
    policy, generator = load(new_checkpoint(script, tmp_path).parent), np.random.default_rng(0)
    obs, noise = (generator.standard_normal((50, n)).astype(np.float32) for n in (11, 3))
    best = policy.algorithm.best_action(policy.state, torch.from_numpy(obs))
    expected = {"deterministic": best, "noisy": (best + 0.4 * torch.from_numpy(noise)).clamp(-1, 1)}
    if script not in ("td3_c", "o3f_select"):  # acting while training draws from the distribution
        act = vmap(partial(policy.algorithm.act, policy.state))
        expected["stochastic"], _ = act(torch.from_numpy(obs), {"action": torch.from_numpy(noise)})
    assert policy.has_distribution == ("stochastic" in expected)
    for actions, values in expected.items():
        args = watch_policy.Args((), actions=actions, noise_std=0.4)
        assert np.allclose(policy.act(obs, noise, args), values, atol=1e-5)


def test_an_episode_is_the_same_whatever_runs_beside_it(tmp_path):
    """Also its noise: in one environment after each other, and in three at once."""
    policy, args = (
        load(new_checkpoint("sac_scratch", tmp_path).parent),
        watch_policy.Args((), actions="stochastic"),
    )
    envs = [sac_scratch.make_env("Hopper-v4") for _ in range(3)]
    alone = watch_policy.play(policy, envs[:1], [5, 5, 7], args)
    together = watch_policy.play(policy, envs, [5, 5, 7], args)
    assert alone.returns == pytest.approx(together.returns) and alone.returns[0] != alone.returns[1]


def test_the_table_the_csv_and_the_differences_agree(runs, watch):
    before, after = runs["before"], runs["after"]
    text = watch(before, after, "--episodes 6 --seed 3 --out episodes.csv")
    rows = table("episodes.csv")
    assert len(rows) == 24 and "A  before, 4 updates\nB  after, 24 updates, 20 online steps" in text
    returns = {}
    for row in rows:
        returns.setdefault((row["run"], row["seed"]), []).append(float(row["return"]))
        folder = (before if row["phase"] == "offline" else after) / f"seed{row['seed']}"
        assert row["checkpoint"] == str(folder / "checkpoint.pt") and row["actions"] == "deterministic"
        start = np.random.SeedSequence((3, int(row["episode"]))).generate_state(1)[0]
        assert (row["reset_seed"], row["truncated"]) == (str(start), "0")
    assert len(rows[0]["normalized_score"]) > 2 and [row["episode"] for row in rows] == [*"012345"] * 4
    for letter, run in (("A", before.name), ("B", after.name)):
        for seed in "12":
            values = np.array(returns[run, seed])
            four = {
                "median": np.median(values),
                "min": values.min(),
                "max": values.max(),
                "mean": values.mean(),
            }
            for column, value in four.items():
                assert cell(text, f"{letter} seed {seed}", column) == pytest.approx(value, abs=0.06)
            low, high = watch_policy.bootstrap_interval(values)
            assert f"{low:.1f} to {high:.1f}" in text and low < values.mean() < high
        means = [np.mean(returns[run, seed]) for seed in "12"]
        assert cell(text, f"{letter} mean of 2 seeds", "mean") == pytest.approx(np.mean(means), abs=0.06)
    gains = [np.subtract(returns[after.name, seed], returns[before.name, seed]) for seed in "12"]
    for seed, gain in zip("12", gains, strict=True):
        low, high = watch_policy.bootstrap_interval(gain)
        (line,) = [line for line in text.splitlines() if line.startswith(f"B seed {seed} - A seed {seed}: ")]
        numbers = [float(number) for number in re.findall(r"[-+]?\d+\.\d", line)]
        assert numbers == pytest.approx([gain.mean(), low, high], abs=0.06)
        assert line.endswith(f"higher in {(gain > 0).sum()} and lower in {(gain < 0).sum()} of 6")
    low, high = watch_policy.bootstrap_interval(np.mean(gains, axis=1))
    assert f"B - A, mean of 2 seeds: {np.mean(gains):+.1f} ({low:.1f} to {high:.1f} over seeds)" in text
    assert sorted(os.listdir()) == ["episodes.csv"]


def test_one_policy_is_the_counterpart_of_all_and_a_missing_one_is_told(runs, watch):
    before, after = runs["before"], runs["after"]
    text = watch(before / "seed1", after, before / "seed1/checkpoint.pt", "--episodes 2")
    assert "B seed 1 - A seed 1: " in text and "B seed 2 - A seed 1: " in text and "seeds are not" not in text
    assert "C seed 1 - A seed 1: +0.0 (0.0 to 0.0), higher in 0 and lower in 0 of 2" in text
    for seed in (10, 2):
        new_checkpoint("offline_pretrain_sac", Path("run"), seed)
    text = watch(before, "run --episodes 1")
    assert re.findall(r"^B seed (\d+)", text, re.M) == ["2", "10", "2"]  # the last is a difference
    assert "B seed 2 - A seed 2: +0.0 (-)" in text and "B - A: 1 of 2 seeds are not among those of A" in text


def test_unfinished_runs_are_marked(runs, watch):
    for seed, status in ((1, "finished"), (2, "interrupted"), (3, "running")):
        config = new_checkpoint("offline_pretrain_sac", Path("run"), seed).with_name("config.json")
        config.write_text(f'{{"status": "{status}"}}')
    new_checkpoint("offline_pretrain_sac", Path("half")).with_name("config.json").write_text('{"status": ')
    text = watch("run half --episodes 1")
    assert "A  run, 4 updates; unfinished: seed 2, seed 3\nB  half, 4 updates\n" in text


def test_episodes_cut_by_the_clock_are_counted_and_there_may_be_no_score(runs, watch):
    text = watch(runs["toy"], "--env toy_env:Toy-v0 --episodes 12 --out episodes.csv")
    rows = table("episodes.csv")
    odd = [int(row["reset_seed"]) % 2 for row in rows]
    assert 0 < sum(odd) < 12 and [int(row["truncated"]) for row in rows] == odd
    assert [int(row["length"]) for row in rows] == [9 if clock else 6 for clock in odd]
    assert {row["normalized_score"] for row in rows} == {""}
    assert cell(text, "A seed 1", "truncated") == sum(odd)


def steps_shown(image: Image.Image, width: int, top: int, bottom: int) -> list[int]:
    """The toy's step in each panel of a row of panels."""
    places = [(x, (top + bottom) // 2) for x in range(width // 2, image.width, width)]
    pixels = [image.convert("RGB").getpixel(place) for place in places]
    return [round(green / 20) if red < 10 else None for red, green, _ in pixels]


def test_a_strip_has_a_row_a_policy_and_a_gif_shows_them_side_by_side(runs, watch, monkeypatch):
    monkeypatch.setenv("PYTHONPATH", str(runs["toy"].parents[1]))
    arguments = f"{runs['toy']} {runs['toy']} --env toy_env:Toy-v0 --episodes 2"
    assert "wrote a.png" in watch(arguments, "--video a.png")
    length = 9 if watch_policy.reset_seed(watch_policy.Args(()), 0) % 2 else 6
    strip = Image.open("a.png")
    height = strip.height // 2
    assert strip.width == 8 * 160 and strip.height == 2 * (80 + 2 * 20)
    steps = sorted({round(step) for step in np.linspace(0, length, 8)})
    for bottom in (height, 2 * height):
        assert steps_shown(strip, 160, bottom - 80, bottom) == (steps + [None] * 8)[:8]
    assert np.asarray(strip.crop((0, 0, 160, 20)).convert("L")).min() < 60  # a title

    assert "wrote a.gif" in watch(arguments, "--video a.gif --overwrite")
    gif = Image.open("a.gif")
    shown, durations = [], []
    for frame in range(gif.n_frames):
        gif.seek(frame)
        durations.append(gif.info["duration"])
        shown.append(steps_shown(gif, 256, gif.height - 128, gif.height))
    steps = sorted({*range(0, length, 2), length})  # 50 steps a second, 25 frames
    assert gif.size == (512, 128 + 5 * 14 + 6) and shown == [[step, step] for step in steps]
    assert set(durations[:-1]) == {40} and durations[-1] == 2000
    assert sorted(os.listdir()) == ["a.gif", "a.png"]


def test_mujoco_is_rendered_with_a_camera_that_follows(runs, work):
    try:
        watch_policy.choose_backend("Hopper-v4", None, Path("a.gif"))
    except SystemExit:
        pytest.skip("no OpenGL here")
    args, policy = watch_policy.Args(()), load(runs["before"] / "seed1")
    envs, seeds = [policy.script.make_env("Hopper-v4")], [watch_policy.reset_seed(args, 0)]
    scores = watch_policy.play(policy, envs, seeds, args)
    last = int(scores.lengths[0])
    (step, total, image), (end, whole, other) = watch_policy.film(policy, [0, last], 160, args)
    assert (step, total, end, whole) == (0, 0, last, scores.returns[0])  # the very episode that is scored
    one, two = np.asarray(image, int), np.asarray(other, int)
    assert one.shape == (160, 160, 3) and one.std() > 10 and np.abs(one - two).max() > 50


class Code:
    """Pickles as a call that makes a folder."""

    def __reduce__(self):
        return Path.mkdir, (Path("executed"),)


NO_CHECKPOINT, NOT_RESTORED = (
    "not a checkpoint of these scripts",
    "its policy of Hopper-v4 cannot be restored",
)
BAD_FILES = {  # what is changed in a good checkpoint, and what is said
    "lost": ({"state": {}}, NOT_RESTORED),
    "shapeless": ({"shape": None}, NOT_RESTORED),
    "options": ({"args": {"batch_size": -1}}, f"{NOT_RESTORED} (1 validation error for Args"),
    "newer": ({"format": 3}, f"{NOT_RESTORED} (offline_pretrain_sac.py writes another format today"),
    "wide": ({"shape": {"obs_dim": 10**9, "action_dim": 3}}, f"{NOT_RESTORED} (Hopper-v4 has other sizes"),
    "cheetah": ({"env": "HalfCheetah-v4"}, "HalfCheetah-v4 has other sizes"),
    "nowhere": ({"env": "Nowhere-v4"}, "its policy of Nowhere-v4 cannot be restored"),
    "lines": ({"run": "two\nlines"}, NO_CHECKPOINT),
    "code": ({"run": Code()}, NO_CHECKPOINT),
    "script": ({"script": "antigravity"}, "its script is antigravity, not one of sac_scratch"),
    "tool": ({"script": "collect_dataset"}, "its script is collect_dataset, not one of"),
    "module": ({"env": "antigravity:Hopper-v4"}, "give --env antigravity:Hopper-v4"),
}


@pytest.fixture
def bad(work, runs):
    """Files that cannot be used, in the working directory."""
    path = runs["before"] / "seed1/checkpoint.pt"
    saved = torch.load(path, weights_only=True)
    actor = saved["state"]["actor"]
    for name, weight in {"nan": actor["0.weight"] * torch.nan, "narrow": actor["0.weight"][:, :4]}.items():
        torch.save(saved | {"state": saved["state"] | {"actor": actor | {"0.weight": weight}}}, f"{name}.pt")
    for name, (change, _) in BAD_FILES.items():
        torch.save(saved | change, f"{name}.pt")
    torch.save({key: saved[key] for key in ("script", "env", "run", "phase")} | {"agent": {}}, "first.pt")
    torch.save({"weights": torch.zeros(3)}, "foreign.pt")
    torch.save(saved, "good.pt")
    Path("text.pt").write_text("hello")
    Path("cut.pt").write_bytes(path.read_bytes()[:3000])
    Path("empty").mkdir()
    Path("there.csv").write_text("kept")
    return work


BAD = {f"{name}.pt": said for name, (_, said) in BAD_FILES.items()} | {
    "": "name a checkpoint.pt",
    "nowhere": "nowhere: neither a checkpoint.pt, nor the folder",
    "empty": "empty: neither",
    "good.pt missing.pt": "missing.pt: neither",
    "text.pt": NO_CHECKPOINT,
    "cut.pt": NO_CHECKPOINT,
    "foreign.pt": NO_CHECKPOINT,
    "nan.pt": NO_CHECKPOINT,
    "narrow.pt": NOT_RESTORED,
    "first.pt": "first.pt: was written by the first version of these scripts, which is gone; train again",
    "good.pt --env Hopper-v5": "--env Hopper-v5: the checkpoint good.pt is of Hopper-v4",
    "good.pt TOY --env Hopper-v4": "is of toy_env:Toy-v0",
    "TD3 --actions stochastic": "--actions stochastic: the policy of",
    "good.pt --out there.csv": "--out there.csv: exists; --overwrite replaces it",
    "good.pt --out empty --overwrite": "--out empty: cannot be written there",
    "good.pt --out /dev/null/a.csv": "--out /dev/null/a.csv: cannot be written there",
    "good.pt --video a.mp4": "--video a.mp4: must end in .gif or .png",
    "good.pt --video nowhere/a.gif": "--video nowhere/a.gif: cannot be written there",
}


def fails(watch, arguments, capsys) -> str:
    """The one line that it ends with."""
    with pytest.raises(SystemExit) as ended:
        watch(arguments)
    out, error = capsys.readouterr()
    assert ended.value.code == 2 and out == "" and error.startswith("error: ") and error.count("\n") == 1
    return error


def test_bad_input_is_one_line_and_writes_nothing(watch, bad, runs, capsys, monkeypatch, subtests):
    monkeypatch.setitem(sys.modules, "antigravity", None)  # importing it would open a browser
    before = sorted(bad.rglob("*"))
    for arguments, said in BAD.items():
        arguments = arguments.replace("TOY", str(runs["toy"])).replace("TD3", str(runs["td3_bc"]))
        with subtests.test(arguments):
            assert said in fails(watch, arguments, capsys) and sorted(bad.rglob("*")) == before
    assert Path("there.csv").read_text() == "kept"


@pytest.mark.parametrize("option", ["episodes 0", "seed -1", "noise-std nan"])
def test_an_option_out_of_range_is_refused_by_name(watch, capsys, option):
    with pytest.raises(SystemExit) as ended:
        watch(f"good.pt --{option}")
    assert ended.value.code == 2 and option.split()[0].replace("-", "_") in capsys.readouterr().err


def test_without_opengl_one_line_says_so_and_the_scores_need_none(watch, bad, capsys, monkeypatch):
    monkeypatch.setenv("MUJOCO_GL", "nonsense")
    command = [sys.executable, str(ROOT / "watch_policy.py"), "good.pt", "--episodes", "2"]
    run = subprocess.run(command, capture_output=True, text=True)
    assert run.returncode == 0 and "A seed 1" in run.stdout and run.stderr == ""
    before = sorted(bad.rglob("*"))
    error = fails(watch, "good.pt --video a.gif --out a.csv", capsys)
    assert "--video a.gif: nothing renders Hopper-v4 here (" in error and "libegl1" in error
    assert sorted(bad.rglob("*")) == before


def test_an_interruption_or_a_full_disk_leaves_nothing(watch, bad, capsys, monkeypatch):
    for target, error in (("play", KeyboardInterrupt()), ("write_csv_file", OSError("no space left"))):
        with monkeypatch.context() as patch, pytest.raises(SystemExit) as ended:
            patch.setattr(watch_policy, target, lambda *_, error=error: (_ for _ in ()).throw(error))
            watch("good.pt --episodes 1 --out a.csv")
        assert ended.value.code == 2 and (str(error) or "interrupted") in capsys.readouterr().err
        assert not list(Path().glob("a.csv*"))
