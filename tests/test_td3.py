"""TD3+BC and TD3-C: losses and updates by hand and against plain PyTorch, the replay's memory, short runs.

Candidates, whose text is the same in o3f_select.py, are tested in test_o3f.py.
"""

import copy
import csv
import json
import math
import re
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn as nn
import torch.nn.functional as F
from torch.func import grad_and_value

import td3_bc
import td3_c
from first_house import Constant, Fixed, make_batch, random_batch, same

NETWORKS = ("actor", "critic", "target_actor", "target_critic")
BOTH = pytest.mark.parametrize("script", [td3_bc, td3_c], ids=["td3_bc", "td3_c"])


class Slopes(nn.Module):
    """Critics that are linear in x = [obs, action]: (S * E, B, O + A) -> (S * E, B, 1)."""

    def __init__(self, *slopes):
        super().__init__()
        self.slope = nn.Parameter(torch.tensor(slopes)[:, None])

    def forward(self, x):
        return (x * self.slope).sum(2, keepdim=True)


class Always(nn.Module):
    """A policy that is its parameter, (S, 1, A), in every state."""

    def __init__(self, action):
        super().__init__()
        self.action = nn.Parameter(torch.tensor(action))

    def forward(self, obs):
        return self.action.expand(-1, obs.shape[1], -1)


def make_agent(script, seeds=(1,), obs_dim=3, action_dim=2, layer_norm=True):
    return script.Agent(list(seeds), obs_dim, action_dim, 8, 2, layer_norm)


def policy_gradient(script, agent, batch, data_q=None, **options):
    """(gradients by parameter, (loss, metrics)) of the policy's loss."""
    data_q = batch.reward if data_q is None else data_q
    params = dict(agent.actor.named_parameters())
    args = script.Args(**options)
    return grad_and_value(script.actor_loss, has_aux=True)(params, agent, batch, args, data_q)


def flat(grads):
    return torch.cat([grad.flatten() for grad in grads.values()])


# ---- losses by hand ----


@BOTH
def test_critic_loss_by_hand(script):
    """An ordinary, a terminated and a truncated transition; Q' = (4, 6), gamma 0.9, Q = (5, 3)."""
    agent = make_agent(script, obs_dim=1, action_dim=1)
    agent.critic, agent.target_critic = Constant([[[5.0], [3.0]]]), Constant([[[4.0], [6.0]]])
    batch = make_batch(
        size=3,
        obs_dim=1,
        action_dim=1,
        reward=torch.tensor([[1.0, 2.0, 3.0]]),
        terminated=torch.tensor([[0.0, 1.0, 0.0]]),
        truncated=torch.tensor([[0.0, 0.0, 1.0]]),
    )
    grads, (loss, (metrics, q)) = grad_and_value(script.critic_loss, has_aux=True)(
        dict(agent.critic.named_parameters()), agent, batch, torch.zeros(1, 3, 1), script.Args(gamma=0.9)
    )
    # y: 1 + 0.9 * 4 = 4.6; 2 (terminated); 3 + 0.9 * 4 = 6.6 (truncated); mean 4.4
    # critic 1: (0.4^2 + 3^2 + 1.6^2) / 3 = 11.72 / 3; critic 2: (1.6^2 + 1^2 + 3.6^2) / 3 = 16.52 / 3
    assert metrics["q/target"].item() == pytest.approx(4.4)
    assert loss.item() == pytest.approx(28.24 / 3)
    assert q.tolist() == [[[5, 5, 5], [3, 3, 3]]]
    torch.testing.assert_close(grads["values.0"], torch.tensor([[[1.2], [-2.8]]]))  # 2 (5 - 4.4), 2 (3 - 4.4)


