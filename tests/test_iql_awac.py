"""IQL and AWAC: losses, weights and updates by hand and against plain PyTorch, rewards' scale, short runs."""

import copy
import csv
import math
from pathlib import Path

import h5py
import minari
import numpy as np
import pytest
import torch
import torch.nn as nn
from torch.distributions import Normal
from torch.func import grad_and_value

import awac
import iql
from first_house import LOG_NORMAL_AT_0, Constant, Fixed, PlainMLP, make_batch, random_batch, same

BOTH = pytest.mark.parametrize("script", [iql, awac], ids=["iql", "awac"])
NETWORKS = {iql: ("actor", "critic", "value", "target_critic"), awac: ("actor", "critic", "target_critic")}
SHORT = "--batch-size 16 --eval-episodes 1 --compile off"
OFFLINE = f"{SHORT} --hidden-dim 16 --dataset hopper/tiny-v0 --offline-steps 20"
ONLINE = f"{SHORT} --offline-steps 0 --online-steps 40"
NEVER = Fixed(lambda *inputs: pytest.fail("this network has no part in it"))


class Rows(nn.Module):
    """A network that is its parameter, whatever its input: V (S, B) or Q (S, E, B)."""

    def __init__(self, values):
        super().__init__()
        self.values = nn.Parameter(torch.tensor(values))

    def forward(self, *_):
        return self.values


def make_agent(script, seeds=(1,), obs_dim=3, action_dim=2, num_critics=2, layer_norm=False):
    return script.Agent(list(seeds), obs_dim, action_dim, 8, num_critics, layer_norm)


def gradient(loss, network, *others):
    """(gradients by parameter, (loss, metrics)) by the parameters of `network`."""
    return grad_and_value(loss, has_aux=True)(dict(network.named_parameters()), *others)


# ---- IQL's value ----


def test_expectile_loss_by_hand():
    """V = 1; a seed with Q 3, 0, 1.5, 1 and one whose every Q is 0: weight 0.7 where Q is above V, or 0.3."""
    agent = make_agent(iql, seeds=(1, 2))
    agent.value = Rows([[1.0] * 4] * 2)
    q = torch.tensor([[3.0, 0.0, 1.5, 1.0], [0.0] * 4])
    grads, (loss, (metrics, advantage)) = gradient(
        iql.value_loss, agent.value, agent, make_batch(2), q, iql.Args(expectile=0.7)
    )
    # (0.7 * 2^2 + 0.3 * 1^2 + 0.7 * 0.5^2 + 0) / 4 = 3.275 / 4; 0.3 * 1^2
    torch.testing.assert_close(metrics["loss/value"], torch.tensor([3.275 / 4, 0.3]))
    assert loss.item() == pytest.approx(3.275 / 4 + 0.3) and metrics["q/value"].tolist() == [1, 1]
    assert advantage.tolist() == [[2, -1, 0.5, 0], [-1] * 4]
    # -2 w u / 4: up (the gradient is below 0) with weight 0.7, down with 0.3
    torch.testing.assert_close(grads["values"], torch.tensor([[-0.7, 0.15, -0.175, 0.0], [0.15] * 4]))


@pytest.mark.parametrize("tau", [0.5, 0.7, 0.9])
def test_the_value_network_learns_the_expectile(tau):
    """Q is 0 or 1 with equal odds in one state, 1 with odds 1 to 3 in another.

    tau p (1 - e) = (1 - tau) (1 - p) e: e = tau for p = 1/2, tau / (tau + 3 (1 - tau)) for p = 1/4.
    """
    agent = make_agent(iql, obs_dim=1)
    obs, q = torch.tensor([[[-1.0], [1.0]] * 4]), torch.tensor([[0.0, 0.0, 1.0, 0.0, 0.0, 0.0, 1.0, 1.0]])
    batch, args = make_batch(size=8, obs=obs), iql.Args(expectile=tau)
    for _ in range(200):
        grads, _ = gradient(iql.value_loss, agent.value, agent, batch, q, args)
        agent.value_adam.step(grads.values(), 1e-2)
    expected = [tau, tau / (tau + 3 * (1 - tau))]
    assert agent.value(obs)[0, :2].tolist() == pytest.approx(expected, abs=0.01)


# ---- critic losses by hand ----


def test_iql_critic_loss_by_hand():
    """An ordinary, a terminated and a truncated transition; V(s') = 4, 5, 6, rewards times 10.

    Gamma is 0.9, Q (25, 20). V is the first number of an observation, -100 in s. No action of the policy
    plays a part, and no target critic.
    """
    agent = make_agent(iql)
    agent.critic, agent.value = Constant([[[25.0], [20.0]]]), Fixed(lambda obs: obs[..., 0])
    agent.actor, agent.target_critic = NEVER, NEVER
    agent.reward_scale.fill_(10)
    batch = make_batch(
        size=3,
        obs=torch.full((1, 3, 3), -100.0),
        reward=torch.tensor([[1.0, 2.0, 3.0]]),
        next_obs=torch.tensor([[[4.0, 0, 0], [5.0, 0, 0], [6.0, 0, 0]]]),
        terminated=torch.tensor([[0.0, 1.0, 0.0]]),
        truncated=torch.tensor([[0.0, 0.0, 1.0]]),
    )
    grads, (loss, metrics) = gradient(iql.critic_loss, agent.critic, agent, batch, iql.Args(gamma=0.9))
    # y: 10 + 0.9 * 4 = 13.6; 20 (terminated); 30 + 0.9 * 6 = 35.4 (truncated); mean 23
    # critic 1: (11.4^2 + 5^2 + 10.4^2) / 3 = 263.12 / 3; critic 2: (6.4^2 + 0 + 15.4^2) / 3 = 278.12 / 3
    assert metrics["q/target"].item() == pytest.approx(23) and metrics["q/data"].item() == 22.5
    assert loss.item() == pytest.approx(541.24 / 3)
    torch.testing.assert_close(grads["values.0"], torch.tensor([[[4.0], [-6.0]]]))  # 2 (25 - 23), 2 (20 - 23)


