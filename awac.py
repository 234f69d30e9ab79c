"""Advantage-weighted actor-critic: offline, then online from the same buffer with the same objective.

An ordinary actor-critic whose policy never climbs Q by itself: it imitates the buffer's actions, the better ones
with more weight. That keeps it near the data without a model of who acted, so nothing changes at the switch.

Papers: AWAC, Nair et al. 2020 (arXiv 2006.09359); O3F, "Fine-tuning offline policies with optimistic action
selection", for the candidates and the annealing (figure 3: --awac-lambda-end 0.1 --anneal abrupt or linear).

Objective
    critic  L(phi) = sum_e mean_B (Q_e(s, a) - y)^2                              critic_loss, AWAC's Bellman error
            y = r + gamma (1 - terminated) min_e Q'_e(s', a'),  a' ~ pi(s')
    actor   L(theta) = -sum_B w v log pi(a|s) / sum_B w                          actor_loss, AWAC's policy update
            A = min_e Q_e(s, a) - min_e Q_e(s, a_pi),  a_pi ~ pi(s)              update, one draw for V(s)
            v = B softmax_B(A / lambda), or with --awac-weights exp min(exp(A / lambda), 100)
            w = 1, but --q-filter-weight where Q is under the threshold          q_filter
    acting  a ~ pi(s), or the best of N draws from N(a, sigma^2) by mean_e Q + omega std_e Q      select_action, O3F

The paper derives weights exp(A / lambda) / Z(s) and drops Z(s). softmax, as in the authors' code, divides by the
batch's mean instead: every batch weighs the same, even where V(s) is off by a constant, but a row's weight depends on
the rows beside it. exp compares a row with its own V(s) only, but must be clipped, and batches with low A count for
little. weight/effective_share is the share of rows that count.

Symbols and shapes: S seeds, E critics, B batch, O observation, A action, N candidates. The seed axis
comes first everywhere: obs (S, B, O), action (S, B, A) in [-1, 1], reward and A (S, B), Q (S, E, B).
A prime marks the target network; sigma is --candidate-std, omega --optimism.

Reads   --dataset (Minari or D4RL; by default the bundled one), with --offline-steps 0 a checkpoint of its own.
Writes  runs/<env>/awac-<dataset>[-<tag>]/seed<k>/: config.json, eval.csv (a row an episode; return is
        undiscounted, in the environment's units), metrics.csv, TensorBoard events, checkpoint.pt, which this
        script continues from with --offline-steps 0.

Differs from iql.py: Q of the policy's own actions stands in the target and for V(s); rewards are as they come.

Deviations: 2x256 networks (the authors' MuJoCo policy has 4x256); batches of 256 (1,024: softmax is less greedy in
small ones); no weight decay (1e-4 on the policy); lambda 1 (their MuJoCo script: 2). The standard deviation starts
at 1, its logarithm clamped to [-5, 2]; theirs starts at 0.05, by a sigmoid in [-6, 0], so our first few thousand
updates bootstrap from broad noise. Draws are clipped before the critics see them; the density is not.

Run, one minute on a CPU core (return about 520):
    python awac.py --offline-steps 2000 --eval-every 1000
Run, in full: pretraining, then AWAC online:
    python awac.py --num-seeds 10
    python awac.py --num-seeds 10 --offline-steps 0 --online-steps 50000
"""

from __future__ import annotations

import copy
import hashlib
import io
import json
import math
import os
import re
import shutil
import signal
import subprocess
import sys
import time
import warnings
from collections import Counter
from collections.abc import Callable, Iterable
from concurrent.futures import BrokenExecutor, ProcessPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, fields
from functools import cache, partial
from importlib.metadata import version
from multiprocessing import connection, get_context
from pathlib import Path
from typing import Literal, NamedTuple, NoReturn

import gymnasium as gym
import minari
import numpy as np
import torch
import torch.nn as nn
import torch.nn.functional as F
import tyro
from torch import Tensor
from torch.func import functional_call, grad_and_value
from tqdm import tqdm

ALGORITHM = "awac"  # the family of checkpoints that fit each other
LOG_STD_MIN, LOG_STD_MAX = -5.0, 2.0  # CleanRL's range for the policy's log standard deviation
MAX_WEIGHT = 100.0  # of a row in the policy's loss, as in the code of IQL and of CORL's AWAC


@dataclass
class Args:
    # experiment
    env: str = "Hopper-v4"  # Gymnasium id; actions are in [-1, 1] inside and rescaled at its edge
    seed: int = 1  # first seed
    num_seeds: int = 1  # seeds trained together: seed, seed + 1, ...
    device: Literal["auto", "cpu", "cuda"] = "auto"  # auto: CUDA when there is one
    compile: Literal["auto", "on", "off"] = "auto"  # compile the update; auto: on CUDA, and where a CPU gains by it
    runs_dir: str = "runs"  # results go to <runs-dir>/<env>/<script>[-<tag>]/seed<k>/
    overwrite: bool = False  # replace a run of the same settings
    resume: str | None = None  # folder of a run that was cut (above its seeds): goes on with the run's own options
    checkpoint_every: float = 1.0  # minutes between saves of what --resume goes on from
    # data
    checkpoint: str | None = None
    """checkpoint.pt or a run's folder (seed k continues from its seed k; a lone one serves all seeds).
    Default: the newest finished offline run of --env under --runs-dir"""
    dataset: str | None = None
    """D4RL .hdf5 file, Minari folder or Minari id; looked up as a path, in the local Minari cache, in
    datasets/, then downloaded. Default: the bundled one, where data are needed"""
    # evaluation
    eval_every: int = 5_000  # steps between evaluations; the first and the last step are always evaluated
    eval_episodes: int = 5  # episodes an evaluation, of the deterministic policy
    # optimisation
    offline_steps: int = 100_000  # gradient updates on the dataset
    batch_size: int = 256  # transitions a seed and update
    gamma: float = 0.99  # discount a step
    tau: float = 0.005  # share of the networks that moves into their targets, an update
    actor_lr: float = 3e-4  # Adam's step size
    critic_lr: float = 3e-4  # Adam's step size
    policy_delay: int = 1  # critic updates for each update of the policy
    num_critics: int = 2  # critics a seed; a minimum over them is used
    layer_norm: bool = False  # LayerNorm in the critics
    hidden_dim: int = 256  # width of the two hidden layers
    # online
    online_steps: int = 0  # environment steps a seed
    warmup_steps: int = 0  # first steps that act without updating; at random if nothing was pretrained
    updates_per_step: int = 1  # gradient updates an environment step
    replay: Literal["append", "online", "ratio"] | None = None
    """batches from offline and online rows alike, from online rows only, or with a fixed share of offline
    rows. Default: ratio if --offline-ratio is given, else append if there are offline data, else online"""
    offline_ratio: float | None = None  # share of offline rows in a batch, in [0, 1]; with ratio: 0.5
    offline_ratio_end: float | None = None  # anneal --offline-ratio linearly to this over the online steps
    replay_capacity: int = 1_000_000  # online transitions kept a seed
    # optimistic actions (O3F)
    num_candidates: int = 0  # 0: the policy's action; 1: one noisy draw; N: the best of N noisy draws
    candidate_std: float = 0.2  # standard deviation of the draws, in units of actions in [-1, 1]
    optimism: float = 0.0  # weight of the critics' standard deviation in a draw's score (UCB)
    # advantage-weighted actor-critic
    awac_lambda: float = 1.0  # temperature of the policy's weights, in units of discounted return
    awac_lambda_end: float | None = None  # what --anneal brings --awac-lambda to
    awac_weights: Literal["softmax", "exp"] = "softmax"  # normalised over the batch, or exponentials clipped at 100
    # annealing
    anneal: Literal["none", "abrupt", "linear"] = "none"
    """how a coefficient gets to its _end online: at the first step, or linearly over the online steps"""
    # Q-filter
    q_filter_percentile: float = 0.0  # leave rows out of the policy loss under this percentile of Q; 0: off
    q_filter_value: float | None = None  # a fixed threshold on Q instead, in units of discounted return
    q_filter_weight: float = 0.0  # weight of the rows under the threshold: 0 drops them
    q_filter_actions: Literal["data", "policy"] = "data"  # Q of the batch's actions or of the policy's


class Batch(NamedTuple):
    obs: Tensor  # (S, B, O)
    action: Tensor  # (S, B, A) in [-1, 1]
    reward: Tensor  # (S, B)
    next_obs: Tensor  # (S, B, O)
    terminated: Tensor  # (S, B) 1 where the task ended: no value after it
    truncated: Tensor  # (S, B) 1 where only the clock ended it: bootstraps


class Critic(nn.Module):
    """E critics a seed: obs (S, B, O), action (S, B, A) -> Q (S, E, B)."""

    def __init__(self, generators, obs_dim, action_dim, hidden_dim, num_critics, layer_norm):
        super().__init__()
        self.num_critics = num_critics
        self.mlp = MLP(generators, num_critics, obs_dim + action_dim, hidden_dim, 1, layer_norm)

    def forward(self, obs: Tensor, action: Tensor) -> Tensor:
        x = torch.cat([obs, action], 2)[:, None].expand(-1, self.num_critics, -1, -1).flatten(0, 1)
        return self.mlp(x).view(len(obs), self.num_critics, -1)


class ClippedGaussianActor(nn.Module):
    """Gaussian around a tanh, draws clipped to [-1, 1]: obs (S, B, O) -> mean (S, B, A), log_std (S, 1, A).

    One standard deviation for all states, as in the code of IQL and AWAC; it starts at 1, as IQL's does.
    """

    def __init__(self, generators, obs_dim, action_dim, hidden_dim):
        super().__init__()
        self.mlp = MLP(generators, 1, obs_dim, hidden_dim, action_dim, layer_norm=False)
        self.log_std = nn.Parameter(torch.zeros(len(generators), 1, action_dim))

    def forward(self, obs: Tensor) -> tuple[Tensor, Tensor]:
        return self.mlp(obs).tanh(), self.log_std.clamp(LOG_STD_MIN, LOG_STD_MAX)


