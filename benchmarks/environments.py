"""Steps a second of n environments with random actions, in every form that could be `make_envs`.

    python benchmarks/environments.py --out results/speed/environments.csv

All forms of one n take turns; the median over turns is printed. The forms:

    Sync-, AsyncVectorEnv    the two of `make_envs`: one process, or a process for each environment
    groups in processes      as many processes as cores, each with a SyncVectorEnv of its share
    groups in threads        the same with threads: MuJoCo's physics runs without Python's lock, the rest does not
    EnvPool                  environments in C++, if it is installed (pip install envpool); MuJoCo tasks only
    physics alone            mujoco.rollout on the states and actions of a recorded run: no observation, reward,
                             end or reset, so this is no environment, but the bound for threaded physics

"differs" is the largest difference, over observations, rewards and final observations of several episodes, to plain
gymnasium.make with the same seeds and actions; "ends" where the ends differ. EnvPool draws its own starts, so Gymnasium
is put into them (tasks whose observation is qpos[1:], qvel). "physics alone" is compared state by state, with MuJoCo's
warm start as in the recorded run and, behind it, with the one that it has if nobody stores it: none.

"main thread us" is processor time of the main thread for each environment step: with any number of cores, that form
does not get beyond a million divided by it.
"""

import csv
import multiprocessing
import multiprocessing.dummy
import os
import sys
import time
import warnings
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path

import gymnasium as gym
import mujoco
import mujoco.rollout
import numpy as np
import tyro

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
import sac_scratch as sac  # noqa: E402

try:
    import envpool
except ImportError:
    envpool = None


@dataclass
class Args:
    env: str = "Hopper-v4"  # Gymnasium id
    num_envs: tuple[int, ...] = (1, 2, 10, 100)  # numbers of environments
    workers: int = len(os.sched_getaffinity(0))  # processes or threads that share the environments
    seconds: float = 0.2  # of a turn
    turns: int = 15  # turns of every form; the median is printed
    check_steps: int = 1_500  # steps of two environments that are compared with gymnasium.make
    out: str | None = None  # also write the table to this CSV


def functions(env_id: str, n: int) -> list:
    return [lambda: sac.Replayable(sac.make_env(env_id), "")] * n


def sync(env_id: str, n: int) -> gym.vector.VectorEnv:
    return gym.vector.SyncVectorEnv(functions(env_id, n), autoreset_mode=gym.vector.AutoresetMode.SAME_STEP)


def serve(pipe, env_id: str, n: int) -> None:
    envs = sync(env_id, n)
    while (message := pipe.recv()) is not None:
        if isinstance(message, list):
            pipe.send(envs.reset(seed=message)[:1])
        else:
            *result, info = envs.step(message)
            pipe.send((*result, info.get("final_obs", np.full(n, None))))


