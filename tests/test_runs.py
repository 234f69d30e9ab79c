"""Whole runs, short ones: what they leave, hand over, log, and how they stop and go on."""

import csv
import errno
import json
import os
import shutil
import signal
import subprocess
import sys
import time
import types
from pathlib import Path

import numpy as np
import pytest
import torch
import torch._inductor.config as inductor
from torch.utils._pytree import tree_leaves

import odd_envs  # noqa: F401  registers environments
import online_finetune_sac as finetune
import sac_scratch

ROOT = Path(__file__).resolve().parents[1]
SMALL = "--batch-size 16 --eval-episodes 2 --compile off --device cpu"
OFFLINE = (
    f"{SMALL} --dataset hopper/tiny-v0 --hidden-dim 16 --offline-steps 40 --eval-every 20 --log-every 10"
)
ONLINE = f"{SMALL} --online-steps 40 --eval-every 20 --log-every 10"
SCRATCH = f"{ONLINE} --hidden-dim 8 --warmup-steps 5"


def run_folder(pattern: str, runs: str = "runs") -> Path:
    (folder,) = Path(runs).glob(f"*/{pattern}")
    return folder


def rows(path: Path) -> list[dict]:
    with open(path) as file:
        return list(csv.DictReader(file))


def returns(folder: Path, **moment) -> list[float]:
    found = rows(folder / "eval.csv")
    return [
        float(row["return"]) for row in found if all(row[key] == str(value) for key, value in moment.items())
    ]


def config(folder: Path) -> dict:
    return json.loads((folder / "config.json").read_text())


@pytest.fixture
def pretrained(call):
    """Two seeds of 40 updates; the folder of the run."""
    call("offline_pretrain_sac", f"{OFFLINE} --num-seeds 2")
    return run_folder("offline_pretrain_sac-*")


# ---- what a run leaves ----


def test_a_run_leaves_config_episodes_metrics_events_and_a_checkpoint_for_each_seed(pretrained, call):
    for seed in (1, 2):
        folder = pretrained / f"seed{seed}"
        facts = config(folder)
        assert (facts["status"], facts["seed"], facts["num_seeds"]) == ("finished", seed, 2)
        assert facts["dataset"]["source"] == "hopper/tiny-v0" and facts["scores"] == [-20.272305, 3234.3]
        assert facts["versions"].keys() == {"torch", "gymnasium", "mujoco", "minari", "numpy"}
        steps = [(row["gradient_step"], row["episode"]) for row in rows(folder / "eval.csv")]
        assert steps == [(str(step), str(episode)) for step in (0, 20, 40) for episode in (0, 1)]
        metrics = rows(folder / "metrics.csv")
        logged = {row["gradient_step"] for row in metrics if row["name"] == "loss/critic"}
        assert logged == {"10", "20", "30", "40"}
        assert {"loss/actor", "q/data", "policy/entropy", "eval/q_bias", "speed/steps_per_second"} <= {
            row["name"] for row in metrics
        }
        assert list(folder.glob("events.out.tfevents.*")) and not (folder / "resume.pt").exists()


def test_pretraining_moves_every_network_and_counts_its_updates(pretrained):
    import offline_pretrain_sac as script

    saved = torch.load(pretrained / "seed2" / "checkpoint.pt")
    start = script.SAC(script.Args(), **saved["shape"]).init(2)
    state = saved["state"]
    assert saved["gradient_step"] == 40 and state["critic_adam"]["t"] == 40 and state["actor_adam"]["t"] == 40
    for name in ("actor", "critic", "target_critic"):
        assert all(not torch.equal(start[name][key], p) for key, p in state[name].items()), name
    assert saved["returns"] == returns(pretrained / "seed2", gradient_step=40)


def test_the_next_command_has_what_differs_from_the_defaults(call):
    out, _ = call("offline_pretrain_sac", f"{OFFLINE} --seed 3 --num-seeds 2 --gamma 0.9")
    assert "next: python online_finetune_sac.py --seed 3 --num-seeds 2 --gamma 0.9\n" in out, out
    call("online_finetune_sac", f"{ONLINE} --seed 3 --num-seeds 2 --gamma 0.9")


