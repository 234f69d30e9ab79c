"""Soft actor-critic from scratch: the baseline that every finetuned policy is compared with.

SAC learns a stochastic policy and an ensemble of critics from its own experience, and is paid for
keeping its actions random (maximum entropy). Nothing is pretrained here. With --dataset the logged
transitions may be mixed into the batches (RLPD), still without pretraining.

Paper: Haarnoja et al. 2018, "Soft Actor-Critic Algorithms and Applications" (arXiv 1812.05905).
Options: the Q-filter; optimistic actions of O3F; the policy constraint of TD3-C (arXiv 2303.17396);
symmetric sampling of RLPD (Ball et al. 2023, arXiv 2302.02948).

Objective
    critic   L(phi) = sum_e mean_B (Q_e(s, a) - y)^2                                  critic_loss
             y = r + gamma (1 - terminated) (min_e Q'_e(s', a') - alpha log pi(a'|s'))    eqs. (5)-(6)
    actor    L(theta) = sum_B w (alpha log pi(a|s) - min_e Q_e(s, a)) / sum_B w       actor_loss, eq. (7)
             w = 1, or --q-filter-weight where Q(s, a) is under the threshold   (Q-filter)
             + lambda (d^2 - epsilon),  d^2 = mean_B |mu(s) - mu'(s)|^2         (TD3-C, eqs. 4-5)
    alpha    L(alpha) = alpha (entropy - target entropy)                              update, eq. (18)
    lambda   L(lambda) = lambda (epsilon - d^2),  lambda >= 0                         update
    targets  phi' <- (1 - tau) phi' + tau phi, and the same for the policy's copy     update
    acting   a ~ pi(s), or the best of N draws from N(a, sigma^2) by mean_e Q + omega std_e Q
                                                                       select_action, O3F algorithm 1

Symbols and shapes: S seeds, E critics, B batch, O observation, A action, N candidates.
    Everything carries the seed axis first: obs (S, B, O), action (S, B, A) in [-1, 1], Q (S, E, B).

Reads   nothing, or --dataset (a Minari or D4RL dataset; see --help).
Writes  runs/<env>/sac_scratch[-<tag>]/seed<k>/: config.json, eval.csv (one row an episode, return in
        the environment's undiscounted units), metrics.csv, TensorBoard events, checkpoint.pt; and with
        --save-dataset one seed's whole experience as a Minari dataset.

Differs from online_finetune_sac.py: the first --warmup-steps actions are uniformly random, because
there is no policy worth following yet; there is no checkpoint to start from.

Deviations: the critics' hidden layers have a LayerNorm without scale and shift (--no-layer-norm for
the paper's); the policy's log standard deviation is squashed into [-5, 2]; the constraint, which TD3-C
states for a deterministic policy, is on the squashed policy means, summed over action dimensions, with
lambda = exp(log_dual) under its own Adam (the paper leaves the parametrisation open).

Run, a minute on two CPU cores (return at 3,000 steps: about 100-250):
    python sac_scratch.py --online-steps 3000 --warmup-steps 500 --eval-every 1000
Run, the baseline curve (ten seeds; one GPU is advised):
    python sac_scratch.py --num-seeds 10
"""

from __future__ import annotations

import copy
import csv
import hashlib
import json
import math
import os
import platform
import shutil
import subprocess
import sys
import time
import warnings
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass, fields
from importlib.metadata import version
from pathlib import Path
from typing import Literal, NamedTuple, NoReturn

import gymnasium as gym
import numpy as np
import torch
import torch.nn as nn
import torch.nn.functional as F
import tyro
from torch import Tensor
from torch.func import functional_call, grad_and_value
from tqdm import tqdm

ALGORITHM = "sac"  # the family of checkpoints that fit each other
LOG_STD_MIN, LOG_STD_MAX = -5.0, 2.0  # CleanRL's range for the policy's log standard deviation
ADAM_BETA1, ADAM_BETA2, ADAM_EPS = 0.9, 0.999, 1e-8  # Kingma & Ba 2015


@dataclass
class Args:
    # experiment
    env: str = "Hopper-v4"  # Gymnasium environment id; actions are in [-1, 1] inside, rescaled at its edge
    seed: int = 1  # first seed
    num_seeds: int = 1  # seeds trained together in one process: seed, seed + 1, ...
    device: Literal["auto", "cpu", "cuda"] = "auto"  # auto: CUDA when there is one
    compile: Literal["auto", "on", "off"] = "auto"  # compile the update (and CUDA graphs); auto: on CUDA only
    runs_dir: str = "runs"  # results go to <runs-dir>/<env>/<script>[-<tag>]/seed<k>/
    overwrite: bool = False  # replace a run of the same settings
    # data
    dataset: str | None = None  # D4RL .hdf5 file, Minari folder or Minari id, looked up in this order: path, local Minari cache, bundled datasets/, download; default: the bundled one, where data are needed
    save_dataset: str | None = None  # write the first seed's experience as this Minari id, e.g. hopper/medium-replay-v0
    # evaluation
    eval_every: int = 5_000  # steps between evaluations of the deterministic policy (step 0 and the last included)
    eval_episodes: int = 5  # episodes an evaluation, each on its own environment
    # optimisation
    batch_size: int = 256  # transitions a seed and update
    gamma: float = 0.99  # discount a step
    tau: float = 0.005  # step of the targets towards their networks, an update
    actor_lr: float = 3e-4  # Adam's step size
    critic_lr: float = 3e-4  # Adam's step size
    alpha_lr: float = 3e-4  # Adam's step size for the log temperature
    num_critics: int = 2  # critics; the minimum over all is used (SAC-N)
    layer_norm: bool = True  # LayerNorm in the critics' hidden layers
    hidden_dim: int = 256  # width of the two hidden layers
    # online
    online_steps: int = 250_000  # environment steps a seed
    warmup_steps: int = 5_000  # steps that act without updating; uniformly random where nothing was pretrained
    updates_per_step: int = 1  # gradient updates an environment step
    replay: Literal["append", "online", "ratio"] | None = None  # batches from offline and online rows alike, online rows only, or a fixed ratio; default: ratio if --offline-ratio is given, append if there are offline data, else online
    offline_ratio: float | None = None  # share of offline rows in a batch, in [0, 1] (RLPD: 0.5)
    offline_ratio_end: float | None = None  # anneal --offline-ratio linearly to this over the online steps
    replay_capacity: int = 1_000_000  # online transitions kept a seed
    # optimistic actions (O3F)
    num_candidates: int = 0  # 0: the policy's action; 1: it plus noise; N: the best of N noisy draws by the critics
    candidate_std: float = 0.2  # standard deviation of the candidates around the policy's action, action units in [-1, 1]
    optimism: float = 0.0  # weight of the critics' standard deviation in a candidate's score (UCB)
    # Q-filter
    q_filter_percentile: float = 0.0  # policy updates ignore the batch's rows whose Q is under this percentile, in [0, 100); 0: off
    q_filter_value: float | None = None  # a fixed threshold on Q instead of a percentile
    q_filter_weight: float = 0.0  # weight of the filtered rows: 0 drops them, a small value downweights
    q_filter_actions: Literal["data", "policy"] = "data"  # whose Q is compared: the batch's actions or the policy's
    # policy constraint (TD3-C)
    epsilon: float = math.inf  # bound on the squared distance between the policy's mean action and its target copy's; inf: off
    dual_lr: float = 1e-2  # Adam's step size for the log dual variable