def test_awac_critic_loss_by_hand():
    """Two ordinary, a terminated, a truncated row; pi(s') = N(0.5, 1), Q' = (10 a, 20 a - 5), Q = (5, 4)."""
    agent = make_agent(awac, obs_dim=1, action_dim=1)
    agent.actor, agent.critic = Constant([[[0.5]]], [[[0.0]]]), Constant([[[5.0], [4.0]]])
    agent.target_critic = Fixed(lambda obs, action: torch.cat([10 * action, 20 * action - 5], 2).mT)
    batch = make_batch(
        size=4,
        obs_dim=1,
        action=torch.full((1, 4, 1), -1.0),
        reward=torch.tensor([[1.0, 1.0, 2.0, 3.0]]),
        terminated=torch.tensor([[0.0, 0.0, 1.0, 0.0]]),
        truncated=torch.tensor([[0.0, 0.0, 0.0, 1.0]]),
    )
    noise = torch.tensor([[[0.2], [9.0], [9.0], [-0.1]]])
    grads, (loss, (metrics, q)) = gradient(
        awac.critic_loss, agent.critic, agent, batch, noise, awac.Args(gamma=0.5)
    )
    # a' = 0.7, 1 (clipped), 1, 0.4; min Q' = min(7, 9), min(10, 15), -, min(4, 3)
    # y: 1 + 0.5 * 7 = 4.5; 1 + 0.5 * 10 = 6; 2 (terminated); 3 + 0.5 * 3 = 4.5 (truncated); mean 4.25
    # critic 1: (0.25 + 1 + 9 + 0.25) / 4; critic 2: (0.25 + 4 + 4 + 0.25) / 4
    assert metrics["q/target"].item() == pytest.approx(4.25) and metrics["q/data"].item() == 4.5
    assert loss.item() == pytest.approx(19 / 4) and q.tolist() == [[[5] * 4, [4] * 4]]
    expected = torch.tensor([[[1.5], [-0.5]]])  # 2 (5 - 4.25), 2 (4 - 4.25)
    torch.testing.assert_close(grads["values.0"], expected)


# ---- policy losses by hand ----

# pi = N(0.5, 2^2); the data's actions 0.5, -0.5, 1 are noise (a - 0.5) / 2 = 0, -0.5, 0.25
ACTIONS, NOISE = torch.tensor([[[0.5], [-0.5], [1.0]]]), np.array([0, -0.5, 0.25])
DATA_Q = torch.tensor([[1.0, 2.0, 3.0]])
FILTERS = [  # options, and the rows' shares in the loss: the data's Q rises by row, the policy's falls
    ({}, [1, 1, 1]),
    ({"q_filter_percentile": 50}, [0, 1, 1]),  # the threshold is 2
    ({"q_filter_percentile": 50, "q_filter_weight": 0.1}, [0.1, 1, 1]),
    ({"q_filter_value": 2.5}, [0, 0, 1]),
    ({"q_filter_percentile": 50, "q_filter_actions": "policy"}, [1, 1, 0]),
    ({"q_filter_percentile": 99, "q_filter_actions": "policy"}, [1, 0, 0]),
]


def wide_agent(script):
    """pi = N(0.5, 2^2) everywhere."""
    agent = make_agent(script, obs_dim=1, action_dim=1)
    agent.actor = Constant([[[0.5]]], [[[math.log(2)]]])
    return agent


def check_policy_loss(grads, loss, metrics, keep, weight):
    """-sum k w log pi / sum k; d log pi / d mean = noise / 2, d log pi / d log std = noise^2 - 1."""
    keep, weight = np.array(keep), np.array(weight)
    log_pi = -(NOISE**2) / 2 - math.log(2) + LOG_NORMAL_AT_0
    for value, slope in (
        (loss, log_pi),
        (metrics["loss/actor"], log_pi),
        (grads["values.0"], NOISE / 2),
        (grads["values.1"], NOISE**2 - 1),
    ):
        assert value.item() == pytest.approx(-(keep * weight * slope).sum() / keep.sum(), rel=1e-5)
    assert metrics["policy/std"].item() == pytest.approx(2)
    assert metrics["weight/mean"].item() == pytest.approx(weight.mean(), rel=1e-5)
    share = (keep * weight).sum() ** 2 / (3 * (keep**2 * weight**2).sum())
    assert metrics["weight/effective_share"].item() == pytest.approx(share, rel=1e-5)


@pytest.mark.parametrize("options, keep", FILTERS)
def test_iql_policy_loss_by_hand(options, keep):
    """beta 2, advantages 0, 1, 3: weights 1, e^2 and 100 (not e^6 = 403).

    The critics say s + 2 a and 1 more: of the policy's mean 4, 3, 2 for s = 3, 2, 1, of the data's 4, 1, 3.
    """
    agent = wide_agent(iql)
    agent.target_critic = Fixed(
        lambda obs, action: torch.stack([obs + 2 * action, obs + 2 * action + 1], 1)[..., 0]
    )
    batch = make_batch(obs=torch.tensor([[[3.0], [2.0], [1.0]]]), action=ACTIONS)
    advantage = torch.tensor([[0.0, 1.0, 3.0]])
    args = iql.Args(beta=2.0, **options)
    grads, (loss, metrics) = gradient(iql.actor_loss, agent.actor, agent, batch, advantage, DATA_Q, args)
    check_policy_loss(grads, loss, metrics, keep, [1, math.exp(2), 100])


def test_iql_filter_by_the_policys_q_takes_the_minimum_over_the_critics():
    agent = wide_agent(iql)
    agent.target_critic = Fixed(
        lambda obs, action: torch.stack([obs + 2 * action, obs + 2 * action + 1], 1)[..., 0]
    )
    batch = make_batch(obs=torch.tensor([[[3.0], [2.0], [1.0]]]), action=ACTIONS)
    args = iql.Args(q_filter_percentile=50, q_filter_actions="policy")
    _, (_, metrics) = gradient(iql.actor_loss, agent.actor, agent, batch, torch.zeros(1, 3), DATA_Q, args)
    assert metrics["filter/threshold"].item() == 3  # of 4, 3, 2


def test_iql_filter_has_the_environments_units():
    """Rewards times 0.5: Q of 1, 2, 3 means returns of 2, 4, 6, of which a threshold of 5 leaves the last."""
    agent, batch = wide_agent(iql), make_batch(size=3, obs_dim=1, action=ACTIONS)
    agent.reward_scale.fill_(0.5)
    args = iql.Args(q_filter_value=5.0)
    _, (_, metrics) = gradient(iql.actor_loss, agent.actor, agent, batch, torch.zeros(1, 3), DATA_Q, args)
    assert (
        metrics["filter/fraction"].item() == pytest.approx(2 / 3) and metrics["filter/threshold"].item() == 5
    )
    assert metrics["weight/effective_share"].item() == pytest.approx(1 / 3)


@pytest.mark.parametrize("options, keep", FILTERS)
@pytest.mark.parametrize("kind, weight", [("softmax", [3 / 8, 6 / 8, 15 / 8]), ("exp", [1, 2, 5])])
def test_awac_policy_loss_by_hand(kind, weight, options, keep):
    """lambda 2, advantages 2 log 1, 2 log 2, 2 log 5; softmax is over the whole batch, filtered or not."""
    agent, args = wide_agent(awac), awac.Args(awac_lambda=2.0, awac_weights=kind, **options)
    agent.critic = NEVER
    policy_q = DATA_Q - 2 * torch.tensor([[1.0, 2.0, 5.0]]).log()  # 1, 0.61, -0.22
    batch = make_batch(size=3, obs_dim=1, action=ACTIONS)
    grads, (loss, metrics) = gradient(awac.actor_loss, agent.actor, agent, batch, DATA_Q, policy_q, args)
    check_policy_loss(grads, loss, metrics, keep, weight)
    assert metrics["q/policy"].item() == pytest.approx(policy_q.mean().item())


