"""Updates and environment steps a second of the scripts, beside a plain PyTorch version in the same run.

The plain one is what a reader would write first: nn.Sequential networks, one for each critic,
torch.optim.Adam, autograd, a NumPy replay; one seed. All variants take turns, so that a machine whose
speed wanders treats them alike; the median over turns is printed.

    OMP_NUM_THREADS=1 python benchmarks/throughput.py                 SAC, one seed on this machine
    OMP_NUM_THREADS=1 python benchmarks/throughput.py --algorithm td3_bc
    OMP_NUM_THREADS=1 python benchmarks/throughput.py --algorithm iql, or awac
    python benchmarks/throughput.py --algorithm cql_sac --updates 10  all cores
    python benchmarks/throughput.py --algorithm o3f_select --updates-per-step 20 --updates 10
    python benchmarks/throughput.py --num-seeds 10 --device cuda --updates 2000    ten seeds on a GPU
"""

import copy
import csv
import math
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import torch
import torch.nn as nn
import torch.nn.functional as F
import tyro
from torch.utils._pytree import tree_map

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
import awac  # noqa: E402
import cql_sac  # noqa: E402
import iql  # noqa: E402
import o3f_select  # noqa: E402
import sac_scratch as sac  # noqa: E402
import td3_c  # noqa: E402


@dataclass
class Args:
    algorithm: Literal["sac", "td3_bc", "cql_sac", "iql", "awac", "o3f_select"] = "sac"  # sac: sac_scratch.py
    env: str = "Hopper-v4"  # Gymnasium id
    num_seeds: int = 1  # seeds of the script; the plain version has one
    device: str = "cpu"  # cpu or cuda
    updates: int = 100  # updates (and environment steps) a turn
    updates_per_step: int = 1  # updates an online step (O3F: 20)
    turns: int = 5  # turns of every variant
    out: str | None = None  # also write the table to this CSV


def mlp(inputs: int, outputs: int, device: str) -> nn.Sequential:
    layers = nn.Linear(inputs, 256), nn.ReLU(), nn.Linear(256, 256), nn.ReLU(), nn.Linear(256, outputs)
    return nn.Sequential(*layers).to(device)


def draw(rows: np.ndarray, sizes: list[int], device: str) -> tuple[torch.Tensor, ...]:
    return torch.from_numpy(rows[np.random.randint(len(rows), size=256)]).to(device).split(sizes, 1)


def descend(adam: torch.optim.Adam, loss: torch.Tensor) -> None:
    adam.zero_grad()
    loss.backward()
    adam.step()


@torch.no_grad()
def move(targets: list, params: list) -> None:
    for target, param in zip(targets, params, strict=True):
        target.mul_(0.995).add_(param, alpha=0.005)


class PlainSAC:
    """One seed, eager, two critic networks; the same arithmetic as sac_scratch.py without LayerNorm."""

    def __init__(self, obs_dim: int, action_dim: int, device: str):
        self.device, self.target_entropy = device, -action_dim
        self.actor = mlp(obs_dim, 2 * action_dim, device)
        self.q1, self.q2, self.t1, self.t2 = (mlp(obs_dim + action_dim, 1, device) for _ in range(4))
        self.log_alpha = torch.zeros(1, device=device, requires_grad=True)
        self.critics = [*self.q1.parameters(), *self.q2.parameters()]
        self.targets = [*self.t1.parameters(), *self.t2.parameters()]
        self.critic_adam = torch.optim.Adam(self.critics, 3e-4)
        self.actor_adam = torch.optim.Adam(self.actor.parameters(), 3e-4)
        self.alpha_adam = torch.optim.Adam([self.log_alpha], 3e-4)

    def sample(self, obs):
        mean, log_std = self.actor(obs).chunk(2, -1)
        log_std = -5 + 3.5 * (log_std.tanh() + 1)
        normal = torch.distributions.Normal(mean, log_std.exp())
        x = normal.rsample()
        return x.tanh(), (normal.log_prob(x) - 2 * (math.log(2) - x - F.softplus(-2 * x))).sum(-1)

    def update(self, rows: np.ndarray, sizes: list[int]) -> None:
        obs, action, reward, next_obs, terminated = draw(rows, sizes, self.device)
        alpha = self.log_alpha.exp().detach()
        with torch.no_grad():
            next_action, log_prob = self.sample(next_obs)
            x = torch.cat([next_obs, next_action], 1)
            next_q = torch.min(self.t1(x), self.t2(x)) - alpha * log_prob[:, None]
            target = reward + 0.99 * (1 - terminated) * next_q
        descend(self.critic_adam, self.critic_loss(obs, action, target, next_obs))
        new, log_prob = self.sample(obs)
        x = torch.cat([obs, new], 1)
        descend(self.actor_adam, (alpha * log_prob[:, None] - torch.min(self.q1(x), self.q2(x))).mean())
        descend(self.alpha_adam, -self.log_alpha.exp() * (log_prob.detach() + self.target_entropy).mean())
        move(self.targets, self.critics)

    def critic_loss(self, obs, action, target, next_obs):
        x = torch.cat([obs, action], 1)
        return F.mse_loss(self.q1(x), target) + F.mse_loss(self.q2(x), target)

    def act(self, obs):
        return self.sample(obs)[0]


