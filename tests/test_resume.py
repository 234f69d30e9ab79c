"""Runs that are cut and go on, equal to the bit to runs that were not; full disks, lost processes, divergence.

What a SIGKILL leaves is what stands on the disk, so most cuts here are exceptions that nothing handles, followed by
what a kill in the middle of a write leaves; tests/soak_resume.py kills real processes at random moments.
"""

import csv
import json
import os
import pickle
import re
import resource
import signal
import subprocess
import sys
import time
from functools import partial
from importlib import import_module
from pathlib import Path

import gymnasium as gym
import numpy as np
import pytest
import torch

import sac_scratch

ROOT = Path(__file__).resolve().parents[1]
SMALL = "--num-seeds 2 --batch-size 16 --eval-episodes 1 --eval-every 20 --checkpoint-every 0.001 --compile off"
DATA = "--dataset hopper/tiny-v0"
BOTH = f"{SMALL} {DATA} --hidden-dim 16 --offline-steps 30 --online-steps 40"
CASES = {
    "sac_scratch": (
        f"{SMALL} {DATA} --hidden-dim 16 --online-steps 60 --warmup-steps 10 --offline-ratio 0.5 "
        "--offline-ratio-end 0.1 --num-candidates 3 --epsilon 1e-3 --policy-delay 2",
        [3, 41],
    ),
    "offline_pretrain_sac": (f"{SMALL} {DATA} --hidden-dim 16 --offline-steps 50 --q-filter-percentile 25", [32]),
    "online_finetune_sac": (
        f"{SMALL} --online-steps 60 --bc-alpha 1 --bc-alpha-end 0 --anneal linear --replay-capacity 25",
        [45],
    ),
    "td3_bc": (f"{BOTH} --normalize-obs --warmup-steps 5", [17, 55]),
    "td3_c": (f"{SMALL} {DATA} --hidden-dim 16 --scratch --online-steps 60 --warmup-steps 10 --num-candidates 2", [45]),
    "cql_sac": (
        f"{BOTH} --cql-actions 2 --cql-threshold 5 --cql-threshold-end 1 --anneal abrupt --calibrated",
        [17, 60],
    ),
    "iql": (f"{BOTH} --expectile-end 0.9 --anneal linear --num-candidates 3", [17, 60]),
    "awac": (f"{BOTH} --awac-weights exp --replay online --policy-delay 3", [17, 45]),
    "o3f_select": (f"{BOTH} --updates-per-step 2 --num-critics 3 --num-candidates 4", [17, 75]),
}


class Cut(BaseException):
    """Nothing handles it."""


def cut_at(monkeypatch, script: str, count: int) -> None:
    """The `count`-th update from now does not return."""
    module, calls = import_module(script), [0]
    update = module.update

    def counted(*args):
        calls[0] += 1
        if calls[0] == count:
            raise Cut
        return update(*args)

    monkeypatch.setattr(module, "update", counted)


def run_folder(root: str) -> Path:
    (folder,) = Path(root).glob("*/*/")
    return folder


def content(folder: Path) -> dict:
    """All that a run leaves, but for the times: rows of the CSVs, tensors and facts of the checkpoints."""
    found = {}
    for path in sorted(folder.glob("seed*/*.csv")):
        with open(path) as file:
            rows = list(csv.DictReader(file))
        found[str(path.relative_to(folder))] = [
            [value for key, value in row.items() if key != "seconds"] for row in rows
        ]
    for path in sorted(folder.glob("seed*/checkpoint.pt")):
        checkpoint = torch.load(path)
        tensors = {name: tensor.numpy().tobytes() for name, tensor in checkpoint.pop("agent").items()}
        facts = {key: checkpoint[key] for key in ("phase", "gradient_step", "env_step", "seed", "shape")}
        found[str(path.relative_to(folder))] = tensors | facts
    return found


def leave_half_writes(folder: Path) -> None:
    """What a kill leaves between one save and the next."""
    for name in ("eval.csv", "metrics.csv"):
        with open(folder / "seed2" / name, "a") as file:
            file.write("online,12,12,0,13.5,2\nonline,1")
    with open(folder / "seed1" / "resume.rows", "ab") as file:
        file.write(b"\1" * 333)
    (folder / "seed1" / "resume.pt.part").write_bytes(b"half")


