"""make_envs, in both of its forms, against plain gymnasium.make: the same episodes, step by step, to the bit."""

import os
import warnings

import gymnasium as gym
import numpy as np
import pytest

import sac_scratch as sac


def plain(env_id):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # "Hopper-v4 is out of date"
        return gym.make(env_id)


@pytest.mark.parametrize("cores, kind", [(1, gym.vector.SyncVectorEnv), (8, gym.vector.AsyncVectorEnv)])
@pytest.mark.parametrize("env_id, bound, steps, ends", [("Hopper-v4", 1, 80, (20, 0)), ("Pendulum-v1", 2, 210, (0, 8))])
def test_make_envs_plays_the_episodes_of_gymnasium_make(cores, kind, env_id, bound, steps, ends, monkeypatch):
    """Four environments, reset by seeds twice; in between, episodes (`ends`: terminated, truncated) follow each other.

    Actions are in [-1, 1] inside and [-bound, bound] outside, where 1 and 2 need no rounding.
    """
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: range(cores))
    envs, rng = sac.make_envs(env_id, [3, 4, 5, 6]), np.random.default_rng(0)
    assert type(envs) is kind and envs.num_envs == 4
    expected, found = [plain(env_id) for _ in range(4)], np.zeros(2, int)
    for seeds in ([3, 4, 5, 6], [20, 3, 2**32 - 1, 0]):
        obs, _ = envs.reset(seed=seeds)
        np.testing.assert_array_equal(obs, [env.reset(seed=seed)[0] for env, seed in zip(expected, seeds, strict=True)])
        for _ in range(steps):
            action = rng.uniform(-1, 1, (4, *expected[0].action_space.shape)).astype(np.float32)
            obs, reward, terminated, truncated, info = envs.step(action)
            for i, env in enumerate(expected):
                next_obs, plain_reward, *plain_ends, _ = env.step(bound * action[i])
                assert (reward[i], terminated[i], truncated[i]) == (plain_reward, *plain_ends)
                if any(plain_ends):
                    np.testing.assert_array_equal(info["final_obs"][i], next_obs)
                    next_obs, _ = env.reset()
                np.testing.assert_array_equal(obs[i], next_obs)
            found += terminated.sum(), truncated.sum()
    envs.close()
    assert (found >= ends).all() and (found > 0).tolist() == [end > 0 for end in ends]