class PlainCQL(PlainSAC):
    """The same arithmetic as cql_sac.py: each critic rates each of the three groups of actions in its own pass."""

    def critic_loss(self, obs, action, target, next_obs):
        loss, states = super().critic_loss(obs, action, target, next_obs), obs.repeat_interleave(10, 0)
        with torch.no_grad():
            groups = [(2 * torch.rand(len(states), action.shape[1], device=self.device) - 1, None)]
            groups += [self.sample(o.repeat_interleave(10, 0)) for o in (obs, next_obs)]
        for critic in (self.q1, self.q2):
            rated = []
            for group, log_prob in groups:
                log_density = -action.shape[1] * math.log(2) if log_prob is None else log_prob
                rated.append((critic(torch.cat([states, group], 1))[:, 0] - log_density).view(len(obs), 10))
            loss = (
                loss
                + 5 * (torch.cat(rated, 1).logsumexp(1) - critic(torch.cat([obs, action], 1))[:, 0]).mean()
            )
        return loss


class PlainTD3BC:
    """One seed, eager, two critic networks; the same arithmetic as td3_bc.py --network relu."""

    def __init__(self, obs_dim: int, action_dim: int, device: str):
        self.device, self.updates = device, 0
        self.actor, self.target_actor = (mlp(obs_dim, action_dim, device) for _ in range(2))
        self.q1, self.q2, self.t1, self.t2 = (mlp(obs_dim + action_dim, 1, device) for _ in range(4))
        self.critics = [*self.q1.parameters(), *self.q2.parameters()]
        self.targets = [*self.t1.parameters(), *self.t2.parameters()]
        self.critic_adam = torch.optim.Adam(self.critics, 3e-4)
        self.actor_adam = torch.optim.Adam(self.actor.parameters(), 3e-4)

    def act(self, obs):
        action = self.actor(obs).tanh()
        return (action + 0.1 * torch.randn_like(action)).clamp(-1, 1)

    def update(self, rows: np.ndarray, sizes: list[int]) -> None:
        obs, action, reward, next_obs, terminated = draw(rows, sizes, self.device)
        with torch.no_grad():
            noise = (0.2 * torch.randn_like(action)).clamp(-0.5, 0.5)
            x = torch.cat([next_obs, (self.target_actor(next_obs).tanh() + noise).clamp(-1, 1)], 1)
            target = reward + 0.99 * (1 - terminated) * torch.min(self.t1(x), self.t2(x))
        x = torch.cat([obs, action], 1)
        descend(self.critic_adam, F.mse_loss(self.q1(x), target) + F.mse_loss(self.q2(x), target))
        self.updates += 1
        if self.updates % 2:
            return
        new = self.actor(obs).tanh()
        q = self.q1(torch.cat([obs, new], 1))
        descend(self.actor_adam, F.mse_loss(new, action) - 2.5 * q.mean() / q.abs().mean().detach())
        move(self.targets, self.critics)
        move(list(self.target_actor.parameters()), list(self.actor.parameters()))


