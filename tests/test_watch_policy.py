"""watch_policy.py: its returns are those of training, its statistics, its pictures, bad input."""

import csv
import importlib
import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
import tyro
from PIL import Image

import watch_policy

ROOT = Path(__file__).resolve().parents[1]
SMALL = "--eval-episodes 3 --batch-size 8 --compile off --runs-dir runs"
OFFLINE = f"{SMALL} --hidden-dim 8 --dataset hopper/tiny-v0 --offline-steps 4 --eval-every 4"
ONLINE = f"{SMALL} --online-steps 20 --eval-every 20"
RUNS = {  # three scripts of the second house, three of the first
    "offline_pretrain_sac": f"{OFFLINE} --num-seeds 2",
    "online_finetune_sac": f"{ONLINE} --num-seeds 2",  # of the run before
    "sac_scratch": f"{ONLINE} --hidden-dim 8 --warmup-steps 10 --env toy_env:Toy-v0",
    "cql_sac": OFFLINE,
    "td3_bc": f"{OFFLINE} --normalize-obs",
    "awac": OFFLINE,
}
HOPPER = [script for script in RUNS if script != "sac_scratch"]
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


def train(script: str, arguments: str) -> Path:
    module = importlib.import_module(script)
    module.main(tyro.cli(module.Args, args=arguments.split()))
    return max(Path("runs").glob("*/*"), key=lambda folder: folder.stat().st_mtime_ns).absolute()


@pytest.fixture(scope="module")
def runs(minari_cache, tmp_path_factory):
    """{script: folder of a short run}; sac_scratch.py's is of the toy."""
    folder, before = tmp_path_factory.mktemp("trained"), os.getcwd()
    (folder / "toy_env.py").write_text(TOY)
    sys.path.insert(0, str(folder))
    os.chdir(folder)
    found = {script: train(script, arguments) for script, arguments in RUNS.items()}
    yield found
    os.chdir(before)
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


def load(path, **options):
    return watch_policy.load_policy(Path(path) / "checkpoint.pt", watch_policy.Args((), **options))


@pytest.mark.parametrize("script", HOPPER)
def test_from_the_same_starts_the_returns_are_those_of_the_last_evaluation(runs, script):
    for folder in sorted(runs[script].glob("seed*")):
        policy, rows = load(folder), table(folder / "eval.csv")[-3:]
        moment = [str(policy.gradient_step), str(policy.env_step), policy.phase]
        assert moment == [rows[-1][key] for key in ("gradient_step", "env_step", "phase")]
        assert (policy.run, policy.script.__name__) == (folder.parent.name, script)
        keys = [(policy.seed, policy.gradient_step, policy.env_step, i) for i in range(3)]  # evaluate's
        seeds = [int(np.random.SeedSequence(key).generate_state(1)[0]) for key in keys]
        envs = [policy.script.make_env("Hopper-v4") for _ in range(2)]
        returns, lengths, cut = watch_policy.play(policy, envs, seeds, watch_policy.Args(()))
        assert returns == pytest.approx([float(row["return"]) for row in rows], abs=0.05)
        assert lengths.tolist() == [float(row["length"]) for row in rows] and not cut.any()
        assert policy.normalise(3234.3) == pytest.approx(100) and policy.normalise(-20.272305) == 0


def distribution(policy, obs):
    """Mean and standard deviation before the squashing, and the squashing."""
    saved = torch.load(policy.path, weights_only=True)
    if "state" in saved:
        algorithm = policy.script.SAC(policy.script.Args(), **saved["shape"])
        mean, log_std = algorithm.actor(saved["state"]["actor"], obs)
        return mean, log_std.exp(), torch.tanh
    agent = policy.script.Agent([0], **saved["shape"])
    agent.load_state_dict({name: saved["agent"][name] for name in agent.state_dict()})
    mean, log_std = agent.actor(obs[None])
    return (
        mean[0],
        log_std[0].exp(),
        torch.tanh if policy.script.__name__ == "cql_sac" else torch.nn.Identity(),
    )


@pytest.mark.parametrize("script", ["offline_pretrain_sac", "cql_sac", "awac"])
def test_actions_are_the_policys(runs, script):
    policy, generator = load(runs[script] / "seed1"), np.random.default_rng(0)
    obs, noise = (generator.standard_normal((50, n)).astype(np.float32) for n in (11, 3))
    mean, std, squash = distribution(policy, torch.from_numpy(obs))
    best, draw = squash(mean).clamp(-1, 1), squash(mean + std * torch.from_numpy(noise)).clamp(-1, 1)
    noisy = (best + 0.4 * torch.from_numpy(noise)).clamp(-1, 1)
    for actions, expected in {"deterministic": best, "stochastic": draw, "noisy": noisy}.items():
        args = watch_policy.Args((), actions=actions, noise_std=0.4)
        assert np.allclose(policy.act(obs, noise, args), expected, atol=1e-5)