def test_awac_exp_is_clipped_and_softmax_is_not():
    """Advantages 0, log 99, log 1000: 1, 99, 100; of 1,100 in all 3 / 1100, 297 / 1100, 3000 / 1100."""
    agent, batch = wide_agent(awac), make_batch(size=3, obs_dim=1, action=ACTIONS)
    q = torch.tensor([[1.0, 99.0, 1000.0]]).log()
    for kind, weight in (("exp", [1, 99, 100]), ("softmax", [3 / 1100, 297 / 1100, 3000 / 1100])):
        args = awac.Args(awac_weights=kind)
        grads, (loss, metrics) = gradient(
            awac.actor_loss, agent.actor, agent, batch, q, torch.zeros(1, 3), args
        )
        check_policy_loss(grads, loss, metrics, [1, 1, 1], weight)


@pytest.mark.parametrize("script, kind", [(iql, None), (awac, "exp"), (awac, "softmax")])
def test_extreme_advantages_give_finite_gradients(script, kind):
    agent, batch = make_agent(script), random_batch()
    q = torch.linspace(-1e4, 1e4, 16)[None]
    if script is iql:
        grads, (loss, _) = gradient(iql.actor_loss, agent.actor, agent, batch, q, q, iql.Args())
    else:
        args = awac.Args(awac_weights=kind)
        grads, (loss, _) = gradient(awac.actor_loss, agent.actor, agent, batch, q, torch.zeros(1, 16), args)
    assert loss.isfinite() and loss != 0 and all(grad.isfinite().all() for grad in grads.values())


def test_awac_softmax_has_mean_1_and_knows_no_offset(double):
    """And is each seed's own: other Q in seed 2 change not a bit in seed 1."""
    agent, batch = make_agent(awac, seeds=(1, 2)), random_batch(2)
    q, policy_q = torch.randn(2, 16), torch.randn(2, 16)
    other = torch.stack([q[0], 5 - 3 * q[1]])
    found = []
    for data_q in (q, q + 7, other):
        grads, (_, metrics) = gradient(
            awac.actor_loss, agent.actor, agent, batch, data_q, policy_q, awac.Args()
        )
        torch.testing.assert_close(metrics["weight/mean"], torch.ones(2), rtol=1e-14, atol=0)
        found.append((metrics["loss/actor"], metrics["weight/effective_share"], *grads.values()))
    for plain, shifted, changed in zip(*found, strict=True):
        torch.testing.assert_close(plain, shifted)
        assert torch.equal(plain[0], changed[0]) and not torch.allclose(plain[1], changed[1])
    _, (_, metrics) = gradient(
        awac.actor_loss, agent.actor, agent, batch, q + 7, policy_q, awac.Args(awac_weights="exp")
    )
    assert (metrics["weight/mean"] > 2).all()  # which exp does


# ---- where the numbers come from ----


def apart(script, **options):
    """An agent whose targets are not its critics, big steps."""
    agent = make_agent(script, num_critics=3)
    for network in (agent.critic, agent.target_critic):
        network.mlp.layers[-1].weight.add_(
            0.5 * torch.randn(3, 8, 1, generator=torch.Generator().manual_seed(0))
        )
    agent.target_critic.mlp.layers[-1].bias.add_(torch.tensor([0.3, 0.5, 0.1])[:, None, None])
    return agent, script.Args(critic_lr=0.1, tau=0.5, q_filter_percentile=25, **options)


def test_iql_advantage_is_that_of_the_target_critics_and_of_v_before_its_step():
    agent, args = apart(iql)
    before, batch = copy.deepcopy(agent), random_batch()
    metrics = iql.update(agent, batch, args, True)
    found = {}
    for name, critic, value in (
        ("right", before.target_critic, before.value),
        ("online critics", before.critic, before.value),
        ("targets after their step", agent.target_critic, before.value),
        ("V after its step", before.target_critic, agent.value),
    ):
        q = critic(batch.obs, batch.action).amin(1)
        advantage = q - value(batch.obs)
        _, (loss, _) = gradient(iql.actor_loss, before.actor, before, batch, advantage, q, args)
        found[name] = loss.item()
        if name == "right":
            assert metrics["filter/threshold"].item() == pytest.approx(q.quantile(0.25).item())
            assert metrics["q/value"].item() == pytest.approx(value(batch.obs).mean().item())
    assert metrics["loss/actor"].item() == pytest.approx(found.pop("right"), rel=1e-5)
    assert all(abs(metrics["loss/actor"].item() - loss) > 1e-3 for loss in found.values()), found


def test_awac_advantage_is_that_of_the_online_critics_before_their_step_with_a_draw_of_the_policy():
    agent, args = apart(awac)
    before, batch = copy.deepcopy(agent), random_batch()
    torch.manual_seed(3)
    metrics = awac.update(agent, batch, args, True)
    torch.manual_seed(3)
    noise = torch.randn(2, 1, 16, 2)
    mean, log_std = before.actor(batch.obs)
    draws = [(mean + log_std.exp() * one).clamp(-1, 1) for one in noise]
    found = {}
    for name, critic, action in (
        ("right", before.critic, draws[1]),
        ("target critics", before.target_critic, draws[1]),
        ("critics after their step", agent.critic, draws[1]),
        ("the policy's mean", before.critic, mean),
        ("the critic loss's draw", before.critic, draws[0]),
    ):
        q, policy_q = critic(batch.obs, batch.action).amin(1), critic(batch.obs, action).amin(1)
        _, (loss, _) = gradient(awac.actor_loss, before.actor, before, batch, q, policy_q, args)
        found[name] = loss.item()
        if name == "right":
            assert metrics["filter/threshold"].item() == pytest.approx(q.quantile(0.25).item())
            assert metrics["q/policy"].item() == pytest.approx(policy_q.mean().item())
    assert metrics["loss/actor"].item() == pytest.approx(found.pop("right"), rel=1e-5)
    assert all(abs(metrics["loss/actor"].item() - loss) > 1e-3 for loss in found.values()), found


@BOTH
@pytest.mark.parametrize("of", ["data", "policy"])
def test_the_policy_loss_has_a_gradient_by_the_policy_alone(script, of):
    agent, batch = make_agent(script), random_batch()
    agent.requires_grad_()
    params, q = dict(agent.actor.named_parameters()), torch.randn(1, 16)
    args = script.Args(q_filter_percentile=25, q_filter_actions=of)
    loss, _ = script.actor_loss(params, agent, batch, q, q + 1, args)
    grads = torch.autograd.grad(loss, list(agent.parameters()), allow_unused=True)
    names = {
        name for (name, _), grad in zip(agent.named_parameters(), grads, strict=True) if grad is not None
    }
    assert names == {f"actor.{name}" for name in params}