class Agent(nn.Module):
    """Everything that a checkpoint must hold: networks, target, optimisers.

    Each tensor has the seeds along its first axis (S, or S * E for the critics), or has no axis.
    """

    def __init__(self, seeds: list[int], obs_dim, action_dim, hidden_dim, num_critics, layer_norm):
        super().__init__()
        generators = [torch.Generator().manual_seed(seed) for seed in seeds]
        self.actor = ClippedGaussianActor(generators, obs_dim, action_dim, hidden_dim)
        self.critic = Critic(generators, obs_dim, action_dim, hidden_dim, num_critics, layer_norm)
        self.target_critic = copy.deepcopy(self.critic)
        self.shape = {"obs_dim": obs_dim, "action_dim": action_dim, "hidden_dim": hidden_dim}
        self.shape |= {"num_critics": num_critics, "layer_norm": layer_norm}
        self.register_buffer("annealed", torch.zeros(()), persistent=False)  # 0 at the start of --anneal, 1 at its end
        self.actor_adam = Adam(self.actor.parameters())
        self.critic_adam = Adam(self.critic.parameters())
        self.requires_grad_(False)


def log_prob(mean: Tensor, log_std: Tensor, action: Tensor) -> Tensor:
    """Log-density of given actions (S, B, A) -> (S, B) under the Gaussian, before its draws are clipped."""
    noise = (action - mean) / log_std.exp()
    return (-0.5 * noise.square() - log_std - 0.5 * math.log(2 * math.pi)).sum(-1)


def draw_action(agent: Agent, obs: Tensor, noise: Tensor) -> Tensor:
    """The policy's action (S, B, A) for standard normal noise (S, B, A), clipped to [-1, 1]."""
    mean, log_std = agent.actor(obs)
    return (mean + log_std.exp() * noise).clamp(-1, 1)


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
    noise = torch.randn(obs.shape[0], 1 + args.num_candidates, agent.shape["action_dim"], device=obs.device)
    action = draw_action(agent, obs, noise[:, :1])
    if args.num_candidates == 0:
        return action, {}
    return optimistic_action(agent, obs, action, noise[:, 1:], args)


def best_action(agent: Agent, obs: Tensor) -> Tensor:
    """The deterministic action that evaluations execute: obs (S, B, O) -> (S, B, A)."""
    return agent.actor(obs)[0]


def critic_loss(params: dict[str, Tensor], agent: Agent, batch: Batch, noise: Tensor, args: Args):
    """Bellman error of the policy; returns its sum over seeds, (metrics, q (S, E, B))."""
    next_action = draw_action(agent, batch.next_obs, noise)
    next_q = agent.target_critic(batch.next_obs, next_action).amin(1)  # (S, B)
    target_q = batch.reward + args.gamma * (1 - batch.terminated) * next_q
    q = functional_call(agent.critic, params, (batch.obs, batch.action))  # (S, E, B)
    loss = (q - target_q[:, None]).square().mean(2).sum(1)  # (S,)
    metrics = {"loss/critic": loss, "q/data": q.mean((1, 2)), "q/target": target_q.mean(1)}
    return loss.sum(), (metrics, q)


def actor_loss(params: dict[str, Tensor], agent: Agent, batch: Batch, data_q: Tensor, policy_q: Tensor, args: Args):
    """Advantage-weighted regression, Q-filtered; data_q, policy_q (S, B): min_e Q of the batch's actions, of pi's."""
    mean, log_std = functional_call(agent.actor, params, (batch.obs,))
    exponent = (data_q - policy_q) / scheduled(agent, args.awac_lambda, args.awac_lambda_end)
    if args.awac_weights == "softmax":
        weight = exponent.shape[1] * exponent.softmax(1)
    else:
        weight = exponent.exp().clamp(max=MAX_WEIGHT)
    keep, filter_metrics = q_filter(data_q if args.q_filter_actions == "data" else policy_q, args)
    loss = -(keep * weight * log_prob(mean, log_std, batch.action)).sum(1) / keep.sum(1).clamp(min=1e-6)  # (S,)
    metrics = {"loss/actor": loss, "q/policy": policy_q.mean(1), "policy/std": log_std.exp().mean((1, 2))}
    return loss.sum(), metrics | weight_metrics(weight, keep) | filter_metrics


def weight_metrics(weight: Tensor, keep: Tensor) -> dict[str, Tensor]:
    """Mean of the weights (S, B); share of rows that they and the filter's amount to: (sum w)^2 / (B sum w^2)."""
    share = keep * weight / (keep * weight).sum(1, keepdim=True).clamp(min=1e-30)
    effective = 1 / (weight.shape[1] * share.square().sum(1)).clamp(min=1)
    return {"weight/mean": weight.mean(1), "weight/effective_share": effective}


def update(agent: Agent, batch: Batch, args: Args, policy_turn: bool) -> dict[str, Tensor]:
    """One update of the critics, and of the policy on its turn, in place. Metrics are (S,) each."""
    noise = torch.randn(2, *batch.action.shape, device=batch.action.device)
    if policy_turn:  # Q of both by the critics before their step
        policy_q = agent.critic(batch.obs, draw_action(agent, batch.obs, noise[1])).amin(1)  # (S, B)

    params = dict(agent.critic.named_parameters())
    grads, (_, (metrics, q)) = grad_and_value(critic_loss, has_aux=True)(params, agent, batch, noise[0], args)
    agent.critic_adam.step(grads.values(), args.critic_lr)
    torch._foreach_lerp_(list(agent.target_critic.parameters()), list(agent.critic.parameters()), args.tau)
    if not policy_turn:
        return metrics

    params = dict(agent.actor.named_parameters())
    grads, (_, actor_metrics) = grad_and_value(actor_loss, has_aux=True)(
        params, agent, batch, q.amin(1), policy_q, args
    )
    agent.actor_adam.step(grads.values(), args.actor_lr)
    return metrics | actor_metrics


# ---- plumbing: the same text in every script ----

SCRIPT = Path(__file__).stem
BUNDLED = Path(__file__).resolve().parent / "datasets"
DEFAULT_DATASETS = {"Hopper": "hopper/medium-replay-v0"}  # what --dataset is when it is not given
D4RL_SCORES = {  # undiscounted returns of a random and of an expert policy (Fu et al. 2020, arXiv 2004.07219)
    "HalfCheetah": (-280.178953, 12135.0),
    "Hopper": (-20.272305, 3234.3),
    "Walker2d": (1.629008, 4592.3),
    "Ant": (-325.6, 3879.7),
}
COMPILE_PAYS = 5_000  # updates: on a CPU core compilation costs half a minute and saves about 10 ms an update
LIMITS = {  # of arguments, both ends included; all others must be above 0
    **dict.fromkeys(("offline_steps", "online_steps", "warmup_steps", "num_candidates", "candidate_std"), (0, 1e12)),
    **dict.fromkeys(("offline_ratio", "offline_ratio_end", "q_filter_weight", "gamma", "tau"), (0, 1)),
    **dict.fromkeys(("cql_alpha", "cql_alpha_end", "bc_alpha", "bc_alpha_end", "alpha"), (0, 1e12)),
    **dict.fromkeys(("target_noise", "exploration_noise", "beta"), (0, 1e12)),
    **dict.fromkeys(("optimism", "q_filter_value"), (-1e9, 1e9)),
    "q_filter_percentile": (0, math.nextafter(100, 0)),
    **dict.fromkeys(("expectile", "expectile_end"), (0.5, math.nextafter(1, 0))),
    "epsilon": (1e-12, math.inf),
    "dual_init": (1e-3, 1e6),
    "seed": (0, 2**31),
}
# In a run's name: options whose own name is long; those that change nothing learned, or stand elsewhere in it.
TAG_NAMES = {"offline_steps": "offline", "online_steps": "online", "offline_ratio": "ratio", "replay": ""}
TAG_NAMES |= {"q_filter_percentile": "qf", "num_candidates": "n"}
UNTAGGED = "env", "seed", "num_seeds", "device", "compile", "runs_dir", "overwrite", "dataset", "save_dataset"
UNTAGGED += "checkpoint", "eval_every", "eval_episodes", "resume", "checkpoint_every"
# What a checkpoint decides.
NETWORK_ARGS = "num_critics", "hidden_dim", "layer_norm", "network", "normalize_obs", "normalize_reward"
OTHER_PHASE_ARGS = "gamma", "offline_steps", "online_steps"  # a checkpoint decides it, or each phase has its own
OBJECTIVE_ARGS = [f.name for f in fields(Args) if f.name not in (*UNTAGGED, *NETWORK_ARGS, *OTHER_PHASE_ARGS)]
ADAM_BETA1, ADAM_BETA2, ADAM_EPS = 0.9, 0.999, 1e-8  # Kingma & Ba 2015