class Batch(NamedTuple):
    obs: Tensor  # (S, B, O)
    action: Tensor  # (S, B, A) in [-1, 1]
    reward: Tensor  # (S, B)
    next_obs: Tensor  # (S, B, O)
    terminated: Tensor  # (S, B) 1 where the task ended: no value after it
    truncated: Tensor  # (S, B) 1 where only the clock ended it: bootstraps


class StackedLinear(nn.Module):
    """Independent linear layers side by side: (stack, B, in) -> (stack, B, out).

    `generators` holds one CPU generator a seed, and each seed owns `copies` neighbouring layers, so
    a seed's initial weights do not depend on the seeds beside it. PyTorch's default initialisation.
    """

    def __init__(self, generators: list[torch.Generator], copies: int, in_dim: int, out_dim: int):
        super().__init__()
        bound = 1 / math.sqrt(in_dim)

        def uniform(*shape: int) -> nn.Parameter:
            draws = [torch.empty(copies, *shape).uniform_(-bound, bound, generator=g) for g in generators]
            return nn.Parameter(torch.cat(draws))

        self.weight = uniform(in_dim, out_dim)
        self.bias = uniform(1, out_dim)

    def forward(self, x: Tensor) -> Tensor:
        if self.weight.shape[2] == 1:  # a matrix with one column: multiply and sum is the faster kernel
            return (x * self.weight.mT).sum(2, keepdim=True) + self.bias
        return torch.bmm(x, self.weight) + self.bias  # baddbmm would first copy the bias to the output


class MLP(nn.Module):
    """Two hidden ReLU layers, with LayerNorm (no scale, no shift) before each ReLU if asked."""

    def __init__(self, generators, copies, in_dim, hidden_dim, out_dim, layer_norm):
        super().__init__()
        self.layers = nn.ModuleList(
            StackedLinear(generators, copies, i, o)
            for i, o in ((in_dim, hidden_dim), (hidden_dim, hidden_dim), (hidden_dim, out_dim))
        )
        self.layer_norm = layer_norm

    def forward(self, x: Tensor) -> Tensor:
        for layer in self.layers[:-1]:
            x = layer(x)
            x = F.relu(F.layer_norm(x, x.shape[-1:]) if self.layer_norm else x)
        return self.layers[-1](x)


class Critic(nn.Module):
    """E critics a seed: obs (S, B, O), action (S, B, A) -> Q (S, E, B)."""

    def __init__(self, generators, obs_dim, action_dim, hidden_dim, num_critics, layer_norm):
        super().__init__()
        self.num_critics = num_critics
        self.mlp = MLP(generators, num_critics, obs_dim + action_dim, hidden_dim, 1, layer_norm)

    def forward(self, obs: Tensor, action: Tensor) -> Tensor:
        x = torch.cat([obs, action], 2)[:, None].expand(-1, self.num_critics, -1, -1).flatten(0, 1)
        return self.mlp(x).view(len(obs), self.num_critics, -1)


class GaussianActor(nn.Module):
    """Tanh-Gaussian policy: obs (S, B, O) -> mean and log_std (S, B, A), before the tanh."""

    def __init__(self, generators, obs_dim, action_dim, hidden_dim):
        super().__init__()
        self.mlp = MLP(generators, 1, obs_dim, hidden_dim, 2 * action_dim, layer_norm=False)

    def forward(self, obs: Tensor) -> tuple[Tensor, Tensor]:
        mean, log_std = self.mlp(obs).chunk(2, -1)
        log_std = LOG_STD_MIN + 0.5 * (LOG_STD_MAX - LOG_STD_MIN) * (log_std.tanh() + 1)
        return mean, log_std


class Adam(nn.Module):
    """Adam (Kingma & Ba 2015, algorithm 1) in place on `params`, equal to torch.optim.Adam's step.

    A module, so that its moments live in the agent's state_dict; a few foreach kernels, so that it
    compiles into the same graph as the losses.
    """

    def __init__(self, params: Iterable[Tensor]):
        super().__init__()
        self.params = list(params)
        self.m = nn.ParameterList(torch.zeros_like(p) for p in self.params)
        self.v = nn.ParameterList(torch.zeros_like(p) for p in self.params)
        self.register_buffer("t", torch.zeros(()))

    def step(self, grads: Iterable[Tensor], lr: float) -> None:
        grads, m, v = list(grads), list(self.m), list(self.v)
        self.t.add_(1)
        torch._foreach_lerp_(m, grads, 1 - ADAM_BETA1)
        torch._foreach_mul_(v, ADAM_BETA2)
        torch._foreach_addcmul_(v, grads, grads, 1 - ADAM_BETA2)
        denominator = torch._foreach_sqrt(v)
        torch._foreach_div_(denominator, (1 - ADAM_BETA2**self.t).sqrt())
        torch._foreach_add_(denominator, ADAM_EPS)
        delta = torch._foreach_div(m, denominator)
        torch._foreach_mul_(delta, -lr / (1 - ADAM_BETA1**self.t))
        torch._foreach_add_(self.params, delta)


class Agent(nn.Module):
    """Everything that a checkpoint must hold: networks, targets, temperature, dual, optimisers.

    Each tensor has the seeds along its first axis (S, or S * E for the critics), or has no axis.
    """

    def __init__(self, seeds: list[int], obs_dim, action_dim, hidden_dim, num_critics, layer_norm):
        super().__init__()
        generators = [torch.Generator().manual_seed(seed) for seed in seeds]
        self.actor = GaussianActor(generators, obs_dim, action_dim, hidden_dim)
        self.critic = Critic(generators, obs_dim, action_dim, hidden_dim, num_critics, layer_norm)
        self.target_actor, self.target_critic = copy.deepcopy(self.actor), copy.deepcopy(self.critic)
        self.log_alpha = nn.Parameter(torch.zeros(len(seeds)))
        self.log_dual = nn.Parameter(torch.zeros(len(seeds)))
        self.actor_adam = Adam(self.actor.parameters())
        self.critic_adam = Adam(self.critic.parameters())
        self.alpha_adam = Adam([self.log_alpha])
        self.dual_adam = Adam([self.log_dual])
        self.requires_grad_(False)