@pytest.mark.parametrize("script", CASES)
def test_a_run_that_was_cut_goes_on_to_the_same_end(call, monkeypatch, script):
    command, cuts = CASES[script]
    if script == "online_finetune_sac":
        call("offline_pretrain_sac", f"{SMALL} {DATA} --hidden-dim 16 --offline-steps 10 --runs-dir start")
        command += f" --checkpoint {run_folder('start')}"
    call(script, f"{command} --runs-dir whole")
    whole = content(run_folder("whole"))
    assert len(whole) == 6 and len(whole["seed1/eval.csv"]) > 3
    for count in cuts:
        with monkeypatch.context() as patch, pytest.raises(Cut):
            cut_at(patch, script, count)
            call(script, f"{command} --runs-dir cut{count}")
        folder = run_folder(f"cut{count}")
        leave_half_writes(folder)
        assert content(folder) != whole
        out, _ = call(script, f"--resume {folder}")
        assert re.search(r"resumes: at (offline|online) step \d+", out)
        assert content(folder) == whole
        assert not list(folder.glob("seed*/resume.*"))
        assert {json.loads(p.read_text())["status"] for p in folder.glob("seed*/config.json")} == {"finished"}


def test_a_run_may_be_cut_again_and_again(call, monkeypatch):
    command, _ = CASES["sac_scratch"]
    call("sac_scratch", f"{command} --runs-dir whole")
    for i, count in enumerate((9, 12, 16, 9)):
        with monkeypatch.context() as patch, pytest.raises(Cut):
            cut_at(patch, "sac_scratch", count)
            call("sac_scratch", f"--resume {run_folder('cut')}" if i else f"{command} --runs-dir cut")
    call("sac_scratch", f"--resume {run_folder('cut')}")
    assert content(run_folder("cut")) == content(run_folder("whole"))


def test_the_saved_dataset_is_that_of_an_uncut_run(call, monkeypatch, minari_cache):
    command = f"{SMALL.replace('--num-seeds 2 ', '')} --hidden-dim 16 --online-steps 50 --warmup-steps 10"
    call("sac_scratch", f"{command} --runs-dir whole --save-dataset hopper/whole-v0")
    with monkeypatch.context() as patch, pytest.raises(Cut):
        cut_at(patch, "sac_scratch", 20)
        call("sac_scratch", f"{command} --runs-dir cut --save-dataset hopper/cut-v0")
    call("sac_scratch", f"--resume {run_folder('cut')}")
    rows = [sac_scratch.read_minari(minari_cache / f"hopper/{name}-v0")[0] for name in ("whole", "cut")]
    assert all(np.array_equal(a, b) for a, b in zip(*rows, strict=True)) and len(rows[0][0]) == 50


def test_a_compiled_run_goes_on_to_the_same_end(call, monkeypatch):
    """Its random numbers come from the saved state too, though other ones than an eager run's."""
    command = CASES["offline_pretrain_sac"][0].replace("--compile off", "--compile on")
    call("offline_pretrain_sac", f"{command} --runs-dir whole")
    module, calls = import_module("offline_pretrain_sac"), []
    evaluate = module.evaluate

    def cut(*args):
        calls.append(0)
        if len(calls) == 3:
            raise Cut
        return evaluate(*args)

    with monkeypatch.context() as patch, pytest.raises(Cut):
        patch.setattr(module, "evaluate", cut)
        call("offline_pretrain_sac", f"{command} --runs-dir cut")
    call("offline_pretrain_sac", f"--resume {run_folder('cut')}")
    assert content(run_folder("cut")) == content(run_folder("whole"))


# ---- environments ----