def test_the_table_the_csv_and_the_differences_agree(runs, watch):
    before, after = runs["offline_pretrain_sac"], runs["online_finetune_sac"]
    text = watch(before, after, "--episodes 6 --seed 3 --out episodes.csv")
    rows = table("episodes.csv")
    assert (
        len(rows) == 24
        and f"A  {before.name}, 4 updates\nB  {after.name}, 24 updates, 20 online steps" in text
    )
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
            for column, value in {
                "mean": values.mean(),
                "median": np.median(values),
                "min": values.min(),
            }.items():
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
    assert f"B - A, mean of 2 seeds: {np.mean(gains):+.1f} (" in text
    assert sorted(os.listdir()) == ["episodes.csv"]


def test_one_policy_is_the_counterpart_of_all_and_a_missing_one_is_told(runs, watch):
    before, after = runs["offline_pretrain_sac"], runs["online_finetune_sac"]
    text = watch(before / "seed1", after, before / "seed1/checkpoint.pt", "--episodes 2")
    assert "B seed 1 - A seed 1: " in text and "B seed 2 - A seed 1: " in text and "seeds are not" not in text
    assert "C seed 1 - A seed 1: +0.0 (0.0 to 0.0), higher in 0 and lower in 0 of 2" in text
    for seed in (10, 2):
        Path(f"run/seed{seed}").mkdir(parents=True)
        torch.save(
            torch.load(before / "seed2/checkpoint.pt") | {"seed": seed}, f"run/seed{seed}/checkpoint.pt"
        )
    text = watch(before, "run --episodes 1")
    assert re.findall(r"^B seed \d+", text, re.M) == [
        "B seed 2",
        "B seed 10",
        "B seed 2",
    ]  # the last is a difference
    assert "B seed 2 - A seed 2: +0.0 (-)" in text and "B - A: 1 of 2 seeds are not among those of A" in text


def test_episodes_cut_by_the_clock_are_counted_and_there_may_be_no_score(runs, watch):
    text = watch(runs["sac_scratch"], "--env toy_env:Toy-v0 --episodes 12 --out episodes.csv")
    rows = table("episodes.csv")
    odd = [int(row["reset_seed"]) % 2 for row in rows]
    assert 0 < sum(odd) < 12 and [int(row["truncated"]) for row in rows] == odd
    assert [int(row["length"]) for row in rows] == [9 if clock else 6 for clock in odd]
    assert {row["normalized_score"] for row in rows} == {""}
    assert cell(text, "A seed 1", "cut") == sum(odd)


