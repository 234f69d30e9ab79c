"""The scripts end to end, small: what a run leaves, that updates happened, and the hand-off between scripts."""

import csv
import json
import os
import signal
import subprocess
import sys
import time
from functools import partial
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).resolve().parents[1]
SMALL = "--batch-size 16 --eval-episodes 2 --compile off"
OFFLINE = f"{SMALL} --hidden-dim 16 --dataset hopper/tiny-v0 --offline-steps 20 --eval-every 10"
ONLINE = f"{SMALL} --online-steps 40 --eval-every 20"


def table(path):
    with open(path) as file:
        return list(csv.DictReader(file))


def checkpoint(folder):
    return torch.load(Path(folder) / "checkpoint.pt", weights_only=True)


@pytest.fixture
def pretrained(call):
    call("offline_pretrain_sac", f"{OFFLINE} --num-seeds 2")
    (folder,) = Path("runs/Hopper-v4").glob("offline_pretrain_sac-tiny*")
    return folder


def test_a_run_leaves_config_episodes_metrics_events_and_a_checkpoint_for_each_seed(pretrained):
    for seed in (1, 2):
        folder = pretrained / f"seed{seed}"
        config = json.loads((folder / "config.json").read_text())
        assert (config["status"], config["seed"], config["env"]) == ("finished", seed, "Hopper-v4")
        assert config["args"]["batch_size"] == 16 and config["dataset"]["fingerprint"]
        rows = table(folder / "eval.csv")
        assert [(r["phase"], r["gradient_step"], r["episode"]) for r in rows] == [
            ("offline", str(step), str(episode)) for step in (0, 10, 20) for episode in (0, 1)
        ]
        low, high = -20.272305, 3234.3  # D4RL's Hopper
        for row in rows:
            score = 100 * (float(row["return"]) - low) / (high - low)
            assert float(row["normalized_score"]) == pytest.approx(score, abs=2e-3)
        logged = {r["name"] for r in table(folder / "metrics.csv") if r["gradient_step"] == "20"}
        wanted = "q/data q/policy q/random eval/q_bias loss/critic loss/actor policy/entropy policy/alpha"
        assert logged >= {*wanted.split(), "policy/drift", "eval/return", "replay/online_share"}
        assert list(folder.glob("events.out.tfevents*"))
        saved = checkpoint(folder)
        assert (saved["phase"], saved["gradient_step"], saved["env_step"]) == ("offline", 20, 0)
    one, two = (checkpoint(pretrained / f"seed{seed}")["agent"] for seed in (1, 2))
    assert not torch.equal(one["actor.mlp.layers.0.weight"], two["actor.mlp.layers.0.weight"])


def test_pretraining_moves_every_network_and_counts_its_optimisers_steps(pretrained):
    import offline_pretrain_sac as script

    fresh = script.Agent([1], **checkpoint(pretrained / "seed1")["shape"]).state_dict()
    saved = checkpoint(pretrained / "seed1")["agent"]
    assert saved.keys() == fresh.keys()
    for name in ("actor", "critic", "target_actor", "target_critic"):
        assert not torch.equal(saved[f"{name}.mlp.layers.2.weight"], fresh[f"{name}.mlp.layers.2.weight"])
    assert saved["critic_adam.t"] == saved["actor_adam.t"] == saved["alpha_adam.t"] == 20
    assert saved["log_alpha"].item() != 0