class StackedLinear(nn.Module):
    """Independent linear layers side by side: (stack, B, in) -> (stack, B, out).

    A seed's CPU generator draws its `copies` neighbouring layers, whatever seeds are beside it; PyTorch's defaults.
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
        sizes = in_dim, hidden_dim, hidden_dim, out_dim
        self.layers = nn.ModuleList(StackedLinear(generators, copies, *sizes[i : i + 2]) for i in range(3))
        self.layer_norm = layer_norm

    def forward(self, x: Tensor) -> Tensor:
        for layer in self.layers[:-1]:
            x = layer(x)
            x = F.relu(F.layer_norm(x, x.shape[-1:]) if self.layer_norm else x)
        return self.layers[-1](x)


class Adam(nn.Module):
    """Adam (Kingma & Ba 2015, algorithm 1) in place on `params`, equal to torch.optim.Adam's step.

    A module, so that its moments live in the agent's state_dict; a few foreach kernels, so that it
    compiles into the same graph as the losses. float32 only (torch 2.13 loses a compiled float64 `t`).
    """

    def __init__(self, params: Iterable[Tensor]):
        super().__init__()
        self.params = list(params)
        self.m = nn.ParameterList(torch.zeros_like(p) for p in self.params)
        self.v = nn.ParameterList(torch.zeros_like(p) for p in self.params)
        self.register_buffer("t", torch.zeros(()))

    def step(self, grads: Iterable[Tensor], lr: float | Tensor) -> None:
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


def fail(message: str) -> NoReturn:
    """Bad input: one line on stderr, exit status 2."""
    print(f"error: {message}", file=sys.stderr)
    raise SystemExit(2)


def check_args(args: Args) -> tuple[int, np.ndarray, np.ndarray]:
    """(observation size, lowest action, highest action) of --env; ends with one line if an argument is off."""
    for field in fields(args):
        value, (low, high) = getattr(args, field.name), LIMITS.get(field.name, (1e-12, 1e12))
        if isinstance(value, int | float) and not isinstance(value, bool) and not low <= value <= high:
            open_end = float(f"{high:.4g}") > high  # a limit one step under a round number
            rule = "above 0" if low == 1e-12 else f"in [{low}, {high:.4g}{')' if open_end else ']'}"
            fail(f"--{field.name.replace('_', '-')} {value}: must be {rule}")
        if field.name in ("candidate_std", "optimism") and value != field.default and args.num_candidates == 0:
            fail(f"--{field.name.replace('_', '-')} {value}: has no effect with --num-candidates 0")
    steps = {name: getattr(args, name) for name in ("offline_steps", "online_steps") if hasattr(args, name)}
    if not any(steps.values()):
        fail(f"--{list(steps)[-1].replace('_', '-')} 0: there is nothing to do")
    if args.device == "cuda" and not torch.cuda.is_available():
        fail("--device cuda: there is no CUDA device here; use --device cpu or auto")
    try:
        env = make_env(args.env)
    except (gym.error.Error, ImportError) as error:
        fail(f"--env {args.env}: Gymnasium cannot make it ({str(error).strip().splitlines()[0]})")
    args.env = "".join([*args.env.rpartition(":")[:2], env.spec.id])  # "module:Id-v0" imports the module first
    obs, action = env.observation_space, env.unwrapped.action_space
    if not isinstance(obs, gym.spaces.Box) or len(obs.shape) != 1 or env.spec.max_episode_steps is None:
        fail(f"--env {args.env}: must have vector observations (a one-dimensional Box, not {obs}) and a step limit")
    if not isinstance(action, gym.spaces.Box) or len(action.shape) != 1 or not action.is_bounded():
        fail(f"--env {args.env}: actions must be bounded vectors (a one-dimensional Box), not {action}")
    return obs.shape[0], action.low, action.high


def check_replay(args: Args, has_data: bool) -> str:
    """The replay strategy: --replay, or what --offline-ratio and the presence of offline data imply."""
    replay = args.replay or ("ratio" if args.offline_ratio is not None else "append" if has_data else "online")
    if replay == "online" and args.dataset and not getattr(args, "offline_steps", 0):
        fail(f"--dataset {args.dataset}: --replay online uses no logged data")
    if replay != "ratio" and args.offline_ratio is not None:
        fail(f"--offline-ratio {args.offline_ratio}: needs --replay ratio, not {replay}")
    if replay != "ratio" and args.offline_ratio_end is not None:
        fail(f"--offline-ratio-end {args.offline_ratio_end}: needs an --offline-ratio to start from")
    return replay


def check_anneal(args: Args) -> None:
    """Ends with one line if --anneal has nothing to anneal, or an _end has no --anneal."""
    ends = [field.name for field in fields(args) if field.name.endswith("_end") and field.name != "offline_ratio_end"]
    given = [name for name in ends if getattr(args, name) is not None]
    options = (" and " if given else " or ").join(f"--{name.replace('_', '-')}" for name in given or ends)
    if args.anneal != "none" and not given:
        fail(f"--anneal {args.anneal}: needs {options}, where to")
    if args.anneal == "none" and given:
        fail(f"{options}: needs --anneal abrupt or linear")
    if args.anneal != "none" and not args.online_steps:
        fail(f"--anneal {args.anneal}: needs --online-steps, which it anneals over")


def scheduled(agent: Agent, start: float, end: float | None) -> float | Tensor:
    """A coefficient of the objective under --anneal: from `start` to `end` online, as far as training has come."""
    return start if end is None else start + (end - start) * agent.annealed


def make_env(env_id: str) -> gym.Env:
    """One environment whose observations are vectors and whose actions are in [-1, 1]."""
    with suppress(ImportError):  # without this, MuJoCo writes its warnings to MUJOCO_LOG.TXT where one works
        import mujoco

        mujoco.set_mju_user_warning(lambda message: None)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # "Hopper-v4 is out of date"
        env = gym.make(env_id, disable_env_checker=True)
    if isinstance(env.observation_space, gym.spaces.Dict):  # an observation and its goal, flattened in Minari's order
        env.observation_space = gym.spaces.Dict(dict(env.observation_space))  # its keys sorted
        env = gym.wrappers.FlattenObservation(env)
    box = isinstance(env.action_space, gym.spaces.Box) and env.action_space.is_bounded()
    return gym.wrappers.RescaleAction(env, np.float32(-1), np.float32(1)) if box else env


class Replayable(gym.Wrapper):
    """Remembers how the running episode came about: its `episode`, when set, is played again, to the bit."""

    def __init__(self, env: gym.Env, name: str):
        super().__init__(env)
        self.name, self.start, self.actions = name, None, []

    def reset(self, *, seed=None, options=None):
        self.start, self.actions = self.np_random.bit_generator.state if seed is None else seed, []
        return super().reset(seed=seed, options=options)

    def step(self, action):
        self.actions.append(np.array(action))
        try:
            return super().step(action)
        except Exception as error:
            raise gym.error.Error(f"{self.name} failed ({type(error).__name__}: {error})") from error

    @property
    def episode(self) -> tuple[str, np.ndarray]:
        """Seed or random state before the reset, as JSON, and the actions since (T, A)."""
        return json.dumps(self.start), np.array(self.actions)

    @episode.setter
    def episode(self, episode: tuple[str, np.ndarray]) -> None:
        start = json.loads(episode[0])
        if isinstance(start, dict):
            self.np_random.bit_generator.state = start
        self.reset(seed=None if isinstance(start, dict) else start)
        for action in episode[1]:
            self.step(action)


def make_envs(env_id: str, seeds: list[int]) -> gym.vector.VectorEnv:
    """An environment a seed: each in a process of its own on a many-core host, else one after the other."""
    functions = [lambda s=seed: Replayable(make_env(env_id), f"the environment of seed {s}") for seed in seeds]
    mode = gym.vector.AutoresetMode.SAME_STEP
    if len(seeds) > 1 and len(os.sched_getaffinity(0)) >= 8:
        return gym.vector.AsyncVectorEnv(functions, context="fork", autoreset_mode=mode)
    return gym.vector.SyncVectorEnv(functions, autoreset_mode=mode)


class Dataset(NamedTuple):
    name: str  # short, for the run's folder
    source: str  # what --dataset was
    recorded_in: str | None  # environment id, where the file says so
    rows: np.ndarray  # (rows, 2 O + A + 3) float32, columns as in Batch, actions in [-1, 1]
    returns: np.ndarray  # (episodes,) undiscounted
    dropped: int  # last transitions of episodes that have no next observation
    scores: tuple[float, float] | None  # the file's own reference returns, random and expert
    fingerprint: str  # of the rows


def read_d4rl(path: Path) -> tuple[list[np.ndarray], dict]:
    """Columns of Batch and metadata from flat D4RL arrays in HDF5 (`timeouts` are truncations).

    Without `next_observations`, row i + 1 follows row i, but never across the end of an episode: the
    last transition of a truncated episode is dropped, and the one before it becomes the last.
    """
    import h5py

    with h5py.File(path) as file:
        optional = [key for key in ("timeouts", "next_observations") if key in file]
        missing = [key for key in ("observations", "actions", "rewards", "terminals") if key not in file]
        if missing:
            raise ValueError(f"it has no {', '.join(missing)}")
        data = {key: file[key][()] for key in ("observations", "actions", "rewards", "terminals", *optional)}
    ends = [data[key] for key in ("terminals", "timeouts") if key in data]
    if len({len(value) for value in data.values()}) > 1 or any(end.ndim != 1 for end in ends):
        raise ValueError(f"its arrays do not match: { {key: value.shape for key, value in data.items()} }")
    if any(((end != 0) & (end != 1)).any() for end in ends):
        raise ValueError("its terminals or timeouts are neither 0 nor 1")
    obs, terminated = data["observations"], data["terminals"].astype(bool)
    truncated = data.get("timeouts", np.zeros(len(terminated))).astype(bool) & ~terminated
    next_obs, drop = data.get("next_observations"), np.zeros(len(terminated), bool)
    if next_obs is None:
        next_obs, drop = np.concatenate([obs[1:], obs[-1:]]), truncated.copy()
        next_obs = np.where(terminated[:, None], obs, next_obs)  # nothing follows a terminal; its value is masked
        drop[-1:] |= ~terminated[-1:]
        truncated[:-1] |= drop[1:] & ~terminated[:-1]
    columns = [obs, data["actions"], data["rewards"], next_obs, terminated, truncated]
    return [column[~drop] for column in columns], {"dropped": int(drop.sum())}


def flatten_obs(space: gym.Space, obs: np.ndarray | dict) -> np.ndarray:
    """Observations of an episode; those of a Dict (T, ...) as vectors (T, O), like gym.wrappers.FlattenObservation."""
    if not isinstance(space, gym.spaces.Dict):
        return obs
    parts = [flatten_obs(part, obs[key]) for key, part in space.spaces.items()]
    return np.concatenate([part.reshape(len(part), -1) for part in parts], 1)


def read_minari(path: Path) -> tuple[list[np.ndarray], dict]:
    """Columns of Batch and metadata from a Minari dataset folder (the one that holds data/)."""
    dataset, episodes = minari.MinariDataset(path / "data"), []
    for e in dataset.iterate_episodes():
        obs = flatten_obs(dataset.observation_space, e.observations)
        truncated = np.append(e.truncations[:-1], not e.terminations[-1])  # an episode ends where it ends
        episodes.append((obs[:-1], e.actions, e.rewards, obs[1:], e.terminations, truncated))
    columns = [np.concatenate(column) for column in zip(*episodes, strict=True)]
    return columns, dataset.storage.metadata | {"recorded_in": dataset.env_spec and dataset.env_spec.id}


def check_contained(path: Path) -> None:
    """Raises if a dataset's files refer to others: symbolic links, HDF5's external links and external storage."""
    import h5py

    def outside(name: str, item: object) -> str | None:
        storage = isinstance(item, h5py.Dataset) and (item.is_virtual or item.external is not None)
        return name if storage or isinstance(item, h5py.ExternalLink) else None

    for part in [path] if path.is_file() else path.rglob("*"):
        if part != path and part.is_symlink():
            raise ValueError(f"{part.name} is a symbolic link")
        if h5py.is_hdf5(part):
            with h5py.File(part) as file:
                found = file.visititems_links(outside) or file.visititems(outside)
            if found:
                raise ValueError(f"{found} lies in another file")


def find_dataset(name: str) -> Path:
    """The file or folder behind --dataset: a path, the local Minari cache, datasets/, or a download."""
    path = Path(name)
    if path.is_file():
        return path
    for folder in (path, minari.storage.get_dataset_path(name), BUNDLED / name):
        if (folder / "data" / "metadata.json").is_file():
            return folder
    roots = BUNDLED, minari.storage.get_dataset_path("")
    there = {p.parents[1].relative_to(root).as_posix() for root in roots for p in root.glob("**/data/metadata.json")}
    available = f"available here: {', '.join(sorted(there)) or 'none'}"
    if not re.fullmatch(r"([\w-]+/)+[\w-]+-v\d+", name) or path.exists():
        fail(f"--dataset {name}: no D4RL .hdf5 file and no Minari dataset; {available}")
    print(f"{name} is not on this machine: asking Minari's hub (offline, that takes half a minute to fail)")
    try:
        minari.download_dataset(name)
    except Exception as error:  # whatever the hub's client raises, the user needs the same line
        fail(f"--dataset {name}: could not be downloaded ({type(error).__name__}); {available}")
    return minari.storage.get_dataset_path(name)


def load_dataset(args: Args, obs_dim: int, low: np.ndarray, high: np.ndarray) -> Dataset:
    """--dataset, or the environment's bundled one, after checking that it fits the environment."""
    task = args.env.rpartition(":")[2].rsplit("-v", 1)[0]
    name = args.dataset or DEFAULT_DATASETS.get(task)
    if name is None:
        fail(f"--dataset is needed: none is bundled for {args.env} (sac_scratch.py --save-dataset makes one)")
    path = find_dataset(name)
    try:
        check_contained(path)
        columns, metadata = (read_d4rl if path.is_file() else read_minari)(path)
        with np.errstate(over="ignore"):
            columns = [np.asarray(column, np.float32) for column in columns]
        obs, action, reward, next_obs, terminated, truncated = columns
    except Exception as error:  # whatever h5py or Minari raise on a damaged file, the user needs one line
        fail(f"--dataset {name}: cannot be read ({(str(error).splitlines() or [type(error).__name__])[0]})")
    if len(reward) == 0:
        fail(f"--dataset {name}: empty")
    if {c.shape[1:] for c in (obs, next_obs)} != {(obs_dim,)} or action.shape[1:] != low.shape or reward.ndim != 1:
        shapes = f"observations {obs.shape[1:]} and actions {action.shape[1:]}"
        fail(f"--dataset {name}: its {shapes} do not fit {args.env}, which has ({obs_dim},) and {low.shape}")
    words = re.split("[^a-z0-9]+", path.name.lower()) if path.is_file() else []  # D4RL's files tell it by their name
    named = [known for known in D4RL_SCORES if known.lower() in words]
    recorded_in = metadata.get("recorded_in") or (named[0] if named and task not in named else None)
    if recorded_in and recorded_in.rsplit("-v", 1)[0] != task:
        fail(f"--dataset {name}: recorded in {recorded_in}, not in {args.env}")
    action = (action - (high + low) / 2) / ((high - low) / 2)  # exact where the bounds are -1 and 1
    rows = np.concatenate([c.reshape(len(c), -1) for c in (obs, action, *columns[2:])], 1, dtype=np.float32)
    if not np.isfinite(rows).all() or np.abs(action).max() > 1 + 1e-4:
        fail(f"--dataset {name}: has values that are not finite, or actions outside the bounds of {args.env}")
    starts = np.concatenate([[0], np.flatnonzero(terminated + truncated) + 1])
    returns = np.add.reduceat(reward.astype(np.float64), starts[starts < len(rows)])
    scores = metadata.get("ref_min_score"), metadata.get("ref_max_score")
    fingerprint = hashlib.sha256(rows.tobytes()).hexdigest()[:16]
    path = path.resolve()
    short = re.sub(r"(?a)[^\w.-]+", "_", path.stem if path.is_file() else path.name.rsplit("-v", 1)[0])[:60]
    short += "" if BUNDLED in path.parents else f"-{fingerprint[:4]}"  # two datasets of one name stay apart
    scores = None if None in scores else scores
    return Dataset(short, name, recorded_in, rows, returns, metadata.get("dropped", 0), scores, fingerprint)