def sample_action(mean: Tensor, log_std: Tensor, noise: Tensor) -> tuple[Tensor, Tensor]:
    """tanh(mean + std * noise) and its log-density, (S, B, A) and (S, B); arXiv 1812.05905, eq. (21).

    log(1 - tanh(x)^2) is written as 2 (log 2 - x - softplus(-2x)), which is finite for every x.
    """
    x = mean + log_std.exp() * noise
    log_normal = -0.5 * noise.square() - log_std - 0.5 * math.log(2 * math.pi)
    log_slope = 2 * (math.log(2) - x - F.softplus(-2 * x))
    return x.tanh(), (log_normal - log_slope).sum(-1)


def q_filter(q: Tensor, args: Args) -> tuple[Tensor, dict[str, Tensor]]:
    """Weights (S, B) of the policy loss: 1 where q (S, B) reaches its seed's threshold, ties kept.

    The threshold is --q-filter-value, or the --q-filter-percentile of the seed's batch (linear
    interpolation). Source: the chapter on offline-to-online finetuning, "Q-filter".
    """
    if args.q_filter_value is None and args.q_filter_percentile == 0:
        return torch.ones_like(q), {}
    if args.q_filter_value is not None:
        threshold = torch.full_like(q[:, :1], args.q_filter_value)
    else:
        threshold = torch.quantile(q, args.q_filter_percentile / 100, dim=1, keepdim=True)
    weight = torch.where(q >= threshold, 1.0, args.q_filter_weight)
    return weight, {"filter/fraction": (q < threshold).float().mean(1), "filter/threshold": threshold[:, 0]}


def optimistic_action(agent: Agent, obs: Tensor, action: Tensor, noise: Tensor, args: Args):
    """The best of N candidates around `action` (S, 1, A), by mean_e Q + omega std_e Q; O3F, algorithm 1.

    obs (S, 1, O), noise (S, N, A) standard normal. N = 1 executes that one draw, the paper's noise
    baseline. Returns the action (S, 1, A) and metrics (S,).
    """
    candidates = (action + args.candidate_std * noise).clamp(-1, 1)  # (S, N, A)
    q = agent.critic(obs.expand(-1, candidates.shape[1] + 1, -1), torch.cat([action, candidates], 1))
    score = q.mean(1) + args.optimism * q.std(1, correction=0)  # (S, 1 + N), the policy's action first
    best = score[:, 1:].argmax(1)
    chosen = candidates.take_along_dim(best[:, None, None], 1)
    advantage = (q.mean(1)[:, 1:].gather(1, best[:, None]) - q.mean(1)[:, :1])[:, 0]
    distance = (chosen - action).square().sum((1, 2)).sqrt()
    return chosen, {"candidates/q_advantage": advantage, "candidates/distance": distance}


def select_action(agent: Agent, obs: Tensor, args: Args) -> tuple[Tensor, dict[str, Tensor]]:
    """The action to execute while training: obs (S, 1, O) -> (S, 1, A)."""
    mean, log_std = agent.actor(obs)
    action, _ = sample_action(mean, log_std, torch.randn_like(mean))
    if args.num_candidates == 0:
        return action, {}
    noise = torch.randn(mean.shape[0], args.num_candidates, mean.shape[2], device=mean.device)
    return optimistic_action(agent, obs, action, noise, args)


def best_action(agent: Agent, obs: Tensor) -> Tensor:
    """The deterministic action that evaluations execute: obs (S, B, O) -> (S, B, A)."""
    return agent.actor(obs)[0].tanh()


def critic_loss(params: dict[str, Tensor], agent: Agent, batch: Batch, noise: Tensor, args: Args):
    """Soft Bellman error, eqs. (5)-(6); returns its sum over seeds, (metrics, q (S, E, B))."""
    alpha = agent.log_alpha.exp()[:, None]
    next_action, next_log_prob = sample_action(*agent.actor(batch.next_obs), noise)
    next_q = agent.target_critic(batch.next_obs, next_action).amin(1)  # (S, B)
    target_q = batch.reward + args.gamma * (1 - batch.terminated) * (next_q - alpha * next_log_prob)
    q = functional_call(agent.critic, params, (batch.obs, batch.action))  # (S, E, B)
    loss = (q - target_q[:, None]).square().mean(2).sum(1)  # (S,)
    metrics = {"loss/critic": loss, "q/data": q.mean((1, 2)), "q/target": target_q.mean(1)}
    return loss.sum(), (metrics, q)


def actor_loss(
    params: dict[str, Tensor], agent: Agent, batch: Batch, noise: Tensor, args: Args, data_q: Tensor
):
    """Eq. (7), Q-filtered and constrained; data_q (S, B) is min_e Q of the batch's actions."""
    alpha = agent.log_alpha.exp()[:, None]
    mean, log_std = functional_call(agent.actor, params, (batch.obs,))
    action, log_prob = sample_action(mean, log_std, noise)
    q = agent.critic(batch.obs, action).amin(1)  # (S, B)

    weight, filter_metrics = q_filter(data_q if args.q_filter_actions == "data" else q.detach(), args)
    loss = (weight * (alpha * log_prob - q)).sum(1) / weight.sum(1).clamp(min=1e-6)  # (S,)
    metrics = {"q/policy": q.mean(1), "policy/entropy": -log_prob.mean(1), **filter_metrics}

    if args.epsilon < math.inf:
        target_mean = agent.target_actor(batch.obs)[0]
        distance = (mean.tanh() - target_mean.tanh()).square().sum(2).mean(1)  # (S,)
        loss = loss + agent.log_dual.exp() * (distance - args.epsilon)
        metrics["constraint/distance"] = distance
    return loss.sum(), {"loss/actor": loss, **metrics}