@BOTH
def test_target_noise_and_target_action_are_clipped(script):
    agent, seen = make_agent(script), []
    agent.target_actor = Always([[[0.9, -0.9]]])
    agent.target_critic = Fixed(lambda obs, action: seen.append(action) or torch.zeros(1, 2, 3))
    noise = torch.tensor([[[10.0, -10.0], [-10.0, 10.0], [-1.0, 1.0]]])
    args, params = script.Args(target_noise=0.2, noise_clip=0.5), dict(agent.critic.named_parameters())
    script.critic_loss(params, agent, make_batch(size=3), noise, args)
    # 0.2 * 10 = 2 is clipped to 0.5: 0.9 + 0.5 is clipped to 1, 0.9 - 0.5 = 0.4; 0.9 - 0.2 = 0.7
    torch.testing.assert_close(seen[0], torch.tensor([[[1.0, -1.0], [0.4, -0.4], [0.7, -0.7]]]))


def three_rows(script):
    """mu = (0.5, -0.5), Q_1 = 2 s + a_1 + 2 a_2 for s = -1, 1, 2: -2.5, 1.5, 3.5."""
    agent = make_agent(script, obs_dim=1)
    agent.actor, agent.critic.mlp = Always([[[0.5, -0.5]]]), Slopes([2.0, 1.0, 2.0], [9.0, 9.0, 9.0])
    action = torch.tensor([[[0.5, -0.5], [0.5, 0.5], [-0.5, -1.0]]])
    batch = make_batch(obs=torch.tensor([[[-1.0], [1.0], [2.0]]]), action=action)
    return agent, batch, torch.tensor([[1.0, 2.0, 3.0]])


@pytest.mark.parametrize(
    "options, loss, gradient",
    [
        # (mu - a)^2, mean over dimensions: 0, 0.5, 0.625; mean |Q_1| = 2.5, so kappa = 5 / 2.5 = 2
        # 0.375 - 2 * 2.5 / 3; gradient by mu: (0 + 0 + 1) / 3 - 2 * 1 and (0 - 1 + 0.5) / 3 - 2 * 2
        ({}, 0.375 - 5 / 3, [1 / 3 - 2, -1 / 6 - 4]),
        ({"clip_dqda": True}, 0.375 - 5 / 3, [1 / 3 - 2, -1 / 6 - 2]),
        # the data's Q is 1, 2, 3: rows 2 and 3 stay, 0.5625 - 2 * 2.5; kappa is over all rows
        ({"q_filter_percentile": 50}, 0.5625 - 5, [1 / 2 - 2, -1 / 4 - 4]),
    ],
)
def test_td3_bc_policy_loss_by_hand(options, loss, gradient):
    grads, (value, metrics) = policy_gradient(td3_bc, *three_rows(td3_bc), alpha=5.0, **options)
    assert value.item() == pytest.approx(loss)
    assert metrics["policy/distance_to_data"].item() == pytest.approx(0.375)
    torch.testing.assert_close(grads["action"], torch.tensor([[gradient]]))


@pytest.mark.parametrize(
    "options, loss, gradient",
    [
        # d^2, sum over dimensions: 0, 0.4^2, 0.3^2, mean 0.25 / 3
        # lambda (d^2 - epsilon) = 3 (0.25 / 3 - 0.05) = 0.1
        # (-2.5 / 3 + 0.1) / 4; gradient by mu: (-1 + 3 * 2 * 0.4 / 3) / 4 and (-2 + 3 * 2 * -0.3 / 3) / 4
        ({"clip_dqda": False}, (-2.5 / 3 + 0.1) / 4, [-0.2 / 4, -2.6 / 4]),
        ({}, (-2.5 / 3 + 0.1) / 4, [-0.2 / 4, -1.6 / 4]),
        ({"q_filter_percentile": 50}, (-2.5 + 0.1) / 4, [-0.2 / 4, -1.6 / 4]),  # d^2 is over all rows
        ({"epsilon": math.inf, "clip_dqda": False}, -2.5 / 3, [-1.0, -2.0]),
    ],
)
def test_td3_c_policy_loss_by_hand(options, loss, gradient):
    agent, *rest = three_rows(td3_c)
    agent.target_actor = Fixed(lambda obs: torch.tensor([[[0.5, -0.5], [0.1, -0.5], [0.5, -0.2]]]))
    agent.log_dual.fill_(math.log(3))
    grads, (value, metrics) = policy_gradient(td3_c, agent, *rest, **{"epsilon": 0.05, **options})
    assert value.item() == pytest.approx(loss)
    assert metrics.get("constraint/distance", torch.tensor(0.25 / 3)).item() == pytest.approx(0.25 / 3)
    torch.testing.assert_close(grads["action"], torch.tensor([[gradient]]))