@BOTH
@pytest.mark.parametrize("still", ["actor", "critic"])
def test_each_loss_moves_its_own_networks_only(script, still):
    agent = make_agent(script)
    before = copy.deepcopy(agent.state_dict())
    for seed in range(3):
        script.update(agent, random_batch(seed=seed), script.Args(**{f"{still}_lr": 0.0}, tau=0.0), True)
    after = agent.state_dict()
    moved = {name.split(".")[0] for name in after if not torch.equal(before[name], after[name])}
    expected = {"actor"} if still == "critic" else set(NETWORKS[script]) - {"actor", "target_critic"}
    assert {name for name in moved if "adam" not in name} == expected
    assert all(p.grad is None and not p.requires_grad for p in agent.parameters())


@BOTH
def test_without_its_turn_the_policy_and_its_optimiser_stay(script):
    agent, args = make_agent(script), script.Args()
    for turn in (False, True):
        before = copy.deepcopy(agent.state_dict())
        metrics = script.update(agent, random_batch(), args, turn)
        after = agent.state_dict()
        moved = {name.split(".")[0] for name in before if not torch.equal(before[name], after[name])}
        critics = {"critic", "critic_adam", "target_critic"}
        critics |= {"value", "value_adam"} if script is iql else set()
        assert moved == critics | ({"actor", "actor_adam"} if turn else set())
        assert ("loss/actor" in metrics) == ("policy/std" in metrics) == ("weight/mean" in metrics) == turn


# ---- against plain PyTorch ----


class Plain:
    """One seed of a stack: separate critics, autograd, torch.optim, torch.distributions; what both share."""

    def __init__(self, agent, args, seed):
        count, layer_norm = agent.shape["num_critics"], agent.shape["layer_norm"]

        def critics(stack):
            return [
                PlainMLP(5, 1, 8, layer_norm).copy_from(stack.mlp, seed * count + e) for e in range(count)
            ]

        self.args, self.clipped, self.policy_steps = args, 0, 0
        self.critics, self.targets = critics(agent.critic), critics(agent.target_critic)
        self.actor = PlainMLP(3, 2, 8, False).copy_from(agent.actor.mlp, seed)
        self.log_std = nn.Parameter(agent.actor.log_std[seed].clone())
        self.critic_adam = torch.optim.Adam([p for c in self.critics for p in c.parameters()], args.critic_lr)
        self.actor_adam = torch.optim.Adam([self.log_std, *self.actor.parameters()], args.actor_lr)

    def step(self, adam, loss):
        adam.zero_grad()
        loss.backward()
        adam.step()

    def policy(self, obs):
        return Normal(self.actor(obs).tanh(), self.log_std.exp())

    def draw(self, obs, noise):
        return (self.policy(obs).mean + self.policy(obs).stddev * noise).clamp(-1, 1).detach()

    def q(self, critics, obs, action):
        return torch.stack([critic(torch.cat([obs, action], 1))[:, 0] for critic in critics])

    def critic_step(self, q, target):
        self.step(self.critic_adam, sum(((one - target) ** 2).mean() for one in q))
        for target, online in zip(self.targets, self.critics, strict=True):
            for p, q in zip(target.parameters(), online.parameters(), strict=True):
                p.data += self.args.tau * (q.data - p.data)

    def policy_step(self, obs, action, weight, filter_q, lr):
        self.actor_adam.param_groups[0]["lr"] = lr
        self.clipped += (weight > 100).sum().item()  # never of softmax's, which are at most B = 16
        weight = weight.clamp(max=100)
        kept = filter_q >= filter_q.quantile(self.args.q_filter_percentile / 100)
        self.step(self.actor_adam, -(weight * self.policy(obs).log_prob(action).sum(1))[kept].mean())
        self.policy_steps += 1


class PlainIQL(Plain):
    def __init__(self, agent, args, seed):
        super().__init__(agent, args, seed)
        self.scale = agent.reward_scale.item()
        self.value = PlainMLP(3, 1, 8, agent.shape["layer_norm"]).copy_from(agent.value.mlp, seed)
        self.value_adam = torch.optim.Adam(self.value.parameters(), args.critic_lr)

    def update(self, batch, noise, policy_turn):
        obs, action, reward, next_obs, terminated, _ = batch
        args, data_q = self.args, self.q(self.targets, obs, action).min(0)[0].detach()
        u = data_q - self.value(obs)[:, 0]
        self.step(self.value_adam, ((args.expectile - (u < 0).to(u.dtype)).abs() * u**2).mean())
        target = self.scale * reward + args.gamma * (1 - terminated) * self.value(next_obs)[:, 0].detach()
        self.critic_step(self.q(self.critics, obs, action), target)
        if not policy_turn:
            return
        if args.q_filter_actions == "policy":
            data_q = self.q(self.targets, obs, self.policy(obs).mean).min(0)[0].detach()
        shares = [1, 0.75, 0.25, 1, 1]  # (1 + cos(pi k / 3)) / 2 for k = 0, 1, 2, then constant
        share = shares[self.policy_steps]
        self.policy_step(obs, action, (args.beta * u.detach()).exp(), data_q, share * args.actor_lr)


class PlainAWAC(Plain):
    def update(self, batch, noise, policy_turn):
        obs, action, reward, next_obs, terminated, _ = batch
        args, q = self.args, self.q(self.critics, obs, action)
        data_q, policy_q = (
            one.min(0)[0].detach() for one in (q, self.q(self.critics, obs, self.draw(obs, noise[1])))
        )
        next_q = self.q(self.targets, next_obs, self.draw(next_obs, noise[0])).min(0)[0].detach()
        self.critic_step(q, reward + args.gamma * (1 - terminated) * next_q)
        if policy_turn:
            weight = ((data_q - policy_q) / args.awac_lambda).exp()
            weight = weight / weight.mean() if args.awac_weights == "softmax" else weight
            filter_q = data_q if args.q_filter_actions == "data" else policy_q
            self.policy_step(obs, action, weight, filter_q, args.actor_lr)


FILTER = {"q_filter_percentile": 25}