def test_finetuning_starts_with_what_pretraining_wrote(pretrained, call):
    """Parameters, targets, temperature and optimisers at step 0; and, for an equal stack, the very returns."""
    from argparse import Namespace

    import online_finetune_sac as script

    agent, source = script.load_checkpoints(
        Namespace(checkpoint=str(pretrained), seed=1, num_seeds=2, env="Hopper-v4", gamma=0.99, runs_dir="runs"), 11, 3
    )
    assert source["gradient_step"] == 20
    for seed in (1, 2):
        for name, tensor in checkpoint(pretrained / f"seed{seed}")["agent"].items():
            stacked = agent.state_dict()[name]
            own = stacked.unflatten(0, (2, -1))[seed - 1] if stacked.dim() else stacked
            assert torch.equal(own, tensor), name
    call("online_finetune_sac", f"{ONLINE} --num-seeds 2")
    (folder,) = Path("runs/Hopper-v4").glob("online_finetune_sac-tiny-????-*-from-offline_pretrain_sac-tiny-*")
    for seed in (1, 2):
        last = [r["return"] for r in table(pretrained / f"seed{seed}/eval.csv")][-2:]
        first = [r["return"] for r in table(folder / f"seed{seed}/eval.csv")][:2]
        assert first == last
        saved = checkpoint(folder / f"seed{seed}")
        assert (saved["gradient_step"], saved["env_step"]) == (20 + 40, 40)  # data kept: updates from step 0
        assert saved["agent"]["critic_adam.t"] == saved["agent"]["alpha_adam.t"] == 60
        before = checkpoint(pretrained / f"seed{seed}")["agent"]
        assert saved["agent"]["log_alpha"] != before["log_alpha"]  # the temperature still learns


def test_finetuning_picks_the_newest_finished_offline_run_and_nothing_else(pretrained, call):
    call("sac_scratch", f"{ONLINE} --hidden-dim 16")  # newer, but no offline run
    out, _ = call("online_finetune_sac", ONLINE)  # newer, but a finetuning
    assert f"start: {pretrained}/seed1/checkpoint.pt" in out
    call("offline_pretrain_sac", f"{OFFLINE} --tau 0.01")
    (config,) = Path("runs/Hopper-v4").glob("offline_pretrain_sac-tiny-*-tau0.01-*/seed1/config.json")
    out, _ = call("online_finetune_sac", f"{ONLINE} --overwrite")
    assert f"start: {config.parent}/checkpoint.pt" in out
    config.write_text(config.read_text().replace('"finished"', '"running"'))
    out, _ = call("online_finetune_sac", f"{ONLINE} --overwrite")
    assert f"start: {pretrained}/seed1/checkpoint.pt" in out


@pytest.mark.parametrize(
    "options", ["--replay online", "--offline-ratio 0.5 --offline-ratio-end 0", "--warmup-steps 10"]
)
def test_finetuning_with_each_replay_strategy(pretrained, call, options):
    call("online_finetune_sac", f"{ONLINE} --checkpoint {pretrained} {options}")
    (folder,) = Path("runs/Hopper-v4").glob("online_finetune_sac-*")
    updates = {"--replay online": 24, "--warmup-steps 10": 30}.get(options, 24)  # 16 own rows are needed first
    assert checkpoint(folder / "seed1")["gradient_step"] == 20 + updates
    share = [float(r["value"]) for r in table(folder / "seed1/metrics.csv") if r["name"] == "replay/online_share"]
    expected = {"--replay online": 1, "--warmup-steps 10": 40 / 440}.get(options, 0.5 + 0.5 * 39 / 40)
    assert share[-1] == pytest.approx(expected)


def test_all_options_together_log_their_diagnostics(pretrained, call):
    options = "--q-filter-percentile 25 --num-candidates 4 --optimism 0.5 --epsilon 1e-3 --updates-per-step 2"
    call("online_finetune_sac", f"{ONLINE} {options}")
    (folder,) = Path("runs/Hopper-v4").glob("online_finetune_sac-*-n4-*qf25*")
    last = {r["name"]: float(r["value"]) for r in table(folder / "seed1/metrics.csv") if r["env_step"] == "40"}
    assert last["filter/fraction"] == pytest.approx(0.25, abs=0.01)  # of 16 values, 4 lie under the percentile
    assert last["candidates/distance"] > 0 and last["constraint/dual"] > 0 and "filter/threshold" in last
    assert checkpoint(folder / "seed1")["gradient_step"] == 20 + 2 * 40