@BOTH
@pytest.mark.parametrize(
    "clip, gradient", [(True, [[1.0, 0.5], [-1.0, -0.5]]), (False, [[3.0, 0.5], [-3.0, -0.5]])]
)
def test_clip_dqda_clips_each_component_and_leaves_the_value(script, clip, gradient):
    """Q_1 = s (3 a_1 + 0.5 a_2) with s = 1, -1: by the first critic, whatever the second says."""
    agent = make_agent(script, obs_dim=1)
    agent.critic.mlp = Slopes([0.0, 3.0, 0.5], [0.0, -7.0, -7.0])
    agent.critic.mlp.forward = lambda x: (x * agent.critic.mlp.slope).sum(2, keepdim=True) * x[..., :1]
    obs = torch.tensor([[[1.0], [-1.0]]])
    action = torch.tensor([[[0.2, 0.4], [0.2, 0.4]]], requires_grad=True)
    q = script.policy_q(agent, obs, action, script.Args(clip_dqda=clip))
    torch.testing.assert_close(q, torch.tensor([[0.8, -0.8]]))
    q.sum().backward()
    torch.testing.assert_close(action.grad, torch.tensor([gradient]))


# ---- against plain PyTorch ----


class PlainMLP(nn.Module):
    """A network of a stack as ordinary modules."""

    def __init__(self, mlp, index):
        super().__init__()
        self.linear = nn.ModuleList(nn.Linear(*layer.weight.shape[1:]) for layer in mlp.layers)
        self.norm = nn.LayerNorm(mlp.layers[0].weight.shape[2]) if mlp.layer_norm else None
        self.mean, self.std = mlp.input_mean[index], mlp.input_std[index]
        for plain, layer in zip(self.linear, mlp.layers, strict=True):
            plain.weight.data, plain.bias.data = layer.weight[index].T.clone(), layer.bias[index, 0].clone()
        if self.norm:
            self.norm.weight.data = mlp.scale[index, 0].clone()
            self.norm.bias.data = mlp.shift[index, 0].clone()

    def forward(self, x):
        x = self.linear[0]((x - self.mean) / self.std)
        x = self.linear[1](self.norm(x).tanh() if self.norm else x.relu())
        return self.linear[2](F.elu(x) if self.norm else x.relu())