@pytest.mark.parametrize("workers", [False, True], ids=["sync", "async"])
@pytest.mark.parametrize("env_id", ["Hopper-v4", "Ant-v4", "Humanoid-v4", "Pendulum-v1"])
def test_the_running_episodes_are_played_again_to_the_bit(monkeypatch, env_id, workers):
    """In fresh environments, and on through the next resets; Ant's reward needs more than positions and velocities."""
    if workers:
        monkeypatch.setattr(os, "sched_getaffinity", lambda _: range(8))
    seeds, steps = [3, 4], (230 if env_id == "Pendulum-v1" else 45)
    first, second = sac_scratch.make_envs(env_id, seeds), sac_scratch.make_envs(env_id, seeds)
    actions = np.random.default_rng(0).uniform(-1, 1, (2 * steps, *first.action_space.shape)).astype(np.float32)
    first.reset(seed=seeds)
    second.reset(seed=[9, 9])
    ends = 0
    for action in actions[:steps]:
        ends += sum(map(np.sum, first.step(action)[2:4]))
    second.set_attr("episode", list(first.get_attr("episode")))
    for action in actions[steps:]:
        one, two = first.step(action), second.step(action)
        assert all(np.array_equal(a, b) for a, b in zip(one[:4], two[:4], strict=True))
        ends += sum(map(np.sum, one[2:4]))
    assert ends or env_id == "Ant-v4"
    first.close()
    second.close()


class Failing(gym.Env):
    observation_space, action_space = gym.spaces.Box(-1, 1, (2,)), gym.spaces.Box(-1, 1, (1,))

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.seed, self.steps = seed, 0
        return np.zeros(2, np.float32), {}

    def step(self, action):
        self.steps += 1
        if self.seed == 2 and self.steps > 20:
            raise ValueError("a joint came off")
        return np.zeros(2, np.float32), 0.0, False, False, {}


def test_an_environment_that_raises_is_named_by_its_seed(call):
    gym.register("Failing-v0", entry_point=Failing, max_episode_steps=100)
    with pytest.raises(SystemExit) as ended:
        call("sac_scratch", f"{SMALL} --env Failing-v0 --hidden-dim 8 --online-steps 60 --warmup-steps 10")
    line = ended.value.code
    assert "error: the environment of seed 2 failed (ValueError: a joint came off), at online step 20" in line
    assert "--resume runs/Failing-v0" in line
    statuses = [json.loads(p.read_text())["status"] for p in Path("runs").glob("*/*/seed*/config.json")]
    assert statuses == ["failed", "failed"]


# ---- signals, disks ----


def until(condition, seconds: float = 300) -> None:
    deadline = time.time() + seconds
    while not condition():
        assert time.time() < deadline
        time.sleep(0.05)


def start(tmp_path: Path, command: str, prepare=lambda: None) -> subprocess.Popen:
    def prepared():
        signal.signal(signal.SIGINT, signal.SIG_DFL)  # a background shell makes its children ignore it
        prepare()

    streams = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
    full = [sys.executable, *command.replace("sac_scratch.py", str(ROOT / "sac_scratch.py")).split()]
    return subprocess.Popen(full, cwd=tmp_path, preexec_fn=prepared, **streams)


def test_a_worker_that_is_killed_is_named_and_takes_the_others_along(tmp_path):
    code = f"import os, sys; os.sched_getaffinity = lambda _: range(8); sys.path.insert(0, {str(ROOT)!r})"
    code += "; import sac_scratch; sac_scratch.main(sac_scratch.Args(num_seeds=2, hidden_dim=8, batch_size=16"
    code += ", warmup_steps=20, eval_every=50, eval_episodes=1, compile='off'))"
    process = subprocess.Popen([sys.executable, "-c", code], cwd=tmp_path, stdout=-1, stderr=-2, text=True)
    until(lambda: any(p.read_text().count("\n") > 2 for p in tmp_path.glob("runs/*/*/seed1/eval.csv")))
    children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
    assert len(children) == 4  # two that evaluate, two environments
    os.kill(int(children[3]), signal.SIGKILL)
    out, _ = process.communicate(timeout=60)
    assert process.returncode == 1, out
    assert "error: the process of the environment of seed 2 ended, at online step" in out and "Traceback" not in out
    until(lambda: not any(Path(f"/proc/{child}").exists() for child in children))


