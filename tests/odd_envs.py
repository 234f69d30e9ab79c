"""Small environments with habits that people's own ones have. `--env odd_envs:Line-v0` imports this file."""

import time
from multiprocessing import parent_process

import gymnasium as gym
import numpy as np
from gymnasium.spaces import Box, Dict, Discrete

FREE = Box(-np.inf, np.inf, (2,), np.float32)


class Line(gym.Env):
    """A point that its action pushes along a line: obs (place, steps so far), reward 1, over beyond 2."""

    def __init__(self, low=-1.0, high=1.0, end_after=None):
        self.observation_space = FREE
        self.action_space = Box(np.array([low], np.float32), np.array([high], np.float32))
        self.end_after, self.place, self.steps = end_after, 0.0, 0

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.place, self.steps = self.np_random.uniform(-0.1, 0.1), 0
        return self.observe(), {}

    def step(self, action):
        assert self.action_space.contains(action), action
        self.place, self.steps = self.place + 0.5 * float(action[0]), self.steps + 1
        return self.observe(), self.reward(), abs(self.place) > 2, self.steps == self.end_after, {}

    def observe(self):
        return np.array([self.place, self.steps], np.float32)

    def reward(self):
        return 1.0


class SharedArray(Line):
    """Gives out the same array again and again, and writes into it."""

    array = None

    def observe(self):
        if self.array is None:
            self.array = np.zeros(2, np.float32)
        self.array[:] = self.place, self.steps
        return self.array


class Goal(Line):
    """Nested observations whose keys are not in order."""

    def __init__(self):
        super().__init__()
        one = Box(-np.inf, np.inf, (1,), np.float64)
        self.observation_space = Dict({"state": Dict({"z": one, "place": one}), "goal": one})

    def observe(self):
        return {"state": {"z": np.array([7.0]), "place": np.array([self.place])}, "goal": np.array([2.0])}


class ArrayReward(Line):
    def reward(self):
        return np.array([1.0])


class SometimesInfinite(Line):
    def reward(self):
        return -np.inf if self.steps > 5 else 1.0


class SlowEvaluation(Line):
    """Takes its time in the processes beside a run."""

    def step(self, action):
        if parent_process():
            time.sleep(10)
        return super().step(action)


class WholeActions(Line):
    def __init__(self):
        super().__init__()
        self.action_space = Discrete(3)


class Raises(Line):
    def __init__(self):
        raise RuntimeError("no display\nfor this one")


def unit_line():
    """What many people do: actions in [-1, 1] around an environment with wider ones."""
    return gym.wrappers.RescaleAction(Line(low=-2.0, high=2.0), np.float32(-1), np.float32(1))


for kind in (Line, SharedArray, Goal, ArrayReward, SometimesInfinite, SlowEvaluation, WholeActions, Raises):
    gym.register(f"{kind.__name__}-v0", kind, max_episode_steps=10)
gym.register("Lopsided-v0", Line, kwargs={"low": -0.5, "high": 1.5}, max_episode_steps=10)
gym.register("Stuck-v0", Line, kwargs={"low": 1.0, "high": 1.0}, max_episode_steps=10)
gym.register("UnitLine-v0", unit_line, max_episode_steps=10)
gym.register("OwnClock-v0", Line, kwargs={"end_after": 10})
gym.register("Odd/Spaced-v0", Line, max_episode_steps=10)