class PlainTD3:
    """TD3 of one seed: separate critics, autograd, torch.optim; TD3+BC's or TD3-C's term if args has it."""

    def __init__(self, agent, args):
        self.args, self.dual, self.steepest = args, agent.log_dual.exp().item(), 0
        self.actor, self.target_actor = PlainMLP(agent.actor.mlp, 0), PlainMLP(agent.target_actor.mlp, 0)
        self.critics = [PlainMLP(agent.critic.mlp, e) for e in range(2)]
        self.targets = [PlainMLP(agent.target_critic.mlp, e) for e in range(2)]
        self.actor_adam = torch.optim.Adam(self.actor.parameters(), args.actor_lr)
        self.critic_adam = torch.optim.Adam([p for c in self.critics for p in c.parameters()], args.critic_lr)

    def step(self, adam, loss):
        adam.zero_grad()
        loss.backward()
        adam.step()

    def policy_loss(self, obs, data_action, data_q):
        action = self.actor(obs).tanh()
        leaf = action.detach().requires_grad_()
        q = self.critics[0](torch.cat([obs, leaf], 1))
        (dqda,) = torch.autograd.grad(q.sum(), leaf)  # the deterministic policy gradient is dQ/da dmu/dtheta
        self.steepest = max(self.steepest, dqda.abs().max().item())
        loss = -((dqda.clamp(-1, 1) if self.args.clip_dqda else dqda) * action).sum(1)
        loss = loss[data_q >= data_q.quantile(self.args.q_filter_percentile / 100)].mean()
        if hasattr(self.args, "alpha"):
            return self.args.alpha / q.abs().mean().item() * loss + F.mse_loss(action, data_action)
        if self.args.epsilon < math.inf:
            distance = (action - self.target_actor(obs).tanh().detach()).pow(2).sum(1).mean()
            loss = (loss + self.dual * distance) / (1 + self.dual)
            relative = distance.item() / self.args.epsilon - 1
            self.dual *= math.exp(self.args.dual_lr * max(-1, min(1, relative)))
        return loss

    def update(self, batch, noise, policy_turn):
        obs, action, reward, next_obs, terminated, _ = (column[0] for column in batch)
        with torch.no_grad():
            noise = (self.args.target_noise * noise).clamp(-self.args.noise_clip, self.args.noise_clip)
            x = torch.cat([next_obs, (self.target_actor(next_obs).tanh() + noise).clamp(-1, 1)], 1)
            next_q = torch.min(*(target(x)[:, 0] for target in self.targets))
            target = reward + self.args.gamma * (1 - terminated) * next_q
        x = torch.cat([obs, action], 1)
        q = [critic(x)[:, 0] for critic in self.critics]
        data_q = torch.min(*q).detach()  # as it was before this step of the critics
        self.step(self.critic_adam, sum(F.mse_loss(one, target) for one in q))
        if not policy_turn:
            return
        self.step(self.actor_adam, self.policy_loss(obs, action, data_q))
        pairs = zip([*self.targets, self.target_actor], [*self.critics, self.actor], strict=True)
        for target, online in pairs:
            for p, q in zip(target.parameters(), online.parameters(), strict=True):
                p.data += self.args.tau * (q.data - p.data)


@pytest.mark.parametrize("layer_norm", [True, False], ids=["layernorm", "relu"])
@pytest.mark.parametrize("clip", [True, False], ids=["clip", "free"])
@pytest.mark.parametrize(
    "script, options",
    [(td3_c, {"epsilon": math.inf}), (td3_c, {"epsilon": 1e-3, "q_filter_percentile": 25}), (td3_bc, {})],
    ids=["td3", "td3_c", "td3_bc"],
)
def test_update_equals_plain_pytorch(script, options, clip, layer_norm, double):
    """With --epsilon inf that is TD3. Inputs are standardised; critics are steep enough for clipping."""
    rates = {"actor_lr": 1e-2, "critic_lr": 2e-2, "tau": 0.1, "gamma": 0.9}
    args, agent = script.Args(clip_dqda=clip, **rates, **options), make_agent(script, layer_norm=layer_norm)
    for name, buffer in agent.named_buffers():
        buffer += 0.3 if name.endswith(("input_mean", "input_std")) else 0
    agent.critic.mlp.layers[-1].weight *= 20
    plain = PlainTD3(agent, args)
    for i in range(6):
        batch, turn = random_batch(seed=i), i % 2 == 1
        torch.manual_seed(i)
        script.update(agent, batch, args, turn)
        torch.manual_seed(i)
        plain.update(batch, torch.randn(16, 2), turn)
    pairs = [(agent.critic.mlp, plain.critics), (agent.target_critic.mlp, plain.targets)]
    pairs += [(agent.actor.mlp, [plain.actor]), (agent.target_actor.mlp, [plain.target_actor])]
    for ours, networks in pairs:
        for e, theirs in enumerate(networks):
            for mine, his in zip(PlainMLP(ours, e).parameters(), theirs.parameters(), strict=True):
                torch.testing.assert_close(mine, his, rtol=1e-9, atol=1e-11)
    assert agent.log_dual.exp().item() == pytest.approx(plain.dual, rel=1e-9)
    assert plain.steepest > 1


# ---- limits of the objectives ----