def test_scratch_with_offline_rows_and_saving_its_experience(call):
    import minari

    options = (
        "--hidden-dim 16 --warmup-steps 10 --dataset hopper/tiny-v0 --offline-ratio 0.5 --save-dataset hopper/own-v0"
    )
    out, _ = call("sac_scratch", f"{ONLINE} {options}")
    assert "wrote hopper/own-v0: 40 transitions" in out
    dataset = minari.load_dataset("hopper/own-v0")
    assert dataset.total_steps == 40 and dataset.spec.env_spec.id == "Hopper-v4"
    minari.delete_dataset("hopper/own-v0")


def test_the_same_command_gives_the_same_numbers_and_another_seed_others(call):
    for folder, seed in (("a", 1), ("b", 1), ("c", 2)):
        call("sac_scratch", f"{ONLINE} --hidden-dim 16 --warmup-steps 5 --runs-dir {folder} --seed {seed}")
    a, b, c = (checkpoint(next(Path(f).glob("*/*/seed*")))["agent"] for f in "abc")
    assert all(torch.equal(a[name], b[name]) for name in a)
    assert not torch.equal(a["actor.mlp.layers.0.weight"], c["actor.mlp.layers.0.weight"])


@pytest.mark.parametrize("env", ["HalfCheetah-v4", "Walker2d-v4", "Hopper-v5"])
def test_other_environments_given_a_dataset(call, env):
    import minari

    from conftest import random_rows
    from sac_scratch import make_env, write_minari

    probe, name = make_env(env), f"{env.split('-')[0].lower()}/probe{env[-1]}-v0"
    obs, action = probe.observation_space.shape[0], probe.action_space.shape[0]
    write_minari(name, random_rows(env, 60), [obs, action, 1, obs, 1, 1], env)
    options = OFFLINE.replace("hopper/tiny-v0", name).replace("--eval-episodes 2", "--eval-episodes 1")
    call("offline_pretrain_sac", f"{options} --env {env} --offline-steps 2")
    call("online_finetune_sac", f"--env {env} {SMALL} --online-steps 3 --eval-episodes 1")
    (folder,) = Path(f"runs/{env}").glob("online_finetune_sac-*")
    assert checkpoint(folder / "seed1")["gradient_step"] == 2 + 3
    minari.delete_dataset(name)


def test_curves_of_these_runs_can_be_drawn(pretrained, call):
    call("online_finetune_sac", ONLINE)
    run = subprocess.run([sys.executable, str(ROOT / "plot_curves.py"), "runs"], capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
    assert Path("runs/curves.png").is_file() and "online_finetune_sac" in run.stdout


def test_ctrl_c_keeps_a_checkpoint_and_says_so(minari_cache, tmp_path):
    command = [sys.executable, str(ROOT / "sac_scratch.py"), *f"{ONLINE} --hidden-dim 8 --warmup-steps 10".split()]
    command[command.index("40")] = "1000000"
    streams = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
    heed = partial(signal.signal, signal.SIGINT, signal.SIG_DFL)  # a background shell makes its children ignore it
    process = subprocess.Popen(command, cwd=tmp_path, preexec_fn=heed, **streams)
    deadline = time.time() + 60
    while time.time() < deadline and not any(",20,0," in p.read_text() for p in tmp_path.glob("runs/*/*/*/eval.csv")):
        time.sleep(0.2)  # until step 20 was evaluated
    os.kill(process.pid, signal.SIGINT)
    try:
        out, _ = process.communicate(timeout=60)
    finally:
        process.kill()
    (folder,) = tmp_path.glob("runs/*/*/seed1")
    assert process.returncode == 130 and "interrupted at online step" in out and "Traceback" not in out
    assert json.loads((folder / "config.json").read_text())["status"] == "interrupted"
    assert checkpoint(folder)["env_step"] > 0


def test_help_is_shown_by_every_script():
    for script in ("sac_scratch", "offline_pretrain_sac", "online_finetune_sac"):
        run = subprocess.run([sys.executable, str(ROOT / f"{script}.py"), "--help"], capture_output=True, text=True)
        assert run.returncode == 0 and "--q-filter-percentile" in run.stdout and "--eval-every" in run.stdout