class PlainAWAC:
    """One seed, eager, two critic networks; the same arithmetic as awac.py."""

    def __init__(self, obs_dim: int, action_dim: int, device: str):
        self.device, self.actor = device, mlp(obs_dim, action_dim, device)
        self.log_std = torch.zeros(action_dim, device=device, requires_grad=True)
        self.q1, self.q2, self.t1, self.t2 = (mlp(obs_dim + action_dim, 1, device) for _ in range(4))
        self.critics = [*self.q1.parameters(), *self.q2.parameters()]
        self.targets = [*self.t1.parameters(), *self.t2.parameters()]
        self.critic_adam = torch.optim.Adam(self.critics, 3e-4)
        self.actor_adam = torch.optim.Adam([*self.actor.parameters(), self.log_std], 3e-4)

    def policy(self, obs):
        return torch.distributions.Normal(self.actor(obs).tanh(), self.log_std.clamp(-5, 2).exp())

    def act(self, obs):
        return self.policy(obs).sample().clamp(-1, 1)

    def imitate(self, obs, action, weight) -> None:
        descend(self.actor_adam, -(weight * self.policy(obs).log_prob(action).sum(1, keepdim=True)).mean())

    def update(self, rows: np.ndarray, sizes: list[int]) -> None:
        obs, action, reward, next_obs, terminated = draw(rows, sizes, self.device)
        with torch.no_grad():
            x = torch.cat([next_obs, self.act(next_obs)], 1)
            target = reward + 0.99 * (1 - terminated) * torch.min(self.t1(x), self.t2(x))
            x = torch.cat([obs, self.act(obs)], 1)
            policy_q = torch.min(self.q1(x), self.q2(x))
        x = torch.cat([obs, action], 1)
        q1, q2 = self.q1(x), self.q2(x)
        descend(self.critic_adam, F.mse_loss(q1, target) + F.mse_loss(q2, target))
        move(self.targets, self.critics)
        self.imitate(obs, action, len(obs) * (torch.min(q1, q2).detach() - policy_q).softmax(0))


class PlainIQL(PlainAWAC):
    """The same arithmetic as iql.py, with rewards as they come."""

    def __init__(self, obs_dim: int, action_dim: int, device: str):
        super().__init__(obs_dim, action_dim, device)
        self.value = mlp(obs_dim, 1, device)
        self.value_adam = torch.optim.Adam(self.value.parameters(), 3e-4)
        self.cosine = torch.optim.lr_scheduler.CosineAnnealingLR(self.actor_adam, 100_000)

    def update(self, rows: np.ndarray, sizes: list[int]) -> None:
        obs, action, reward, next_obs, terminated = draw(rows, sizes, self.device)
        x = torch.cat([obs, action], 1)
        with torch.no_grad():
            data_q = torch.min(self.t1(x), self.t2(x))
        advantage = data_q - self.value(obs)
        descend(self.value_adam, (torch.where(advantage > 0, 0.7, 0.3) * advantage**2).mean())
        with torch.no_grad():
            target = reward + 0.99 * (1 - terminated) * self.value(next_obs)
        descend(self.critic_adam, F.mse_loss(self.q1(x), target) + F.mse_loss(self.q2(x), target))
        move(self.targets, self.critics)
        self.imitate(obs, action, (3 * advantage.detach()).exp().clamp(max=100))
        self.cosine.step()