def test_without_a_bound_neither_target_policy_nor_dual_enter_the_policy_loss():
    plain, other, batch = make_agent(td3_c), make_agent(td3_c), random_batch()
    other.target_actor.mlp.layers[-1].bias += 1
    other.log_dual.fill_(5)
    grads = [policy_gradient(td3_c, agent, batch, epsilon=math.inf)[0] for agent in (plain, other)]
    assert same(*grads)
    td3_c.update(other, batch, td3_c.Args(epsilon=math.inf), policy_turn=True)
    assert other.log_dual.item() == 5
    assert not same(grads[0], policy_gradient(td3_c, other, batch, epsilon=1.0)[0])


def test_a_dual_near_0_is_td3():
    agent, batch = make_agent(td3_c), random_batch()
    agent.target_actor.mlp.layers[-1].bias += 1
    free, _ = policy_gradient(td3_c, agent, batch, epsilon=math.inf)
    for log_dual, equal in ((-20, True), (0, False)):
        agent.log_dual.fill_(log_dual)
        grads, _ = policy_gradient(td3_c, agent, batch, epsilon=1e-3)
        assert torch.allclose(flat(grads), flat(free), rtol=1e-5, atol=1e-7) == equal


def test_alpha_leads_from_behaviour_cloning_to_td3(double):
    agent, batch = make_agent(td3_bc), random_batch()
    td3 = flat(policy_gradient(td3_c, agent, batch, epsilon=math.inf, clip_dqda=False)[0])
    action = agent.actor(batch.obs)
    td3 /= agent.critic(batch.obs, action)[:, 0].abs().mean()
    agent.actor.requires_grad_()
    mse = F.mse_loss(agent.actor(batch.obs), batch.action)  # the mean over rows and action dimensions
    cloning = torch.cat([g.flatten() for g in torch.autograd.grad(mse, list(agent.actor.parameters()))])
    for alpha, expected in ((0.0, cloning), (2.5, cloning + 2.5 * td3), (1e9, 1e9 * td3)):
        gradient = flat(policy_gradient(td3_bc, agent, batch, alpha=alpha)[0])
        assert (gradient - expected).norm() < 1e-6 * expected.norm()


def test_td3_bc_policy_loss_knows_no_units_of_reward_and_each_seed_is_normalised_alone():
    """Ten times the Q of seed 2 changes no loss and no gradient, of neither seed."""
    results = []
    for scale in (1, 10):
        agent = make_agent(td3_bc, seeds=(1, 2))
        for p in agent.critic.mlp.layers[-1].parameters():
            p[2:] *= scale
        grads, (_, metrics) = policy_gradient(td3_bc, agent, random_batch(2))
        results.append((flat(grads), metrics["loss/actor"], metrics["q/policy"] / torch.tensor([1, scale])))
    torch.testing.assert_close(*results)


def test_dual_rises_where_violated_and_falls_where_slack():
    """By the relative violation, at most dual_lr: d^2 = 1.5 epsilon is half a step, 50 epsilon one."""
    agent, args = make_agent(td3_c, seeds=(1, 2, 3, 4)), td3_c.Args(epsilon=0.02, dual_lr=1e-2)
    for bias, distance in zip(agent.target_actor.mlp.layers[-1].bias, (0.0, 0.03, 0.02, 1.0), strict=True):
        bias[0] = math.atanh(math.sqrt(distance / 2))
    for network in (agent.actor, agent.target_actor):  # the actions are the biases', the policy's are 0
        network.mlp.layers[-1].weight.zero_()
    metrics = td3_c.update(agent, random_batch(4), args, policy_turn=True)
    torch.testing.assert_close(metrics["constraint/distance"], torch.tensor([0.0, 0.03, 0.02, 1.0]))
    torch.testing.assert_close(agent.log_dual, torch.tensor([-1e-2, 0.5e-2, 0.0, 1e-2]), rtol=0, atol=1e-6)
    assert metrics["constraint/dual"].tolist() == [1, 1, 1, 1]  # the one that the loss was made with