def test_finetuning_starts_where_pretraining_stopped_and_learns(pretrained, call):
    out, _ = call("online_finetune_sac", f"{ONLINE} --num-seeds 2 --warmup-steps 10 --q-filter-percentile 25")
    folder = run_folder("online_finetune_sac-*")
    assert (
        f"{pretrained}/seed1/checkpoint.pt, 0.0 hours old, 40 updates, return" in out
        and "\nregime: return " in out
    )
    for seed in (1, 2):
        own, source = folder / f"seed{seed}", pretrained / f"seed{seed}"
        assert returns(own, env_step=0) == returns(source, gradient_step=40)
        before, after = (torch.load(path / "checkpoint.pt") for path in (source, own))
        assert (
            after["gradient_step"] == 70 and after["state"]["critic_adam"]["t"] == 70
        )  # no update in the warm-up
        for name in ("actor", "critic"):
            pairs = zip(tree_leaves(before["state"][name]), tree_leaves(after["state"][name]), strict=True)
            assert all(not torch.equal(one, two) for one, two in pairs), name
    names = {row["name"] for row in rows(own / "metrics.csv")}
    assert {"filter/fraction", "train/return", "train/length"} <= names


@pytest.mark.parametrize(
    "options, metrics",
    [
        ("--offline-ratio 0", set()),
        ("--offline-ratio 0 --offline-ratio-end 0", set()),
        ("--offline-ratio 0.5 --offline-ratio-end 0 --updates-per-step 2 --policy-delay 3", set()),
        (
            "--num-candidates 3 --optimism 1 --critic-subset 1",
            {"candidates/q_advantage", "candidates/distance"},
        ),
        ("--epsilon 0.001 --bc-alpha 1 --bc-alpha-end 0", {"constraint/dual", "policy/data_log_prob"}),
    ],
)
def test_finetuning_with_each_option(pretrained, call, options, metrics):
    call("online_finetune_sac", f"{ONLINE} {options}")
    folder = run_folder("online_finetune_sac-*/seed1")
    saved = torch.load(folder / "checkpoint.pt")
    per_step = 2 if "updates-per-step" in options else 1
    updates = per_step * (40 - 16 if "ratio" in options else 40)
    assert saved["gradient_step"] == 40 + updates and saved["state"]["critic_adam"]["t"] == 40 + updates
    assert metrics <= {row["name"] for row in rows(folder / "metrics.csv")}
    assert ("tiny" in folder.parent.name) == ("--offline-ratio 0 --" not in f"{options} --")


def test_scratch_learns_and_keeps_its_replay_when_asked(call):
    options = "--hidden-dim 16 --warmup-steps 20 --keep-replay --num-seeds 2"
    call("sac_scratch", f"{ONLINE} {options}")
    folder = run_folder("sac_scratch-*")
    saved = torch.load(folder / "seed1" / "resume.pt")
    assert saved["rings"].shape == (2, 40, 27) and saved["added"] == 40
    obs, next_obs = saved["rings"][..., :11], saved["rings"][..., 15:26]
    inside = saved["ends"][:, :-1] == 0
    assert (next_obs[:, :-1] == obs[:, 1:]).all(2)[inside].all()
    assert torch.load(folder / "seed2" / "checkpoint.pt")["gradient_step"] == 20
    with pytest.raises(SystemExit) as ended:
        call("sac_scratch", f"{ONLINE} {options}")
    assert ended.value.code == 2


def test_the_first_steps_are_random_and_no_other(call, monkeypatch):
    step, given = sac_scratch.Collector.step, []
    monkeypatch.setattr(
        sac_scratch.Collector, "step", lambda self, action: given.append(action) or step(self, action)
    )
    call("sac_scratch", SCRATCH)
    assert [action is not None for action in given] == [True] * 5 + [False] * 35
    assert -1 <= np.min(given[:5]) < -0.3 and 0.3 < np.max(given[:5]) <= 1  # 15 numbers