@pytest.mark.parametrize(
    "script, num_critics, layer_norm, options",
    [
        (iql, 2, False, {"expectile": 0.8}),
        (iql, 3, True, FILTER),
        (iql, 2, True, {**FILTER, "q_filter_actions": "policy"}),
        (awac, 2, True, {"awac_weights": "softmax"}),
        (awac, 2, False, {"awac_weights": "exp", **FILTER}),
        (awac, 3, False, {"awac_weights": "exp"}),
        (awac, 3, False, {"awac_weights": "softmax", **FILTER, "q_filter_actions": "policy"}),
    ],
)
def test_update_equals_plain_pytorch(script, num_critics, layer_norm, options, double):
    """Two stacked seeds, a policy step in every second update; IQL's actor_lr falls over three of four.

    Critics steep enough for the clipping to bite. IQL draws nothing, AWAC torch.randn(2, S, B, A).
    """
    rates = {"actor_lr": 1e-2, "critic_lr": 2e-2, "tau": 0.1, "gamma": 0.9}
    rates |= {"beta": 3.0} if script is iql else {"awac_lambda": 0.1}
    args = script.Args(policy_delay=2, offline_steps=7, **rates, **options)
    agent = make_agent(script, seeds=(1, 2), num_critics=num_critics, layer_norm=layer_norm)
    agent.actor.log_std.copy_(torch.tensor([[[0.3, -0.5]], [[-0.2, 0.1]]]))
    for network in (agent.critic, agent.target_critic):
        network.mlp.layers[-1].weight *= 20
    agent.target_critic.mlp.layers[-1].bias += 4
    if script is iql:
        agent.reward_scale.fill_(3)
    plains = [(PlainIQL if script is iql else PlainAWAC)(agent, args, seed) for seed in range(2)]
    for i in range(8):
        batch, turn = random_batch(2, seed=i), i % 2 == 1
        torch.manual_seed(i)
        noise = torch.randn(2, 2, 16, 2) if script is awac else torch.zeros(2, 2)
        drawn = torch.get_rng_state()
        torch.manual_seed(i)
        script.update(agent, batch, args, turn)
        assert torch.equal(torch.get_rng_state(), drawn)
        for seed, plain in enumerate(plains):
            plain.update([column[seed] for column in batch], noise[:, seed], turn)
    for seed, plain in enumerate(plains):
        pairs = [
            (agent.critic, plain.critics),
            (agent.target_critic, plain.targets),
            (agent.actor, [plain.actor]),
        ]
        pairs += [(agent.value, [plain.value])] if script is iql else []
        for ours, networks in pairs:
            for e, theirs in enumerate(networks):
                mine = copy.deepcopy(theirs).copy_from(ours.mlp, seed * len(networks) + e)
                torch.testing.assert_close(mine.flat(), theirs.flat(), rtol=1e-9, atol=1e-11)
        torch.testing.assert_close(agent.actor.log_std[seed], plain.log_std.data, rtol=1e-9, atol=1e-11)
        assert plain.policy_steps == 4 and plain.clipped < 4 * 16
        assert (plain.clipped == 0) == (options.get("awac_weights") == "softmax")
    assert agent.actor_adam.t == 4 and agent.critic_adam.t == 8


@BOTH
def test_a_policy_learns_the_weighted_actions(script):
    """Actions -0.5 and 0.5 pay -1 and 1; at beta = 1 / lambda = log(3) / 2 the better counts three times.

    The best policy: mean (3 - 1) / 4 * 0.5 = 0.25, variance 0.25 - 0.25^2 = 0.1875. V is the tau-expectile,
    2 tau - 1.
    """
    agent, size = make_agent(script, obs_dim=1, action_dim=1), 128
    sign = (torch.arange(size) % 2 * 2.0 - 1)[None]
    batch = make_batch(
        size=size, obs_dim=1, action=sign[..., None] / 2, reward=sign, terminated=torch.ones(1, size)
    )
    options = {"beta": math.log(3) / 2} if script is iql else {"awac_lambda": 2 / math.log(3)}
    args = script.Args(actor_lr=1e-2, critic_lr=1e-2, tau=0.1, offline_steps=0, **options)
    torch.manual_seed(0)
    for _ in range(200):
        script.update(agent, batch, args, True)
    assert agent.critic(batch.obs, batch.action)[0].amin(0).tolist() == pytest.approx(
        sign[0].tolist(), abs=0.02
    )
    mean, log_std = agent.actor(batch.obs)
    assert mean.mean().item() == pytest.approx(0.25, abs=0.02)
    assert log_std.exp().item() ** 2 == pytest.approx(0.1875, abs=0.02)
    if script is iql:
        assert agent.value(batch.obs)[0].tolist() == pytest.approx([0.4] * size, abs=0.02)


# ---- the policy ----


@BOTH
def test_networks_at_the_start(script):
    """Targets are copies; the policy's standard deviation is 1 everywhere, and stays in exp(-5) to exp(2)."""
    agent = make_agent(script, seeds=(1, 2))
    assert same(agent.target_critic.state_dict(), agent.critic.state_dict())
    mean, log_std = agent.actor(torch.randn(2, 5, 3))
    assert mean.shape == (2, 5, 2) and log_std.tolist() == [[[0, 0]]] * 2 and mean.abs().max() < 1
    agent.actor.log_std.copy_(torch.tensor([[[-9.0, 0.5]], [[3.0, -4.0]]]))
    assert agent.actor(torch.zeros(2, 1, 3))[1].tolist() == [[[-5, 0.5]], [[2, -4]]]


@BOTH
def test_actions_and_densities(script):
    """Draws are clipped, densities are the Gaussian's, evaluations take the mean."""
    agent, obs, noise = make_agent(script), torch.randn(1, 1000, 3), torch.randn(1, 1000, 2)
    agent.actor.log_std.copy_(torch.tensor([[[0.5, -2.0]]]))
    mean, log_std = agent.actor(obs)
    policy, action = Normal(mean, log_std.exp()), script.draw_action(agent, obs, noise)
    assert action.min() == -1 and action.max() == 1
    torch.testing.assert_close(action, (policy.loc + policy.scale * noise).clamp(-1, 1))
    data = 2 * torch.rand(1, 1000, 2) - 1
    torch.testing.assert_close(script.log_prob(mean, log_std, data), policy.log_prob(data).sum(2))
    assert torch.equal(script.best_action(agent, obs), mean)
    x = obs[0]
    for layer in agent.actor.mlp.layers[:-1]:
        x = (x @ layer.weight[0] + layer.bias[0]).clamp(min=0)
    last = agent.actor.mlp.layers[-1]
    torch.testing.assert_close(mean[0], (x @ last.weight[0] + last.bias[0]).tanh())


@BOTH
def test_the_best_candidate_by_mean_q_is_executed(script):
    """Three critics with peaks at 0, 0.3 and 0.9 a dimension: their mean has it at 0.4."""
    agent, args, count = make_agent(script, obs_dim=1), script.Args(num_candidates=6, candidate_std=0.5), 300
    agent.actor = Constant([[[0.6, -0.2]]], [[[-1.0, 0.5]]])
    agent.critic = Fixed(
        lambda obs, a: torch.stack([-(a - peak).square().sum(2) for peak in (0, 0.3, 0.9)], 1)
    )
    torch.manual_seed(5)
    action, metrics = script.select_action(agent, torch.zeros(count, 1, 1), args)
    torch.manual_seed(5)
    noise = torch.randn(count, 7, 2)
    start = (torch.tensor([0.6, -0.2]) + torch.tensor([-1.0, 0.5]).exp() * noise[:, :1]).clamp(-1, 1)
    candidates = (start + 0.5 * noise[:, 1:]).clamp(-1, 1)
    best = (candidates - 0.4).square().sum(2).argmin(1)
    assert torch.equal(action[:, 0], candidates[torch.arange(count), best])
    gain = (start - 0.4).square().sum(2)[:, 0] - (action - 0.4).square().sum(2)[:, 0]
    torch.testing.assert_close(metrics["candidates/q_advantage"], gain, rtol=1e-4, atol=1e-5)
    plain, metrics = script.select_action(agent, torch.zeros(count, 1, 1), script.Args())
    assert plain.shape == (count, 1, 2) and metrics == {} and plain.abs().max() == 1