def update(agent: Agent, batch: Batch, args: Args) -> dict[str, Tensor]:
    """One update of everything, in place. Returns metrics, (S,) each."""
    noise = torch.randn(2, *batch.action.shape, device=batch.action.device)

    params = dict(agent.critic.named_parameters())
    grads, (_, (metrics, q)) = grad_and_value(critic_loss, has_aux=True)(params, agent, batch, noise[0], args)
    agent.critic_adam.step(grads.values(), args.critic_lr)

    params = dict(agent.actor.named_parameters())
    grads, (_, actor_metrics) = grad_and_value(actor_loss, has_aux=True)(
        params, agent, batch, noise[1], args, q.amin(1)
    )
    agent.actor_adam.step(grads.values(), args.actor_lr)
    metrics |= actor_metrics

    alpha, target_entropy = agent.log_alpha.exp(), -batch.action.shape[2]
    agent.alpha_adam.step([alpha * (metrics["policy/entropy"] - target_entropy)], args.alpha_lr)
    metrics["policy/alpha"] = alpha
    if args.epsilon < math.inf:
        dual = agent.log_dual.exp()  # falls while the constraint is slack, grows while it is violated
        agent.dual_adam.step([dual * (args.epsilon - metrics["constraint/distance"])], args.dual_lr)
        metrics["constraint/dual"] = dual

    torch._foreach_lerp_(list(agent.target_critic.parameters()), list(agent.critic.parameters()), args.tau)
    torch._foreach_lerp_(list(agent.target_actor.parameters()), list(agent.actor.parameters()), args.tau)
    return metrics


# ---- plumbing: the same text in every script ----

BUNDLED = Path(__file__).resolve().parent / "datasets"
DEFAULT_DATASETS = {"Hopper": "hopper/medium-replay-v0"}  # what --dataset is when it is not given
D4RL_SCORES = {  # undiscounted returns of a random and of an expert policy (D4RL, Fu et al. 2020)
    "HalfCheetah": (-280.178953, 12135.0),
    "Hopper": (-20.272305, 3234.3),
    "Walker2d": (1.629008, 4592.3),
    "Ant": (-325.6, 3879.7),
}
POSITIVE = "num_seeds eval_every eval_episodes batch_size num_critics hidden_dim offline_steps online_steps "
POSITIVE += "updates_per_step replay_capacity actor_lr critic_lr alpha_lr dual_lr epsilon tau"
RANGES = {
    **{name: ("above 0", lambda x: x > 0) for name in POSITIVE.split()},
    **{name: ("at least 0", lambda x: x >= 0) for name in ("seed", "warmup_steps", "num_candidates")},
    **{name: ("in [0, 1]", lambda x: 0 <= x <= 1) for name in ("offline_ratio", "offline_ratio_end", "gamma")},
    "candidate_std": ("finite and at least 0", lambda x: 0 <= x < math.inf),
    "optimism": ("finite", lambda x: abs(x) < math.inf),
    "q_filter_percentile": ("in [0, 100)", lambda x: 0 <= x < 100),
    "q_filter_value": ("finite", lambda x: abs(x) < math.inf),
    "q_filter_weight": ("in [0, 1]", lambda x: 0 <= x <= 1),
}
UNTAGGED = (  # settings that do not change what is learned, or that the run's name tells otherwise
    "env seed num_seeds device compile runs_dir overwrite dataset save_dataset eval_every eval_episodes "
    "checkpoint"
).split()
TAG_NAMES = {"offline_steps": "offline", "online_steps": "online", "offline_ratio": "ratio", "replay": ""}
TAG_NAMES |= {"q_filter_percentile": "qf", "q_filter_value": "qv", "q_filter_weight": "qw"}
TAG_NAMES |= {"q_filter_actions": "qf-", "num_candidates": "n", "candidate_std": "std", "epsilon": "eps"}


def fail(message: str) -> NoReturn:
    """Bad input: one line on stderr, exit status 2."""
    print(f"error: {message}", file=sys.stderr)
    raise SystemExit(2)


def check_args(args: Args) -> None:
    """Ends the program with one line if an argument is out of range; touches no file."""
    for field in fields(args):
        value = getattr(args, field.name)
        what, accepts = RANGES.get(field.name, ("", None))
        if accepts and value is not None and not accepts(value):
            fail(f"--{field.name.replace('_', '-')} {value}: must be {what}")
    if args.device == "cuda" and not torch.cuda.is_available():
        fail("--device cuda: no CUDA device is available here; use --device cpu or auto")
    try:
        gym.spec(args.env)
    except (gym.error.Error, ModuleNotFoundError) as error:
        fail(f"--env {args.env}: Gymnasium knows no such environment ({str(error).splitlines()[0]})")


def check_replay(args: Args, has_data: bool) -> None:
    """Settles --replay and --offline-ratio, which depend on each other and on there being data."""
    if args.replay is None:
        args.replay = "ratio" if args.offline_ratio is not None else "append" if has_data else "online"
    if args.replay == "ratio" and args.offline_ratio is None:
        args.offline_ratio = 0.5
    if args.replay != "ratio" and args.offline_ratio is not None:
        fail(f"--offline-ratio {args.offline_ratio}: needs --replay ratio, not {args.replay}")
    if args.offline_ratio_end is not None and args.offline_ratio is None:
        fail(f"--offline-ratio-end {args.offline_ratio_end}: needs an --offline-ratio to start from")


# Environments


def make_env(env_id: str) -> gym.Env:
    """One environment whose actions are in [-1, 1]."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # "Hopper-v4 is out of date"
        env = gym.make(env_id, disable_env_checker=True)
    return gym.wrappers.RescaleAction(env, np.float32(-1), np.float32(1))


def make_envs(env_id: str, count: int) -> gym.vector.VectorEnv:
    """`count` environments: in processes of their own on a host with many cores, else one after the other."""
    functions = [lambda: make_env(env_id)] * count
    mode = gym.vector.AutoresetMode.SAME_STEP
    if count > 1 and len(os.sched_getaffinity(0)) >= 8:
        return gym.vector.AsyncVectorEnv(functions, autoreset_mode=mode)
    return gym.vector.SyncVectorEnv(functions, autoreset_mode=mode)


def check_spaces(env_id: str) -> tuple[int, int, np.ndarray, np.ndarray]:
    """(observation size, action size, lowest action, highest action) of an environment we can train on."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        env = gym.make(env_id)
    obs, action = env.observation_space, env.action_space
    env.close()
    if not isinstance(obs, gym.spaces.Box) or len(obs.shape) != 1:
        fail(f"--env {env_id}: observations must be vectors (a one-dimensional Box), not {obs}")
    if not isinstance(action, gym.spaces.Box) or len(action.shape) != 1 or not action.is_bounded():
        fail(f"--env {env_id}: actions must be bounded vectors (a one-dimensional Box), not {action}")
    return obs.shape[0], action.shape[0], action.low, action.high