def test_the_last_step_is_evaluated_whenever_it_is(call):
    call("sac_scratch", SCRATCH.replace("--online-steps 40", "--online-steps 30"))
    evaluated = rows(run_folder("sac_scratch-*/seed1") / "eval.csv")
    assert [row["env_step"] for row in evaluated[::2]] == ["0", "20", "30"]


def test_annealing_counts_all_online_steps_and_tensorboard_too(pretrained, call, monkeypatch):
    """Also those of the warm-up. After 40 updates offline and 30 online, a delay of 14 lets the policy move in 42, 56 and 70."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    seen = []
    monkeypatch.setattr(finetune, "anneal", lambda *arguments: seen.append(arguments[-1]))
    call("online_finetune_sac", f"{ONLINE} --bc-alpha 1 --bc-alpha-end 0 --warmup-steps 10 --policy-delay 14")
    assert seen == pytest.approx([step / 40 for step in range(11, 41)])
    folder = run_folder("online_finetune_sac-*/seed1")
    events = EventAccumulator(str(folder))
    events.Reload()
    assert [event.step for event in events.Scalars("eval/return")] == [0, 20, 40]
    assert torch.load(folder / "checkpoint.pt")["state"]["actor_adam"]["t"] == 40 + 3


def test_scratch_with_logged_data(call):
    call(
        "sac_scratch",
        f"{ONLINE} --hidden-dim 16 --warmup-steps 5 --dataset hopper/tiny-v0 --offline-ratio 0.5",
    )
    assert torch.load(run_folder("sac_scratch-*/seed1") / "checkpoint.pt")["gradient_step"] == 40 - 16


def test_the_same_command_gives_the_same_numbers_and_another_seed_others(call):
    found = []
    for runs, seed in (("a", 1), ("b", 1), ("c", 2)):
        call("offline_pretrain_sac", f"{OFFLINE} --seed {seed} --runs-dir {runs}")
        found.append(returns(run_folder("*/seed*", runs)))
    assert found[0] == found[1] != found[2]


def test_seeds_that_share_a_start_are_counted_as_such(pretrained, call):
    out, _ = call("online_finetune_sac", f"{ONLINE} --num-seeds 2 --checkpoint {pretrained}/seed2")
    facts = config(run_folder("online_finetune_sac-*/seed1"))
    assert "checkpoints: 1, seeds: 2" in out and facts["checkpoint"]["starts"] == 1
    call("online_finetune_sac", f"{ONLINE} --num-seeds 2")
    assert len(list(Path("runs").glob("*/online_finetune_sac-*"))) == 2


def test_the_newest_finished_pretraining_is_picked_and_nothing_else(pretrained, call):
    other = shutil.copytree(pretrained, pretrained.with_name("later"))
    for change in ({"status": "running"}, {"script": "cql_sac"}, {"format": 1}):
        for path in other.glob("*/config.json"):
            path.write_text(json.dumps(json.loads(path.read_text()) | {"started": 1e12} | change))
        assert finetune.newest_run(finetune.Args()) == pretrained
        path.write_text("[]")
        assert finetune.newest_run(finetune.Args()) == pretrained
        path.write_text(json.dumps(config(pretrained / "seed1") | {"started": 1e12}))
    assert finetune.newest_run(finetune.Args()) == other


def test_data_that_were_swapped_since_the_pretraining_are_refused(pretrained, call, minari_cache, capsys):
    folder = Path(minari_cache, "hopper/tiny-v0")
    shutil.move(folder, folder.with_name("kept"))
    try:
        shutil.copytree(ROOT / "datasets/hopper/medium-v0", folder)
        with pytest.raises(SystemExit):
            call("online_finetune_sac", ONLINE)
        assert "has changed since the pretraining" in capsys.readouterr().err
    finally:
        shutil.rmtree(folder)
        shutil.move(folder.with_name("kept"), folder)


def test_environments_of_ones_own_are_trained_in(call, monkeypatch):
    monkeypatch.syspath_prepend(ROOT / "tests")
    monkeypatch.setenv("PYTHONPATH", str(ROOT / "tests"))
    for env_id in ("odd_envs:Goal-v0", "Odd/Spaced-v0"):
        call(
            "sac_scratch",
            f"{ONLINE} --hidden-dim 8 --warmup-steps 5 --env {env_id if ':' in env_id else 'odd_envs:' + env_id}",
        )
    folders = sorted(path.name for path in Path("runs").iterdir())
    assert folders == ["odd_envs_Goal-v0", "odd_envs_Odd_Spaced-v0"]


def test_weights_and_biases_is_started_before_tensorboard(call, monkeypatch):
    """Only the package is replaced; it reads what TensorBoard's writers write."""
    started, patched = [], []
    wandb = types.ModuleType("wandb")
    wandb.__spec__ = types.SimpleNamespace(name="wandb")
    wandb.tensorboard = types.SimpleNamespace(patch=lambda root_logdir: patched.append(Path(root_logdir)))
    wandb.init = lambda **options: started.append((options, list(Path("runs").rglob("events*"))))
    monkeypatch.setitem(sys.modules, "wandb", wandb)
    call("sac_scratch", f"{SCRATCH} --track")
    ((options, events),) = started
    assert patched == [run_folder("sac_scratch-*")] and options["name"] == patched[0].name and events == []
    assert options["config"]["args"]["batch_size"] == 16 and list(patched[0].rglob("events*"))


