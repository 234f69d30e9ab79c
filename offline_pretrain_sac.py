"""SAC on a fixed dataset: the pretraining that online_finetune_sac.py picks up.

It learns from logged transitions alone; the environment only serves evaluation. Nothing keeps the policy near
the data but the minimum over the critics and their LayerNorm: where the data are narrow, use more critics
(--num-critics 10 is SAC-N with LayerNorm).

Papers: SAC, Haarnoja et al. 2018 (arXiv 1812.05905); SAC-N, An et al. 2021 (arXiv 2110.01548); LayerNorm,
Ball et al. 2023 (RLPD, arXiv 2302.02948). Options: the Q-filter, TD3-C's constraint (arXiv 2303.17396),
REDQ's subsets (arXiv 2101.05982).

Objective
    critic  L(phi) = sum_e mean_B (Q_e(s, a) - y)^2                                   critic_loss, eq. (5)
            y = r + gamma (1 - terminated) (min_e Q'_e(s', a') - alpha log pi(a'|s')),  a' ~ pi(s')
    actor   L(theta) = sum_B w (alpha log pi(a|s) - min_e Q_e(s, a)) / sum_B w        actor_loss, eq. (7)
            w = 1, but --q-filter-weight where Q is under the threshold               q_filter
            (L + lambda (d^2 - epsilon)) / (1 + lambda),  d^2 = mean_B sum_A (mu - mu')^2   TD3-C, eq. (4)
    alpha   L = alpha (entropy - target entropy)                                      update, eq. (18)
    lambda  log lambda += dual_lr clip(d^2 / epsilon - 1, -1, 1)                      update, TD3-C, eq. (5)

Shapes: SAC is written for ONE seed: obs (B, O), action (B, A) in [-1, 1], reward (B,), Q (E, B); B batch, E
critics; a prime marks a target. What learns is `state`, a nested dict of tensors; torch.vmap runs S seeds at
once, on tensors stacked along a new first axis.

Reads --dataset (default: the bundled one). Writes runs/<env>/<name>/seed<k>/: config.json, eval.csv (a row
per episode), metrics.csv, TensorBoard's events and checkpoint.pt, which online_finetune_sac.py picks up.

Deviations: log std is squashed into [-5, 2]; d^2 is between means after tanh, summed over action dimensions;
signs follow TD3-C's eq. (4), which its eq. (5) reverses; lambda's steps and the division by 1 + lambda are
ours; with --critic-subset the policy climbs the minimum of all critics (REDQ: the mean).

    python offline_pretrain_sac.py --offline-steps 5000 --eval-every 2500     two minutes on one CPU core
    python offline_pretrain_sac.py --num-seeds 10                             in full (a GPU is advised)
"""

import csv
import hashlib
import json
import math
import os
import re
import shlex
import shutil
import signal
import sys
import threading
import time
import warnings
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from contextlib import ExitStack, suppress
from dataclasses import asdict, fields
from functools import partial
from importlib.metadata import version
from importlib.util import find_spec
from itertools import pairwise
from multiprocessing import active_children, get_context, parent_process
from pathlib import Path
from typing import Annotated, Literal, NamedTuple, NoReturn

import gymnasium as gym
import numpy as np
import psutil
import torch
import torch.nn as nn
import torch.nn.functional as F
import tyro
from filelock import FileLock
from pydantic import Field
from pydantic.dataclasses import dataclass
from torch import Tensor
from torch.func import grad_and_value, vmap
from torch.utils._pytree import tree_leaves, tree_map
from tqdm import tqdm

LOG_STD_MIN, LOG_STD_MAX = -5.0, 2.0  # CleanRL's range of the policy's log standard deviation
LOG_DUAL_MIN, LOG_DUAL_MAX = -7.0, 14.0  # lambda between a thousandth and a million
BETA1, BETA2, ADAM_EPS = 0.9, 0.999, 1e-8  # Kingma & Ba 2015

Whole = Annotated[int, Field(ge=0)]
Count = Annotated[int, Field(ge=1)]
Share = Annotated[float, Field(ge=0, le=1)]
Percentile = Annotated[float, Field(ge=0, lt=100)]
Positive = Annotated[float, Field(gt=0, allow_inf_nan=False)]
NonNegative = Annotated[float, Field(ge=0, allow_inf_nan=False)]
Finite = Annotated[float, Field(allow_inf_nan=False)]


@dataclass
class Args:
    # experiment
    env: str = "Hopper-v4"  # Gymnasium id; module:Id-v0 imports the module first
    seed: Whole = 1  # first seed
    num_seeds: Count = 1  # seeds trained together: seed, seed + 1, ...
    device: Literal["auto", "cpu", "cuda"] = "auto"  # auto: CUDA when there is one
    compile: Literal["auto", "on", "off"] = "auto"  # torch.compile; auto: on CUDA, and for long runs
    runs_dir: str = "runs"  # results go to <runs-dir>/<env>/<name>/seed<k>/
    overwrite: bool = False  # replace a run of the same settings
    resume: str | None = None  # folder of a run that was cut: goes on with the run's own options
    checkpoint_every: NonNegative = 5.0  # minutes between saves of resume.pt, which --resume reads
    log_every: Count = 1_000  # steps between rows of losses
    track: bool = False  # send TensorBoard's logs to Weights & Biases too (needs the package wandb)
    # data
    dataset: str | None = None  # D4RL .hdf5 file, Minari folder or Minari id; default: the bundled one
    clip_actions: bool = False  # clip the dataset's actions to the environment's bounds
    # evaluation
    eval_every: Count = 5_000  # steps between evaluations; the first and the last step are evaluated too
    eval_episodes: Count = 5  # episodes per evaluation, of the deterministic policy
    # optimisation
    batch_size: Count = 256  # transitions per batch and seed
    offline_steps: Count = 100_000  # gradient updates on the dataset
    gamma: Share = 0.99  # discount per step
    tau: Share = 0.005  # share of the networks that moves into their targets per update
    actor_lr: Positive = 3e-4  # Adam's step size
    critic_lr: Positive = 3e-4  # Adam's step size
    alpha_lr: Positive = 3e-4  # Adam's step size for the log temperature
    target_entropy: Finite | None = None  # nats; default: minus the number of action dimensions
    policy_delay: Count = 1  # critic updates per update of the policy
    num_critics: Count = 2  # critics per seed, of which a minimum is used
    critic_subset: Whole = 0  # targets from that many random critics (REDQ, RLPD: 2 of 10); 0: all
    layer_norm: bool = True  # LayerNorm in the critics
    hidden_dim: Count = 256  # width of the two hidden layers
    # Q-filter
    q_filter_percentile: Percentile = 0.0  # leave rows under this percentile of Q out of the policy loss
    q_filter_value: Finite | None = None  # a fixed threshold on Q instead, in units of discounted return
    q_filter_weight: Share = 0.0  # weight of the rows under the threshold: 0 drops them
    q_filter_actions: Literal["data", "policy"] = "data"  # Q of the batch's actions or of the policy's
    # policy constraint (TD3-C)
    epsilon: Annotated[float, Field(gt=0)] = math.inf  # bound on the squared distance to the target policy
    dual_init: Annotated[float, Field(ge=1e-3, le=1e6)] = 100.0  # lambda at the start; high: small steps
    dual_lr: Positive = 1e-3  # largest relative change of lambda per policy update


class Batch(NamedTuple):
    obs: Tensor  # (B, O)
    action: Tensor  # (B, A) in [-1, 1]
    reward: Tensor  # (B,)
    next_obs: Tensor  # (B, O)
    terminated: Tensor  # (B,) 1 where the task ended and no value follows; 0 also where time ran out