def steps_shown(image: Image.Image, width: int, top: int, bottom: int) -> list[int]:
    """The toy's step in each panel of a row of panels."""
    pixels = [
        image.convert("RGB").getpixel((x, (top + bottom) // 2)) for x in range(width // 2, image.width, width)
    ]
    return [round(green / 20) if red < 10 else None for red, green, _ in pixels]


def test_a_strip_has_a_row_a_policy_and_a_gif_shows_them_side_by_side(runs, watch, monkeypatch):
    monkeypatch.setenv("PYTHONPATH", str(runs["sac_scratch"].parents[2]))
    arguments = f"{runs['sac_scratch']} {runs['sac_scratch']} --env toy_env:Toy-v0 --episodes 2"
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
    args = watch_policy.Args(())
    policy = load(runs["offline_pretrain_sac"] / "seed1")
    scores = watch_policy.play(
        policy, [policy.script.make_env("Hopper-v4")], [watch_policy.reset_seed(args, 0)], args
    )
    last = int(scores.lengths[0])
    (step, total, image), (end, whole, other) = watch_policy.film(policy, [0, last], 160, args)
    assert (step, total, end, whole) == (0, 0, last, scores.returns[0])  # the very episode that is scored
    pixels = np.asarray(image, int), np.asarray(other, int)
    assert (
        pixels[0].shape == (160, 160, 3) and pixels[0].std() > 10 and np.abs(pixels[0] - pixels[1]).max() > 50
    )


class Code:
    """Pickles as a call that makes a folder."""

    def __reduce__(self):
        return Path.mkdir, (Path("executed"),)


@pytest.fixture
def bad(work, runs):
    """Files that cannot be used, in the working directory."""
    path = runs["offline_pretrain_sac"] / "seed1/checkpoint.pt"
    saved = torch.load(path, weights_only=True)
    actor = saved["state"]["actor"]
    nan, narrow = (actor | {"0.weight": w} for w in (actor["0.weight"] * torch.nan, actor["0.weight"][:, :4]))
    old = torch.load(runs["td3_bc"] / "seed1/checkpoint.pt", weights_only=True)
    torch.save(old | {"shape": old["shape"] | {"hidden_dim": 10**6}}, "huge.pt")
    for name, change in {
        "good": {},
        "nan": {"state": saved["state"] | {"actor": nan}},
        "narrow": {"state": saved["state"] | {"actor": narrow}},
        "lost": {"state": {}},
        "wide": {"shape": saved["shape"] | {"obs_dim": 10**9}},
        "older": {"format": 1},
        "cheetah": {"env": "HalfCheetah-v4"},
        "nowhere": {"env": "Nowhere-v4"},
        "lines": {"run": "two\nlines"},
        "script": {"script": "antigravity"},
        "tool": {"script": "collect_dataset"},
        "module": {"env": "antigravity:Hopper-v4"},
        "code": {"run": Code()},
    }.items():
        torch.save(saved | change, f"{name}.pt")
    torch.save({"weights": torch.zeros(3)}, "foreign.pt")
    Path("text.pt").write_text("hello")
    Path("cut.pt").write_bytes(path.read_bytes()[:3000])
    Path("empty").mkdir()
    Path("there.csv").write_text("kept")
    return work


BAD = {
    "": "name a checkpoint.pt",
    "nowhere": "nowhere: neither a checkpoint.pt, nor the folder",
    "empty": "empty: neither",
    "good.pt missing.pt": "missing.pt: neither",
    "text.pt": "text.pt: is no checkpoint of these scripts",
    "cut.pt": "cut.pt: is no checkpoint of these scripts",
    "foreign.pt": "foreign.pt: is no checkpoint of these scripts",
    "code.pt": "code.pt: is no checkpoint of these scripts",
    "lines.pt": "lines.pt: is no checkpoint of these scripts",
    "nan.pt": "nan.pt: is no checkpoint of these scripts",
    "narrow.pt": "narrow.pt: its policy of Hopper-v4 cannot be restored",
    "lost.pt": "lost.pt: its policy of Hopper-v4 cannot be restored",
    "huge.pt": "networks are larger than the file",
    "older.pt": "offline_pretrain_sac.py has changed since then",
    "wide.pt": "has other sizes",
    "cheetah.pt": "HalfCheetah-v4 has other sizes",
    "nowhere.pt": "nowhere.pt: its policy of Nowhere-v4 cannot be restored",
    "script.pt": "its script is antigravity, none of sac_scratch",
    "tool.pt": "its script is collect_dataset, none of",
    "module.pt": "say --env antigravity:Hopper-v4",
    "good.pt --env Hopper-v5": "--env Hopper-v5: the checkpoint good.pt is of Hopper-v4",
    "good.pt TOY --env Hopper-v4": "is of toy_env:Toy-v0",
    "good.pt --episodes 0": "--episodes 0: must be a number of at least 1",
    "good.pt --seed -1": "--seed -1",
    "good.pt --noise-std nan": "--noise-std nan",
    "TD3 --actions stochastic": "--actions stochastic: the policy of",
    "good.pt --out there.csv": "--out there.csv: exists; --overwrite replaces it",
    "good.pt --out empty --overwrite": "--out empty: exists; name a file",
    "good.pt --out nowhere/a.csv": "--out nowhere/a.csv: cannot be written (No such file",
    "good.pt --out /dev/null/a.csv": "--out /dev/null/a.csv: cannot be written (Not a directory",
    "good.pt --video a.mp4": "--video a.mp4: must end in .gif or .png",
    "good.pt --video nowhere/a.gif": "--video nowhere/a.gif: cannot be written",
}


@pytest.mark.parametrize("arguments", BAD)
def test_bad_input_is_one_line_and_writes_nothing(watch, bad, runs, capsys, monkeypatch, arguments):
    monkeypatch.setitem(sys.modules, "antigravity", None)  # importing it would open a browser
    before = sorted(bad.rglob("*"))
    with pytest.raises(SystemExit) as ended:
        watch(arguments.replace("TOY", str(runs["sac_scratch"])).replace("TD3", str(runs["td3_bc"])))
    out, error = capsys.readouterr()
    assert ended.value.code == 2 and out == ""
    assert error.startswith("error: ") and error.count("\n") == 1 and BAD[arguments] in error
    assert sorted(bad.rglob("*")) == before and Path("there.csv").read_text() == "kept"


def test_without_opengl_one_line_says_so_before_the_episodes_and_the_scores_need_none(
    watch, bad, capsys, monkeypatch
):
    monkeypatch.setenv("MUJOCO_GL", "nonsense")
    command = [sys.executable, str(ROOT / "watch_policy.py"), "good.pt", "--episodes", "2"]
    run = subprocess.run(command, capture_output=True, text=True)
    assert run.returncode == 0 and "A seed 1" in run.stdout and run.stderr == ""
    before = sorted(bad.rglob("*"))
    with pytest.raises(SystemExit) as ended:
        watch("good.pt --video a.gif --out a.csv")
    out, error = capsys.readouterr()
    assert ended.value.code == 2 and out == "" and error.count("\n") == 1 and sorted(bad.rglob("*")) == before
    assert error.startswith("error: --video a.gif: nothing renders Hopper-v4 here (") and "libegl1" in error


def test_an_interruption_or_a_full_disk_leaves_nothing(watch, bad, capsys, monkeypatch):
    for target, error in (("play", KeyboardInterrupt()), ("write_csv_file", OSError("no space left"))):
        with monkeypatch.context() as patch, pytest.raises(SystemExit) as ended:
            patch.setattr(watch_policy, target, lambda *_, error=error: (_ for _ in ()).throw(error))
            watch("good.pt --episodes 1 --out a.csv")
        assert ended.value.code == 2 and (str(error) or "interrupted") in capsys.readouterr().err
        assert not list(Path().glob("a.csv*"))