def test_fifty_compiled_updates_give_the_eager_numbers(call):
    if not shutil.which(os.environ.get("CXX", "g++")):
        pytest.skip("no C++ compiler")
    torch._dynamo.reset()
    command = OFFLINE.replace("--compile off", "").replace("--offline-steps 40", "--offline-steps 50")
    states = []
    for choice in ("off", "on"):
        with inductor.patch(fallback_random=True):  # else compiled code has a random stream of its own
            out, _ = call(
                "offline_pretrain_sac", f"{command} --num-seeds 2 --compile {choice} --runs-dir {choice}"
            )
        assert ("compiling" in out) == (choice == "on") and "eagerly" not in out
        states.append(torch.load(run_folder("*/seed2", choice) / "checkpoint.pt")["state"])
    for eager, compiled in zip(*map(tree_leaves, states), strict=True):
        torch.testing.assert_close(compiled, eager, rtol=1e-3, atol=1e-3)


# ---- seeds that diverge ----


def spoil(module, monkeypatch, seed_index, at_step):
    """After `at_step` environment steps, one seed's critics are not a number any more."""
    step = module.Collector.step

    def spoiled(self, action):
        if self.replay.added == at_step:
            for leaf in tree_leaves(self.state["critic"]):
                leaf[seed_index] = np.nan
        return step(self, action)

    build = module.Collector.__init__

    def remember(self, algorithm, state, *rest):
        self.state = state
        build(self, algorithm, state, *rest)

    monkeypatch.setattr(module.Collector, "__init__", remember)
    monkeypatch.setattr(module.Collector, "step", spoiled)


def test_a_seed_that_diverges_is_named_and_the_others_go_on(call, monkeypatch, capsys):
    spoil(sac_scratch, monkeypatch, 1, at_step=25)
    with pytest.raises(SystemExit) as ended:
        call("sac_scratch", f"{SCRATCH} --num-seeds 3")
    out = capsys.readouterr().out
    folder = run_folder("sac_scratch-*")
    assert "seed 2 diverged before online step 30" in out and "diverged" in str(ended.value)
    assert [config(folder / f"seed{k}")["status"] for k in (1, 2, 3)] == ["finished", "diverged", "finished"]
    good = torch.load(folder / "seed2" / "checkpoint.pt")
    assert good["env_step"] == 20 and all(leaf.isfinite().all() for leaf in tree_leaves(good["state"]))
    assert not returns(folder / "seed2", env_step=40) and len(returns(folder / "seed3", env_step=40)) == 2


def test_when_the_only_seed_diverges_the_run_ends(call, monkeypatch, capsys):
    spoil(sac_scratch, monkeypatch, 0, at_step=25)
    with pytest.raises(SystemExit) as ended:
        call("sac_scratch", SCRATCH)
    assert "no seed is left" in str(ended.value) and "go on" not in capsys.readouterr().out