def new_mlp(*sizes: int) -> dict[str, Tensor]:
    """Parameters of linear layers between `sizes`, with PyTorch's own initialisation."""
    layers = nn.Sequential(*(nn.Linear(inputs, outputs) for inputs, outputs in pairwise(sizes)))
    return {name: param.detach() for name, param in layers.named_parameters()}


def mlp(params: dict[str, Tensor], x: Tensor, layer_norm: bool = False) -> Tensor:
    """(..., in) -> (..., out), or (...) if out is 1; with LayerNorm (no scale, no shift) before each ReLU."""
    last = len(params) // 2 - 1
    for layer in range(last):
        x = F.linear(x, params[f"{layer}.weight"], params[f"{layer}.bias"])
        x = F.relu(F.layer_norm(x, x.shape[-1:]) if layer_norm else x)
    weight, bias = params[f"{last}.weight"], params[f"{last}.bias"]
    if len(weight) > 1:
        return F.linear(x, weight, bias)
    return (x * weight[0]).sum(-1) + bias[0]  # on CUDA faster than F.linear with one output


def adam_init(params: dict | Tensor) -> dict:
    zeros = tree_map(torch.zeros_like, params)
    return {"m": zeros, "v": zeros, "t": torch.zeros(())}


def adam(params: dict | Tensor, grads: dict | Tensor, moments: dict, lr: float) -> tuple[dict | Tensor, dict]:
    """New parameters and moments after one step of Adam (Kingma & Ba 2015, algorithm 1).

    1 - beta^t is written with expm1: as a difference it would lose float32 digits in the first 1,000 updates.
    """
    t = moments["t"] + 1
    m = tree_map(lambda m, grad: torch.lerp(m, grad, 1 - BETA1), moments["m"], grads)
    v = tree_map(lambda v, grad: torch.lerp(v, grad * grad, 1 - BETA2), moments["v"], grads)
    minus_inverse_step = torch.expm1(t * math.log(BETA1)) / lr  # -(1 - beta1^t) / lr
    root = (-torch.expm1(t * math.log(BETA2))).sqrt()  # sqrt(1 - beta2^t)

    def stepped(param: Tensor, m: Tensor, v: Tensor) -> Tensor:  # param - lr m_hat / (sqrt(v_hat) + eps)
        return torch.addcdiv(param, m, (v.sqrt() / root + ADAM_EPS) * minus_inverse_step)

    return tree_map(stepped, params, m, v), {"m": m, "v": v, "t": t}


def stack(trees: list[dict]) -> dict:
    """Dicts of tensors as one, along a new first axis: of critics, or of seeds."""
    return tree_map(lambda *leaves: torch.stack(leaves), *trees)


def polyak(target: dict, params: dict, tau: float) -> dict:
    return tree_map(lambda old, new: torch.lerp(old, new, tau), target, params)


def sample_action(mean: Tensor, log_std: Tensor, noise: Tensor) -> tuple[Tensor, Tensor]:
    """tanh(mean + std * noise) and its log-density, (..., A) and (...); SAC, appendix C.

    log(1 - tanh(x)^2) is written as 2 (log 2 - x - softplus(-2x)), which is finite for every x.
    """
    x = mean + log_std.exp() * noise
    log_normal = -0.5 * noise.square() - log_std - 0.5 * math.log(2 * math.pi)
    log_slope = 2 * (math.log(2) - x - F.softplus(-2 * x))
    return x.tanh(), (log_normal - log_slope).sum(-1)


def q_filter(q: Tensor, args: Args) -> tuple[Tensor, dict]:
    """Weights (B,) of the policy loss, 1 where q (B,) >= threshold, else --q-filter-weight; and metrics.

    The threshold is --q-filter-value, or the --q-filter-percentile of the batch (linear interpolation).
    """
    if args.q_filter_value is None and args.q_filter_percentile == 0:
        return torch.ones_like(q), {}
    if args.q_filter_value is not None:
        threshold = torch.full_like(q[0], args.q_filter_value)
    else:  # torch.quantile would be a loop under vmap
        rank = args.q_filter_percentile / 100 * (len(q) - 1)
        below, above = q.sort().values[math.floor(rank)], q.sort().values[math.ceil(rank)]
        threshold = torch.lerp(below, above, rank % 1)
    weight = torch.where(q >= threshold, 1.0, args.q_filter_weight)
    return weight, {"filter/fraction": (q < threshold).float().mean(), "filter/threshold": threshold}