# ---- schedules ----


@pytest.fixture(scope="module")
def checkpoints(minari_cache, tmp_path_factory):
    """{script: run folder} after one update of iql and awac, and files of data: {flat}, {other}."""
    root, found = tmp_path_factory.mktemp("checkpoints"), {}
    for script in (iql, awac):
        sizes = {"offline_steps": 1, "eval_episodes": 1, "hidden_dim": 8, "batch_size": 16}
        script.main(script.Args(dataset="hopper/tiny-v0", runs_dir=str(root / script.__name__), **sizes))
        (found[script.__name__],) = (root / script.__name__).glob("Hopper-v4/*")
    rng = np.random.default_rng(0)
    for name, rewards in (("flat", np.ones(30)), ("other", np.arange(30.0))):
        found[name] = root / f"{name}.hdf5"
        with h5py.File(found[name], "w") as file:
            file["observations"], file["actions"] = rng.normal(size=(30, 11)), rng.uniform(-1, 1, (30, 3))
            file["rewards"], file["terminals"] = rewards, np.arange(30) % 10 == 9
    return found


def test_actor_lr_falls_along_a_half_cosine_over_the_offline_policy_updates():
    """t counts the policy's steps before this one; the last of 100 has (1 + cos(0.99 pi)) / 2 = 2.4672e-4."""
    agent = make_agent(iql)
    for options, expected in (
        ({"offline_steps": 100}, [1, 0.5, 2.4672e-4, 1, 1]),
        ({"offline_steps": 200, "policy_delay": 2}, [1, 0.5, 2.4672e-4, 1, 1]),
        ({"offline_steps": 201, "policy_delay": 2}, [1, 0.5, 2.4672e-4, 1, 1]),
        ({"offline_steps": 0}, [1] * 5),
        ({"offline_steps": 1, "policy_delay": 2}, [1] * 5),
        ({"offline_steps": 100, "cosine": False}, [1] * 5),
    ):
        found = []
        for steps in (0, 50, 99, 100, 5000):
            agent.actor_adam.t.fill_(steps)
            found.append(float(iql.decayed_actor_lr(agent, iql.Args(actor_lr=0.01, **options))) / 0.01)
        assert found == pytest.approx(expected, rel=1e-3), options


QUARTERS = [1, (2 + math.sqrt(2)) / 4, 0.5, (2 - math.sqrt(2)) / 4]  # (1 + cos(pi k / 4)) / 2


@pytest.mark.parametrize(
    "arguments, expected",
    [
        ("--offline-steps 4 --online-steps 2", [*QUARTERS, 1, 1]),
        ("--offline-steps 9 --policy-delay 2 --online-steps 4", [*QUARTERS, 1, 1]),
        ("--offline-steps 4 --online-steps 2 --no-cosine", [1] * 6),
        ("--offline-steps 0 --online-steps 3 --checkpoint {iql}", [1] * 3),
    ],
)
def test_actor_lr_in_a_run(arguments, expected, call, checkpoints, monkeypatch):
    used, step = [], iql.Adam.step

    def record(adam, grads, lr):
        used.append((len(adam.params), float(lr)))
        step(adam, grads, lr)

    monkeypatch.setattr(iql.Adam, "step", record)
    network = "" if "checkpoint" in arguments else "--hidden-dim 8 --dataset hopper/tiny-v0"
    call("iql", f"{SHORT} {network} --actor-lr 0.001 --critic-lr 0.002 {arguments.format(**checkpoints)}")
    policy = [lr / 0.001 for count, lr in used if count == 7]  # log_std, 3 layers
    assert policy == pytest.approx(expected, rel=1e-5)
    assert {lr for count, lr in used if count == 6} == {0.002}


def test_annealing_moves_the_expectile():
    """Advantages 2 and -1: (4 tau + (1 - tau)) / 2 = (1 + 3 tau) / 2 for tau = 0.5, 0.7, 0.9."""
    agent, batch, q = make_agent(iql), make_batch(size=2), torch.tensor([[3.0, 0.0]])
    agent.value = Rows([[1.0, 1.0]])
    for end, losses in ((0.9, [1.25, 1.55, 1.85]), (None, [1.25] * 3)):
        for share, expected in zip((0, 0.5, 1), losses, strict=True):
            agent.annealed.fill_(share)
            args = iql.Args(expectile=0.5, expectile_end=end)
            _, (loss, _) = gradient(iql.value_loss, agent.value, agent, batch, q, args)
            assert loss.item() == pytest.approx(expected)


@pytest.mark.parametrize("kind", ["softmax", "exp"])
def test_annealing_moves_the_temperature(kind):
    """Advantages 0 and 6 log 2, lambda 1, 2, 3: e^(A / lambda) = 64, 8, 4: weights' shares are 1 : 64 ..."""
    agent, batch = make_agent(awac), make_batch(size=2)
    q = torch.tensor([[0.0, 6 * math.log(2)]])
    for end, factors in ((3.0, [64, 8, 4]), (None, [64] * 3)):
        for share, factor in zip((0, 0.5, 1), factors, strict=True):
            agent.annealed.fill_(share)
            args = awac.Args(awac_lambda_end=end, awac_weights=kind)
            _, (_, metrics) = gradient(awac.actor_loss, agent.actor, agent, batch, q, torch.zeros(1, 2), args)
            effective = (1 + factor) ** 2 / (2 * (1 + factor**2))
            assert metrics["weight/effective_share"].item() == pytest.approx(effective, rel=1e-4)
            assert metrics["weight/mean"].item() == pytest.approx(
                1 if kind == "softmax" else (1 + factor) / 2
            )


@BOTH
@pytest.mark.parametrize(
    "schedule, expected",
    [("none", [0] * 8), ("abrupt", [1] * 8), ("linear", [i / 8 for i in range(8)])],
)
def test_schedules_in_a_run(script, schedule, expected, call, checkpoints, monkeypatch):
    """The coefficients that the losses asked for, between 0.6 and 0.8."""
    seen, scheduled, name = [], script.scheduled, {iql: "expectile", awac: "awac-lambda"}[script]

    def record(*given):
        seen.append(float(scheduled(*given)))
        return scheduled(*given)

    monkeypatch.setattr(script, "scheduled", record)
    end = "" if schedule == "none" else f"--{name}-end 0.8 --anneal {schedule}"
    own = checkpoints[script.__name__]
    call(script.__name__, f"{SHORT} --offline-steps 0 --online-steps 8 --checkpoint {own} --{name} 0.6 {end}")
    assert seen == pytest.approx([0.6 + 0.2 * share for share in expected])


@BOTH
def test_annealing_waits_for_the_online_phase(script, call, monkeypatch):
    seen, update = [], script.update

    def record(agent, *others):
        seen.append(agent.annealed.item())
        return update(agent, *others)

    monkeypatch.setattr(script, "update", record)
    name = {iql: "expectile", awac: "awac-lambda"}[script]
    call(script.__name__, f"{OFFLINE} --offline-steps 3 --online-steps 4 --{name}-end 0.8 --anneal abrupt")
    assert seen == [0, 0, 0, 1, 1, 1, 1]