def score_range(env_id: str, dataset: Dataset | None) -> tuple[float, float] | None:
    """Returns of a random and of an expert policy: D4RL's, else the dataset's own, else none."""
    known = D4RL_SCORES.get(env_id.split("-")[0])
    return known or (dataset.score_range if dataset else None)


# Data


class Dataset(NamedTuple):
    name: str
    env: str | None  # the environment it was recorded in, where the file says so
    rows: np.ndarray  # (rows, 2 O + A + 3) float32, in the order of Batch; actions in [-1, 1]
    returns: np.ndarray  # (episodes,) undiscounted
    dropped: int  # last transitions without a next observation
    score_range: tuple[float, float] | None
    fingerprint: str


def read_d4rl(path: Path) -> tuple[list[np.ndarray], dict, int]:
    """Columns of Batch, metadata and the number of dropped rows, from flat D4RL arrays in HDF5."""
    import h5py

    with h5py.File(path) as file:
        missing = {"observations", "actions", "rewards", "terminals"} - set(file)
        if missing:
            fail(f"--dataset {path}: no D4RL file, it lacks {', '.join(sorted(missing))}")
        obs, action, reward = (np.asarray(file[k], np.float32) for k in ("observations", "actions", "rewards"))
        terminated = np.asarray(file["terminals"], bool)
        truncated = np.asarray(file["timeouts"], bool) if "timeouts" in file else np.zeros_like(terminated)
        next_obs = np.asarray(file["next_observations"], np.float32) if "next_observations" in file else None
    if len(terminated) == 0:
        fail(f"--dataset {path}: holds no transition")
    truncated &= ~terminated
    keep = np.ones(len(terminated), bool)
    if next_obs is None:  # row i + 1 follows row i, but never across the end of an episode
        next_obs = np.concatenate([obs[1:], obs[-1:]])
        keep = ~truncated
        keep[-1] &= terminated[-1]
    columns = [obs, action, reward, next_obs, terminated, truncated]
    return [column[keep] for column in columns], {}, int((~keep).sum())


def read_minari(path: Path) -> tuple[list[np.ndarray], dict, int]:
    """Columns of Batch and metadata from a Minari dataset folder (the one that holds data/)."""
    from minari import MinariDataset

    dataset = MinariDataset(path / "data")
    columns = [[] for _ in Batch._fields]
    for episode in dataset.iterate_episodes():
        obs = np.asarray(episode.observations, np.float32)
        values = (obs[:-1], episode.actions, episode.rewards, obs[1:], episode.terminations, episode.truncations)
        for column, value in zip(columns, values, strict=True):
            column.append(np.asarray(value))
    if not columns[0]:
        fail(f"--dataset {path}: holds no episode")
    metadata = dict(dataset.storage.metadata)
    metadata["env"] = dataset.spec.env_spec.id if dataset.spec.env_spec else None
    return [np.concatenate(column) for column in columns], metadata, 0


def find_dataset(name: str) -> Path:
    """The file or folder behind --dataset: a path, the local Minari cache, datasets/, or a download."""
    from minari.storage import get_dataset_path, list_local_datasets

    path = Path(name)
    if path.suffix in (".hdf5", ".h5"):
        return path if path.is_file() else fail(f"--dataset {name}: no such file")
    folders = [path, get_dataset_path(name), BUNDLED / name]
    found = [folder for folder in folders if (folder / "data").is_dir()]
    if found:
        return found[0]
    bundled = [str(p.parent.parent.relative_to(BUNDLED)) for p in BUNDLED.glob("**/data/metadata.json")]
    available = f"available here: {', '.join(sorted({*bundled, *list_local_datasets()})) or 'none'}"
    if "/" not in name or "-v" not in name or path.exists():
        fail(f"--dataset {name}: neither a D4RL .hdf5 file nor a Minari dataset; {available}")
    import minari

    print(f"{name} is not on this machine; asking Minari's hub (offline this takes half a minute to fail)")
    try:
        minari.download_dataset(name)
    except Exception as error:  # whatever the hub's client raises, the user needs the same line
        fail(f"--dataset {name}: could not be downloaded ({type(error).__name__}); {available}")
    return get_dataset_path(name)


def load_dataset(args: Args, low: np.ndarray, high: np.ndarray, obs_dim: int) -> Dataset:
    """Reads --dataset, or the environment's bundled one, and checks that it fits the environment."""
    name = args.dataset or DEFAULT_DATASETS.get(args.env.split("-")[0])
    if name is None:
        fail(f"--dataset is missing: none is bundled for {args.env} (make one with sac_scratch.py --save-dataset)")
    path = find_dataset(name)
    try:
        columns, metadata, dropped = (read_d4rl if path.is_file() else read_minari)(path)
    except (OSError, KeyError, ValueError) as error:
        fail(f"--dataset {name}: cannot be read ({str(error).splitlines()[0]})")
    obs, action, reward, next_obs, terminated, truncated = columns
    shapes = {column.shape[1:] for column in (obs, next_obs)}, action.shape[1:]
    if shapes != ({(obs_dim,)}, low.shape):
        fail(
            f"--dataset {name}: observations {obs.shape[1:]} and actions {action.shape[1:]} do not fit "
            f"{args.env}, which has {(obs_dim,)} and {low.shape}"
        )
    recorded_in = metadata.get("env")
    if recorded_in and recorded_in.split("-")[0] != args.env.split("-")[0]:
        fail(f"--dataset {name}: recorded in {recorded_in}, not in {args.env}")
    action = 2 * (action - low) / (high - low) - 1
    rows = np.concatenate([c.reshape(len(c), -1).astype(np.float32) for c in (obs, action, *columns[2:])], 1)
    if not np.isfinite(rows).all():
        fail(f"--dataset {name}: holds values that are not finite")
    if np.abs(action).max() > 1 + 1e-4:
        fail(f"--dataset {name}: actions leave the bounds of {args.env}")
    ends = np.flatnonzero(terminated | truncated.astype(bool))
    starts = np.concatenate([[0], ends[:-1] + 1]) if len(ends) else np.zeros(1, int)
    returns = np.add.reduceat(reward.astype(np.float64), starts)
    scores = metadata.get("ref_min_score"), metadata.get("ref_max_score")
    short = Path(name).stem if path.is_file() else path.name.rsplit("-v", 1)[0]
    fingerprint = hashlib.sha256(rows.tobytes()).hexdigest()[:16]
    scores = scores if None not in scores else None
    return Dataset(short, recorded_in, rows, returns, dropped, scores, fingerprint)


