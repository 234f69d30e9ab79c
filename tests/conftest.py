"""Small data that several tests share: 400 random Hopper transitions, as a Minari dataset in a cache of its own."""

import importlib
import os
import warnings

import gymnasium as gym
import minari
import numpy as np
import pytest
import torch
import tyro
from minari.data_collector import EpisodeBuffer

torch.set_num_threads(1)


def record(dataset_id: str, env_id: str, count: int) -> None:
    """Writes `count` transitions of uniformly random actions into the Minari cache; the last episode is cut."""
    env, buffers, steps = gym.make(env_id), [], []
    env.action_space.seed(0)
    first_obs, _ = env.reset(seed=0)
    for i in range(count):
        action = env.action_space.sample()
        obs, reward, terminated, truncated, _ = env.step(action)
        steps.append((action, float(reward), terminated, truncated or i == count - 1, obs))
        if terminated or i == count - 1:
            actions, rewards, terminations, truncations, next_obs = (
                np.array(c) for c in zip(*steps, strict=True)
            )
            observations = np.concatenate([first_obs[None], next_obs])
            buffers.append(
                EpisodeBuffer(None, None, None, observations, actions, rewards, terminations, truncations)
            )
            steps, (first_obs, _) = [], env.reset()
    scores = {"ref_min_score": -20.272305, "ref_max_score": 3234.3, "num_episodes_average_score": 1}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Minari misses an author's address and a link to code
        minari.create_dataset_from_buffers(dataset_id, buffers, env=env_id, author="test", **scores)


@pytest.fixture(scope="session")
def minari_cache(tmp_path_factory):
    """A Minari cache that holds hopper/tiny-v0."""
    cache = tmp_path_factory.mktemp("minari")
    before = os.environ.get("MINARI_DATASETS_PATH")
    os.environ["MINARI_DATASETS_PATH"] = str(cache)
    record("hopper/tiny-v0", "Hopper-v4", 400)
    yield cache
    os.environ.pop("MINARI_DATASETS_PATH")
    if before:
        os.environ["MINARI_DATASETS_PATH"] = before


@pytest.fixture
def call(minari_cache, tmp_path, monkeypatch, capsys):
    """call("sac_scratch", "--seed 3"): runs a script's main in an empty working directory; (stdout, stderr)."""
    (tmp_path / "work").mkdir()
    monkeypatch.chdir(tmp_path / "work")

    def run(script: str, arguments: str) -> tuple[str, str]:
        module = importlib.import_module(script)
        module.main(tyro.cli(module.Args, args=arguments.split()))
        return capsys.readouterr()

    return run


@pytest.fixture
def double():
    """float64 throughout, where two implementations must agree to many digits."""
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)