# ---- short runs ----


def run_folder(pattern):
    (folder,) = Path("runs/Hopper-v4").glob(f"{pattern}/seed1")
    return folder


def saved(pattern):
    return torch.load(run_folder(pattern) / "checkpoint.pt", weights_only=True)


def logged(pattern):
    """{(phase, gradient step, env step): {metric: value}}."""
    found = {}
    for row in csv.DictReader((run_folder(pattern) / "metrics.csv").open()):
        key = row["phase"], int(row["gradient_step"]), int(row["env_step"])
        found.setdefault(key, {})[row["name"]] = float(row["value"])
    return found


def moved(one, two):
    """The networks of which every weight matrix differs between two states."""
    names = [name for name in one if name.endswith("weight") and "adam" not in name]
    stayed = {name.split(".")[0] for name in names if torch.equal(one[name], two[name])}
    return {name.split(".")[0] for name in names} - stayed


LOGGED = "loss/critic loss/actor q/data q/target q/best q/random policy/std policy/drift weight/mean"
LOGGED += " weight/effective_share eval/return eval/first_q eval/q_bias replay/online_share"
LOGGED = {iql: {*LOGGED.split(), "loss/value", "q/value"}, awac: {*LOGGED.split(), "q/policy"}}


def check_metrics(script, metrics):
    assert metrics.keys() >= LOGGED[script] and all(math.isfinite(value) for value in metrics.values())
    assert 1 / 16 <= metrics["weight/effective_share"] <= 1 and 0.9 < metrics["policy/std"] < 1.1
    assert metrics["policy/drift"] > 0 and metrics["loss/critic"] > 0 and 0 < metrics["weight/mean"] <= 100
    assert script is iql or metrics["weight/mean"] == pytest.approx(1, rel=1e-5)


@BOTH
def test_pretraining_moves_every_network(script, call):
    out, _ = call(script.__name__, f"{OFFLINE} --policy-delay 2 --num-seeds 2")
    assert f"next: python {script.__name__}.py --offline-steps 0" in out
    state, metrics = saved(f"{script.__name__}-tiny-*"), logged(f"{script.__name__}-tiny-*")
    agent, fresh = state["agent"], script.Agent([1], **state["shape"]).state_dict()
    assert agent.keys() == fresh.keys() and moved(agent, fresh) == set(NETWORKS[script])
    assert (agent["actor.log_std"] != 0).all()
    counts = {name: tensor.item() for name, tensor in agent.items() if name.endswith("adam.t")}
    value = {"value_adam.t": 20} if script is iql else {}
    assert counts == {"critic_adam.t": 20, "actor_adam.t": 10, **value}
    assert (state["phase"], state["gradient_step"], state["env_step"]) == ("offline", 20, 0)
    assert list(metrics) == [("offline", 0, 0), ("offline", 20, 0)]
    check_metrics(script, metrics["offline", 20, 0])


@BOTH
def test_continuing_online_with_candidates_and_filter(script, call):
    name = script.__name__
    call(name, f"{OFFLINE} --num-critics 5")
    before = saved(f"{name}-tiny-*")["agent"]
    loaded, facts = script.load_checkpoints(script.Args(), 11, 3)
    assert same(loaded.state_dict(), before) and facts["gradient_step"] == 20
    call(name, f"{ONLINE} --num-candidates 5 --q-filter-percentile 25")
    state, metrics = saved(f"{name}-*-n5-qf25-from-{name}-*"), logged(f"{name}-*-n5-qf25-from-{name}-*")
    agent = state["agent"]
    assert agent["critic.mlp.layers.0.weight"].shape == (5, 14, 16)
    assert (
        moved(agent, before) == set(NETWORKS[script])
        and (agent["actor.log_std"] != before["actor.log_std"]).all()
    )
    assert (state["gradient_step"], agent["critic_adam.t"], agent["actor_adam.t"]) == (60, 60, 60)
    assert list(metrics) == [("online", 20, 0), ("online", 60, 40)]
    last = metrics["online", 60, 40]
    check_metrics(script, last)
    assert last["candidates/distance"] > 0 and {"candidates/q_advantage", "filter/threshold"} <= last.keys()
    assert last["filter/fraction"] == pytest.approx(0.25, abs=0.01)
    assert last["replay/online_share"] == pytest.approx(40 / 440)


@BOTH
@pytest.mark.parametrize(
    "options, share, tag", [("--replay online", 1, "online"), ("--offline-ratio 0.25", 0.75, "")]
)
def test_continuing_online_with_the_other_replay_strategies(script, options, share, tag, call, checkpoints):
    name, own = script.__name__, checkpoints[script.__name__]
    call(name, f"{ONLINE} --checkpoint {own} {options}")
    before = torch.load(own / "seed1/checkpoint.pt", weights_only=True)["agent"]
    state = saved(f"{name}-*{tag}-from-{name}-*")
    assert state["gradient_step"] == state["agent"]["actor_adam.t"] == 1 + 24  # 16 own rows are needed first
    assert moved(state["agent"], before) == set(NETWORKS[script])
    last = logged(f"{name}-*{tag}-from-{name}-*")["online", 25, 40]
    check_metrics(script, last)
    assert last["replay/online_share"] == share


@BOTH
def test_offline_and_online_in_one_run(script, call):
    call(
        script.__name__,
        f"{OFFLINE} --online-steps 40 --q-filter-value 0 --q-filter-actions policy --layer-norm",
    )
    metrics, state = logged(f"{script.__name__}-tiny-*"), saved(f"{script.__name__}-tiny-*")
    assert list(metrics) == [("offline", 0, 0), ("offline", 20, 0), ("online", 20, 0), ("online", 60, 40)]
    assert state["agent"]["critic_adam.t"] == state["agent"]["actor_adam.t"] == 60
    assert metrics["online", 60, 40]["filter/threshold"] == 0
    check_metrics(script, metrics["online", 60, 40])


# ---- scale of the rewards (IQL) ----


def test_the_scale_is_that_of_the_data_pretrained_on_and_stays(call, checkpoints):
    """1000 / (best - worst return of an episode); online, whatever the data, it is the checkpoint's."""
    returns = [episode.rewards.sum() for episode in minari.load_dataset("hopper/tiny-v0").iterate_episodes()]
    expected = 1000 / (max(returns) - min(returns))
    call("iql", OFFLINE)
    assert len(returns) > 3 and saved("iql-tiny-*")["agent"]["reward_scale"].item() == pytest.approx(expected)
    # the other file's returns are 45, 145, 245: its scale would be 5
    for options, pattern in (
        (f"--dataset {checkpoints['other']}", "iql-other-*"),
        ("--replay online", "iql-*-online-from-*"),
    ):
        call("iql", f"{ONLINE} {options}")
        state = saved(f"{pattern}")
        assert state["phase"] == "online" and state["agent"]["reward_scale"].item() == pytest.approx(expected)
    call("iql", f"{SHORT} --hidden-dim 8 --dataset {checkpoints['other']} --offline-steps 1 --runs-dir runs5")
    (path,) = Path("runs5/Hopper-v4").glob("*/seed1/checkpoint.pt")
    assert torch.load(path, weights_only=True)["agent"]["reward_scale"] == 5