class ReplayTable:
    """Every transition in one table on the device: the offline rows once, then one ring a seed.

    A batch is one gather of row numbers (S, B), so the replay strategies differ only in how numbers
    are drawn: "append" uniformly from offline rows and the seed's ring together, "online" from the
    ring, "ratio" with the first share * B rows of a batch offline (RLPD's symmetric sampling at 0.5).
    """

    def __init__(self, offline: np.ndarray | None, seeds: int, shape: dict, capacity: int, replay: str, device):
        self.sizes = [shape["obs_dim"], shape["action_dim"], 1, shape["obs_dim"], 1, 1]
        self.num_offline = 0 if offline is None else len(offline)
        self.seeds, self.capacity, self.replay = seeds, capacity, replay
        self.rows = torch.zeros(self.num_offline + seeds * capacity, sum(self.sizes), device=device)
        if self.num_offline:
            self.rows[: self.num_offline] = torch.from_numpy(offline)
        self.rings = self.rows[self.num_offline :].view(seeds, capacity, sum(self.sizes))
        self.ring_start = self.num_offline + capacity * torch.arange(seeds, device=device)[:, None]
        self.added = 0  # transitions a seed, the overwritten ones included
        self.size = torch.zeros((), dtype=torch.int64, device=device)  # online rows a seed
        self.offline_share = torch.zeros((), device=device)  # of a batch, for "ratio"

    def add(self, obs, action, reward, next_obs, terminated, truncated) -> None:
        """Stores one transition a seed; arrays (S, ...) as in Batch."""
        columns = (obs, action, reward[:, None], next_obs, terminated[:, None], truncated[:, None])
        row = torch.from_numpy(np.concatenate(columns, 1, dtype=np.float32))
        self.rings[:, self.added % self.capacity] = row.to(self.rows.device, non_blocking=True)
        self.added += 1
        self.size.fill_(min(self.added, self.capacity))

    def draw(self, batch_size: int) -> Tensor:
        """Row numbers (S, B) of a batch, drawn on the device."""
        number = torch.randint(2**62, (self.seeds, batch_size), device=self.rows.device)
        if self.replay == "append":
            number = number % (self.num_offline + self.size)
            return torch.where(number < self.num_offline, number, number - self.num_offline + self.ring_start)
        online = number % self.size.clamp(min=1) + self.ring_start
        if self.replay == "online":
            return online
        offline = torch.arange(batch_size, device=number.device) < (self.offline_share * batch_size).round()
        return torch.where(offline, number % self.num_offline, online)

    def online_share(self) -> float:
        """Expected share of online rows in a batch."""
        size = min(self.added, self.capacity)
        in_all = {"append": size / max(self.num_offline + size, 1), "online": 1.0}
        return in_all.get(self.replay, 1 - self.offline_share.item())

    def sample(self, batch_size: int) -> Batch:
        return self.batch(self.draw(batch_size))

    def batch(self, numbers: Tensor) -> Batch:
        obs, action, reward, next_obs, terminated, truncated = self.rows[numbers].split(self.sizes, 2)
        return Batch(obs, action, reward[..., 0], next_obs, terminated[..., 0], truncated[..., 0])


def capture(function: Callable[[], None]) -> Callable[[], None]:
    """`function` as a CUDA graph, which costs the host one launch; warming up runs it a few times."""
    graph, stream = torch.cuda.CUDAGraph(), torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(3):
            function()
    torch.cuda.current_stream().wait_stream(stream)
    with torch.cuda.graph(graph):
        function()
    return graph.replay