class SAC:
    """One seed, as pure functions of its state; noise is an argument, standard normal: see update_noise."""

    def __init__(self, args: Args, obs_dim: int, action_dim: int, hidden_dim, num_critics, layer_norm):
        self.args, self.obs_dim, self.action_dim, self.hidden_dim = args, obs_dim, action_dim, hidden_dim
        self.num_critics, self.layer_norm = num_critics, layer_norm
        self.target_entropy = -action_dim if args.target_entropy is None else args.target_entropy
        if args.critic_subset > num_critics:
            fail(f"--critic-subset {args.critic_subset}: there are {num_critics} critics")
        batch = (args.batch_size, action_dim)
        self.update_noise = {"next_action": batch, "action": batch}
        if args.critic_subset:
            self.update_noise["subset"] = (num_critics,)

    def init(self, seed: int) -> dict:
        """The state that training starts from."""
        torch.manual_seed(seed)
        width, inputs = self.hidden_dim, self.obs_dim + self.action_dim
        actor, log_alpha = new_mlp(self.obs_dim, width, width, 2 * self.action_dim), torch.zeros(())
        critic = stack([new_mlp(inputs, width, width, 1) for _ in range(self.num_critics)])
        return {
            "actor": actor,
            "critic": critic,  # (E, ...) each
            "target_actor": actor,
            "target_critic": critic,
            "log_alpha": log_alpha,
            "log_dual": torch.tensor(math.log(self.args.dual_init)),
            "actor_adam": adam_init(actor),
            "critic_adam": adam_init(critic),
            "alpha_adam": adam_init(log_alpha),
        }

    def actor(self, params: dict, obs: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and log std (..., A) of the policy before its tanh, at obs (..., O)."""
        mean, log_std = mlp(params, obs).chunk(2, -1)
        return mean, LOG_STD_MIN + 0.5 * (LOG_STD_MAX - LOG_STD_MIN) * (log_std.tanh() + 1)

    def critics(self, params: dict, obs: Tensor, action: Tensor) -> Tensor:
        """Q of all critics in `params`, (E, ...), at obs (..., O) and action (..., A)."""
        x = torch.cat([obs, action], -1)
        return vmap(lambda one: mlp(one, x, self.layer_norm))(params)

    def critic_loss(self, params: dict, state: dict, batch: Batch, noise: dict):
        """Soft Bellman error, eqs. (5)-(6)."""
        mean, log_std = self.actor(state["actor"], batch.next_obs)
        next_action, next_log_prob = sample_action(mean, log_std, noise["next_action"])
        target_critic = state["target_critic"]
        if self.args.critic_subset:  # REDQ, algorithm 1
            subset = noise["subset"].topk(self.args.critic_subset).indices
            target_critic = tree_map(lambda stacked: stacked[subset], target_critic)
        next_q = self.critics(target_critic, batch.next_obs, next_action).amin(0)  # (B,)
        next_value = next_q - state["log_alpha"].exp() * next_log_prob
        target_q = batch.reward + self.args.gamma * (1 - batch.terminated) * next_value
        q = self.critics(params, batch.obs, batch.action)  # (E, B)
        loss = (q - target_q).square().mean(1).sum()
        return loss, ({"loss/critic": loss, "q/data": q.mean(), "q/target": target_q.mean()}, q)

    def actor_loss(self, params: dict, state: dict, batch: Batch, noise: dict, data_q: Tensor):
        """Eq. (7), Q-filtered and constrained; data_q (B,): min_e Q of the batch's actions."""
        args = self.args
        mean, log_std = self.actor(params, batch.obs)
        action, log_prob = sample_action(mean, log_std, noise["action"])
        q = self.critics(state["critic"], batch.obs, action).amin(0)  # (B,)

        weight, filtered = q_filter(data_q if args.q_filter_actions == "data" else q.detach(), args)
        total_weight = weight.sum().clamp(min=1e-6)
        loss = (weight * (state["log_alpha"].exp() * log_prob - q)).sum() / total_weight
        metrics = {"q/policy": q.mean(), "policy/entropy": -log_prob.mean(), **filtered}

        if args.epsilon < math.inf:
            target_mean, _ = self.actor(state["target_actor"], batch.obs)
            distance = (mean.tanh() - target_mean.tanh()).square().sum(1).mean()
            dual = state["log_dual"].exp()
            loss = (loss + dual * (distance - args.epsilon)) / (1 + dual)  # 1 + dual keeps its scale
            metrics["constraint/distance"] = distance
        return loss, {"loss/actor": loss, **metrics}

    def update(self, state: dict, batch: Batch, noise: dict, policy_turn: bool) -> tuple[dict, dict]:
        """What changes in the state, and metrics: the critics, and on the policy's turn all else."""
        args = self.args
        gradient = grad_and_value(self.critic_loss, has_aux=True)  # returns gradients, (loss, aux)
        grads, (_, (metrics, q)) = gradient(state["critic"], state, batch, noise)
        critic, critic_adam = adam(state["critic"], grads, state["critic_adam"], args.critic_lr)
        target_critic = polyak(state["target_critic"], critic, args.tau)
        new = {"critic": critic, "critic_adam": critic_adam, "target_critic": target_critic}
        if not policy_turn:
            return new, metrics

        gradient = grad_and_value(self.actor_loss, has_aux=True)
        grads, (_, actor_metrics) = gradient(state["actor"], state | new, batch, noise, q.amin(0))
        new["actor"], new["actor_adam"] = adam(state["actor"], grads, state["actor_adam"], args.actor_lr)
        metrics |= actor_metrics

        log_alpha, alpha = state["log_alpha"], state["log_alpha"].exp()
        grad = alpha * (metrics["policy/entropy"] - self.target_entropy)  # with respect to log alpha
        new["log_alpha"], new["alpha_adam"] = adam(log_alpha, grad, state["alpha_adam"], args.alpha_lr)
        metrics["policy/alpha"] = alpha
        if args.epsilon < math.inf:
            violation = (metrics["constraint/distance"] / args.epsilon - 1).clamp(-1, 1)
            log_dual = state["log_dual"] + args.dual_lr * violation
            new["log_dual"] = log_dual.clamp(LOG_DUAL_MIN, LOG_DUAL_MAX)
            new["target_actor"] = polyak(state["target_actor"], new["actor"], args.tau)
            metrics["constraint/dual"] = state["log_dual"].exp()
        return new, metrics

    def best_action(self, state: dict, obs: Tensor) -> Tensor:
        """The deterministic action (B, A) that evaluations execute at obs (B, O)."""
        return self.actor(state["actor"], obs)[0].tanh()

    def action_value(self, state: dict, obs: Tensor, action: Tensor) -> Tensor:
        """min_e Q(s, a), (B,), in units of discounted return."""
        return self.critics(state["critic"], obs, action).amin(0)


ALGORITHM, FAMILY = SAC, "sac"  # scripts of one family read each other's checkpoints
# ---- plumbing: the same text in every script ---------------------------------------------------------

SCRIPT, BUNDLED = Path(__file__).stem, (Path(__file__).resolve().parent / "datasets").resolve()
FORMAT = 2  # of checkpoint.pt and resume.pt; files of the first format name none
DEFAULT_DATASETS = {"Hopper": "hopper/medium-replay-v0", "HalfCheetah": "halfcheetah/medium-v0"}  # bundled
D4RL_SCORES = {  # returns of a random and of an expert policy (Fu et al. 2020, arXiv 2004.07219)
    "HalfCheetah": [-280.178953, 12135.0],
    "Hopper": [-20.272305, 3234.3],
    "Walker2d": [1.629008, 4592.3],
    "Ant": [-325.6, 3879.7],
}
COMPILE_FROM = 5_000  # updates; compiling costs half a minute on a CPU
UPDATES_PER_CALL = 10  # offline, in one CUDA graph
EPISODE_LIMIT = 100_000  # steps of an evaluation episode
STOP_SIGNALS = [signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1]
ROUNDING = 1e-4  # how far outside [-1, 1] a recorded action may lie


def fail(message: str) -> NoReturn:
    """Bad input: one line on stderr, exit status 2."""
    print(f"error: {message}", file=sys.stderr)
    raise SystemExit(2)


def task_of(env_id: str) -> str:
    """Hopper, of Hopper-v4 and of module:Hopper-v4."""
    return re.sub(r"-v\d+$", "", env_id.rpartition(":")[2])


def num_cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()


def to_vector(obs, time_axes: int = 0) -> np.ndarray:
    """Observations as new float32 vectors; a Dict's parts are joined in the order of their keys."""
    if isinstance(obs, dict):
        return np.concatenate([to_vector(obs[key], time_axes) for key in sorted(obs)], -1)
    obs = np.array(obs, np.float32)
    return obs.reshape(*obs.shape[:time_axes], -1)


class Adapter(gym.Wrapper):
    """An environment as the algorithms see it: observations (O,), actions (A,) in [-1, 1], plain numbers."""

    def __init__(self, env: gym.Env):
        super().__init__(env)
        actions, size = env.action_space, to_vector(env.observation_space.sample()).shape
        is_vector = isinstance(actions, gym.spaces.Box) and len(actions.shape) == 1
        if not is_vector or actions.dtype.kind != "f" or not actions.is_bounded():
            raise ValueError(f"actions must be bounded vectors of real numbers, not {actions}")
        if (actions.low >= actions.high).any():
            raise ValueError(f"the lower bounds of actions must be below the upper ones: {actions}")
        self.center, self.scale = (actions.high + actions.low) / 2, (actions.high - actions.low) / 2
        self.observation_space = gym.spaces.Box(-np.inf, np.inf, size, np.float32)
        self.action_space = gym.spaces.Box(-1, 1, actions.shape, np.float32)

    def reset(self, **options):
        obs, info = self.env.reset(**options)
        return to_vector(obs), info

    def step(self, action: np.ndarray):
        space = self.env.action_space
        action = np.clip(self.center + self.scale * action, space.low, space.high).astype(space.dtype)
        obs, reward, terminated, truncated, info = self.env.step(action)
        return to_vector(obs), np.asarray(reward).item(), bool(terminated), bool(truncated), info


def make_env(env_id: str) -> Adapter:
    if find_spec("mujoco"):  # its warnings would go to the terminal and to a file in the working directory
        import mujoco

        mujoco.set_mju_user_warning(lambda message: None)
    with warnings.catch_warnings(action="ignore"):  # "Hopper-v4 is out of date"
        return Adapter(gym.make(env_id, disable_env_checker=True))


def open_env(env_id: str) -> Adapter:
    """The environment of --env; ends with one line if it cannot be used."""
    try:
        env = make_env(env_id)
    except Exception as error:  # its constructor may raise anything
        fail(f"--env {env_id}: cannot be used: {error!r:.300}")
    if env.spec.max_episode_steps is None:
        print(f"note: {env_id} has no step limit; evaluation episodes of {EPISODE_LIMIT:,} steps end the run")
    return env


class Dataset(NamedTuple):
    rows: np.ndarray  # (rows, 2 O + A + 2) float32, columns as in Batch, actions in [-1, 1]
    ends: np.ndarray  # (rows,) uint8: 0, 1 terminated, 2 truncated
    description: dict  # what config.json and checkpoints keep of it


def read_hdf5(path: Path, step_limit: int | None) -> dict[str, np.ndarray]:
    """Columns (N, ...) of D4RL's flat arrays; `drop` marks rows whose next observation is not known.

    Without `next_observations`, row i + 1 follows row i within an episode. Without `timeouts`, an episode
    ends at the environment's step limit, counted anew after each terminal, as in D4RL's own reader.
    """
    import h5py

    needed = "observations", "actions", "rewards", "terminals"
    optional = "timeouts", "next_observations", "episode_terminals"  # the last one is d3rlpy's
    with h5py.File(path) as file:
        if "discrete_action" in file and "version" not in file:
            raise ValueError("d3rlpy before 1.0 wrote it, with rewards one row late: they must be moved")
        names = needed + tuple(name for name in optional if name in file)
        data = {name: file[name][()] for name in names}
    obs, count = data["observations"], len(data["observations"])
    terminated = data["terminals"].reshape(count).astype(bool)
    timeouts = data.get("timeouts", data.get("episode_terminals", terminated)).reshape(count).astype(bool)
    index, starts = np.arange(count), np.append(True, terminated | timeouts)[:count]
    at_limit = (index - np.maximum.accumulate(index * starts) + 1) % (step_limit or np.inf) == 0
    truncated = (timeouts if "timeouts" in data or "episode_terminals" in data else at_limit) & ~terminated
    truncated[-1:] = ~terminated[-1:]
    if (at_limit & ~terminated & ~truncated).any():
        print(f"note: {path.name} has episodes beyond {step_limit} steps, the environment's limit")
    next_obs, drop = data.get("next_observations"), np.zeros(count, bool)
    if next_obs is None:
        next_obs, drop = np.roll(obs, -1, 0), truncated.copy()
        next_obs[terminated] = obs[terminated]  # nothing follows a terminal; never used
        truncated[:-1] |= drop[1:] & ~terminated[:-1]  # the row before a dropped one is now the last
    columns = {"obs": obs, "action": data["actions"], "reward": data["rewards"], "next_obs": next_obs}
    return columns | {"terminated": terminated, "truncated": truncated, "drop": drop}


def read_minari(path: Path) -> tuple[dict[str, np.ndarray], dict]:
    """The same of a Minari folder (the one that holds data/), and its metadata."""
    from minari.dataset.minari_storage import MinariStorage

    storage, episodes = MinariStorage.read(path / "data"), []
    for episode in storage.get_episodes(range(storage.total_episodes)):
        obs, terminated = to_vector(episode["observations"], 1), np.ravel(episode["terminations"])
        count = len(terminated) if terminated[-1] else len(obs) - 1  # a last observation may be missing
        obs = np.append(obs, obs[-1:], 0)  # and is not used after a terminal
        truncated = (np.arange(count) == count - 1) & (not terminated[-1])  # where the record stops
        columns = obs[:-1], episode["actions"], episode["rewards"], obs[1:], terminated
        episodes.append([*(column[:count] for column in columns), truncated])
    names = ("obs", "action", "reward", "next_obs", "terminated", "truncated")
    columns = {name: np.concatenate([episode[i] for episode in episodes]) for i, name in enumerate(names)}
    return columns | {"drop": np.zeros(len(columns["obs"]))}, storage.metadata


def find_dataset(name: str) -> Path:
    """The file or folder of --dataset: a path, in Minari's cache, in datasets/, or downloaded."""
    minari_cache = Path(os.path.expanduser(os.environ.get("MINARI_DATASETS_PATH", "~/.minari/datasets")))
    for path in (Path(name), minari_cache / name, BUNDLED / name):
        if path.is_file() or (path / "data" / "metadata.json").is_file():
            return path
    if not re.fullmatch(r"([\w-]+/)+[\w-]+-v\d+", name):
        like = "an id looks like mujoco/hopper/medium-v0; D4RL's names, like hopper-medium-v2, are not ids"
        fail(f"--dataset {name}: not a D4RL .hdf5 file, a Minari folder or a Minari id; {like}")
    if name in DEFAULT_DATASETS.values():
        fail(f"--dataset {name}: is bundled; copy the repository's folder datasets/ beside this script")
    print(f"{name} is not on this machine: asking Minari's hub")
    try:
        import minari

        minari.download_dataset(name)
    except Exception as error:  # whatever the hub's client raises
        fail(f"--dataset {name}: cannot be downloaded: {error!r:.300}")
    return minari_cache / name


def check_columns(name: str, columns: dict[str, np.ndarray], env: Adapter, clip: bool) -> None:
    """Ends with one line if the columns (N, ...) do not fit the environment, or about the first bad value."""
    obs_shape, action_shape = env.observation_space.shape, env.action_space.shape
    shapes = {"obs": obs_shape, "action": action_shape, "reward": (), "next_obs": obs_shape}
    for key, shape in shapes.items():
        if columns[key].shape != (len(columns["obs"]), *shape):
            fail(f"--dataset {name}: {key} has shape {columns[key].shape}; {env.spec.id} has {shape} per row")
        bad = np.argwhere(~np.isfinite(columns[key])).tolist()
        if bad:
            fail(f"--dataset {name}: {key}{bad[0]} is {columns[key][tuple(bad[0])]}, not a finite number")
    bad = np.argwhere(np.abs(columns["action"] - env.center) > env.scale * (1 + ROUNDING)).tolist()
    if bad and not clip:
        first = f"action{bad[0]} is {columns['action'][tuple(bad[0])]:.6g}"
        fail(f"--dataset {name}: {len(bad):,} values are out of bounds, {first}; --clip-actions clips them")
    if columns["drop"].all():
        fail(f"--dataset {name}: has no transition whose next observation is known")


def load_dataset(args: Args, env: Adapter) -> Dataset:
    """--dataset, or the environment's bundled one, after checking that it fits the environment."""
    name, metadata = args.dataset or DEFAULT_DATASETS.get(task_of(args.env)), {}
    if name is None:
        fail(f"--dataset is needed: none is bundled for {args.env}; collect_dataset.py makes one")
    path = find_dataset(name)
    try:
        if path.is_file():
            columns = read_hdf5(path, env.spec.max_episode_steps)
        else:
            columns, metadata = read_minari(path)
        columns = {key: np.asarray(column, np.float32) for key, column in columns.items()}
        columns["reward"] = columns["reward"].reshape(len(columns["obs"]))
        spec = json.loads(metadata.get("env_spec") or "{}")  # read as text: it imports nothing
        recorded_in = spec.get("id")
    except Exception as error:  # whatever h5py, Minari or NumPy raise
        fail(f"--dataset {name}: cannot be read: {error!r:.300}")
    if recorded_in and task_of(recorded_in) != task_of(args.env):
        fail(f"--dataset {name}: recorded in {recorded_in}, not in {args.env}")
    check_columns(name, columns, env, args.clip_actions)
    columns["action"] = ((columns["action"] - env.center) / env.scale).clip(-1, 1)
    keep, truncated = columns.pop("drop") == 0, columns.pop("truncated")
    ends = (columns["terminated"] + 2 * truncated)[keep].astype(np.uint8)
    rows = np.column_stack([*columns.values()])[keep].astype(np.float32)
    fingerprint = hashlib.sha256(rows.tobytes()).hexdigest()[:16]
    starts = np.append(0, np.flatnonzero(ends)[:-1] + 1)
    episodes = np.sort(np.add.reduceat(columns["reward"][keep].astype(float), starts))
    mean, best_tenth = episodes.mean().item(), episodes[-math.ceil(len(episodes) / 10) :].mean().item()
    spread = f"return {mean:.0f} on average, {episodes[-1]:.0f} at best"
    print(f"data: {name}, {len(rows):,} transitions, {len(episodes):,} episodes, {spread}")
    if not keep.all():
        print(f"note: {(~keep).sum():,} last transitions without a next observation were dropped")
    for key in ("id", "kwargs", "max_episode_steps"):
        if key in spec and spec[key] != getattr(env.spec, key):
            print(f"note: {key} is {spec[key]} in the dataset, {getattr(env.spec, key)} in {args.env}")
    short_name = task_of(path.stem)  # medium, of medium-v0 and of medium.hdf5
    if BUNDLED not in path.resolve().parents:
        short_name += f"-{fingerprint[:4]}"  # two of one name stay apart
    scores = [metadata.get(key) for key in ("ref_min_score", "ref_max_score")]
    if not all(isinstance(score, int | float) for score in scores) or not abs(scores[1] - scores[0]) > 0:
        scores = None
    origin = {"name": short_name, "source": name, "fingerprint": fingerprint, "recorded_in": recorded_in}
    returns = {"mean_return": round(mean, 3), "best_tenth_return": round(best_tenth, 3), "scores": scores}
    return Dataset(rows, ends, origin | returns)


class Replay:
    """Every transition in one table on the device: the dataset's rows once, then one ring per seed.

    A batch is one gather of row numbers (S, B), uniform over the dataset and the seed's ring together. Once
    `offline_ratio` is set, that share of it is drawn from the dataset and the rest from the ring (RLPD).
    """

    def __init__(self, args: Args, shape: dict, dataset: Dataset | None, capacity: int, device: str):
        self.columns = [shape["obs_dim"], shape["action_dim"], 1, shape["obs_dim"], 1]
        self.num_offline = len(dataset.rows) if dataset else 0
        num_rows, width = self.num_offline + args.num_seeds * capacity, sum(self.columns)
        free = torch.cuda.mem_get_info()[0] if device == "cuda" else psutil.virtual_memory().available
        needed = 4 * (num_rows + args.num_seeds * args.batch_size) * width  # bytes, with one batch
        if needed > free:
            memory = f"{1e-9 * needed:.1f} GB are needed, {1e-9 * free:.1f} GB are free on {device}"
            fail(f"--num-seeds {args.num_seeds}: {memory}; lower it, --batch-size or --replay-capacity")
        self.rows, self.ends = torch.zeros(num_rows, width, device=device), np.zeros(num_rows, np.uint8)
        if dataset:
            self.rows[: self.num_offline] = torch.from_numpy(dataset.rows)
            self.ends[: self.num_offline] = dataset.ends
        self.rings = self.rows[self.num_offline :].view(args.num_seeds, capacity, width)
        self.host_row = torch.zeros(args.num_seeds, width, pin_memory=device == "cuda")
        self.ring_ends = self.ends[self.num_offline :].reshape(args.num_seeds, capacity)  # a view too
        self.starts = self.num_offline + capacity * torch.arange(args.num_seeds, device=device)[:, None]
        self.size = torch.zeros((), dtype=torch.int64, device=device)  # of a ring; a CUDA graph reads it
        self.capacity, self.added, self.offline_ratio = capacity, 0, None

    def add(self, obs, action, reward, next_obs, terminated, truncated) -> None:
        """Stores a transition of each seed, arrays (S, ...). On CUDA, synchronise before the next call."""
        row = np.column_stack([obs, action, reward, next_obs, terminated]).astype(np.float32)
        self.host_row.copy_(torch.from_numpy(row))
        self.rings[:, self.added % self.capacity].copy_(self.host_row, non_blocking=True)
        self.ring_ends[:, self.added % self.capacity] = np.where(terminated, 1, 2 * truncated)
        self.added += 1
        self.size.fill_(min(self.added, self.capacity))

    def sample(self, batch_size: int) -> Batch:
        """A batch per seed, (S, B, ...)."""
        shape, device = (len(self.rings), batch_size), self.rows.device
        number = torch.randint(2**62, shape, device=device)  # then modulo: `size` is known to the device only
        if self.offline_ratio is None:
            number = number % (self.num_offline + self.size)
            number = torch.where(number < self.num_offline, number, number - self.num_offline + self.starts)
        else:
            offline = torch.arange(batch_size, device=device) < (self.offline_ratio * batch_size).round()
            number = torch.where(offline, number % self.num_offline, number % self.size + self.starts)
        return self.gather(number)

    def gather(self, number: Tensor) -> Batch:
        """The rows of these numbers (S, B)."""
        obs, action, reward, next_obs, terminated = self.rows[number].split(self.columns, -1)
        return Batch(obs, action, reward[..., 0], next_obs, terminated[..., 0])


def over_seeds(function: Callable, num_seeds: int) -> Callable:
    """`function`, written for one seed's tensors, for those of all seeds, stacked."""
    if num_seeds > 1:
        return vmap(function)

    def alone(*stacked):  # one seed needs no vmap, which is slower on a CPU
        result = function(*tree_map(lambda tensor: tensor[0], stacked))
        return tree_map(lambda tensor: tensor[None], result)

    return alone


class Loop:
    """A step that all seeds take over and over; `metrics` (S,) are those of the last one.

    On CUDA, each pattern of `turns` becomes a CUDA graph at its third call; two calls warm up before it.
    """

    def __init__(self, step: Callable[[bool], dict], device: str, args: Args, compiled: bool = False):
        self.plain, self.step = step, torch.compile(step, fullgraph=True) if compiled else step
        self.stream = torch.cuda.Stream() if device == "cuda" and args.compile != "off" else None
        self.metrics, self.calls, self.graphs, self.policy_delay = {}, Counter(), {}, args.policy_delay

    def take(self, turns: tuple[bool, ...]) -> dict:
        metrics = {}
        for turn in turns:
            try:
                metrics |= self.step(turn)
            except Exception as error:  # no compiler, or one that fails: slower, the same algorithm
                if self.step is self.plain:
                    raise
                tqdm.write(f"not compiled, running eagerly: {error!r:.300}")
                self.step = self.plain
                metrics |= self.step(turn)
        return metrics

    def __call__(self, first: int = 0, count: int = 1) -> None:
        """Steps `first` to `first + count - 1`; the policy's turn is every --policy-delay'th."""
        turns = tuple(step % self.policy_delay == 0 for step in range(first, first + count))
        self.calls[turns] += 1
        if self.stream is None:
            metrics = self.take(turns)
        elif self.calls[turns] <= 2:
            self.stream.wait_stream(torch.cuda.current_stream())
            with torch.cuda.stream(self.stream):
                metrics = self.take(turns)
            torch.cuda.current_stream().wait_stream(self.stream)
        else:
            if turns not in self.graphs:
                graph = torch.cuda.CUDAGraph()
                with torch.cuda.graph(graph):
                    self.graphs[turns] = graph, self.take(turns)
            graph, metrics = self.graphs[turns]
            graph.replay()
        self.metrics |= metrics


def update_loop(algorithm: ALGORITHM, state: dict, replay: Replay, args: Args, total: int) -> Loop:
    """`update` of all seeds on fresh batches, compiled if that pays for `total` updates."""
    device = replay.rows.device.type
    pays = device == "cuda" or total >= COMPILE_FROM
    compiled = args.compile == "on" or (args.compile == "auto" and pays)

    def step(policy_turn: bool) -> dict:
        update = over_seeds(partial(algorithm.update, policy_turn=policy_turn), args.num_seeds)
        shapes = algorithm.update_noise.items()
        noise = {name: torch.randn(args.num_seeds, *shape, device=device) for name, shape in shapes}
        new, metrics = update(state, replay.sample(args.batch_size), noise)
        for name, part in new.items():  # in place: a CUDA graph reads and writes fixed addresses
            tree_map(Tensor.copy_, state[name], part)
        return metrics

    if compiled:
        print("compiling the update, which takes up to a minute", flush=True)
    return Loop(step, device, args, compiled)


def work_beside() -> None:
    """For a process beside the run, which was started with stop signals off: without the run, it ends."""
    torch.set_num_threads(1)

    def end_with_the_run() -> None:
        parent_process().join()
        os._exit(1)

    threading.Thread(target=end_with_the_run, daemon=True).start()


def evaluate(path: Path, args: Args) -> np.ndarray:
    """Plays a checkpoint's evaluation episodes, adds the returns to it; rows of return, length, Q(s0), bias.

    Seeds are made of (seed, gradient and environment steps so far, episode): each evaluation sees new starts,
    and the one before finetuning repeats the last one of pretraining. The episodes run side by side.
    """
    checkpoint = torch.load(path, weights_only=True)
    state, algorithm = checkpoint["state"], ALGORITHM(args, **checkpoint["shape"])
    envs = [make_env(args.env) for _ in range(args.eval_episodes)]
    origin = [checkpoint[key] for key in ("seed", "gradient_step", "env_step")]
    seeds = [int(np.random.SeedSequence((*origin, i)).generate_state(1)[0]) for i in range(len(envs))]
    obs = np.stack([env.reset(seed=seed)[0] for env, seed in zip(envs, seeds, strict=True)])
    first_obs = torch.from_numpy(obs.copy())
    returns, discounted, lengths = np.zeros((3, len(envs)))
    running = list(range(len(envs)))
    while running:
        action = algorithm.best_action(state, torch.from_numpy(obs)).numpy()
        for i in running.copy():
            obs[i], reward, terminated, truncated, _ = envs[i].step(action[i])
            returns[i] += reward
            discounted[i] += args.gamma ** lengths[i] * reward
            lengths[i] += 1
            if terminated or truncated or lengths[i] == EPISODE_LIMIT:
                running.remove(i)
    first_q = algorithm.action_value(state, first_obs, algorithm.best_action(state, first_obs)).numpy()
    save(path, checkpoint | {"returns": returns.tolist()})
    return np.column_stack([returns, lengths, first_q, first_q - discounted])


def save(path: Path, content: dict) -> None:
    """Atomically: a reader sees the old file or the new one, never a part."""
    part = path.with_name(path.name + ".part")
    try:
        torch.save(content, part)
        os.replace(part, path)
    except (OSError, RuntimeError) as error:  # PyTorch's own writer raises a RuntimeError
        part.unlink(missing_ok=True)  # its space is free when the traceback no longer holds the writer
        raise OSError(f"{path} not written, is the disk full? {error!r:.99}") from error.with_traceback(None)


def load(option: str, path: Path, needed: str) -> dict:
    """A checkpoint.pt or resume.pt, which holds `needed`; ends with one line if it is none."""
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)  # refuses a file that carries code
        is_ours = content.get("format") == FORMAT and needed in content
    except Exception as error:  # whatever torch.load raises on a missing, damaged or foreign file
        fail(f"{option} {path}: cannot be read as one of these scripts' files: {error!r:.100}")
    if not is_ours:
        fail(f"{option} {path}: has no {needed} in format {FORMAT}: from another version or of another kind")
    return content