def test_the_last_evaluation_before_the_only_seed_diverges_is_logged(call, monkeypatch):
    spoil(sac_scratch, monkeypatch, 0, at_step=20)
    with pytest.raises(SystemExit, match="no seed is left"):
        call("sac_scratch", f"{SCRATCH} --log-every 1")
    assert len(returns(run_folder("sac_scratch-*/seed1"), env_step=20)) == 2


def test_an_evaluation_without_an_end_says_so(call, monkeypatch):
    monkeypatch.setattr(sac_scratch, "EPISODE_LIMIT", 5)
    monkeypatch.setattr(sac_scratch.Run, "log_evaluation", one_long_episode(sac_scratch.Run.log_evaluation))
    with pytest.raises(SystemExit, match="reached the limit of 5 steps"):
        call("sac_scratch", SCRATCH)


def one_long_episode(log_evaluation):
    def log(self):
        for pending in self.pending.values():
            pending.result()[:, 1] = 5
        log_evaluation(self)

    return log


# ---- disks and memory that are full ----


@pytest.mark.parametrize("name", ["resume.pt", "checkpoint.pt", "metrics.csv"])
def test_a_full_disk_is_said_in_one_line_and_what_was_saved_stays(call, monkeypatch, capsys, name):
    """resume.pt: PyTorch's own writer of files raises no OSError."""
    save, append = torch.save, sac_scratch.append

    step, steps = sac_scratch.Collector.step, []

    def count(self, action):
        steps.append(action)
        return step(self, action)

    def save_until_full(content, path):
        save(content, path)
        if path.name == f"{name}.part" and len(steps) >= 20:
            path.write_bytes(path.read_bytes()[:1000])
            raise RuntimeError("[enforce fail at inline_container.cc:659] . unexpected pos 128 vs 22")

    def append_until_full(path, lines):
        if path.name == name and len(steps) >= 20:
            raise OSError(errno.ENOSPC, "No space left on device", str(path))
        append(path, lines)

    with monkeypatch.context() as patch:
        patch.setattr(sac_scratch.Collector, "step", count)
        patch.setattr(torch, "save", save_until_full)
        patch.setattr(sac_scratch, "append", append_until_full)
        with pytest.raises(SystemExit) as ended:
            call("sac_scratch", f"{SCRATCH} --checkpoint-every 0")
    out = capsys.readouterr().out
    folder = run_folder("sac_scratch-*/seed1")
    assert (
        name in str(ended.value) and str(ended.value).startswith("error: ") and "\n" not in str(ended.value)
    )
    assert "not written, is the disk full?" in str(ended.value) or name == "metrics.csv"
    assert config(folder)["status"] == "failed" and "failed at online step" in out and "--resume" in out
    assert not list(folder.glob("*.part"))
    saved = torch.load(folder / "resume.pt")["progress"]["env_step"]
    assert 0 < saved <= 20
    if name == "resume.pt":
        call("sac_scratch", f"--resume {folder}")
        assert config(folder)["status"] == "finished" and len(returns(folder)) == 6


def raise_out_of_memory(*_):
    raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")


def test_out_of_memory_saves_what_is_there_and_says_what_to_lower(call, monkeypatch, capsys):
    def full(self, action):
        return raise_out_of_memory() if self.replay.added == 25 else step(self, action)

    step = sac_scratch.Collector.step
    with monkeypatch.context() as patch:
        patch.setattr(sac_scratch.Collector, "step", full)
        with pytest.raises(SystemExit, match="lower --num-seeds, --batch-size or .* allocate 2.00 GiB"):
            call("sac_scratch", SCRATCH)
    folder = run_folder("sac_scratch-*/seed1")
    assert f"go on with: python sac_scratch.py --resume {folder}" in capsys.readouterr().out
    with monkeypatch.context() as patch:
        patch.setattr(os, "truncate", raise_out_of_memory)
        with pytest.raises(SystemExit, match="lower --num-seeds"):  # again, while the replay is put back
            call("sac_scratch", f"--resume {folder}")
    assert torch.load(folder / "resume.pt")["added"] == 25
    call("sac_scratch", f"--resume {folder}")
    assert torch.load(folder / "checkpoint.pt")["env_step"] == 40


