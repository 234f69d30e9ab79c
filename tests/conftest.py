"""Small data that several tests share: 400 random Hopper transitions, as a Minari dataset in a cache of its own."""

import os

import numpy as np
import pytest
import torch

import sac_scratch

torch.set_num_threads(1)


def random_rows(env_id: str, count: int, seed: int = 0) -> np.ndarray:
    """`count` transitions of uniformly random actions, as rows of a ReplayTable."""
    env, rng, rows = sac_scratch.make_env(env_id), np.random.default_rng(seed), []
    obs, _ = env.reset(seed=seed)
    while len(rows) < count:
        action = rng.uniform(-1, 1, env.action_space.shape).astype(np.float32)
        next_obs, reward, terminated, truncated, _ = env.step(action)
        rows.append(np.concatenate([obs, action, [reward], next_obs, [terminated, truncated]]))
        obs = env.reset()[0] if terminated or truncated else next_obs
    return np.array(rows, np.float32)


@pytest.fixture(scope="session")
def minari_cache(tmp_path_factory):
    """A Minari cache that holds hopper/tiny-v0."""
    cache = tmp_path_factory.mktemp("minari")
    before = os.environ.get("MINARI_DATASETS_PATH")
    os.environ["MINARI_DATASETS_PATH"] = str(cache)
    sac_scratch.write_minari("hopper/tiny-v0", random_rows("Hopper-v4", 400), [11, 3, 1, 11, 1, 1], "Hopper-v4")
    yield cache
    os.environ.pop("MINARI_DATASETS_PATH")
    if before:
        os.environ["MINARI_DATASETS_PATH"] = before


@pytest.fixture
def call(minari_cache, tmp_path, monkeypatch, capsys):
    """call("sac_scratch", "--seed 3"): runs a script's main in an empty working directory; returns (stdout, stderr)."""
    import importlib

    import tyro

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