def run_folder(args: Args, dataset: Dataset | None, source: dict | None) -> Path:
    """<runs-dir>/<env>/<script>[-<dataset>][-<option>-<value>...][-from-<script>-<hash of the start>].

    Of the options from --batch-size on, those off their default; the others change nothing that is learned.
    """
    parts, names = [SCRIPT], [field.name for field in fields(args)]
    if dataset:
        parts.append(dataset.description["name"])
    for name in names[names.index("batch_size") :]:
        if getattr(args, name) != getattr(Args, name):
            parts.append(f"{name}-{getattr(args, name)}".replace("_", "-").removesuffix(".0"))
    if source:
        start = f"{source['run']} {source['gradient_step']} {source['shared_seed']}"
        parts.append(f"from-{source['script']}-{hashlib.sha256(start.encode()).hexdigest()[:4]}")
    name = "-".join(parts)
    if len(name) > 100:
        name = f"{name[:91]}-{hashlib.sha256(name.encode()).hexdigest()[:8]}"
    return Path(args.runs_dir, re.sub("[:/]", "_", args.env), name)


def append(path: Path, rows: list[list]) -> None:
    with open(path, "a", newline="") as file:
        csv.writer(file, lineterminator="\n").writerows(rows)


class Run:
    """A run's folders, one per seed, and where it stands: logs, evaluation, checkpoints, stop and resume."""

    def __init__(
        self, args: Args, shape: dict, dataset: Dataset | None, source: dict | None, saved: dict | None
    ):
        if args.track and not find_spec("wandb"):
            fail("--track: needs the package wandb (pip install wandb)")
        self.args, self.saved, self.started = args, saved, time.time()
        self.phase, self.step, self.env_step = "offline", 0, 0  # step: TensorBoard's axis, of both phases
        self.gradient_step = source["gradient_step"] if source else 0
        self.seeds, self.live = range(args.seed, args.seed + args.num_seeds), list(range(args.num_seeds))
        self.last_return, self.pending = {}, {}  # by seed's index; pending: evaluations under way
        self.stop_signal, self.at_exit, self.kept, self.replay = 0, ExitStack(), False, None
        trained_on = source["dataset"] if source else None
        data = dataset.description if dataset else trained_on
        self.scores = D4RL_SCORES.get(task_of(args.env)) or (data and data["scores"])
        self.folder = saved["folder"] if saved else run_folder(args, dataset, source)
        self.folders = [self.folder / f"seed{seed}" for seed in self.seeds]
        packages = [name for name in ("torch", "gymnasium", "mujoco", "minari", "numpy") if find_spec(name)]
        gpu = torch.cuda.get_device_name() if pick_device(args) == "cuda" else None
        self.config = {
            "format": FORMAT,
            "script": SCRIPT,
            "run": self.folder.name,
            "family": FAMILY,
            "env": args.env,
            "num_seeds": args.num_seeds,
            "args": asdict(args),
            "shape": shape,
            "scores": self.scores,
            "dataset": data,
            "checkpoint": source,
            "command": saved["command"] if saved else [f"{SCRIPT}.py", *sys.argv[1:]],
            "script_sha256": hashlib.sha256(Path(__file__).read_bytes()).hexdigest(),
            "versions": {name: version(name) for name in packages},
            "hardware": gpu or f"{num_cores()} CPU cores",
        }
        if saved:
            vars(self).update(saved["progress"])
            self.started -= saved["seconds"]
            if data and data["fingerprint"] != saved["dataset"]["fingerprint"]:
                fail(f"--resume {self.folder}: the dataset has changed since the run began")

    def __enter__(self) -> None:
        """Takes the folders; from now on a stop signal ends the run after the step under way."""
        from torch.utils.tensorboard import SummaryWriter  # slow to import, and --help needs none

        self.take_folders()
        if self.args.track:
            import wandb

            wandb.tensorboard.patch(root_logdir=str(self.folder))  # sync_tensorboard for several folders
            wandb.init(project="offline-to-online", name=self.folder.name, config=self.config)
        self.saved_at = self.logged_at = time.time()
        self.logged_step = self.step
        purge_step = self.logged_step + 1 if self.saved else None
        writers = [SummaryWriter(str(folder), purge_step=purge_step) for folder in self.folders]
        self.writers = [self.at_exit.enter_context(writer) for writer in writers]
        self.writers[0].add_text("config", f"<pre>{json.dumps(self.config, indent=1)}</pre>")
        processes = min(len(self.seeds), max(1, num_cores() - 1))
        self.handlers = {number: signal.signal(number, signal.SIG_IGN) for number in STOP_SIGNALS}
        self.pool = ProcessPoolExecutor(processes, get_context("spawn"), work_beside)
        self.at_exit.callback(self.pool.shutdown, cancel_futures=True)
        for _ in range(processes):
            self.pool.submit(os.getpid)  # starts a process, which inherits that stop signals are ignored
        for number, handler in self.handlers.items():
            if handler != signal.SIG_IGN:  # under nohup, SIGHUP is and stays ignored
                signal.signal(number, self.stop)
        self.set_status("running")
        if self.saved:
            print(f"resumes at {self.place()}; unfinished episodes restart")
        print(f"writes: {self.folder}/seed*/", flush=True)

    def take_folders(self) -> None:
        """Locks the folders for as long as this process lives; makes them anew unless the run is resumed."""
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            for folder in self.folders:
                if folder.exists() and not self.saved and not self.args.overwrite:
                    fail(f"--runs-dir {self.args.runs_dir}: {folder} exists; --overwrite replaces it")
                config = json.loads((folder / "config.json").read_text()) if self.saved else self.config
                if config["args"] != self.config["args"]:
                    fail(f"--resume {self.folder}: another run has replaced {folder.name}")
                self.at_exit.enter_context(FileLock(folder.with_name(f".{folder.name}.lock"), timeout=0))
            new_folders = [] if self.saved else self.folders
            for folder in new_folders:
                shutil.rmtree(folder, ignore_errors=True)
                folder.mkdir()
                append(folder / "eval.csv", [[*self.moment(), "episode", "return", "length", "seconds"]])
                append(folder / "metrics.csv", [[*self.moment(), "name", "value"]])
        except OSError as error:  # filelock's Timeout, too
            fail(f"--runs-dir {self.args.runs_dir}: {error} Is another run writing there?")

    def __exit__(self, kind: type | None, error: BaseException | None, _) -> None:
        if kind is torch.OutOfMemoryError and self.replay:
            self.save()
        if self.pending:  # nobody waits for these evaluations
            for process in active_children():
                process.kill()
        status = {None: "finished", KeyboardInterrupt: "interrupted"}.get(kind, "failed")
        with suppress(OSError), self.at_exit:  # of a full disk
            self.set_status(status)
        for number, handler in self.handlers.items():
            signal.signal(number, handler)
        ends = {KeyboardInterrupt: 128 + self.stop_signal, OSError: f"error: {error}"}
        ends[torch.OutOfMemoryError] = f"error: lower --num-seeds, --batch-size or --replay-capacity: {error}"
        if kind in ends:
            command = shlex.join(["python", f"{SCRIPT}.py", "--resume", str(self.folders[0])])
            saved = (self.folders[0] / "resume.pt").exists()
            advice = f"go on with: {command}" if saved else "nothing was saved to go on from"
            print(f"{status} at {self.place()}; {advice}")
            raise SystemExit(ends[kind])

    def stop(self, number: int, _) -> None:
        """Handles a stop signal: the run ends after the step under way; a second Ctrl-C ends it unsaved."""
        if self.stop_signal == number == signal.SIGINT:
            raise KeyboardInterrupt
        self.stop_signal = number
        try:
            tqdm.write("stopping after this step ...")
        except OSError:  # the terminal is gone
            sys.stdout = sys.stderr = open(os.devnull, "w")  # noqa: SIM115

    def set_status(self, status: str) -> None:
        for i, folder in enumerate(self.folders):
            now = {"seed": self.seeds[i], "started": self.started, "seconds": time.time() - self.started}
            now |= {"pid": os.getpid(), "status": status if i in self.live else "diverged"}
            part = folder / "config.json.part"
            part.write_text(json.dumps(self.config | now, indent=1))
            os.replace(part, folder / "config.json")
        if status == "finished" and not self.kept:
            for path in self.folders[0].glob("resume.pt*"):
                path.unlink()

    def place(self) -> str:
        return f"{self.phase} step {self.env_step if self.phase == 'online' else self.step:,}"

    def moment(self) -> dict:
        return {name: getattr(self, name) for name in ("phase", "step", "gradient_step", "env_step")}

    def write_values(self, i: int, moment: dict, values: dict[str, float]) -> None:
        """Adds a seed's values to metrics.csv and TensorBoard."""
        append(self.folders[i] / "metrics.csv", [[*moment.values(), *item] for item in values.items()])
        for name, value in values.items():
            self.writers[i].add_scalar(name, value, moment["step"])

    def between_steps(self, last_step: int, loops: list[Loop]) -> None:
        """Logs, saves, stops and evaluates if it is due."""
        step = self.env_step if self.phase == "online" else self.step
        stops = self.stop_signal  # read once: it may come at any time
        evaluates = step % self.args.eval_every == 0 or step == last_step
        if stops or evaluates or step % self.args.log_every == 0:
            self.log(loops)
        if stops or time.time() - self.saved_at > 60 * self.args.checkpoint_every:
            self.save()
        if stops:
            raise KeyboardInterrupt
        if evaluates:
            self.evaluate()
        if all(result.done() for result in self.pending.values()):
            self.log_evaluation()

    def log(self, loops: list[Loop]) -> None:
        """Metrics of the last step, and the speed; gives up the seeds of which something is not finite."""
        leaves = [leaf.reshape(len(self.seeds), -1) for leaf in tree_leaves(self.state)]
        finite = torch.stack([leaf.isfinite().all(1) for leaf in leaves]).all(0).tolist()
        diverged = [i for i in self.live if not finite[i]]
        if diverged:
            self.log_evaluation()  # of when all was finite
        for i in diverged:
            self.live.remove(i)
            tqdm.write(f"seed {self.seeds[i]} diverged before {self.place()}; its last checkpoint stays")
        if not self.live:
            raise SystemExit("error: no seed is left")
        metrics = {name: value.tolist() for loop in loops for name, value in loop.metrics.items()}
        if metrics:
            speed = (self.step - self.logged_step) / (time.time() - self.logged_at)
            metrics["speed/steps_per_second"] = [speed] * len(self.seeds)
        self.logged_step, self.logged_at = self.step, time.time()
        for i in self.live:
            self.write_values(i, self.moment(), {name: value[i] for name, value in metrics.items()})

    def evaluate(self) -> None:
        """Saves a checkpoint of each seed and evaluates it, beside training; one evaluation at a time."""
        self.log_evaluation()
        self.evaluated, self.seconds = self.moment(), round(time.time() - self.started, 1)
        state = tree_map(Tensor.cpu, self.state)
        for i in self.live:
            path = self.folders[i] / "checkpoint.pt"
            seed_state = tree_map(partial(torch.select_copy, dim=0, index=i), state)
            save(path, self.config | self.evaluated | {"seed": self.seeds[i], "state": seed_state})
            self.pending[i] = self.pool.submit(evaluate, path, self.args)

    def log_evaluation(self) -> None:
        """Waits for the evaluation under way, if there is one, and logs it."""
        if not self.pending:
            return
        for i, pending in self.pending.items():
            rows = pending.result()
            if rows[:, 1].max() == EPISODE_LIMIT:
                raise SystemExit(f"error: an evaluation episode reached the limit of {EPISODE_LIMIT:,} steps")
            for episode, (episode_return, length, *_) in enumerate(rows.tolist()):
                line = [*self.evaluated.values(), episode, episode_return, int(length), self.seconds]
                append(self.folders[i] / "eval.csv", [line])
            self.last_return[i], _, first_q, q_bias = rows.mean(0).tolist()
            values = {"eval/return": self.last_return[i], "eval/first_q": first_q, "eval/q_bias": q_bias}
            self.write_values(i, self.evaluated, values)
        self.pending = {}
        step = self.evaluated["env_step" if self.phase == "online" else "gradient_step"]
        tqdm.write(f"{self.phase} {step:>9,}: {self.summary()}, {self.seconds / 60:.1f} min")

    def summary(self) -> str:
        """The last evaluation in words."""
        returns = np.array([self.last_return[i] for i in self.live])
        text = f"return {returns.mean():.0f}"
        if len(returns) > 1:
            text += f" +- {returns.std(ddof=1):.0f} over {len(returns)} seeds"
        if self.scores:
            low, high = self.scores
            text += f", normalised score {100 * (returns.mean() - low) / (high - low):.1f}"
        return text

    def save(self) -> None:
        """resume.pt: what --resume goes on from, and what collect_dataset.py --from-run reads."""
        self.log_evaluation()
        logs = [folder / name for folder in self.folders for name in ("eval.csv", "metrics.csv")]
        content = self.config | {
            "progress": self.moment() | {"live": self.live, "last_return": self.last_return},
            "finished": self.kept,
            "seconds": time.time() - self.started,
            "state": self.state,
            "added": self.replay.added,
            "rings": self.replay.rings[:, : self.replay.size].to("cpu", copy=True),
            "ends": torch.from_numpy(self.replay.ring_ends[:, : self.replay.size].copy()),
            "random": [torch.get_rng_state(), *torch.cuda.get_rng_state_all()],
            "logs": {str(path.relative_to(self.folder)): path.stat().st_size for path in logs},
        }
        save(self.folders[0] / "resume.pt", content)
        self.saved_at = time.time()

    def restore(self, state: dict, replay: Replay) -> None:
        """Keeps what `save` needs; after --resume refills the replay (`state` is the saved one already)."""
        if self.saved:
            size, replay.added = self.saved["rings"].shape[1], self.saved["added"]
            for ring, rows in zip(replay.rings, self.saved["rings"], strict=True):
                ring[:size].copy_(rows)
            replay.ring_ends[:, :size] = self.saved["ends"].numpy()
            replay.size.fill_(size)
            if size:
                last = replay.ring_ends[:, (replay.added - 1) % replay.capacity]
                last[last == 0] = 2  # its episode does not go on
            torch.set_rng_state(self.saved["random"][0])
            torch.cuda.set_rng_state_all(self.saved["random"][1 : 1 + torch.cuda.device_count()])
            for name, num_bytes in self.saved["logs"].items():
                os.truncate(self.folder / name, num_bytes)
        self.state, self.replay = state, replay

    def report(self, *next_command: str) -> None:
        """The last lines of a run; exit status 1 if a seed diverged."""
        print(f"finished in {(time.time() - self.started) / 60:.1f} min: {self.summary()}")
        print("next:", shlex.join(next_command))
        if len(self.live) < len(self.seeds):
            raise SystemExit("error: some seeds diverged; their last checkpoints are kept")