@pytest.mark.parametrize("epsilon, bound", [(100.0, td3_c.LOG_DUAL_MIN), (1e-9, td3_c.LOG_DUAL_MAX)])
def test_dual_stops_at_its_bounds(epsilon, bound):
    agent = make_agent(td3_c)
    agent.target_actor.mlp.layers[-1].bias += 1
    agent.log_dual.fill_(0.999 * bound)
    td3_c.update(agent, random_batch(), td3_c.Args(epsilon=epsilon, dual_lr=0.1), policy_turn=True)
    assert agent.log_dual.item() == bound


# ---- policy delay ----


@BOTH
def test_only_the_critics_move_between_policy_turns(script):
    agent, args = make_agent(script), script.Args(**({"epsilon": 0.1} if script is td3_c else {}))
    for turn in (False, True):
        before = copy.deepcopy(agent.state_dict())
        script.update(agent, random_batch(), args, turn)
        after = agent.state_dict()
        moved = {name.split(".")[0] for name in before if not torch.equal(before[name], after[name])}
        others = {"actor", "actor_adam", "target_actor", "target_critic"}
        others |= {"log_dual"} if script is td3_c else set()
        assert moved == {"critic", "critic_adam", *(others if turn else [])}


@pytest.mark.parametrize("period, repeat", [(2, 1), (2, 2), (2, 3), (3, 2)])
def test_every_period_th_call_is_a_policy_turn_and_metrics_are_means_over_their_own_calls(period, repeat):
    seen = []

    def function(turn):
        seen.append(turn)
        here = torch.full((1,), float(len(seen)))
        return {"all": here} | ({"policy": here} if turn else {})

    loop = td3_c.Loop(function, make_agent(td3_c), td3_c.Args(), compiled=False, repeat=repeat, period=period)
    for launches in (1, 2, 4):
        first = len(seen)
        for _ in range(launches):
            loop()
        calls = range(first, first + launches * repeat)
        turns = [k + 1 for k in calls if (k + 1) % period == 0]
        expected = {"all": np.mean(calls) + 1} | ({"policy": np.mean(turns)} if turns else {})
        assert {name: value.item() for name, value in loop.read().items()} == pytest.approx(expected)
    assert seen == [(k + 1) % period == 0 for k in range(7 * repeat)]
    assert loop.read() == {}


# ---- input statistics, memory, README ----


def test_standardize_sets_all_four_networks_to_the_mean_and_standard_deviation():
    agent = make_agent(td3_bc, seeds=(1, 2))
    raw, batch = copy.deepcopy(agent), random_batch(2)
    rows = np.random.default_rng(0).normal([3, -2, 7], [4, 0.1, 0], (500, 3)).astype(np.float32)
    td3_bc.standardize(agent, rows)
    mean, std = torch.from_numpy(rows.mean(0)), torch.from_numpy(rows.std(0))
    assert std[2] < 1e-6  # a constant column
    obs = batch.obs * (std + 1e-3) + mean
    for name in NETWORKS:
        action = [batch.action] if "critic" in name else []  # actions stay as they are
        standardised, plain = getattr(agent, name)(obs, *action), getattr(raw, name)(batch.obs, *action)
        torch.testing.assert_close(standardised, plain, rtol=1e-3, atol=1e-3)


def test_a_million_offline_rows_and_ten_million_online_take_less_than_4_gb():
    agent = td3_c.Agent(list(range(10)), 11, 3, hidden_dim=256, num_critics=2, layer_norm=True)
    offline = np.empty((1_000_000, 28), np.float32)
    table = td3_c.ReplayTable(offline, 10, agent.shape, 1_000_000, "append", "meta")
    rows = sum(t.nbytes for t in vars(table).values() if torch.is_tensor(t) and t._base is None)
    assert rows == pytest.approx(11e6 * 28 * 4, rel=1e-4)  # 1.2 GB: the offline rows once, not once a seed
    assert rows + sum(t.nbytes for t in agent.state_dict().values()) < 4e9