class PlainO3F:
    """One seed, eager, five critic networks; the same arithmetic as o3f_select.py, for the scales of main's rows:
    actions of mean 0 and deviation 0.72, rewards up to 1, so V is in [-100, 100]. Only the two target critics that
    are drawn are run."""

    def __init__(self, obs_dim: int, action_dim: int, device: str):
        self.device, self.std = device, 0.72
        self.actor, self.value = mlp(obs_dim, 2 * action_dim, device), mlp(obs_dim, 1, device)
        self.encoder = mlp(obs_dim + action_dim, 4 * action_dim, device)
        self.decoder = mlp(obs_dim + 2 * action_dim, action_dim, device)
        self.critics = nn.ModuleList(mlp(obs_dim + action_dim, 1, device) for _ in range(5))
        targets = (
            copy.deepcopy(net).requires_grad_(False) for net in (self.actor, self.decoder, self.critics)
        )
        self.t_actor, self.t_decoder, self.t_critics = targets
        vae = [*self.encoder.parameters(), *self.decoder.parameters()]
        self.actor_adam, self.vae_adam = (
            torch.optim.Adam(self.actor.parameters(), 3e-4),
            torch.optim.Adam(vae, 3e-4),
        )
        self.critic_adam = torch.optim.Adam(self.critics.parameters(), 3e-4)
        self.value_adam = torch.optim.Adam(self.value.parameters(), 3e-4)

    def decode(self, decoder, obs, latent):
        return self.std * decoder(torch.cat([obs, latent], 1))

    def act(self, obs):
        action = self.decode(self.t_decoder, obs, 2 * self.actor(obs).tanh()).clamp(-1, 1)
        action = (action + 0.2 * torch.randn(100, action.shape[1], device=self.device)).clamp(-1, 1)
        x = torch.cat([obs.expand(100, -1), action], 1)
        return action[torch.stack([critic(x) for critic in self.critics]).mean(0).argmax(0)]

    def target_q(self, obs, noise, subset):
        x = torch.cat([obs, self.decode(self.t_decoder, obs, 2 * self.t_actor(obs).tanh() + noise)], 1)
        return torch.min(*(self.t_critics[i](x) for i in subset))

    def update(self, rows: np.ndarray, sizes: list[int], policy_turn: bool = True) -> None:
        obs, action, reward, next_obs, terminated = draw(rows, sizes, self.device)
        noise = torch.randn(2, len(obs), 2 * action.shape[1], device=self.device)
        x, subset = torch.cat([obs, action], 1), np.random.choice(5, 2, replace=False)
        with torch.no_grad():
            target = reward + 0.99 * (1 - terminated) * self.value(next_obs)
        descend(self.critic_adam, sum(F.mse_loss(critic(x), target) for critic in self.critics))
        with torch.no_grad():
            target = self.target_q(obs, (0.1 * noise[0]).clamp(-0.2, 0.2), subset).clamp(-100, 100)
        value = self.value(obs)
        descend(self.value_adam, F.mse_loss(value, target))
        move(list(self.t_critics.parameters()), list(self.critics.parameters()))
        if not policy_turn:
            return
        with torch.no_grad():
            advantage = reward + 0.99 * (1 - terminated) * self.target_q(next_obs, 0, subset) - value
        mean, log_std = self.encoder(x).chunk(2, 1)
        log_std = log_std.clamp(-4, 4)
        decoded = self.decode(self.decoder, obs, mean + log_std.exp() * noise[1])
        error = ((action - decoded) / self.std).square().sum(1, keepdim=True)
        kl = (0.5 * (mean**2 + (2 * log_std).exp() - 1) - log_std).sum(1, keepdim=True)
        descend(self.vae_adam, (torch.where(advantage > 0, 0.9, 0.1) * (error + kl)).mean())
        x = torch.cat([obs, self.decode(self.t_decoder, obs, 2 * self.actor(obs).tanh())], 1)
        descend(self.actor_adam, -sum(critic(x).mean() for critic in self.critics) / 5)
        move(list(self.t_decoder.parameters()), list(self.decoder.parameters()))
        move(list(self.t_actor.parameters()), list(self.actor.parameters()))


SCRIPTS = {"sac": (sac, PlainSAC), "td3_bc": (td3_c, PlainTD3BC), "cql_sac": (cql_sac, PlainCQL)}
SCRIPTS |= {"iql": (iql, PlainIQL), "awac": (awac, PlainAWAC), "o3f_select": (o3f_select, PlainO3F)}
OPTIONS = {"td3_bc": {"alpha": 2.5}}  # td3_c.py's arm with the loss of td3_bc.py, which has no online phase


def ours(args: Args, compile: str, layer_norm: bool, rows: np.ndarray, obs_dim: int, action_dim: int):
    """(offline updates, one online step) of all seeds of the script; on CUDA ten updates a call, as train_offline."""
    script = SCRIPTS[args.algorithm][0]
    options = script.Args(
        env=args.env, num_seeds=args.num_seeds, compile=compile, **OPTIONS.get(args.algorithm, {})
    )
    num_critics = 5 if script is o3f_select else 2
    shape = {"obs_dim": obs_dim, "action_dim": action_dim, "hidden_dim": 256, "num_critics": num_critics}
    shape |= (
        {"network": "layernorm" if layer_norm else "relu"} if script is td3_c else {"layer_norm": layer_norm}
    )
    algorithm = script.ALGORITHM(options, **shape)
    states = [algorithm.init(seed) for seed in range(args.num_seeds)]
    if script is o3f_select:
        states = [state | algorithm.from_data(rows) for state in states]
    state = tree_map(lambda tensor: tensor.to(args.device), script.stack(states))
    dataset = script.Dataset(rows, np.zeros(len(rows), np.uint8), {})
    replay = script.Replay(options, shape, dataset, 100_000, args.device)
    offline = script.update_loop(algorithm, state, replay, options, total=10**9)
    if script is o3f_select:  # online, one policy update a step
        options.policy_delay = args.updates_per_step
    online = script.update_loop(algorithm, state, replay, options, total=10**9)
    collector = script.Collector(algorithm, state, replay, options, 0)

    def updates() -> None:
        offline(1, 10 if args.device == "cuda" else 1)

    def online_step() -> None:
        collector.act()
        online(1, args.updates_per_step)
        collector.step()

    return updates, online_step