def train_offline(algorithm: ALGORITHM, state: dict, replay: Replay, run: Run) -> None:
    """--offline-steps updates on the dataset, several a call, with evaluations in between."""
    args = run.args
    updates = update_loop(algorithm, state, replay, args, args.offline_steps)
    run.between_steps(args.offline_steps, [updates])
    with tqdm(desc="offline", initial=run.step, total=args.offline_steps, disable=None) as bar:
        while run.step < args.offline_steps:
            pauses = UPDATES_PER_CALL, args.log_every, args.eval_every  # a call ends at their multiples
            count = min(args.offline_steps - run.step, *(every - run.step % every for every in pauses))
            updates(run.step + 1, count)
            run.step += count
            run.gradient_step += count
            run.between_steps(args.offline_steps, [updates])
            bar.update(count)
    run.log_evaluation()


def pick_device(args: Args) -> str:
    if args.device == "cuda" and not torch.cuda.is_available():
        fail("--device cuda: there is no CUDA device here; use --device cpu or auto")
    return "cuda" if args.device != "cpu" and torch.cuda.is_available() else "cpu"


def read_resume(args: Args) -> tuple[Args, dict | None]:
    """The options and the state of the run that --resume names."""
    if args.resume is None:
        return args, None
    if args != Args(resume=args.resume):
        fail("--resume goes on with the run's own options; leave out all others")
    folder = Path(args.resume).resolve()
    files = [*folder.glob("resume.pt"), *folder.glob("seed*/resume.pt")]
    if len(files) != 1:
        fail(f"--resume {folder}: found {len(files)} resume.pt; a run has one until it is finished")
    saved = load("--resume", files[0], "finished")
    if saved["script"] != SCRIPT:
        fail(f"--resume {folder}: is a run of {saved['script']}.py")
    if saved["finished"]:
        fail(f"--resume {folder}: this run is finished")
    return Args(**saved["args"]), saved | {"folder": files[0].parents[1]}