class Loop:
    """A step that is run over and over, as fast as the device allows, with running means of its metrics.

    `function(turn)` changes `agent` in place and returns metrics (S,); `turn` is true in every `period`-th call.
    With `compiled`, torch.compile makes one graph of it; on CUDA `repeat` calls are one CUDA graph. Both run
    it for real to warm up, so the agent and the random state are put back. Compiled code draws other random
    numbers than eager code does.
    """

    def __init__(self, function: Callable[[bool], dict], agent: Agent, args: Args, compiled=False, repeat=1, period=1):
        def once(turn: bool) -> tuple[list[str], Tensor]:
            metrics = function(turn)
            return list(metrics), torch.stack(list(metrics.values())) if metrics else torch.zeros(0)

        self.once, self.names, self.sums, self.counts, self.calls = once, {}, {}, Counter(), 0
        turns = [(call + 1) % period == 0 for call in range(math.lcm(period, repeat))]
        self.patterns = [tuple(turns[i : i + repeat]) for i in range(0, len(turns), repeat)]
        self.graphs, self.device = {}, next(agent.parameters()).device  # one CUDA graph a pattern
        cuda, state = self.device.type == "cuda", copy.deepcopy(agent.state_dict())
        random_state = torch.cuda.get_rng_state() if cuda else torch.get_rng_state()
        if compiled:
            print("compiling the update, up to a minute ...", flush=True)
        joined = [{"combo_kernels": True}] if cuda else []  # small kernels launched together
        for options in [*joined, None] if compiled else []:
            try:
                self.once = torch.compile(once, fullgraph=True, options=options)
                for pattern in set(self.patterns):
                    self.run(pattern)
                break
            except Exception as error:  # no compiler, or one that fails: slower, the same algorithm
                reason = (str(error).strip().splitlines() or [""])[0]
                then = "trying without joined kernels" if options else "running eagerly"
                print(f"not compiled, {then}: {type(error).__name__}: {reason}")
                self.once = once
        if cuda and args.compile != "off":
            self.graphs = {pattern: capture(partial(self.run, pattern)) for pattern in set(self.patterns)}
        agent.load_state_dict(state)
        torch.cuda.set_rng_state(random_state) if cuda else torch.set_rng_state(random_state)
        self.read()  # forgets what the warm-up summed

    def run(self, pattern: tuple[bool, ...]) -> None:
        for turn in pattern:
            self.names[turn], values = self.once(turn)
            self.sums[turn] = values.clone() if turn not in self.sums else self.sums[turn].add_(values)

    def __call__(self) -> None:
        pattern = self.patterns[self.calls % len(self.patterns)]
        self.graphs[pattern]() if self.graphs else self.run(pattern)
        self.counts.update(pattern)
        self.calls += 1

    def read(self) -> dict[str, np.ndarray]:
        """Means (S,) of the metrics since the last call; waits for the device."""
        sums, counts = {}, Counter()
        for turn, total in self.sums.items():
            for name, row in zip(self.names[turn], total.cpu().numpy(), strict=True):
                sums[name] = sums.get(name, 0) + row
                counts[name] += self.counts[turn]
            total.zero_()
        self.counts.clear()
        return {name: sums[name] / counts[name] for name in sums if counts[name]}

    def state(self) -> tuple:
        return self.calls, dict(self.counts), self.names, self.sums

    def restore(self, calls: int, counts: dict, names: dict, sums: dict[bool, Tensor]) -> None:
        self.calls, self.counts, self.names = calls, Counter(counts), names
        for turn, total in sums.items():  # in place, where a CUDA graph adds to it
            self.sums.setdefault(turn, total.to(self.device)).copy_(total)


def update_loop(agent: Agent, table: ReplayTable, args: Args, total: int, repeat: int) -> Loop:
    """`update` on fresh batches: draw, gather, losses, gradients, optimisers and targets in one step."""
    pays = table.rows.is_cuda or total >= COMPILE_PAYS
    compiled = args.compile == "on" or (args.compile == "auto" and pays)

    def function(policy_turn: bool) -> dict[str, Tensor]:
        return update(agent, table.sample(args.batch_size), args, policy_turn)

    return Loop(function, agent, args, compiled, repeat, args.policy_delay)


class Acting:
    """`select_action` on the environments' observations (S, O), with running means of its metrics."""

    def __init__(self, agent: Agent, shape: dict, args: Args, device: str):
        self.obs = torch.zeros(args.num_seeds, 1, shape["obs_dim"], device=device)
        self.action = torch.zeros(args.num_seeds, 1, shape["action_dim"], device=device)

        def act(_: bool) -> dict[str, Tensor]:
            action, metrics = select_action(agent, self.obs, args)
            self.action.copy_(action)
            return metrics

        self.loop = Loop(act, agent, args)

    def __call__(self, obs: np.ndarray) -> np.ndarray:
        self.obs.copy_(torch.from_numpy(obs.astype(np.float32))[:, None], non_blocking=True)
        self.loop()
        return np.nan_to_num(self.action[:, 0].cpu().numpy())  # of a seed that diverged


def as_option(name: str, value: object) -> str:
    """An argument as one types it."""
    option = name.replace("_", "-")
    return f"--{option} {value}" if not isinstance(value, bool) else f"--{option}" if value else f"--no-{option}"


def next_command(script: str, run: Run, args: Args) -> str:
    """The command that continues from this run, its objective included where the same script goes on."""
    own = [name for name in OBJECTIVE_ARGS if script.startswith(SCRIPT)]
    names = [n for n in ("seed", "num_seeds", "gamma", "runs_dir", *own) if getattr(args, n) != getattr(Args, n)]
    options = "".join(f" {as_option(name, getattr(args, name))}" for name in names)
    return f"next: python {script} --env {args.env} --checkpoint {run.folder}{options}"


def write_atomically(path: Path, write: Callable[[Path], object]) -> None:
    """A reader sees the old file or the new one, never a part."""
    part = path.with_name(path.name + ".part")
    try:
        write(part)
        with open(part, "rb+") as file:
            os.fsync(file.fileno())
        os.replace(part, path)
    except BaseException:
        part.unlink(missing_ok=True)
        raise


def save_torch(state: dict, path: Path) -> None:
    """torch.save, atomically; a full disk is an OSError, as for any other file."""
    buffer = io.BytesIO()
    torch.save(state, buffer)
    write_atomically(path, lambda part: part.write_bytes(buffer.getbuffer()))


def append_rows(path: Path, rows: Iterable[list]) -> None:
    """Adds lines to a CSV in one write: all of them or none."""
    data, size = "".join(",".join(map(str, row)) + "\n" for row in rows).encode(), path.stat().st_size
    with open(path, "ab", buffering=0) as file:
        if file.write(data) != len(data):
            file.truncate(size)
            raise OSError(f"no space left for {path}")


def check_size(shape: dict, tensors: dict[str, Tensor]) -> None:
    """Raises if a file asks for larger networks than it holds, before they are allocated."""
    size = sum(tensor.untyped_storage().nbytes() for tensor in tensors.values())
    if 4 * shape["hidden_dim"] ** 2 * shape["num_critics"] > size:
        raise ValueError(f"its networks are larger than the file: {shape}")


def read_resume(args: Args) -> tuple[Args, dict | None]:
    """The options and the state of the run that --resume names; ends with one line if it cannot go on."""
    if args.resume is None:
        return args, None
    given = [f.name for f in fields(args) if f.name != "resume" and getattr(args, f.name) != f.default]
    if given:
        fail(f"--{given[0].replace('_', '-')}: --resume goes on with the run's own options; leave it out")
    folder = Path(args.resume)
    files = [*folder.glob("resume.pt"), *sorted(folder.glob("seed*/resume.pt"))]
    if len(files) != 1:
        several = f"several runs were cut there; name one of {', '.join(str(file.parent) for file in files)}"
        fail(f"--resume {folder}: {several if files else 'no resume.pt there: no run, or a finished one'}")
    try:
        state = torch.load(files[0], map_location="cpu", weights_only=True)
        script, options = state["script"], {field.name: state["args"][field.name] for field in fields(args)}
        check_size(state["shape"], state["agent"])
    except Exception as error:  # whatever torch.load raises on a damaged or foreign file
        fail(f"--resume {files[0]}: is no state of this script's runs ({type(error).__name__})")
    if script != SCRIPT:
        fail(f"--resume {folder}: is a run of {script}.py")
    return Args(**options), state | {"folder": files[0].parents[1]}


def run_name(args: Args, dataset: Dataset | None, source: dict | None) -> str:
    """<script>[-<dataset>][-<option><value>...][-from-<source>], of the options that are not at their default."""
    parts = [SCRIPT, dataset and dataset.name]
    for field in fields(args):
        value = getattr(args, field.name)
        if field.name not in UNTAGGED and value != field.default:
            name, text = TAG_NAMES.get(field.name, field.name.replace("_", "-")), str(value).removesuffix(".0")
            text = text.removesuffix("000") + "k" if isinstance(value, int) and text.endswith("000") else text
            parts.append({"True": name, "False": f"no-{name}"}.get(text, name + text))
    name = "-".join(filter(None, [*parts, source and f"from-{source['run']}"]))
    safe = re.sub(r"(?a)[^\w.-]", "_", name[:180])  # a folder's name has at most 255 bytes
    return name if name == safe else f"{safe}..{hashlib.sha256(name.encode()).hexdigest()[:16]}"