class Groups:
    """Environments in `workers` processes or threads, a SyncVectorEnv each; `multi` is multiprocessing or its dummy."""

    def __init__(self, env_id: str, n: int, workers: int, multi):
        self.cuts, self.pipes = [n * i // workers for i in range(workers + 1)], []
        for a, b in zip(self.cuts, self.cuts[1:], strict=False):
            ours, theirs = multi.Pipe()
            process = multi.Process(target=serve, args=(theirs, env_id, b - a))
            process.daemon = True
            process.start()
            self.pipes.append(ours)

    def call(self, argument) -> list:
        for pipe, a, b in zip(self.pipes, self.cuts, self.cuts[1:], strict=False):
            pipe.send(argument[a:b])
        parts = [pipe.recv() for pipe in self.pipes]
        return [np.concatenate(column) for column in zip(*parts, strict=True)]

    def reset(self, seed: list[int]):
        return self.call(seed)[0], {}

    def step(self, action: np.ndarray):
        *result, final_obs = self.call(action)
        return *result, {"final_obs": final_obs}

    def close(self) -> None:
        for pipe in self.pipes:
            pipe.send(None)


class Physics:
    """`n` recorded states stepped with their actions, in MuJoCo's thread pool (1: on the calling thread)."""

    def __init__(self, env_id: str, n: int, threads: int, steps: int = 1_000):
        env, rng = sac.make_env(env_id), np.random.default_rng(0)
        self.model, self.skip = env.unwrapped.model, env.unwrapped.frame_skip
        self.data = [mujoco.MjData(self.model) for _ in range(threads)]
        self.pool, self.n, self.at = mujoco.rollout.Rollout(nthread=threads if threads > 1 else 0), n, 0
        data, kind = env.unwrapped.data, mujoco.mjtState.mjSTATE_FULLPHYSICS
        self.states, self.next_states = np.zeros((2, steps, mujoco.mj_stateSize(self.model, kind)))
        self.warm, self.control = np.zeros((steps, self.model.nv)), np.zeros((steps, 1, self.model.nu))
        env.reset(seed=0)
        for i in range(steps):
            mujoco.mj_getState(self.model, data, self.states[i], kind)
            self.warm[i] = data.qacc_warmstart
            _, _, terminated, truncated, _ = env.step(rng.uniform(-1, 1, self.model.nu).astype(np.float32))
            self.control[i, 0] = data.ctrl
            mujoco.mj_getState(self.model, data, self.next_states[i], kind)
            if terminated or truncated:
                env.reset()

    def run(self, rows: np.ndarray, warm: bool = True) -> np.ndarray:
        start = self.warm[rows] if warm else None
        found, _ = self.pool.rollout(
            [self.model], self.data, self.states[rows], self.control[rows], nstep=self.skip, initial_warmstart=start
        )
        return found[:, -1]

    def reset(self, seed) -> None:
        pass

    def step(self, _):
        self.run((self.at + np.arange(self.n)) % len(self.states))
        self.at += self.n
        return None, None, np.zeros(self.n, bool), np.zeros(self.n, bool), {}

    def differs(self) -> str:
        rows = np.arange(len(self.states))
        warm, cold = (np.abs(self.run(rows, warm) - self.next_states).max() for warm in (True, False))
        return f"{warm:.0e}, {cold:.0e}"

    def close(self) -> None:
        self.pool.close()


class Pool:
    """EnvPool: it seeds itself, and its autoreset takes a step."""

    def __init__(self, env_id: str, n: int, threads: int):
        self.envs = envpool.make(env_id, env_type="gymnasium", num_envs=n, num_threads=threads, seed=0)

    def reset(self, seed=None):
        return self.envs.reset()

    def step(self, action: np.ndarray):
        return self.envs.step(action.astype(np.float64))

    def close(self) -> None:
        self.envs.close()


def plain_env(env_id: str) -> gym.Env:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # "Hopper-v4 is out of date"
        return gym.wrappers.RescaleAction(gym.make(env_id), np.float32(-1), np.float32(1))


def differs(envs, env_id: str, steps: int) -> str:
    """Largest difference of two environments to gymnasium.make's, over `steps` steps and all episodes in them."""
    plain, seeds, rng = [plain_env(env_id) for _ in range(2)], [5, 6], np.random.default_rng(0)
    obs, _ = envs.reset(seed=seeds)
    expected = [env.reset(seed=seed)[0] for env, seed in zip(plain, seeds, strict=True)]
    largest = np.abs(obs - expected).max()
    for _ in range(steps):
        action = rng.uniform(-1, 1, (2, *plain[0].action_space.shape)).astype(np.float32)
        obs, reward, terminated, truncated, info = envs.step(action)
        for i, env in enumerate(plain):
            next_obs, *rest, _ = env.step(action[i])
            if [terminated[i], truncated[i]] != rest[1:]:
                return "ends"
            largest = max(largest, abs(reward[i] - rest[0]))
            if terminated[i] or truncated[i]:
                largest = max(largest, np.abs(info["final_obs"][i] - next_obs).max())
                next_obs, _ = env.reset()
            largest = max(largest, np.abs(obs[i] - next_obs).max())
    envs.close()
    return "0" if largest == 0 else f"{largest:.0e}"


def envpool_differs(env_id: str, steps: int) -> str:
    """The same for EnvPool, whose starts Gymnasium's environment is put into."""
    envs, env, rng = Pool(env_id, 1, 1), plain_env(env_id), np.random.default_rng(0)
    u, (obs, _), largest, ended = env.unwrapped, envs.reset(), 0.0, True
    if obs.shape[1] != u.model.nq - 1 + u.model.nv:
        return "?"
    for _ in range(steps):
        if ended:
            env.reset()
            u.set_state(np.concatenate([[0], obs[0, : u.model.nq - 1]]), obs[0, u.model.nq - 1 :])
        action = rng.uniform(-1, 1, env.action_space.shape)
        obs, reward, terminated, truncated, _ = envs.step(action[None])
        next_obs, plain_reward, *ends, _ = env.step(action)
        if [terminated[0], truncated[0]] != ends:
            return "ends"
        largest = max(largest, np.abs(obs - next_obs).max(), abs(reward[0] - plain_reward))
        ended = any(ends)
        if ended:
            obs = envs.step(action[None])[0]
    return f"{largest:.0e}"


def turn(envs, actions: np.ndarray, seconds: float) -> tuple[float, float]:
    """(steps a second, microseconds of the main thread a step)."""
    start, cpu, steps = time.perf_counter(), time.thread_time(), 0
    while time.perf_counter() - start < seconds:
        for action in actions:
            _, _, terminated, truncated, _ = envs.step(action)
            steps += len(action) - (isinstance(envs, Pool) and int((terminated | truncated).sum()))
    return steps / (time.perf_counter() - start), 1e6 * (time.thread_time() - cpu) / steps


def main(args: Args) -> None:
    packages = ["gymnasium", "mujoco", *(["envpool"] if envpool else [])]
    hardware = f"{len(os.sched_getaffinity(0))} CPU cores; " + ", ".join(f"{p} {version(p)}" for p in packages)
    forms, some = {}, args.workers  # name: (make(n), workers); processes before threads, which a fork may hang
    several = {"context": "fork", "autoreset_mode": gym.vector.AutoresetMode.SAME_STEP}
    forms["AsyncVectorEnv"] = lambda n: gym.vector.AsyncVectorEnv(functions(args.env, n), **several), None
    forms["groups in processes"] = lambda n: Groups(args.env, n, some, multiprocessing), some
    forms["SyncVectorEnv"] = lambda n: sync(args.env, n), 1
    forms["groups in threads"] = lambda n: Groups(args.env, n, some, multiprocessing.dummy), some
    found = {name: differs(make(2), args.env, args.check_steps) for name, (make, _) in forms.items()}
    for threads in sorted({1, some}) if hasattr(sac.make_env(args.env).unwrapped, "model") else []:
        if envpool:
            forms[f"EnvPool, {threads}"] = lambda n, t=threads: Pool(args.env, n, t), threads
            found[f"EnvPool, {threads}"] = envpool_differs(args.env, args.check_steps)
        forms[f"physics alone, {threads}"] = lambda n, t=threads: Physics(args.env, n, t), threads
        found[f"physics alone, {threads}"] = Physics(args.env, 1, threads).differs()
    table = [["environments", "form", "workers", "steps/s", "x Sync", "main thread us", "differs", "hardware"]]
    widths, shape = (12, 26, 8, 8, 7, 15, 14), sac.make_env(args.env).action_space.shape
    print("".join(f"{cell:>{width}}" for cell, width in zip(table[0], widths, strict=False)))
    for n in args.num_envs:
        envs = {name: make(n) for name, (make, workers) in forms.items() if (workers or 1) <= n}
        actions = np.random.default_rng(0).uniform(-1, 1, (max(1, 40 // n), n, *shape)).astype(np.float32)
        for env in envs.values():
            env.reset(seed=list(range(n)))
        turns = [{name: turn(env, actions, args.seconds) for name, env in envs.items()} for _ in range(args.turns + 1)]
        for name, env in envs.items():
            rate, cpu = (np.median([times[name][i] for times in turns[1:]]) for i in (0, 1))  # the first warms up
            ratio = rate / np.median([times["SyncVectorEnv"][0] for times in turns[1:]])
            form, workers = name.partition(",")[0], forms[name][1] or n
            row = [n, form, workers, f"{rate:.0f}", f"{ratio:.2f}", f"{cpu:.0f}", found[name]]
            print("".join(f"{cell!s:>{width}}" for cell, width in zip(row, widths, strict=True)), flush=True)
            table.append([*row, hardware])
            env.close()
    if args.out:
        with open(args.out, "w", newline="") as file:
            csv.writer(file, lineterminator="\n").writerows(table)


if __name__ == "__main__":
    main(tyro.cli(Args))