def main(args: Args) -> None:
    # Data and start
    args, saved = read_resume(args)
    env, device = open_env(args.env), pick_device(args)
    dataset = load_dataset(args, env)

    # Agent and replay
    shape = {"obs_dim": env.observation_space.shape[0], "action_dim": env.action_space.shape[0]}
    shape |= {name: getattr(args, name) for name in ("hidden_dim", "num_critics", "layer_norm")}
    algorithm, run = SAC(args, **shape), Run(args, shape, dataset, None, saved)
    replay = Replay(args, shape, dataset, 0, device)
    state = saved["state"] if saved else stack([algorithm.init(seed) for seed in run.seeds])
    state = tree_map(lambda tensor: tensor.to(device), state)
    torch.manual_seed(args.seed)
    torch.set_float32_matmul_precision("high")  # TF32 on CUDA

    # Training
    with run:
        run.restore(state, replay)
        train_offline(algorithm, state, replay, run)
    next_command = ["python", "online_finetune_sac.py"]
    for name in ("env", "seed", "num_seeds", "gamma", "runs_dir"):
        if getattr(args, name) != getattr(Args, name):
            next_command += [f"--{name.replace('_', '-')}", str(getattr(args, name))]
    run.report(*next_command)


if __name__ == "__main__":
    os.environ.setdefault("PYDANTIC_ERRORS_INCLUDE_URL", "0")  # no link in tyro's box
    main(tyro.cli(Args, description=__doc__.split("\n\n")[0]))
