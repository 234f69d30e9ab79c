"""The bundled datasets are what their cards say, load in plain Minari, and are the defaults."""

from pathlib import Path

import minari
import numpy as np
import pytest

import offline_pretrain_sac as script

FOLDER = Path(script.__file__).parent / "datasets"
CARDS = {  # environment, transitions, episodes, mean and largest return, size in MB
    "hopper/medium-replay-v0": ("Hopper-v4", 200_000, 1257, 436, 2696, 13),
    "hopper/medium-v0": ("Hopper-v4", 100_000, 248, 743, 1432, 6),
    "halfcheetah/medium-v0": ("HalfCheetah-v4", 50_000, 50, 4969, 5381, 5),
}


@pytest.mark.parametrize("name", CARDS)
def test_the_bundled_datasets_are_as_their_cards_say(minari_cache, name, capsys):
    env_id, steps, episodes, mean, largest, size = CARDS[name]
    env, by_default = script.make_env(env_id), name in script.DEFAULT_DATASETS.values()
    args = script.Args(env=env_id, dataset=None if by_default else name)
    dataset = script.load_dataset(args, env)
    facts, short_name = dataset.description, name.split("/")[1].removesuffix("-v0")
    assert (facts["name"], facts["source"], facts["recorded_in"]) == (short_name, name, env_id)
    obs_dim, action_dim = env.observation_space.shape[0], env.action_space.shape[0]
    assert dataset.rows.shape == (steps, 2 * obs_dim + action_dim + 2)
    assert (dataset.ends > 0).sum() == episodes
    summary = f"{steps:,} transitions, {episodes:,} episodes, return {mean} on average, {largest} at best"
    assert summary in capsys.readouterr().out
    action_end = obs_dim + action_dim
    obs, action = dataset.rows[:, :obs_dim], dataset.rows[:, obs_dim:action_end]
    next_obs, ended = dataset.rows[:, action_end + 1 : -1], dataset.ends > 0
    follows = (next_obs[:-1] == obs[1:]).all(1)
    assert follows[~ended[:-1]].all() and not follows[ended[:-1]].any()
    assert np.abs(action).max() <= 1

    plain = minari.MinariDataset(FOLDER / name / "data")
    assert (plain.total_steps, plain.total_episodes) == (steps, episodes)
    assert plain.recover_environment().spec.id == env_id
    assert plain.storage.metadata["ref_max_score"] == script.D4RL_SCORES[script.task_of(env_id)][1]
    assert sum(file.stat().st_size for file in (FOLDER / name).rglob("*")) < size * 1e6
