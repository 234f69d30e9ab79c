"""Trains in every environment that people ask for: 200 steps online, then 200 updates on random transitions of it."""

import csv
from pathlib import Path

import gymnasium as gym
import pytest
import torch
from torch.utils._pytree import tree_leaves

import offline_pretrain_sac

SMALL = "--hidden-dim 8 --batch-size 16 --eval-episodes 1 --eval-every 200 --log-every 50 --compile off --device cpu"
TASKS = ["Ant", "HalfCheetah", "Hopper", "Humanoid", "HumanoidStandup", "InvertedDoublePendulum"]
TASKS += ["InvertedPendulum", "Pusher", "Reacher", "Swimmer", "Walker2d"]
MUJOCO = [f"{task}-v{version}" for task in TASKS for version in (4, 5) if (task, version) != ("Pusher", 4)]
ROBOTICS = [
    "PointMaze_UMaze-v3",
    "AntMaze_UMaze-v5",
    "AdroitHandDoor-v1",
    "FetchReach-v4",
    "FrankaKitchen-v1",
]
DM_CONTROL = ["cartpole-swingup-v0", "cheetah-run-v0", "humanoid-stand-v0"]
FAST = ["Pendulum-v1", "InvertedPendulum-v5"]
SLOW = [env_id for env_id in MUJOCO if env_id not in FAST]
SLOW += [f"gymnasium_robotics:{name}" for name in ROBOTICS] + [
    f"shimmy:dm_control/{name}" for name in DM_CONTROL
]
TABLE = FAST + [pytest.param(env_id, marks=pytest.mark.slow) for env_id in SLOW]


def check(folder: Path, gradient_step: int, env_step: int) -> None:
    """The run made its steps, its parameters and its returns are numbers."""
    saved = torch.load(folder / "checkpoint.pt")
    assert (saved["gradient_step"], saved["env_step"]) == (gradient_step, env_step)
    assert all(leaf.isfinite().all() for leaf in tree_leaves(saved["state"]))
    with open(folder / "eval.csv") as file:
        returns = [float(row["return"]) for row in csv.DictReader(file)]
    assert len(returns) == 2 and all(abs(value) < 1e6 for value in returns)


@pytest.mark.parametrize("env_id", TABLE)
def test_training_online_and_offline(call, env_id):
    if ":" in env_id:  # of another package, which may be missing, or be written for an older MuJoCo
        pytest.importorskip(env_id.partition(":")[0])
        try:
            gym.make(env_id).close()
        except Exception as error:
            pytest.skip(f"cannot be made here: {error!r:.100}")
    call("sac_scratch", f"{SMALL} --env {env_id} --online-steps 200 --warmup-steps 50")
    (folder,) = Path("runs").glob("*/sac_scratch-*/seed1")
    check(folder, gradient_step=150, env_step=200)

    dataset = f"environments/{env_id.replace(':', '-').replace('/', '-').lower()}"
    call("collect_dataset", f"--policy random --env {env_id} --steps 300 --dataset-id {dataset}")
    out, _ = call("offline_pretrain_sac", f"{SMALL} --env {env_id} --dataset {dataset} --offline-steps 200")
    (folder,) = Path("runs").glob("*/offline_pretrain_sac-*/seed1")
    check(folder, gradient_step=200, env_step=0)
    assert "300 transitions" in out and "in the dataset" not in out


def test_an_environment_that_this_mujoco_cannot_simulate_is_refused(capsys):
    """Gymnasium's Pusher-v4 needs a MuJoCo before 3."""
    with pytest.raises(SystemExit):
        offline_pretrain_sac.open_env("Pusher-v4")
    assert "--env Pusher-v4: cannot be used" in capsys.readouterr().err


def test_the_table_has_all_mujoco_environments_of_gymnasium():
    found = {spec.id for spec in gym.registry.values() if "envs.mujoco" in str(spec.entry_point)}
    assert {env_id for env_id in found if env_id.endswith(("-v4", "-v5"))} == {*MUJOCO, "Pusher-v4"}