class Run:
    """A run's folders, one a seed, and where the run stands (phase, gradient_step, env_step)."""

    def __init__(self, args: Args, dataset: Dataset | None, source: dict | None, saved: dict | None = None):
        self.args, self.saved, self.started = args, saved, time.time() - (saved["seconds"] if saved else 0)
        self.device = "cuda" if args.device != "cpu" and torch.cuda.is_available() else "cpu"
        self.stopped, self.frozen = 0, {}  # signal; where a seed diverged
        self.kept, self.kept_at = 0, 0.0  # rows in resume.rows; when resume.pt was written
        self.seeds = [args.seed + i for i in range(args.num_seeds)]
        self.phase, self.gradient_step, self.env_step = "offline", source["gradient_step"] if source else 0, 0
        data = dataset._asdict() if dataset else source and source["dataset"]
        self.scores = D4RL_SCORES.get(args.env.rpartition(":")[2].rsplit("-v", 1)[0]) or (data and data["scores"])
        self.folder = saved["folder"] if saved else Path(args.runs_dir) / args.env / run_name(args, dataset, source)
        self.folders = [self.folder / f"seed{seed}" for seed in self.seeds]
        existing = [str(folder) for folder in self.folders if folder.exists()]
        if existing and not args.overwrite and not saved:
            fail(f"--runs-dir {args.runs_dir}: {existing[0]} exists; --overwrite replaces it")
        git = [shutil.which("git") or "true", "-C", str(BUNDLED.parent), "rev-parse", "HEAD"]
        commit = subprocess.run(git, capture_output=True, text=True).stdout.strip() or None
        versions = {name: version(name) for name in ("torch", "gymnasium", "mujoco", "minari", "numpy")}
        hardware = torch.cuda.get_device_name() if self.device == "cuda" else f"{os.cpu_count()} CPU cores"
        data = data and {k: v for k, v in data.items() if k not in ("rows", "returns")}
        self.config = {"script": SCRIPT, "run": self.folder.name, "algorithm": ALGORITHM, "env": args.env}
        own = {key: value for key, value in asdict(args).items() if not (source and key in NETWORK_ARGS)}
        options = {key: str(value) if value == math.inf else value for key, value in own.items()}
        self.config |= {"args": options, "num_seeds": args.num_seeds, "dataset": data, "checkpoint": source}
        self.config |= {key: getattr(args, key, 0) for key in ("offline_steps", "online_steps")}
        self.config |= {"git_commit": commit, "versions": versions, "hardware": hardware}
        self.config["command"] = saved["config"].get("command") if saved else [f"{SCRIPT}.py", *sys.argv[1:]]
        if saved and data != saved["config"]["dataset"]:
            fail(f"--resume {self.folder}: --dataset {data and data['source']} is no longer what it was")

    def describe(self, dataset: Dataset | None) -> None:
        """The start-up summary."""
        seeds = f"seeds {self.seeds[0]} to {self.seeds[-1]}" if len(self.seeds) > 1 else f"seed {self.seeds[0]}"
        print(f"{SCRIPT}: {self.args.env}, {seeds}, on {self.config['hardware']}")
        if dataset:
            quantiles = " / ".join(f"{q:.0f}" for q in np.quantile(dataset.returns, (0, 0.25, 0.5, 0.75, 1)))
            episodes = f"{len(dataset.returns):,} episodes, return min / quartiles / max {quantiles}"
            print(f"data: {dataset.source}, {len(dataset.rows):,} transitions, {episodes}")
            if dataset.dropped:
                print(f"data: {dataset.dropped} last transitions without a next observation were dropped")
            if dataset.recorded_in not in (None, self.args.env.rpartition(":")[2]):
                print(f"data: recorded in {dataset.recorded_in}, another version than {self.args.env}")
        if self.config["checkpoint"]:
            print(f"start: {self.config['checkpoint']['path']}, after {self.gradient_step:,} updates")
        if self.saved:
            print(f"resumes: at {self.saved['place']}")
        print(f"writes: {self.folder}/seed*/ (eval.csv, metrics.csv, checkpoint.pt, TensorBoard events)")

    def make_folders(self) -> None:
        for folder in self.folders:
            try:
                if folder.exists():
                    shutil.rmtree(folder)
                folder.mkdir(parents=True)
            except OSError as error:
                fail(f"--runs-dir {self.args.runs_dir}: {error.strerror} ({error.filename})")
            header = "phase,gradient_step,env_step,episode,return,length,normalized_score,seconds\n"
            (folder / "eval.csv").write_text(header)
            (folder / "metrics.csv").write_text("phase,gradient_step,env_step,name,value\n")

    def stop(self, number: int, _) -> None:
        """Handles Ctrl-C and SIGTERM: the run ends at its next step, where its state can be saved; twice, at once."""
        if os.getpid() != self.pid:  # in the process of an environment, which leaves Ctrl-C to the run
            return None if number == signal.SIGINT else os._exit(1)
        if self.stopped:
            raise KeyboardInterrupt
        self.stopped = number
        print("\nstopping at the next step ...", flush=True)

    @contextmanager
    def recording(self):
        """Makes the folders; marks the run finished, interrupted or failed, and says how to go on with it."""
        if not self.saved:
            self.make_folders()
        self.set_status("running")
        from torch.utils.tensorboard import SummaryWriter  # slow to import, and --help needs none

        self.writers, self.pid = [SummaryWriter(str(folder)) for folder in self.folders], os.getpid()
        handlers = {number: signal.signal(number, self.stop) for number in (signal.SIGINT, signal.SIGTERM)}
        again, status = f"python {SCRIPT}.py --resume {self.folder}", "failed"
        self.evaluator = Evaluator(self, self.args)
        try:
            yield
            self.evaluator.finish()
            self.set_status(status := "finished")
        except KeyboardInterrupt:
            status = "interrupted"
            print(f"\ninterrupted at {self.place()}; go on with: {again}")
            raise SystemExit(128 + self.stopped) from None
        except (gym.error.Error, BrokenExecutor, OSError) as error:
            print(file=sys.stderr)  # below the progress bar
            raise SystemExit(f"error: {error}, at {self.place()}; what was saved before is kept ({again})") from None
        finally:
            with suppress(OSError):  # of a full disk
                self.set_status(status)
            self.evaluator.pool.shutdown(cancel_futures=True)
            for number, handler in handlers.items():
                signal.signal(number, handler)
        for path in self.folders[0].glob("resume.*"):
            path.unlink()
        minutes, last = (time.time() - self.started) / 60, self.last[self.live()]
        print(f"finished in {minutes:.1f} min, last return {last.mean():.0f}; by seed {last.round().tolist()}")
        if self.frozen:
            raise SystemExit(f"error: diverged: {self.frozen}; their last good checkpoints are kept")

    def place(self) -> str:
        """Where the phase stands: gradient updates offline, environment steps online."""
        return f"{self.phase} step {self.env_step if self.phase == 'online' else self.gradient_step:,}"

    def live(self) -> list[int]:
        return [i for i, seed in enumerate(self.seeds) if seed not in self.frozen]

    def freeze(self, agent: Agent, losses: Iterable[np.ndarray] = ()) -> None:
        """Gives up the seeds whose parameters or losses (S,) are not finite: set to 0, and no longer recorded."""
        tensors = [t.unflatten(0, (len(self.seeds), -1)) for t in agent.state_dict().values() if t.dim()]
        good = torch.stack([t.flatten(1).isfinite().all(1) for t in tensors]).all(0).cpu().numpy()
        for i in np.flatnonzero(~np.logical_and.reduce([good, *map(np.isfinite, losses)])):
            if self.seeds[i] not in self.frozen:
                self.frozen[self.seeds[i]] = self.place()
                print(f"\nseed {self.seeds[i]} diverged before {self.place()}; the others go on")
            for tensor in tensors:
                tensor[i] = 0
        if len(self.frozen) == len(self.seeds):
            raise SystemExit(f"error: diverged: {self.frozen}; {self.folder} keeps the last good checkpoints")

    def set_status(self, status: str) -> None:
        for seed, folder in zip(self.seeds, self.folders, strict=True):
            now = {"seed": seed, "started": self.started, "seconds": time.time() - self.started, "pid": os.getpid()}
            now["status"] = "diverged" if seed in self.frozen else status
            text = json.dumps(self.config | now, indent=1)
            write_atomically(folder / "config.json", lambda path, text=text: path.write_text(text))

    def record(self, where: tuple, evaluation: Evaluation, metrics: dict[str, np.ndarray]) -> None:
        """Logs one evaluation, made `where` (phase, gradient step, environment step, seconds): CSVs and TensorBoard."""
        *where, seconds = where
        returns, lengths, first_q, q_bias = evaluation
        self.last = returns.mean(1)
        metrics |= {"eval/first_q": first_q, "eval/q_bias": q_bias, "eval/return": self.last}
        scores = np.full(returns.shape, "", dtype=object)
        if self.scores:
            scores = (100 * (returns - self.scores[0]) / (self.scores[1] - self.scores[0])).round(3)
            metrics["eval/normalized_score"] = scores.mean(1)
        for i in self.live():
            rows = zip(range(returns.shape[1]), returns[i].round(3), lengths[i], scores[i], strict=True)
            append_rows(self.folders[i] / "eval.csv", [[*where, *row, seconds] for row in rows])
            values = {name: float(value[i]) for name, value in metrics.items()}
            append_rows(self.folders[i] / "metrics.csv", [[*where, *item] for item in values.items()])
            for name, value in values.items():
                self.writers[i].add_scalar(f"{name}_{where[0]}", value, where[2 if where[0] == "online" else 1])
            self.writers[i].flush()

    def checkpoints(self, agent: Agent) -> list[tuple[Path | None, dict]]:
        """Path and content of each seed's checkpoint.pt, tensors as arrays; no path where the seed diverged."""
        facts = {key: self.config[key] for key in ("script", "run", "algorithm", "env", "args", "dataset")}
        facts |= {"phase": self.phase, "gradient_step": self.gradient_step, "env_step": self.env_step}
        state, count = {name: tensor.cpu() for name, tensor in agent.state_dict().items()}, len(self.seeds)
        parts, found = {name: t.chunk(count) if t.dim() else [t] * count for name, t in state.items()}, []
        for i, (seed, folder) in enumerate(zip(self.seeds, self.folders, strict=True)):
            own = {name: part[i].numpy().copy() for name, part in parts.items()}
            path = None if seed in self.frozen else folder / "checkpoint.pt"
            found.append((path, {**facts, "seed": seed, "shape": agent.shape, "agent": own}))
        return found

    def keep(self, agent: Agent, reference: Agent, table: ReplayTable, loops: list[Loop], more=dict) -> None:
        """Saves what --resume goes on from, if that is due; ends the run here if it was told to stop."""
        due = time.time() - self.kept_at >= 60 * self.args.checkpoint_every
        full = table.capacity and table.added - self.kept == table.capacity  # or the ring would lose rows
        if not (due or full or self.stopped):
            return
        self.evaluator.finish()
        self.freeze(agent)
        with open(self.folders[0] / "resume.rows", "ab") as file:  # all online rows, (steps, S, columns) float32
            file.truncate(self.kept * table.rings[:, :1].numel() * 4)
            slots = torch.arange(self.kept, table.added, device=table.rows.device) % max(table.capacity, 1)
            file.write(table.rings[:, slots].transpose(0, 1).cpu().numpy().tobytes())
            file.flush()
            os.fsync(file.fileno())
        self.kept = table.added
        logs = [folder / name for folder in self.folders for name in ("eval.csv", "metrics.csv")]
        state = {"script": SCRIPT, "args": asdict(self.args), "config": self.config, "shape": agent.shape}
        state |= {"phase": self.phase, "place": self.place(), "steps": (self.gradient_step, self.env_step)}
        state |= {"seconds": time.time() - self.started, "last": self.last.tolist(), "frozen": self.frozen}
        state |= {"agent": agent.state_dict(), "loops": [loop.state() for loop in loops], "rows": table.added}
        state["reference"] = {name: t for name, t in reference.state_dict().items() if "adam" not in name}
        state["random"] = [torch.get_rng_state(), *([torch.cuda.get_rng_state()] if self.device == "cuda" else [])]
        state["logs"] = {str(path.relative_to(self.folder)): path.stat().st_size for path in logs}
        save_torch(state | more(), self.folders[0] / "resume.pt")
        self.kept_at = time.time()
        if self.stopped:
            for path, checkpoint in self.checkpoints(agent):
                save_checkpoint(path, checkpoint)
            raise KeyboardInterrupt

    def restore(self, agent: Agent, reference: Agent, table: ReplayTable, loops: list[Loop]) -> dict | None:
        """Puts back what `keep` saved, and returns it; None if this run starts its phase itself."""
        state, self.saved = self.saved, None
        if state is None:
            return None
        agent.load_state_dict(state["agent"])
        reference.load_state_dict(state["reference"], strict=False)
        self.gradient_step, self.env_step = state["steps"]
        self.last, self.frozen, self.kept = np.array(state["last"]), state["frozen"], state["rows"]
        rows = np.fromfile(self.folders[0] / "resume.rows", np.float32, self.kept * table.rings[:, :1].numel())
        for row in rows.reshape(self.kept, len(self.seeds), sum(table.sizes)):
            obs, action, reward, next_obs, *ends = np.split(row, np.cumsum(table.sizes)[:-1], 1)
            table.add(obs, action, reward[:, 0], next_obs, *(end[:, 0] for end in ends))
        for loop, kept in zip(loops, state["loops"], strict=True):
            loop.restore(*kept)
        torch.set_rng_state(state["random"][0])
        if self.device == "cuda" and len(state["random"]) > 1:  # it may have begun on a CPU
            torch.cuda.set_rng_state(state["random"][1])
        for name, size in state["logs"].items():
            os.truncate(self.folder / name, size)
        return state