def plain(args: Args, rows: np.ndarray, obs_dim: int, action_dim: int):
    """The same pair for the plain version."""
    agent = SCRIPTS[args.algorithm][1](obs_dim, action_dim, args.device)
    env, sizes = sac.make_env(args.env), [obs_dim, action_dim, 1, obs_dim, 1]
    obs, _ = env.reset(seed=1)

    def online_step() -> None:
        nonlocal obs
        with torch.no_grad():
            device_obs = torch.as_tensor(obs, dtype=torch.float32, device=args.device)[None]
            action = agent.act(device_obs)[0].cpu().numpy()
        obs, _, terminated, truncated, _ = env.step(action)
        if terminated or truncated:
            obs, _ = env.reset()
        for left in reversed(range(args.updates_per_step)):
            turn = [left == 0] if args.algorithm == "o3f_select" else []  # O3F: one policy update a step
            agent.update(rows, sizes, *turn)

    return lambda: agent.update(rows, sizes), online_step


def main(args: Args) -> None:
    torch.set_float32_matmul_precision("high")
    env = sac.make_env(args.env)
    obs_dim, action_dim = env.observation_space.shape[0], env.action_space.shape[0]
    rng = np.random.default_rng(0)
    rows = rng.normal(size=(50_000, 2 * obs_dim + action_dim + 2)).astype(np.float32).clip(-1, 1)
    rows[:, -1] = 0
    data = rows, obs_dim, action_dim
    variants = {
        "plain PyTorch, eager": (plain(args, *data), 1),
        "vmapped, eager": (ours(args, "off", False, *data), args.num_seeds),
        "vmapped, compiled": (ours(args, "on", False, *data), args.num_seeds),
        f"vmapped, compiled, {'TD3-C networks' if args.algorithm == 'td3_bc' else 'LayerNorm critics'}": (
            ours(args, "on", True, *data),
            args.num_seeds,
        ),
    }
    rates = {name: ([], []) for name in variants}
    for turn in range(args.turns + 1):  # the first turn warms up
        for name, (functions, _) in variants.items():
            per_call = 10 if args.device == "cuda" and name.startswith("vmapped") else 1, 1
            for function, count, found in zip(functions, per_call, rates[name], strict=True):
                start = time.perf_counter()
                for _ in range(args.updates // count):
                    function()
                if args.device == "cuda":
                    torch.cuda.synchronize()
                if turn:
                    found.append(args.updates / (time.perf_counter() - start))
    base = [np.median(found) for found in rates["plain PyTorch, eager"]]
    hardware = (
        torch.cuda.get_device_name() if args.device == "cuda" else f"CPU, {torch.get_num_threads()} threads"
    )
    table = [
        ["variant", "seeds", "updates/s a seed", "x plain", "online steps/s a seed", "x plain", "hardware"]
    ]
    for name, (_, seeds) in variants.items():
        offline, online = (np.median(found) for found in rates[name])
        ratios = [f"{offline * seeds / base[0]:.2f}", f"{online * seeds / base[1]:.2f}"]
        offline, online = (f"{rate:.{0 if rate >= 10 else 1}f}" for rate in (offline, online))
        table.append([name, seeds, offline, ratios[0], online, ratios[1], hardware])
    if args.updates_per_step != 1:
        for row, cell in zip(
            table, ["updates an online step"] + [args.updates_per_step] * len(variants), strict=True
        ):
            row.insert(-1, cell)
    for row in table:
        print("  ".join(f"{cell!s:<38}" if i == 0 else f"{cell!s:>16}" for i, cell in enumerate(row)))
    if args.out:
        with open(args.out, "w", newline="") as file:
            csv.writer(file, lineterminator="\n").writerows(table)


if __name__ == "__main__":
    main(tyro.cli(Args))