@pytest.mark.parametrize(("number", "status"), [(signal.SIGTERM, 143), (signal.SIGKILL, -9)])
def test_a_signal_ends_a_run_that_can_go_on(minari_cache, tmp_path, number, status):
    command = f"sac_scratch.py {SMALL} --hidden-dim 8 --warmup-steps 10 --online-steps 150"
    whole = start(tmp_path, f"{command} --runs-dir whole")
    process = start(tmp_path, f"{command} --runs-dir cut")
    until(lambda: any(p.read_text().count("\n") > 3 for p in tmp_path.glob("cut/*/*/seed1/eval.csv")))
    children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
    assert children  # they evaluate
    os.kill(process.pid, number)
    out, _ = process.communicate(timeout=300)
    assert process.returncode == status and "Traceback" not in out
    until(lambda: not any(Path(f"/proc/{child}").exists() for child in children), 10)
    (folder,) = tmp_path.glob("cut/*/*/")
    if number == signal.SIGTERM:
        assert f"go on with: python sac_scratch.py --resume {folder.relative_to(tmp_path)}" in out
    again = start(tmp_path, f"sac_scratch.py --resume {folder}")
    out, _ = again.communicate(timeout=300)
    assert again.returncode == 0, out
    whole.communicate(timeout=300)
    assert content(folder) == content(next(tmp_path.glob("whole/*/*/")))


def test_a_full_disk_ends_a_run_with_a_line_and_keeps_what_was_saved(minari_cache, tmp_path):
    """No file may grow over 60 kB: the online rows cannot be kept any more, somewhere on the way."""
    limit = partial(resource.setrlimit, resource.RLIMIT_FSIZE, (60_000, 60_000))
    command = f"sac_scratch.py {SMALL} --hidden-dim 4 --warmup-steps 10 --online-steps 500 --eval-every 100"
    process = start(tmp_path, command, limit)
    out, _ = process.communicate(timeout=300)
    assert process.returncode == 1 and "Traceback" not in out, out[-2000:]
    assert re.search(r"\nerror: .*File too large.*, at online step \d+; what was saved before is kept", out), out[
        -2000:
    ]
    (folder,) = tmp_path.glob("runs/*/*/")
    assert not list(folder.glob("seed*/*.part"))
    assert torch.load(folder / "seed1" / "checkpoint.pt")["env_step"] >= 0
    process = start(tmp_path, f"sac_scratch.py --resume {folder}")  # with room again
    time.sleep(0.1)
    out = process.communicate(timeout=240)[0]
    assert process.returncode == 0 and "resumes: at online step" in out, out[-2000:]


# ---- seeds that diverge ----


def test_a_seed_that_diverges_is_given_up_and_the_others_do_not_notice(call, monkeypatch, capsys):
    command = f"{SMALL.replace('--num-seeds 2', '--num-seeds 3')} {DATA} --hidden-dim 16 --offline-steps 60"
    call("offline_pretrain_sac", f"{command} --runs-dir whole")
    module, calls = import_module("offline_pretrain_sac"), [0]
    update = module.update

    def poison(agent, *args):
        calls[0] += 1
        if calls[0] == 31:
            agent.critic.mlp.layers[1].weight[2:4, 0, 0] = torch.nan  # of seed 2
        return update(agent, *args)

    monkeypatch.setattr(module, "update", poison)
    with pytest.raises(SystemExit) as ended:
        call("offline_pretrain_sac", f"{command} --runs-dir poisoned")
    assert "error: diverged: {2: 'offline step" in ended.value.code
    assert "seed 2 diverged before offline step" in capsys.readouterr().out
    whole, poisoned = content(run_folder("whole")), content(run_folder("poisoned"))
    for name in whole:
        assert (whole[name] == poisoned[name]) == (not name.startswith("seed2"))
    assert poisoned["seed2/checkpoint.pt"]["gradient_step"] == 20
    last_good = torch.load(run_folder("poisoned") / "seed2" / "checkpoint.pt")["agent"]
    assert all(tensor.isfinite().all() for tensor in last_good.values())
    configs = [json.loads(p.read_text()) for p in sorted(run_folder("poisoned").glob("seed*/config.json"))]
    assert [config["status"] for config in configs] == ["finished", "diverged", "finished"]

    finetune = SMALL.replace("--num-seeds 2", "--runs-dir poisoned --online-steps 2")
    good, lost, _ = run_folder("poisoned"), run_folder("poisoned") / "seed2", capsys.readouterr()
    for options in ("--num-seeds 3", "--seed 2", f"--seed 2 --checkpoint {good}"):
        with pytest.raises(SystemExit) as ended:
            call("online_finetune_sac", f"{finetune} {options}")
        error = capsys.readouterr().err
        assert ended.value.code == 2 and f"seed2 diverged; name {lost}/checkpoint.pt to start from its" in error
    for options, start in (("--seed 3", f"{good}/seed3"), (f"--checkpoint {lost}", lost)):
        assert f"start: {start}/checkpoint.pt" in call("online_finetune_sac", f"{finetune} {options}")[0]