class Evaluation(NamedTuple):  # of one seed; those of several are stacked, seeds first
    returns: np.ndarray  # (episodes,) undiscounted
    lengths: np.ndarray  # (episodes,) steps
    first_q: np.ndarray  # () min_e Q(s0, best action), mean over episodes, in the environment's units
    q_bias: np.ndarray  # () first_q minus the mean discounted return


@cache
def eval_envs(env_id: str, count: int) -> list[Replayable]:
    return [Replayable(make_env(env_id), "") for _ in range(count)]


def evaluate(agent: Agent, seed: int, steps: tuple[int, int], args: Args) -> Evaluation:
    """Episodes of the deterministic policy of an agent of one seed on the CPU; draws nothing from torch.

    They are seeded by (seed, gradient and environment steps so far, episode), so each evaluation sees new
    starts, and a finetuning's evaluation at step 0 repeats the last one of its pretraining.
    """
    envs = eval_envs(args.env, args.eval_episodes)
    for env in envs:
        env.name = f"the environment of seed {seed}"
    starts = [np.random.SeedSequence((seed, *steps, j)).generate_state(1)[0] for j in range(len(envs))]
    obs = np.stack([env.reset(seed=int(start))[0] for env, start in zip(envs, starts, strict=True)])
    returns, discounted, lengths = np.zeros(len(envs)), np.zeros(len(envs)), np.zeros(len(envs), int)
    running, first_q = list(range(len(envs))), None
    while running:
        batch = torch.as_tensor(obs, dtype=torch.float32)[None]
        action = best_action(agent, batch)
        if first_q is None:
            scale = float(getattr(agent, "reward_scale", 1))  # not every objective scales the rewards
            first_q = agent.critic(batch, action).amin(1)[0].numpy() / scale
        for j in running.copy():
            obs[j], reward, terminated, truncated, _ = envs[j].step(action[0, j].numpy())
            returns[j] += reward
            discounted[j] += args.gamma ** lengths[j] * reward
            lengths[j] += 1
            if terminated or truncated:
                running.remove(j)
    return Evaluation(returns, lengths, first_q.mean(), (first_q - discounted).mean())


def save_checkpoint(path: Path | None, checkpoint: dict) -> None:
    """Writes a plain dict of tensors, numbers and strings; makes tensors of the agent's arrays, in place."""
    checkpoint["agent"] = {name: torch.from_numpy(array) for name, array in checkpoint["agent"].items()}
    if path:
        save_torch(checkpoint, path)


def evaluate_copy(path: Path | None, checkpoint: dict, args: Args) -> Evaluation:
    """Saves a seed's checkpoint and evaluates its agent."""
    save_checkpoint(path, checkpoint)
    agent = Agent([0], **checkpoint["shape"])
    agent.load_state_dict(checkpoint["agent"])
    return evaluate(agent, checkpoint["seed"], (checkpoint["gradient_step"], checkpoint["env_step"]), args)


def work_beside(run: int) -> None:
    """The first thing in a process of Evaluator: stop signals are for the run; without that process, this one ends."""
    torch.set_num_threads(1)
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)
    signal.signal(signal.SIGALRM, lambda *_: os.getppid() == run or os._exit(1))
    signal.setitimer(signal.ITIMER_REAL, 1, 1)  # looks every second


class Evaluator:
    """Saves and evaluates copies of the agents in processes of its own, one a spare core, beside training."""

    def __init__(self, run: Run, args: Args):
        self.run, self.args, self.where, self.metrics, self.results = run, args, (), {}, []
        processes = min(args.num_seeds, max(1, len(os.sched_getaffinity(0)) - 1))
        self.pool = ProcessPoolExecutor(processes, get_context("fork"), work_beside, (os.getpid(),))
        self.pool.submit(os.getpid)  # starts them

    def start(self, agent: Agent, metrics: dict[str, np.ndarray]) -> None:
        """Checkpoints and evaluation of the agent as it is now, to be logged with the metrics; one at a time."""
        self.finish()
        run, self.metrics = self.run, metrics
        self.where = (run.phase, run.gradient_step, run.env_step, round(time.time() - run.started, 1))
        run.freeze(agent, [value for name, value in metrics.items() if name.startswith("loss/")])
        for path, checkpoint in run.checkpoints(agent):
            self.results.append(self.pool.submit(evaluate_copy, path, checkpoint, self.args))

    def finish(self, wait: bool = True) -> bool:
        """Logs the evaluation under way, if it is through or `wait`; whether it did."""
        if not self.results or not (wait or all(result.done() for result in self.results)):
            return False
        results, self.results = [result.result() for result in self.results], []
        self.run.record(self.where, Evaluation(*map(np.stack, zip(*results, strict=True))), self.metrics)
        return True


def diagnose(agent: Agent, reference: Agent, table: ReplayTable, args: Args) -> dict[str, np.ndarray]:
    """Q of the policy's best action (minimum over critics) and of random ones (mean), drift from the reference."""
    if table.added == 0 and table.replay != "append":
        return {}
    with torch.random.fork_rng(devices=[table.rows.device] if table.rows.is_cuda else []):
        torch.manual_seed(args.seed)
        obs, action, *_ = table.sample(args.batch_size)
        random_q = agent.critic(obs, 2 * torch.rand_like(action) - 1).mean((1, 2))
    best = best_action(agent, obs)
    drift = (best - best_action(reference, obs)).square().sum(2).mean(1)
    found = {"q/random": random_q, "q/best": agent.critic(obs, best).amin(1).mean(1), "policy/drift": drift}
    online_share = np.full(args.num_seeds, table.online_share())
    return {name: value.cpu().numpy() for name, value in found.items()} | {"replay/online_share": online_share}


PRETRAINING = {"sac": "offline_pretrain_sac.py", "td3": "td3_bc.py"}  # what writes a family's first checkpoints


def find_checkpoints(args: Args) -> list[Path]:
    """One checkpoint.pt a seed: of --checkpoint, or of the newest finished offline run of --env."""
    folder = Path(args.checkpoint) if args.checkpoint else None
    own = hasattr(args, "offline_steps")  # such a script continues what it pretrained itself
    if folder is None:
        found = []
        for path in (Path(args.runs_dir) / args.env).glob("*/seed*/config.json"):
            config = json.loads(path.read_text())
            if "format" in config:  # of a script that is rewritten already
                continue
            offline = config["offline_steps"] and not config["online_steps"]
            fits = config["algorithm"] == ALGORITHM and (config["script"] == SCRIPT or not own)
            if offline and fits and config["status"] == "finished":
                found.append((config["started"] + config["seconds"], path.parents[1]))
        if not found:
            script = f"{SCRIPT}.py" if own else PRETRAINING[ALGORITHM]
            missing = f"{args.runs_dir}/{args.env} has no finished offline run of the {ALGORITHM} family"
            fail(f"--checkpoint is missing: {missing}; python {script} --env {args.env} makes one")
        folder = max(found)[1]
    for file in (folder, folder / "checkpoint.pt"):
        if file.is_file():
            return [file] * args.num_seeds
    wanted = [folder / f"seed{args.seed + i}" / "checkpoint.pt" for i in range(args.num_seeds)]
    there = sorted(folder.glob("seed*/checkpoint.pt"))
    wanted = there * args.num_seeds if len(there) == 1 else wanted
    for path in wanted:
        if path not in there:
            fail(f"--checkpoint {folder}: {path} does not exist (seeds there: {len(there)})")
        config = path.with_name("config.json")
        if config.is_file() and '"status": "diverged"' in config.read_text():
            fail(f"--checkpoint {folder}: {path.parent.name} diverged; name {path} to start from its last good state")
    return wanted