def test_the_readmes_diff_is_that_of_the_scripts():
    root = Path(__file__).resolve().parents[1]
    readme, names = (root / "README.md").read_text(), {"-": "td3_bc.py", "+": "td3_c.py"}
    lines = re.search(r"`diff td3_bc.py td3_c.py`.*?```diff\n(.*?)```", readme, re.S)[1].splitlines()
    scripts = {sign: (root / name).read_text().splitlines() for sign, name in names.items()}
    assert {line[0] for line in lines} == {"-", "+"}
    assert [line for line in lines if line[1:] not in scripts[line[0]]] == []


# ---- short runs ----

SHORT = "--batch-size 16 --eval-episodes 1 --compile off"
OFFLINE = f"{SHORT} --hidden-dim 16 --dataset hopper/tiny-v0 --offline-steps 20 --normalize-obs"
ONLINE = f"{SHORT} --online-steps 40 --warmup-steps 10"


def saved(pattern):
    (path,) = Path("runs/Hopper-v4").glob(f"{pattern}/seed1/checkpoint.pt")
    return torch.load(path, weights_only=True)


def logged(pattern):
    """{(phase, gradient step, env step): {metric: value}}."""
    (path,) = Path("runs/Hopper-v4").glob(f"{pattern}/seed1/metrics.csv")
    found = {}
    for row in csv.DictReader(path.open()):
        key = row["phase"], int(row["gradient_step"]), int(row["env_step"])
        found.setdefault(key, {})[row["name"]] = float(row["value"])
    return found


def part(state, network):
    return {name: tensor for name, tensor in state["agent"].items() if name.startswith(f"{network}.")}


@pytest.fixture
def pretrained(call):
    call("td3_bc", OFFLINE)
    return saved("td3_bc-tiny-????-offline20-batch-size16-hidden-dim16-normalize-obs")


def test_pretraining_moves_every_network_and_the_policy_in_every_second_update(pretrained):
    fresh = {"agent": td3_bc.Agent([1], **pretrained["shape"]).state_dict()}
    for network in NETWORKS:
        name = f"{network}.mlp.layers.2.weight"
        assert not torch.equal(fresh["agent"][name], pretrained["agent"][name])
    assert (pretrained["agent"]["critic_adam.t"], pretrained["agent"]["actor_adam.t"]) == (20, 10)
    assert (pretrained["phase"], pretrained["gradient_step"], pretrained["env_step"]) == ("offline", 20, 0)
    metrics = logged("td3_bc-*")["offline", 20, 0]
    wanted = "loss/critic loss/actor q/data q/policy policy/distance_to_data policy/drift eval/return"
    assert metrics.keys() >= set(wanted.split()) and metrics["policy/drift"] > 0


def test_td3_c_starts_with_what_pretraining_wrote(pretrained, call):
    """One warm-up step, no update. With a bound, the target policy becomes a copy of the policy."""
    before = pretrained["agent"]
    rows = td3_bc.load_dataset(td3_bc.Args(dataset="hopper/tiny-v0"), 11, -np.ones(3), np.ones(3)).rows
    assert not same(part(pretrained, "actor"), part(pretrained, "target_actor"))
    for options in ("--epsilon inf", ""):
        call("td3_c", f"{SHORT} --online-steps 1 --warmup-steps 1 {options}")
        tag = "-epsiloninf" if options else ""
        state = saved(f"td3_c-tiny-????-*-online1-warmup-steps1{tag}-from-td3_bc-*")
        after = dict(state["agent"])
        mean, std = after["target_actor.mlp.input_mean"], after["critic.mlp.input_std"][:, 0, :11]
        np.testing.assert_allclose(mean[0, 0], rows[:, :11].mean(0), rtol=1e-6)
        np.testing.assert_allclose(std, [rows[:, :11].std(0) + 1e-3] * 2, rtol=1e-6)
        if not options:
            assert after.pop("log_dual").item() == pytest.approx(math.log(100))
            for name in part(state, "target_actor"):
                assert torch.equal(after.pop(name), before[name.removeprefix("target_")])
        assert len(after) > 40 and all(torch.equal(before[name], tensor) for name, tensor in after.items())