@pytest.mark.parametrize("data", ["hopper/tiny-v0", "{flat}"])
def test_without_normalization_the_scale_is_1(data, call, checkpoints):
    call("iql", f"{OFFLINE} --no-normalize-reward --online-steps 2 --dataset {data.format(**checkpoints)}")
    assert saved("iql-*-no-normalize-reward-*")["agent"]["reward_scale"] == 1


def test_a_row_is_scaled_alike_offline_and_online():
    agent, g = make_agent(iql), np.random.default_rng(0)
    agent.reward_scale.fill_(7)
    rows = g.normal(size=(5, 11)).astype(np.float32)
    rows[:, 9:] = 0
    table = iql.ReplayTable(rows, 1, agent.shape, 5, "append", "cpu")
    for row in rows:
        table.add(row[None, :3], row[None, 3:5], row[5:6], row[None, 6:9], row[9:10], row[10:11])
    params, found = dict(agent.critic.named_parameters()), []
    for numbers in (torch.arange(5)[None], torch.arange(5, 10)[None]):
        loss, metrics = iql.critic_loss(params, agent, table.batch(numbers), iql.Args())
        value = agent.value(torch.from_numpy(rows[None, :, 6:9])).numpy()
        assert metrics["q/target"].item() == pytest.approx(
            (7 * rows[:, 5] + 0.99 * value[0]).mean(), rel=1e-4
        )
        found.append(loss)
    torch.testing.assert_close(*found)


@BOTH
def test_evaluations_are_in_the_environments_units(script, call):
    """Q of the first states' best actions over the scale, 1 for AWAC; its bias against discounted returns."""
    call(script.__name__, f"{OFFLINE} --eval-episodes 2 --gamma 0.9")
    agent, _ = script.load_checkpoints(script.Args(gamma=0.9), 11, 3)
    scale = agent.reward_scale.item() if script is iql else 1
    metrics, first, returns = logged(f"{script.__name__}-tiny-*")["offline", 20, 0], [], []
    for episode in range(2):
        env = script.make_env("Hopper-v4")
        obs, _ = env.reset(seed=int(np.random.SeedSequence((1, 20, 0, episode)).generate_state(1)[0]))
        done, discounted, discount = False, 0.0, 1.0
        while not done:
            obs = torch.as_tensor(obs, dtype=torch.float32)[None, None]
            action = script.best_action(agent, obs)
            first += [agent.critic(obs, action).min().item() / scale] if discount == 1 else []
            obs, reward, terminated, truncated, _ = env.step(action[0, 0].numpy())
            discounted, discount = discounted + discount * reward, 0.9 * discount
            done = terminated or truncated
        returns.append(discounted)
    assert metrics["eval/first_q"] == pytest.approx(np.mean(first), rel=1e-3)
    assert metrics["eval/q_bias"] == pytest.approx(np.mean(first) - np.mean(returns), rel=1e-3, abs=1e-3)
    assert script is awac or not 0.5 < scale < 2


# ---- bad input ----

GO_ON = "--offline-steps 0 --online-steps 9"


@pytest.mark.parametrize(
    "script, arguments, expected",
    [
        ("iql", "--expectile 1", "--expectile 1.0: must be in [0.5, 1)"),
        ("iql", "--expectile 0.4", "--expectile 0.4: must be in [0.5, 1)"),
        ("iql", "--expectile nan", "--expectile nan: must be in [0.5, 1)"),
        (
            "iql",
            "--expectile-end 1 --anneal linear --online-steps 9",
            "--expectile-end 1.0: must be in [0.5, 1)",
        ),
        ("iql", "--expectile-end 0.9 --online-steps 9", "--expectile-end: needs --anneal abrupt or linear"),
        ("iql", "--anneal linear --online-steps 9", "--anneal linear: needs --expectile-end, where to"),
        ("iql", "--anneal abrupt --expectile-end 0.9", "--anneal abrupt: needs --online-steps"),
        ("iql", "--beta -1.0", "--beta -1.0: must be in [0, 1e+12]"),
        ("iql", "--beta nan", "--beta nan: must be in [0, 1e+12]"),
        ("iql", f"{GO_ON} --checkpoint {{awac}}", "its algorithm is awac, here it is iql"),
        (
            "iql",
            f"{GO_ON} --checkpoint {{iql}} --no-normalize-reward",
            "--no-normalize-reward: the checkpoint decides that",
        ),
        (
            "iql",
            f"{GO_ON} --checkpoint {{iql}} --num-critics 5",
            "--num-critics 5: the checkpoint decides that",
        ),
        ("iql", "--checkpoint {iql}", "is continued online; say --offline-steps 0"),
        (
            "iql",
            f"{GO_ON}",
            "--checkpoint is missing: runs/Hopper-v4 has no finished offline run of the iql family",
        ),
        ("iql", "--offline-steps 0", "--online-steps 0: there is nothing to do"),
        ("iql", "--dataset {flat}", "have one return; say --no-normalize-reward"),
        ("awac", "--awac-lambda 0", "--awac-lambda 0.0: must be above 0"),
        ("awac", "--awac-lambda nan", "--awac-lambda nan: must be above 0"),
        (
            "awac",
            "--awac-lambda-end 0 --anneal linear --online-steps 9",
            "--awac-lambda-end 0.0: must be above 0",
        ),
        (
            "awac",
            "--awac-lambda-end 2 --online-steps 9",
            "--awac-lambda-end: needs --anneal abrupt or linear",
        ),
        ("awac", "--anneal linear --online-steps 9", "--anneal linear: needs --awac-lambda-end, where to"),
        ("awac", "--anneal abrupt --awac-lambda-end 2", "--anneal abrupt: needs --online-steps"),
        ("awac", f"{GO_ON} --checkpoint {{iql}}", "its algorithm is iql, here it is awac"),
        ("awac", f"{GO_ON}", "python awac.py --env Hopper-v4 makes one"),
    ],
)
def test_bad_input(script, arguments, expected, call, checkpoints, capsys):
    def files():
        return sorted(str(p) for root in (Path(".."), checkpoints["flat"].parent) for p in root.rglob("*"))

    defaults = {"--offline-steps": "1", "--dataset": "hopper/tiny-v0"}
    defaults = (
        "" if GO_ON in arguments else " ".join(f"{k} {v}" for k, v in defaults.items() if k not in arguments)
    )
    before = files()
    with pytest.raises(SystemExit) as ended:
        call(script, f"{SHORT} {defaults} {arguments.format(**checkpoints)}")
    error = capsys.readouterr().err
    assert ended.value.code == 2
    assert error.startswith("error: ") and error.count("\n") == 1 and expected in error
    assert files() == before