# ---- stopping and going on ----


PROGRAM = """import signal, sys, tyro, {0} as m
signal.signal(signal.SIGINT, signal.default_int_handler)  # which a test in a shell's background has ignored
m.num_cores = lambda: {1}
m.main(tyro.cli(m.Args, args=sys.argv[1:]))"""


def start(script, arguments, cores=2):
    """A run in a session of its own, as a scheduler starts it."""
    environment = {**os.environ, "PYTHONPATH": f"{ROOT}{os.pathsep}{ROOT / 'tests'}", "OMP_NUM_THREADS": "1"}
    environment["PYTHONUNBUFFERED"] = "1"
    command = [sys.executable, "-c", PROGRAM.format(script, cores), *arguments.split()]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
    return subprocess.Popen(command, env=environment, start_new_session=True, **pipes)


def wait_for(condition, process, seconds=300):
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "it took too long"
        assert process.poll() is None, process.stdout.read()
        time.sleep(0.05)


def finish(process):
    out, _ = process.communicate(timeout=300)
    return out


def members(group):
    """Processes of a group that are still there."""
    listed = subprocess.run(["ps", "-eo", "pgid=,stat="], capture_output=True, text=True).stdout.split("\n")
    return [line for line in listed if line.split()[:1] == [str(group)] and " Z" not in line]


LONG = "--dataset hopper/tiny-v0 --hidden-dim 16 --batch-size 16 --compile off --device cpu --eval-episodes 1"


def test_an_offline_run_that_is_killed_goes_on_to_the_same_bits(call, capsys):
    command = f"{LONG} --offline-steps 600 --eval-every 200 --checkpoint-every 0.005 --num-seeds 2"
    process = start("offline_pretrain_sac", f"{command} --runs-dir cut")
    wait_for(lambda: list(Path("cut").rglob("resume.pt")), process)
    time.sleep(0.5)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    folder = run_folder("*", "cut")
    assert config(folder / "seed1")["status"] == "running"
    (folder / "seed1" / "resume.pt.part").write_text("of a save that was cut")
    at = torch.load(folder / "seed1" / "resume.pt")["progress"]["step"]
    assert 0 < at < 600
    call("offline_pretrain_sac", f"--resume {folder}")
    call("offline_pretrain_sac", f"{command} --runs-dir whole")
    whole = run_folder("*", "whole")
    for seed in ("seed1", "seed2"):
        one, two = (torch.load(path / seed / "checkpoint.pt")["state"] for path in (folder, whole))
        assert all(torch.equal(a, b) for a, b in zip(tree_leaves(one), tree_leaves(two), strict=True))
        assert returns(folder / seed) == returns(whole / seed)
    assert not list(folder.rglob("resume.pt*")) and config(folder / "seed1")["status"] == "finished"


@pytest.mark.parametrize("cores, number", [(2, signal.SIGTERM), (8, signal.SIGUSR1)])
def test_a_signal_to_the_whole_group_saves_and_the_run_goes_on_with_all_rows(call, cores, number):
    """With the environments in the process of the run, and in processes of their own."""
    command = (
        "--env odd_envs:Line-v0 --hidden-dim 8 --batch-size 16 --compile off --device cpu --eval-episodes 1"
    )
    command += (
        " --online-steps 600 --warmup-steps 50 --eval-every 200 --log-every 50 --num-seeds 2 --keep-replay"
    )
    process = start("sac_scratch", command, cores)
    wait_for(lambda: any("loss" in path.read_text() for path in Path("runs").rglob("metrics.csv")), process)
    os.killpg(process.pid, number)
    process.send_signal(number)  # timeout(1) tells the process and its group
    out = finish(process)
    assert process.returncode == 128 + number and "Traceback" not in out, out
    assert "go on with: python sac_scratch.py --resume" in out
    wait_until_gone(process.pid)
    folder = run_folder("*")
    saved = torch.load(folder / "seed1" / "resume.pt")
    step = saved["progress"]["env_step"]
    assert 50 < step < 600 and saved["added"] == saved["rings"].shape[1] == step
    out = finish(start("sac_scratch", f"--resume {folder}", cores))
    assert f"resumes at online step {step:,}; unfinished episodes restart" in out and "finished" in out, out
    assert "this run is finished" in finish(start("sac_scratch", f"--resume {folder}", cores))
    ended = torch.load(folder / "seed1" / "resume.pt")
    assert (ended["ends"][:, step - 1] > 0).all()  # the episodes that were cut do not go on
    assert torch.equal(ended["rings"][:, :step], saved["rings"]) and ended["added"] == 600
    for seed in ("seed1", "seed2"):
        assert [row["env_step"] for row in rows(folder / seed / "eval.csv")] == ["0", "200", "400", "600"]
        assert torch.load(folder / seed / "checkpoint.pt")["gradient_step"] == 550