def load_checkpoints(args: Args, obs_dim: int, action_dim: int, saved: dict | None = None) -> tuple[Agent, dict]:
    """The stacked agent of --checkpoint, and where it came from; ends with one line if it does not fit."""
    if saved:
        return Agent([args.seed + i for i in range(args.num_seeds)], **saved["shape"]), saved["config"]["checkpoint"]
    for name in NETWORK_ARGS:
        if getattr(args, name, None) != getattr(Args, name, None):
            fail(f"{as_option(name, getattr(args, name))}: the checkpoint decides that")
    paths, states, source = find_checkpoints(args), [], None
    for path in paths:
        try:  # weights_only: a file that carries code is refused, not run
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                checkpoint = torch.load(path, map_location="cpu", weights_only=True)
            facts = {key: checkpoint[key] for key in ("algorithm", "env", "shape", "gradient_step", "run", "dataset")}
            gamma, state = checkpoint["args"]["gamma"], checkpoint["agent"]
            check_size(facts["shape"], state)
        except Exception as error:  # whatever torch.load raises on a damaged or foreign file
            fail(f"--checkpoint {path}: is no checkpoint of these scripts ({type(error).__name__})")
        has, here = {**facts, "gamma": gamma, **facts["shape"]}, {"algorithm": ALGORITHM, "env": args.env}
        here |= {"gamma": args.gamma, "obs_dim": obs_dim, "action_dim": action_dim}
        for key, value in here.items():
            if has.get(key) != value:
                fail(f"--checkpoint {path}: its {key} is {has.get(key)}, here it is {value}")
        source = source or facts
        if facts != source:
            fail(f"--checkpoint {path}: differs from {paths[0]} in network, steps, run or dataset")
        states.append(state)
    try:
        agent = Agent([args.seed + i for i in range(args.num_seeds)], **facts["shape"])
        own = {n: torch.cat([s[n] for s in states]) if t.dim() else states[0][n] for n, t in agent.state_dict().items()}
        agent.load_state_dict(own)  # not what only the last objective needs
    except (RuntimeError, KeyError, AttributeError, TypeError) as error:
        fail(f"--checkpoint {paths[0]}: its tensors do not fit (of {facts['run']}: {str(error).splitlines()[0]})")
    if checkpoint.get("script") == SCRIPT:
        before = {name: value for name, value in checkpoint["args"].items() if name in OBJECTIVE_ARGS}
        lost = [as_option(n, v) for n, v in before.items() if v != getattr(args, n) == getattr(Args, n)]
        if lost:
            print(f"note: pretrained with {' '.join(lost)}; no checkpoint passes that on, say it again to keep it")
    return agent, {**facts, "path": str(paths[0])}


def train_offline(agent: Agent, table: ReplayTable, run: Run, args: Args) -> None:
    """Gradient updates on the offline rows, with evaluations in between."""
    begun = run.saved["steps"][0] if run.saved else 0  # a multiple of 10 unless it was cut on a CPU
    unroll = math.gcd(10, args.eval_every, args.offline_steps, begun) if table.rows.is_cuda else 1
    updates, reference = update_loop(agent, table, args, args.offline_steps, unroll), copy.deepcopy(agent)
    cut, first = run.restore(agent, reference, table, [updates]), run.gradient_step
    progress = tqdm(total=args.offline_steps, initial=first, unit=" updates", desc="offline", mininterval=1)
    for step in range(first, args.offline_steps + 1, unroll):
        run.gradient_step = step
        if step > first or not cut:  # else evaluated and kept already
            if step % args.eval_every == 0 or step == args.offline_steps:
                run.evaluator.start(agent, updates.read() | diagnose(agent, reference, table, args))
            if run.evaluator.finish(wait=False):
                progress.set_postfix_str(f"return {run.last.mean():.0f}")
            run.keep(agent, reference, table, [updates])
        if step < args.offline_steps:
            updates()
            progress.update(unroll)
    progress.close()


class Collector:
    """The training environments: steps them into the table, and tells the returns of their episodes."""

    def __init__(self, args: Args, seeds: list[int]):
        self.seeds, self.envs, self.rng = seeds, make_envs(args.env, seeds), np.random.default_rng(args.seed)
        self.obs, _ = self.envs.reset(seed=seeds)
        self.running, self.ended = np.zeros(len(seeds)), [[] for _ in seeds]  # returns

    def random_action(self) -> np.ndarray:
        return self.rng.uniform(-1, 1, self.envs.action_space.shape).astype(np.float32)

    def step(self, action: np.ndarray, table: ReplayTable) -> None:
        try:
            next_obs, reward, terminated, truncated, info = self.envs.step(action)
        except (EOFError, ConnectionError):
            seeds = {process.sentinel: seed for process, seed in zip(self.envs.processes, self.seeds, strict=True)}
            gone = " and ".join(str(seeds[sentinel]) for sentinel in connection.wait([*seeds], 10))
            for process in self.envs.processes:
                process.terminate()
            self.envs.closed = True  # there is no answer to wait for
            raise gym.error.Error(f"the process of the environment of seed {gone} ended") from None
        final_obs, self.running = next_obs.copy(), self.running + reward
        for i in np.flatnonzero(terminated | truncated):
            final_obs[i] = info["final_obs"][i]
            self.ended[i].append(float(self.running[i]))
            self.running[i] = 0
        table.add(self.obs, action, reward, final_obs, terminated, truncated)
        self.obs = next_obs

    def read(self) -> dict[str, np.ndarray]:
        """Mean returns (S,) of the episodes that ended since the last time, once every seed has one."""
        if not all(self.ended):
            return {}
        returns, self.ended = np.array([np.mean(ended) for ended in self.ended]), [[] for _ in self.ended]
        return {"collect/return": returns}

    def state(self) -> dict:
        episodes = [(start, torch.from_numpy(actions)) for start, actions in self.envs.get_attr("episode")]
        state = {"rng": json.dumps(self.rng.bit_generator.state), "episodes": episodes, "ended": self.ended}
        return state | {"obs": torch.from_numpy(self.obs.copy()), "running": torch.from_numpy(self.running.copy())}

    def restore(self, state: dict) -> None:
        self.rng.bit_generator.state, self.ended = json.loads(state["rng"]), state["ended"]
        self.envs.set_attr("episode", [(start, actions.numpy()) for start, actions in state["episodes"]])
        self.obs, self.running = state["obs"].numpy(), state["running"].numpy()


def train_online(agent: Agent, table: ReplayTable, run: Run, args: Args) -> None:
    """Act, launch the update, step the environments while the device works, store; evaluate in between."""
    pretrained = bool(run.config["checkpoint"] or getattr(args, "offline_steps", 0))
    run.phase, run.env_step = "online", 0
    collector = Collector(args, run.seeds)
    updates = update_loop(agent, table, args, args.online_steps * args.updates_per_step, args.updates_per_step)
    acting, reference = Acting(agent, agent.shape, args, run.device), copy.deepcopy(agent)
    share = 0.5 if args.offline_ratio is None else args.offline_ratio
    share_end = share if args.offline_ratio_end is None else args.offline_ratio_end
    table.offline_share.fill_(share)
    anneal = getattr(args, "anneal", "none")  # not every objective has a coefficient to anneal
    if anneal == "abrupt":
        agent.annealed.fill_(1)
    loops = [updates, acting.loop]
    cut = run.restore(agent, reference, table, loops)
    if cut:
        collector.restore(cut)
    first = run.env_step
    progress = tqdm(total=args.online_steps, initial=first, unit=" steps", desc="online", mininterval=1)
    for step in range(first, args.online_steps + 1):
        run.env_step = step
        if step > first or not cut:  # else evaluated and kept already
            if step % args.eval_every == 0 or step == args.online_steps:
                metrics = updates.read() | acting.loop.read() | diagnose(agent, reference, table, args)
                run.evaluator.start(agent, metrics | collector.read())
            if run.evaluator.finish(wait=False):
                progress.set_postfix_str(f"return {run.last.mean():.0f}")
            run.keep(agent, reference, table, loops, collector.state)
        if step == args.online_steps:
            break
        action = collector.random_action() if step < args.warmup_steps and not pretrained else acting(collector.obs)
        if step >= args.warmup_steps and (table.replay == "append" or table.added >= args.batch_size):
            table.offline_share.fill_(share + (share_end - share) * step / args.online_steps)
            if anneal == "linear":
                agent.annealed.fill_(step / args.online_steps)
            updates()
            run.gradient_step += args.updates_per_step
        collector.step(action, table)
        progress.update()
    progress.close()
    collector.envs.close()


def main(args: Args) -> None:
    # Checks
    args, saved = read_resume(args)
    obs_dim, low, high = check_args(args)
    check_anneal(args)
    if args.checkpoint and args.offline_steps:
        fail(f"--checkpoint {args.checkpoint}: is continued online; say --offline-steps 0 and --online-steps")
    agent, source = None, None
    if args.offline_steps == 0:
        agent, source = load_checkpoints(args, obs_dim, len(low), saved)
    trained_on = source and source["dataset"]
    replay = check_replay(args, has_data=bool(args.offline_steps or args.dataset or trained_on))
    args.dataset = args.dataset or (trained_on and trained_on["source"])
    dataset = load_dataset(args, obs_dim, low, high) if args.offline_steps or replay != "online" else None
    run = Run(args, dataset, source, saved)

    # Agent and replay
    run.describe(dataset)
    torch.manual_seed(args.seed)
    torch.set_float32_matmul_precision("high")  # TF32 on CUDA
    if agent is None:
        agent = Agent(run.seeds, obs_dim, len(low), args.hidden_dim, args.num_critics, args.layer_norm)
    agent = agent.to(run.device)
    capacity = min(args.replay_capacity, args.online_steps)
    table = ReplayTable(dataset and dataset.rows, args.num_seeds, agent.shape, capacity, "append", run.device)

    # Training
    with run.recording():
        if args.offline_steps and not (saved and saved["phase"] == "online"):  # else it was over before the cut
            train_offline(agent, table, run, args)
        if args.online_steps:
            table.replay = replay
            train_online(agent, table, run, args)
    if args.online_steps:
        print(f"next: python plot_curves.py {args.runs_dir}")
    else:
        print(next_command("awac.py --offline-steps 0 --online-steps 50000", run, args))


if __name__ == "__main__":
    main(tyro.cli(Args, description=__doc__.split("\n\n")[0]))