def test_a_loss_that_is_not_finite_counts_as_divergence(call, monkeypatch):
    module = import_module("offline_pretrain_sac")
    update = module.update

    def overflow(*args):
        metrics = update(*args)
        return metrics | {"loss/critic": metrics["loss/critic"] + torch.tensor([0.0, torch.inf])}

    monkeypatch.setattr(module, "update", overflow)
    with pytest.raises(SystemExit, match="diverged: {2: 'offline step 20'}"):
        call("offline_pretrain_sac", f"{SMALL} {DATA} --hidden-dim 16 --offline-steps 60")


# ---- bad input ----


class Evil:
    def __reduce__(self):
        return Path.touch, (Path("evil"),)


def refused(call, capsys, script: str, arguments: str) -> str:
    before = {str(p): p.stat().st_mtime_ns for p in Path("..").rglob("*")}
    capsys.readouterr()
    with pytest.raises(SystemExit) as ended:
        call(script, arguments)
    error = capsys.readouterr().err
    assert ended.value.code == 2 and error.startswith("error: ") and error.count("\n") == 1
    assert {str(p): p.stat().st_mtime_ns for p in Path("..").rglob("*")} == before
    return error


def test_what_cannot_be_resumed_is_refused(call, capsys, monkeypatch):
    with monkeypatch.context() as patch, pytest.raises(Cut):
        cut_at(patch, "sac_scratch", 20)
        call("sac_scratch", CASES["sac_scratch"][0])
    folder = run_folder("runs")
    assert "no resume.pt there" in refused(call, capsys, "sac_scratch", "--resume nowhere")
    for option in ("--seed 2", "--online-steps 100", "--overwrite"):
        error = refused(call, capsys, "sac_scratch", f"--resume {folder} {option}")
        assert f"{option.split()[0]}: --resume goes on with the run's own options" in error
    assert "is no state of this script's runs" in refused(call, capsys, "td3_c", f"--resume {folder}")
    (Path("several") / "seed1").mkdir(parents=True)
    (Path("several") / "seed2").mkdir()
    for seed in ("seed1", "seed2"):
        (Path("several") / seed / "resume.pt").write_bytes((folder / "seed1" / "resume.pt").read_bytes())
    assert "several runs were cut there" in refused(call, capsys, "sac_scratch", "--resume several")
    state = folder / "seed1" / "resume.pt"
    good = state.read_bytes()
    for bad in (good[:3000], b"", b"hello", pickle.dumps(Evil())):
        state.write_bytes(bad)
        assert "is no state of this script's runs" in refused(call, capsys, "sac_scratch", f"--resume {folder}")
    torch.save({"script": "sac_scratch", "args": Evil()}, state)
    assert "is no state of this script's runs" in refused(call, capsys, "sac_scratch", f"--resume {folder}")
    state.write_bytes(good)
    call("sac_scratch", f"--resume {folder}")
    assert "a finished one" in refused(call, capsys, "sac_scratch", f"--resume {folder}")


def test_data_that_changed_meanwhile_are_refused(call, capsys, monkeypatch):
    from conftest import random_rows

    sizes = [11, 3, 1, 11, 1, 1]
    sac_scratch.write_minari("hopper/changing-v0", random_rows("Hopper-v4", 60), sizes, "Hopper-v4")
    command = CASES["offline_pretrain_sac"][0].replace("tiny", "changing")
    with monkeypatch.context() as patch, pytest.raises(Cut):
        cut_at(patch, "offline_pretrain_sac", 20)
        call("offline_pretrain_sac", command)
    import minari

    minari.delete_dataset("hopper/changing-v0")
    sac_scratch.write_minari("hopper/changing-v0", random_rows("Hopper-v4", 60, seed=1), sizes, "Hopper-v4")
    error = refused(call, capsys, "offline_pretrain_sac", f"--resume {run_folder('runs')}")
    assert "--dataset hopper/changing-v0 is no longer what it was" in error
    minari.delete_dataset("hopper/changing-v0")