class ReplayTable:
    """Every transition in one table on the device: the offline rows once, then one ring a seed.

    A batch is one gather of row numbers (S, B), so the replay strategies differ only in how numbers
    are drawn: "append" uniformly from offline rows and the seed's ring together, "online" from the
    ring, "ratio" with the first share * B rows of a batch offline (RLPD's symmetric sampling at 0.5).
    """

    def __init__(self, offline: np.ndarray | None, num_seeds, obs_dim, action_dim, capacity, replay, device):
        self.sizes = [obs_dim, action_dim, 1, obs_dim, 1, 1]
        self.num_offline = 0 if offline is None or replay == "online" else len(offline)
        self.num_seeds, self.capacity, self.replay = num_seeds, capacity, replay
        self.rows = torch.zeros(self.num_offline + num_seeds * capacity, sum(self.sizes), device=device)
        if self.num_offline:
            self.rows[: self.num_offline] = torch.as_tensor(offline)
        self.rings = self.rows[self.num_offline :].view(num_seeds, capacity, -1)
        self.added = 0  # transitions a seed, the overwritten ones included
        self.size = torch.zeros((), dtype=torch.int64, device=device)  # online rows a seed
        self.offline_share = torch.zeros((), device=device)  # of a batch, for "ratio"
        self.ring_start = self.num_offline + capacity * torch.arange(num_seeds, device=device)[:, None]

    def add(self, obs, action, reward, next_obs, terminated, truncated) -> None:
        """Stores one transition a seed; arrays of shape (S, ...) as in Batch."""
        columns = (obs, action, reward[:, None], next_obs, terminated[:, None], truncated[:, None])
        row = torch.from_numpy(np.concatenate(columns, 1, dtype=np.float32))
        self.rings[:, self.added % self.capacity] = row.to(self.rows.device, non_blocking=True)
        self.added += 1
        self.size.fill_(min(self.added, self.capacity))

    def draw(self, batch_size: int) -> Tensor:
        """Row numbers (S, B) of a batch, drawn on the device."""
        number = torch.randint(2**62, (self.num_seeds, batch_size), device=self.rows.device)
        if self.replay == "append":
            number = number % (self.num_offline + self.size)
            return torch.where(number < self.num_offline, number, number - self.num_offline + self.ring_start)
        online = self.ring_start + number % self.size.clamp(min=1)
        if self.replay == "online":
            return online
        column = torch.arange(batch_size, device=number.device)
        return torch.where(column < (self.offline_share * batch_size).round(), number % self.num_offline, online)

    def gather(self, number: Tensor) -> Batch:
        obs, action, reward, next_obs, terminated, truncated = self.rows[number].split(self.sizes, -1)
        return Batch(obs, action, reward[..., 0], next_obs, terminated[..., 0], truncated[..., 0])

    def sample(self, batch_size: int) -> Batch:
        return self.gather(self.draw(batch_size))

    def experience(self, seed_index: int) -> np.ndarray:
        """One seed's online rows, oldest first."""
        ring = self.rings[seed_index, : min(self.added, self.capacity)].cpu().numpy()
        return np.roll(ring, -(self.added % self.capacity), 0) if self.added > self.capacity else ring


# Speed


class Updates:
    """`update` on fresh batches, as fast as the device allows, with running sums of its metrics.

    On CUDA the whole step (draw, gather, losses, gradients, optimisers, targets) is compiled into one
    graph and replayed as a CUDA graph, `unroll` updates a launch; on a CPU it runs eagerly unless
    --compile on. Warming up for the capture runs real updates, so the agent and the random state are
    put back afterwards.
    """

    def __init__(self, agent: Agent, table: ReplayTable, args: Args, unroll: int = 1):
        self.agent, self.table, self.args, self.unroll = agent, table, args, unroll
        self.sums: dict[str, Tensor] = {}
        self.count = 0
        self.one = self.update_once
        on_cuda = table.rows.is_cuda
        if args.compile == "on" or (args.compile == "auto" and on_cuda):
            self.one = torch.compile(self.update_once, fullgraph=True)
        self.launch = self.run
        if on_cuda and args.compile != "off":
            self.launch = self.capture()

    def update_once(self) -> dict[str, Tensor]:
        return update(self.agent, self.table.sample(self.args.batch_size), self.args)

    def run(self) -> None:
        for _ in range(self.unroll):
            for name, value in self.one().items():
                if name not in self.sums:
                    self.sums[name] = torch.zeros_like(value)
                self.sums[name].add_(value)

    def capture(self) -> Callable[[], None]:
        state, random_state = [t.clone() for t in self.agent.state_dict().values()], torch.cuda.get_rng_state()
        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            for _ in range(3):
                self.run()
        torch.cuda.current_stream().wait_stream(stream)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            self.run()
        for tensor, value in zip(self.agent.state_dict().values(), state, strict=True):
            tensor.copy_(value)
        torch.cuda.set_rng_state(random_state)
        for value in self.sums.values():
            value.zero_()
        return graph.replay

    def __call__(self) -> None:
        self.launch()
        self.count += self.unroll

    def read(self) -> dict[str, np.ndarray]:
        """Means (S,) of the metrics since the last call; waits for the device."""
        means = {name: (value / max(self.count, 1)).cpu().numpy() for name, value in self.sums.items()}
        for value in self.sums.values():
            value.zero_()
        self.count = 0
        return means


# Evaluation


class Evaluation(NamedTuple):
    returns: np.ndarray  # (S, episodes) undiscounted
    lengths: np.ndarray  # (S, episodes) steps
    q_bias: np.ndarray  # (S,) mean of Q(s0, best action) minus the episode's discounted return


def evaluate(agent: Agent, envs: gym.vector.VectorEnv, args: Args, gradient_step: int, env_step: int) -> Evaluation:
    """Episodes of the deterministic policy, all at once, one an environment; draws nothing from torch.

    Episodes are seeded by (seed, steps so far, episode), so each evaluation sees new starts, and a
    finetuning's evaluation at step 0 repeats the last one of its pretraining.
    """
    shape, device = (args.num_seeds, args.eval_episodes), agent.log_alpha.device
    steps = (gradient_step, env_step)
    keys = [(args.seed + i, *steps, j) for i in range(shape[0]) for j in range(shape[1])]
    obs, _ = envs.reset(seed=[int(np.random.SeedSequence(key).generate_state(1)[0]) for key in keys])
    first_obs = torch.as_tensor(obs, dtype=torch.float32, device=device).view(*shape, -1)
    first_q = agent.critic(first_obs, best_action(agent, first_obs)).amin(1).cpu().numpy()
    returns, discounted, lengths = np.zeros((3, len(keys)))
    running, discount = np.ones(len(keys), bool), 1.0
    while running.any():
        device_obs = torch.as_tensor(obs, dtype=torch.float32, device=device).view(*shape, -1)
        action = best_action(agent, device_obs).flatten(0, 1).cpu().numpy()
        obs, reward, terminated, truncated, _ = envs.step(action)
        returns += running * reward
        discounted += running * discount * reward
        lengths += running
        discount *= args.gamma
        running &= ~(terminated | truncated)
    bias = (first_q - discounted.reshape(shape)).mean(1)
    return Evaluation(returns.reshape(shape), lengths.reshape(shape), bias)