def test_a_signal_while_environments_start_in_processes_stops_the_run(call):
    command = (
        "--env odd_envs:Line-v0 --hidden-dim 8 --compile off --device cpu --online-steps 6000 --num-seeds 2"
    )
    process = start("sac_scratch", command, cores=8)
    wait_for(lambda: list(Path("runs").rglob("config.json")), process)
    time.sleep(0.5)
    os.killpg(process.pid, signal.SIGINT)
    out = finish(process)
    assert process.returncode == 128 + signal.SIGINT and "Traceback" not in out, out
    wait_until_gone(process.pid)


def test_processes_of_environments_that_nobody_closed_do_not_hold_up_the_exit(call):
    program = (
        "import sac_scratch as m; m.num_cores = lambda: 8; m.TrainingEnvs('odd_envs:Line-v0', [1, 2], 2, 1)"
    )
    environment = {**os.environ, "PYTHONPATH": f"{ROOT}{os.pathsep}{ROOT / 'tests'}"}
    subprocess.run([sys.executable, "-c", program], env=environment, timeout=120, check=True)


@pytest.mark.parametrize("before", [signal.SIG_DFL, signal.SIG_IGN])
def test_a_hang_up_stops_a_run_unless_it_is_ignored_as_under_nohup(call, monkeypatch, before):
    """With its terminal, the run loses the place to write to."""

    class Gone:
        def write(self, _):
            raise OSError(errno.EIO, "Input/output error")

    def hang_up(self):
        log_evaluation(self)
        if self.env_step == 20 and not self.stop_signal:
            with monkeypatch.context() as patch:
                patch.setattr(sys, "stdout", Gone())
                os.kill(os.getpid(), signal.SIGHUP)

    log_evaluation, streams = sac_scratch.Run.log_evaluation, (sys.stdout, sys.stderr)
    monkeypatch.setattr(sac_scratch.Run, "log_evaluation", hang_up)
    handler = signal.signal(signal.SIGHUP, before)
    try:
        call("sac_scratch", SCRATCH)
    except SystemExit as ended:
        assert ended.code == 128 + signal.SIGHUP
    finally:
        signal.signal(signal.SIGHUP, handler)
        sys.stdout, sys.stderr = streams
    folder = run_folder("sac_scratch-*/seed1")
    status = "finished" if before == signal.SIG_IGN else "interrupted"
    assert config(folder)["status"] == status and (folder / "resume.pt").exists() == (status != "finished")


def test_a_second_ctrl_c_does_not_wait_for_evaluations(call):
    process = start("sac_scratch", f"{SCRATCH} --env odd_envs:SlowEvaluation-v0 --online-steps 100000")
    wait_for(lambda: any(Path("runs").rglob("checkpoint.pt")), process)
    process.send_signal(signal.SIGINT)
    while "stopping after this step" not in process.stdout.readline():  # so that two do not become one
        assert process.poll() is None
    time.sleep(1)
    process.send_signal(signal.SIGINT)
    assert "nothing was saved to go on from" in finish(process) and process.returncode == 128 + signal.SIGINT
    wait_until_gone(process.pid, seconds=30)