def test_td3_c_with_filter_and_candidates_trains(pretrained, call):
    call("td3_c", f"{ONLINE} --q-filter-percentile 25 --num-candidates 3")
    name = "td3_c-tiny-????-batch-size16-online40-warmup-steps10-n3-qf25-from-td3_bc-*"
    state, metrics = saved(name), logged(name)["online", 50, 40]  # 10 steps of warm-up
    counts = state["agent"]["critic_adam.t"], state["agent"]["actor_adam.t"]
    assert (state["gradient_step"], *counts) == (50, 50, 25)
    assert not any(same(part(state, network), part(pretrained, network)) for network in NETWORKS)
    wanted = "loss/critic loss/actor filter/threshold candidates/q_advantage constraint/distance"
    assert metrics.keys() >= set(wanted.split()) and metrics["candidates/distance"] > 0
    assert metrics["filter/fraction"] == pytest.approx(0.25) and metrics["replay/online_share"] == 40 / 440
    assert state["agent"]["log_dual"].exp().item() != pytest.approx(100)


def test_td3_c_with_the_other_replay_strategies(pretrained, call):
    for options, share, tag in (
        ("--replay online", 1, "online"),
        ("--offline-ratio 0.25", 0.75, "ratio0.25"),
    ):
        call("td3_c", f"{ONLINE} {options}")
        name = f"td3_c-*-warmup-steps10-{tag}-from-td3_bc-*"
        assert saved(name)["gradient_step"] == 20 + 24  # 16 own rows are needed first
        assert not same(part(saved(name), "actor"), part(pretrained, "actor"))
        assert logged(name)["online", 44, 40]["replay/online_share"] == share


def test_td3_bc_continues_a_checkpoint_online(pretrained, call):
    call("td3_bc", f"{ONLINE} --offline-steps 0")
    name = "td3_bc-tiny-????-offline0-batch-size16-online40-warmup-steps10-from-td3_bc-*"
    state, metrics = saved(name), logged(name)
    assert (state["phase"], state["gradient_step"], state["agent"]["actor_adam.t"]) == ("online", 50, 25)
    assert not any(same(part(state, network), part(pretrained, network)) for network in NETWORKS)
    assert list(metrics) == [("online", 20, 0), ("online", 50, 40)]
    assert metrics["online", 50, 40]["policy/distance_to_data"] > 0


def test_td3_bc_offline_and_online_in_one_run(call):
    call("td3_bc", f"{OFFLINE} --online-steps 40 --warmup-steps 10 --replay online")
    name = "td3_bc-tiny-????-offline20-*-online40-warmup-steps10-online"
    offline, online = [("offline", 0, 0), ("offline", 20, 0)], [("online", 20, 0), ("online", 44, 40)]
    assert list(logged(name)) == offline + online
    assert saved(name)["agent"]["critic_adam.t"] == 44
    assert logged(name)["online", 44, 40]["replay/online_share"] == 1


def test_td3_from_nothing(call):
    options = "--scratch --epsilon inf --no-clip-dqda --hidden-dim 16 --network relu --policy-delay 3"
    call("td3_c", f"{ONLINE} {options}")
    name = "td3_c-scratch-*-policy-delay3-hidden-dim16-networkrelu-no-clip-dqda-online40-*-epsiloninf"
    state, metrics = saved(name), logged(name)["online", 24, 40]
    assert (state["agent"]["critic_adam.t"], state["agent"]["actor_adam.t"]) == (24, 8)
    assert metrics.keys() >= {"loss/critic", "loss/actor"} and "constraint/distance" not in metrics
    assert state["agent"]["log_dual"].item() == 0 and not state["shape"]["layer_norm"]


def test_a_run_without_data_continues_without_data(call):
    call("td3_c", f"{SHORT} --hidden-dim 8 --scratch --online-steps 2 --eval-every 2")
    (source,) = Path("runs/Hopper-v4").glob("td3_c-scratch*")
    call("td3_c", f"{SHORT} --checkpoint {source} --online-steps 2 --eval-every 2")
    (folder,) = Path("runs/Hopper-v4").glob("td3_c-*-from-td3_c-scratch*/seed1")
    assert json.loads((folder / "config.json").read_text())["dataset"] is None