def diagnose(agent: Agent, reference: Agent, table: ReplayTable, args: Args) -> dict[str, np.ndarray]:
    """Q of random actions and drift from the reference policy, on rows that a generator of its own draws."""
    generator = torch.Generator().manual_seed(args.seed)
    available = table.num_offline + min(table.added, table.capacity)
    if available == 0:
        return {}
    number = torch.randint(available, (args.num_seeds, args.batch_size), generator=generator).to(table.rows.device)
    online = number - table.num_offline + table.ring_start
    batch = table.gather(torch.where(number < table.num_offline, number, online))
    action = torch.rand(batch.action.shape, generator=generator).to(number.device) * 2 - 1
    drift = (best_action(agent, batch.obs) - best_action(reference, batch.obs)).square().sum(2).mean(1)
    q = agent.critic(batch.obs, action).mean((1, 2))
    return {"q/random": q.cpu().numpy(), "policy/drift": drift.cpu().numpy()}


# Runs on disk


def write_atomically(path: Path, write: Callable[[Path], None]) -> None:
    """A reader sees the old file or the new one, never a part."""
    temporary = path.with_name(path.name + ".part")
    write(temporary)
    with open(temporary, "rb+") as file:
        os.fsync(file.fileno())
    os.replace(temporary, path)


def run_name(args: Args, script: str, dataset: str | None, source: str | None) -> str:
    """<script>[-<dataset>][-from-<source>][-<option><value>...], options that are not at their default."""
    parts = [script, dataset, f"from-{source}" if source else None]
    for field in fields(args):
        value = getattr(args, field.name)
        if field.name in UNTAGGED or value == field.default:
            continue
        if isinstance(value, int) and value and value % 1000 == 0:
            value = f"{value // 1000}k"
        parts.append(f"{TAG_NAMES.get(field.name, field.name.replace('_', '-'))}{value}")
    return "-".join(part for part in parts if part)


class RunLog:
    """The run's folders, one a seed: config.json, eval.csv, metrics.csv, TensorBoard events, checkpoint.pt."""

    def __init__(self, args: Args, script: str, name: str, config: dict):
        self.args, self.started = args, time.time()
        self.folder = Path(args.runs_dir) / args.env / name
        self.seeds = [args.seed + i for i in range(args.num_seeds)]
        self.folders = [self.folder / f"seed{seed}" for seed in self.seeds]
        existing = [str(folder) for folder in self.folders if folder.exists()]
        if existing and not args.overwrite:
            fail(f"--runs-dir {args.runs_dir}: {existing[0]} exists; --overwrite replaces it")
        versions = {p: version(p) for p in ("torch", "gymnasium", "mujoco", "minari", "numpy")}
        git = ["git", "-C", str(Path(__file__).parent), "rev-parse", "HEAD"]
        commit = subprocess.run(git, capture_output=True, text=True).stdout.strip() or None
        self.config = {"script": script, "run": name, "algorithm": ALGORITHM, "env": args.env, **config}
        self.config |= {"args": asdict(args), "num_seeds": args.num_seeds, "git_commit": commit}
        self.config |= {"versions": {"python": platform.python_version(), **versions}, "started": self.started}
        for folder in self.folders:
            shutil.rmtree(folder, ignore_errors=True)
            folder.mkdir(parents=True)
            (folder / "eval.csv").write_text(
                "phase,gradient_step,env_step,episode,return,length,normalized_score,seconds\n"
            )
            (folder / "metrics.csv").write_text("phase,gradient_step,env_step,name,value\n")
        self.set_status("running")
        from torch.utils.tensorboard import SummaryWriter  # slow to import, and --help needs none

        self.writers = [SummaryWriter(str(folder)) for folder in self.folders]

    def set_status(self, status: str) -> None:
        """running, finished, interrupted or failed."""
        for seed, folder in zip(self.seeds, self.folders, strict=True):
            config = {**self.config, "seed": seed, "status": status, "seconds": time.time() - self.started}
            text = json.dumps(config, indent=1, default=str)
            write_atomically(folder / "config.json", lambda path, text=text: path.write_text(text))

    def write(self, phase, gradient_step, env_step, evaluation: Evaluation, metrics, scores) -> None:
        """One evaluation of every seed: a row an episode in eval.csv, a row a metric in metrics.csv."""
        low, high = scores or (math.nan, math.nan)
        normalized = 100 * (evaluation.returns - low) / (high - low)
        metrics = {**metrics, "q/bias": evaluation.q_bias, "eval/return": evaluation.returns.mean(1)}
        metrics |= {"eval/length": evaluation.lengths.mean(1), "eval/normalized_score": normalized.mean(1)}
        where = [phase, gradient_step, env_step]
        seconds = round(time.time() - self.started, 1)
        for i, folder in enumerate(self.folders):
            rows = zip(evaluation.returns[i], evaluation.lengths[i].astype(int), normalized[i], strict=True)
            rows = [[*where, j, *row, seconds] for j, row in enumerate(rows)]
            rows = [["" if value != value else value for value in row] for row in rows]
            values = {name: float(value[i]) for name, value in metrics.items()}
            with open(folder / "eval.csv", "a", newline="") as file:
                csv.writer(file, lineterminator="\n").writerows(rows)
            with open(folder / "metrics.csv", "a", newline="") as file:
                csv.writer(file, lineterminator="\n").writerows([*where, *item] for item in values.items())
            for name, value in values.items():
                step = env_step if phase == "online" else gradient_step
                self.writers[i].add_scalar(f"{phase}/{name}", value, step)
            self.writers[i].flush()

    def save(self, agent: Agent, phase: str, gradient_step: int, env_step: int, shape: dict) -> None:
        """checkpoint.pt of every seed: tensors, numbers and strings only."""
        state = {name: tensor.cpu() for name, tensor in agent.state_dict().items()}
        for i, (seed, folder) in enumerate(zip(self.seeds, self.folders, strict=True)):
            slices = {n: (t.unflatten(0, (len(self.seeds), -1))[i] if t.dim() else t).clone() for n, t in state.items()}
            checkpoint = {"format": 1, "algorithm": ALGORITHM, "shape": shape, "agent": slices, "phase": phase}
            checkpoint |= {"gradient_step": gradient_step, "env_step": env_step, "seed": seed}
            checkpoint |= {k: self.config[k] for k in ("script", "run", "env", "args", "dataset")}
            write_atomically(folder / "checkpoint.pt", lambda path, c=checkpoint: torch.save(c, path))