def test_a_run_of_which_a_seed_was_replaced_does_not_go_on(call, monkeypatch, capsys):
    def stop(self, action):
        if self.replay.added == 25:
            os.kill(os.getpid(), signal.SIGTERM)
        return step(self, action)

    step = sac_scratch.Collector.step
    with monkeypatch.context() as patch:
        patch.setattr(sac_scratch.Collector, "step", stop)
        with pytest.raises(SystemExit):
            call("sac_scratch", f"{SCRATCH} --num-seeds 2")
    call("sac_scratch", f"{SCRATCH} --seed 2 --overwrite")
    folder = run_folder("sac_scratch-*")
    before = (folder / "seed2" / "eval.csv").read_text()
    with pytest.raises(SystemExit):
        call("sac_scratch", f"--resume {folder}")
    assert "another run has replaced seed2" in capsys.readouterr().err
    assert (folder / "seed2" / "eval.csv").read_text() == before


def wait_until_gone(group, seconds=120):
    end = time.monotonic() + seconds
    while members(group):
        assert time.monotonic() < end, members(group)
        time.sleep(0.1)


def test_processes_of_a_run_that_is_killed_end_by_themselves(call):
    process = start("sac_scratch", f"{SCRATCH} --online-steps 100000 --num-seeds 2", cores=8)
    wait_for(
        lambda: any("return" in line for line in iter(process.stdout.readline, "") if "online" in line),
        process,
    )
    assert len(members(process.pid)) >= 4
    process.kill()
    process.wait()
    wait_until_gone(process.pid)


def test_a_second_run_in_the_same_folder_is_refused_while_the_first_lives(call, capsys):
    command = f"{LONG} --offline-steps 20000 --eval-every 20000"
    process = start("offline_pretrain_sac", command)
    wait_for(lambda: list(Path("runs").rglob("config.json")), process)
    with pytest.raises(SystemExit) as ended:
        call("offline_pretrain_sac", f"{command} --overwrite")
    assert ended.value.code == 2 and "Is another run writing there" in capsys.readouterr().err
    process.kill()
    process.wait()
    call("offline_pretrain_sac", f"{command.replace('20000', '20')} --overwrite --runs-dir other")


def test_a_resumed_run_purges_what_tensorboard_would_show_twice(call, monkeypatch):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    import offline_pretrain_sac as script

    log_evaluation, seen = script.Run.log_evaluation, []

    def stop_once(self):
        log_evaluation(self)
        if self.step >= 30 and not seen:
            seen.append(self.stop(signal.SIGTERM, None))

    monkeypatch.setattr(script.Run, "log_evaluation", stop_once)
    with pytest.raises(SystemExit):
        call("offline_pretrain_sac", OFFLINE)
    folder = run_folder("*")
    saved = torch.load(folder / "seed1" / "resume.pt")
    assert saved["dataset"].pop("mean_return") and saved["dataset"].pop("best_tenth_return")
    torch.save(saved, folder / "seed1" / "resume.pt")  # as an older version would have left it
    call("offline_pretrain_sac", f"--resume {folder}/seed1")
    events = EventAccumulator(str(folder / "seed1"))
    events.Reload()
    assert [event.step for event in events.Scalars("loss/critic")] == [10, 20, 30, 40]
    assert [event.step for event in events.Scalars("eval/return")] == [0, 20, 40]
    steps = [
        row["gradient_step"] for row in rows(folder / "seed1" / "metrics.csv") if row["name"] == "loss/critic"
    ]
    assert steps == ["10", "20", "30", "40"]


def test_help_is_shown_by_every_script():
    for script in ("sac_scratch", "offline_pretrain_sac", "online_finetune_sac"):
        found = subprocess.run(
            [sys.executable, ROOT / f"{script}.py", "--help"], capture_output=True, text=True
        )
        assert found.returncode == 0 and "--critic-subset" in found.stdout and "per batch" in found.stdout


def test_a_second_ctrl_c_ends_a_run_unsaved_and_a_second_sigterm_does_not(capsys):
    """timeout and srun send a signal twice."""
    run = sac_scratch.Run.__new__(sac_scratch.Run)
    run.stop_signal = 0
    for _ in range(2):
        run.stop(signal.SIGTERM, None)
    run.stop(signal.SIGINT, None)
    with pytest.raises(KeyboardInterrupt):
        run.stop(signal.SIGINT, None)