def train_online(agent, table: ReplayTable, log: RunLog, shape: dict, args: Args, gradient_step: int, scores) -> None:
    """Act, launch the update, step the environments while the device works, store; evaluate in between."""
    seeds, random_warmup = log.seeds, gradient_step == 0
    envs, eval_envs = make_envs(args.env, len(seeds)), make_envs(args.env, len(seeds) * args.eval_episodes)
    reference, updates = copy.deepcopy(agent), Updates(agent, table, args, unroll=args.updates_per_step)
    rng, device = np.random.default_rng(args.seed), table.rows.device
    obs, _ = envs.reset(seed=seeds)
    acting: dict[str, list[Tensor]] = {}
    progress = tqdm(total=args.online_steps, unit="step", desc="online", mininterval=1)
    for step in range(args.online_steps + 1):
        if step % args.eval_every == 0 or step == args.online_steps:
            evaluation = evaluate(agent, eval_envs, args, gradient_step, step)
            metrics = {**updates.read(), **diagnose(agent, reference, table, args)}
            metrics |= {name: torch.stack(v).mean(0).cpu().numpy() for name, v in acting.items()}
            acting.clear()
            log.write("online", gradient_step, step, evaluation, metrics, scores)
            log.save(agent, "online", gradient_step, step, shape)
            progress.set_postfix_str(f"return {evaluation.returns.mean():.0f}")
        if step == args.online_steps:
            break
        if random_warmup and step < args.warmup_steps:
            action = rng.uniform(-1, 1, (len(seeds), shape["action_dim"])).astype(np.float32)
        else:
            device_obs = torch.as_tensor(obs, dtype=torch.float32, device=device)[:, None]
            action, acted = select_action(agent, device_obs, args)
            action = action[:, 0].cpu().numpy()
            for name, value in acted.items():
                acting.setdefault(name, []).append(value)
        if step >= args.warmup_steps and (table.replay == "append" or table.added >= args.batch_size):
            if args.offline_ratio is not None:
                end = args.offline_ratio if args.offline_ratio_end is None else args.offline_ratio_end
                table.offline_share.fill_(args.offline_ratio + (end - args.offline_ratio) * step / args.online_steps)
            updates()
            gradient_step += args.updates_per_step
        next_obs, reward, terminated, truncated, info = envs.step(action)
        final_obs = next_obs.copy()
        for i in np.flatnonzero(terminated | truncated):
            final_obs[i] = info["final_obs"][i]
        table.add(obs, action, reward, final_obs, terminated, truncated)
        obs = next_obs
        progress.update()
    progress.close()
    envs.close()
    eval_envs.close()


def write_minari(name: str, rows: np.ndarray, sizes: list[int], env_id: str, low, high, **metadata) -> None:
    """Rows of a ReplayTable, in order, as a Minari dataset; an unfinished last episode counts as truncated.

    Stored as float32 and gzipped (a third of Minari's own size); plain Minari loads it.
    """
    import h5py
    import minari
    from minari.data_collector import EpisodeBuffer

    obs, action, reward, next_obs, terminated, truncated = np.split(rows, np.cumsum(sizes)[:-1], 1)
    truncated[-1] = 1 - terminated[-1]
    ends = np.flatnonzero(terminated[:, 0] + truncated[:, 0]) + 1
    action = low + (action + 1) / 2 * (high - low)
    episodes = [
        EpisodeBuffer(
            observations=np.concatenate([obs[a:b], next_obs[b - 1 : b]]),
            actions=action[a:b].astype(np.float32),
            rewards=reward[a:b, 0],
            terminations=terminated[a:b, 0].astype(bool),
            truncations=truncated[a:b, 0].astype(bool),
        )
        for a, b in zip([0, *ends[:-1]], ends, strict=True)
    ]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Minari asks for an author's address and a link
        dataset = minari.create_dataset_from_buffers(name, episodes, env=env_id, **metadata)
    path = dataset.storage.data_path / "main_data.hdf5"

    def compress(target: Path) -> None:
        with h5py.File(path) as source, h5py.File(target, "w", libver="latest", track_order=True) as file:
            for key, group in source.items():
                copy_of = file.create_group(key)
                copy_of.attrs.update(group.attrs)
                for field, values in group.items():
                    copy_of.create_dataset(field, data=values[()], compression="gzip", shuffle=True)

    write_atomically(path, compress)
    dataset.storage.update_metadata({"dataset_size": dataset.storage.get_size()})
    print(f"wrote {name}: {len(rows):,} transitions, {len(episodes):,} episodes, {path.stat().st_size / 1e6:.1f} MB")


def main(args: Args) -> None:
    check_args(args)
    if args.save_dataset and args.online_steps > args.replay_capacity:
        fail(f"--save-dataset {args.save_dataset}: --replay-capacity must hold all --online-steps")
    check_replay(args, has_data=args.dataset is not None)
    obs_dim, action_dim, low, high = check_spaces(args.env)
    dataset = load_dataset(args, low, high, obs_dim) if args.replay != "online" else None
    script = Path(__file__).stem
    name = run_name(args, script, dataset.name if dataset else None, None)
    config = {"dataset": None, "checkpoint": None, "offline_steps": 0, "online_steps": args.online_steps}
    log = RunLog(args, script, name, config)
    device = "cuda" if torch.cuda.is_available() and args.device != "cpu" else "cpu"
    torch.manual_seed(args.seed)
    torch.set_float32_matmul_precision("high")
    shape = dict(obs_dim=obs_dim, action_dim=action_dim, hidden_dim=args.hidden_dim, num_critics=args.num_critics, layer_norm=args.layer_norm)
    agent = Agent(log.seeds, **shape).to(device)
    capacity = min(args.replay_capacity, args.online_steps)
    table = ReplayTable(dataset.rows if dataset else None, args.num_seeds, obs_dim, action_dim, capacity, args.replay, device)
    print(log.folder)
    train_online(agent, table, log, shape, args, 0, score_range(args.env, dataset))
    if args.save_dataset:
        rows = table.experience(0)
        np.save(log.folders[0] / "rows.npy", rows)
        write_minari(args.save_dataset, rows, table.sizes, args.env, low, high, algorithm_name="SAC")
    log.set_status("finished")


if __name__ == "__main__":
    main(tyro.cli(Args))
