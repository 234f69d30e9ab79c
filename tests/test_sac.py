"""SAC's mathematics and its update, on numbers computed by hand and against plain PyTorch.

The blocks under test stand word for word in every SAC script, so they are tested once, in sac_scratch.py.
"""

import copy
import math
import os
import shutil

import numpy as np
import pytest
import torch
import torch.nn as nn
import torch.nn.functional as F
from torch.func import functional_call, grad_and_value

import sac_scratch as sac

LOG_NORMAL_AT_0 = -0.9189385  # -log(2 pi) / 2: log-density of a standard normal at 0, and of its tanh


class Fixed(nn.Module):
    """A network without parameters: any function."""

    def __init__(self, function):
        super().__init__()
        self.function = function

    def forward(self, *inputs):
        return self.function(*inputs)


class Constant(nn.Module):
    """A network whose output is its parameters: critic values (S, E, 1), or an actor's two (S, 1, A)."""

    def __init__(self, *values):
        super().__init__()
        self.values = nn.ParameterList(torch.tensor(v) for v in values)

    def forward(self, obs, *_):
        if len(self.values) == 1:
            return self.values[0].expand(-1, -1, obs.shape[1])
        return tuple(value.expand(-1, obs.shape[1], -1) for value in self.values)


def make_agent(seeds=(1,), obs_dim=3, action_dim=2, hidden_dim=8, num_critics=2, layer_norm=True):
    return sac.Agent(list(seeds), obs_dim, action_dim, hidden_dim, num_critics, layer_norm)


def make_batch(seeds=1, size=4, obs_dim=3, action_dim=2, **columns):
    """Zeros, but for the given columns."""
    shapes = {"obs": (obs_dim,), "action": (action_dim,), "reward": (), "next_obs": (obs_dim,)}
    shapes |= {"terminated": (), "truncated": ()}
    return sac.Batch(*(columns.get(name, torch.zeros(seeds, size, *shape)) for name, shape in shapes.items()))


def random_batch(seeds=1, size=16, seed=0):
    g = torch.Generator().manual_seed(seed)
    ends = torch.rand(seeds, size, generator=g)
    return make_batch(
        obs=torch.randn(seeds, size, 3, generator=g),
        action=torch.rand(seeds, size, 2, generator=g) * 2 - 1,
        reward=torch.randn(seeds, size, generator=g),
        next_obs=torch.randn(seeds, size, 3, generator=g),
        terminated=(ends < 0.2).to(ends.dtype),
        truncated=(ends > 0.8).to(ends.dtype),
    )


def constant_agent(critic=(2.0, 1.0), alpha=0.5):
    """One seed, one action dimension: a ~ tanh(N(0, 1)), critics that are constants, target critics (4, 6)."""
    agent = make_agent(obs_dim=1, action_dim=1)
    agent.actor = Constant([[[0.0]]], [[[0.0]]])
    agent.critic = Constant([[[critic[0]], [critic[1]]]])
    agent.target_critic = Constant([[[4.0], [6.0]]])
    agent.log_alpha.fill_(math.log(alpha))
    return agent


def seed_slices(agent, seeds):
    """The state of each seed: [{name: tensor}]."""
    state = {name: t for name, t in agent.state_dict().items() if t.dim()}
    return [{name: t.unflatten(0, (seeds, -1))[i] for name, t in state.items()} for i in range(seeds)]


def same(one, two):
    return one.keys() == two.keys() and all(torch.equal(one[name], two[name]) for name in one)


def run_updates(agent, args, batches, seed=0):
    torch.manual_seed(seed)
    for batch in batches:
        metrics = sac.update(agent, batch, args, policy_turn=True)
    return metrics


# ---- networks ----


def test_log_probability_equals_the_transformed_normal_of_torch_distributions():
    mean, log_std, noise = torch.randn(3, 2, 5, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    action, log_prob = sac.sample_action(mean, log_std, noise)
    tanh = torch.distributions.transforms.TanhTransform()
    policy = torch.distributions.TransformedDistribution(torch.distributions.Normal(mean, log_std.exp()), tanh)
    torch.testing.assert_close(action, (mean + log_std.exp() * noise).tanh())
    torch.testing.assert_close(log_prob, policy.log_prob(action).sum(-1), rtol=1e-6, atol=1e-6)


def test_log_probability_is_finite_at_the_border_and_so_is_its_gradient():
    mean = torch.tensor([[[50.0], [-50.0]]], requires_grad=True)  # tanh is 1 in float32 from 9 on
    action, log_prob = sac.sample_action(mean, torch.zeros(1, 2, 1), torch.zeros(1, 2, 1))
    assert action.flatten().tolist() == [1, -1]
    # log(1 - tanh(x)^2) tends to log 4 - 2 |x| = 1.3863 - 100
    torch.testing.assert_close(log_prob, torch.full((1, 2), LOG_NORMAL_AT_0 - 1.3862944 + 100))
    log_prob.sum().backward()
    torch.testing.assert_close(mean.grad.flatten(), torch.tensor([2.0, -2.0]))


def test_log_std_stays_in_its_range():
    agent = make_agent(obs_dim=1, action_dim=1)
    for bias, log_std in ((-1e3, -5.0), (1e3, 2.0), (0.0, -1.5)):  # the middle of [-5, 2] is -1.5
        agent.actor.mlp.layers[-1].weight.zero_()
        agent.actor.mlp.layers[-1].bias.fill_(bias)
        assert agent.actor(torch.ones(1, 1, 1))[1].item() == pytest.approx(log_std)


@pytest.mark.parametrize("out_dim", [1, 3])  # one column takes another kernel
def test_stacked_linear_is_a_linear_layer_a_slice(out_dim):
    generators = [torch.Generator().manual_seed(s) for s in (1, 2)]
    layer = sac.StackedLinear(generators, copies=2, in_dim=5, out_dim=out_dim)
    x = torch.randn(4, 7, 5)
    y = layer(x)
    for i in range(4):
        torch.testing.assert_close(y[i], F.linear(x[i], layer.weight[i].T, layer.bias[i, 0]))
    bound = 1 / math.sqrt(5)  # nn.Linear's default: U(-1/sqrt(in), 1/sqrt(in)) for weight and bias
    for p in (layer.weight, layer.bias):
        assert p.abs().max() <= bound and p.unique().numel() == p.numel()
    assert layer.weight.abs().max() > 0.8 * bound


@pytest.mark.parametrize("layer_norm", [True, False])
def test_critic_is_one_network_a_seed_and_member(layer_norm):
    """Q (S, E, B) is what network s * E + e says of [obs, action]; LayerNorm (no affine) only if asked."""
    agent = make_agent(seeds=(1, 2), num_critics=3, layer_norm=layer_norm)
    obs, action = torch.randn(2, 5, 3), torch.randn(2, 5, 2)
    q = agent.critic(obs, action)
    assert q.shape == (2, 3, 5)
    for s in range(2):
        for e in range(3):
            x = torch.cat([obs[s], action[s]], 1)
            for layer in agent.critic.mlp.layers[:-1]:
                x = x @ layer.weight[3 * s + e] + layer.bias[3 * s + e]
                if layer_norm:
                    x = (x - x.mean(1, keepdim=True)) / (x.var(1, keepdim=True, correction=0) + 1e-5).sqrt()
                x = x.clamp(min=0)
            last = agent.critic.mlp.layers[-1]
            torch.testing.assert_close(q[s, e], (x @ last.weight[3 * s + e] + last.bias[3 * s + e])[:, 0])


def test_initial_weights_of_a_seed_do_not_depend_on_the_stack():
    stack, alone = make_agent(seeds=(5, 6, 7)), make_agent(seeds=(6,))
    slices = seed_slices(stack, 3)
    assert same(slices[1], seed_slices(alone, 1)[0])
    weight = "critic.mlp.layers.0.weight"
    assert not torch.equal(slices[0][weight], slices[1][weight])
    assert not torch.equal(slices[1][weight][0], slices[1][weight][1])  # nor are two critics alike
    for name in ("actor", "critic"):  # targets start as copies
        target = getattr(stack, f"target_{name}").state_dict()
        assert same(target, getattr(stack, name).state_dict())


# ---- Adam ----


def test_adam_equals_torch_adam():
    """20 steps on tensors of several shapes, gradients from 1e-6 to 1e3, a zero one, and a change of step size."""
    shapes, scales = [(3, 4, 5), (3, 1, 5), (3,), (2,)], [1e-6, 1.0, 1e3, 0.0]
    ours = [torch.randn(shape) for shape in shapes]
    theirs = [p.clone().requires_grad_() for p in ours]
    mine, reference = sac.Adam(ours).requires_grad_(False), torch.optim.Adam(theirs, lr=1e-2)
    for step in range(20):
        reference.param_groups[0]["lr"] = lr = 1e-2 if step < 10 else 3e-3
        grads = [scale * torch.randn(shape) for shape, scale in zip(shapes, scales, strict=True)]
        for p, grad in zip(theirs, grads, strict=True):
            p.grad = grad.clone()
        mine.step(grads, lr)
        reference.step()
    for p, q in zip(ours, theirs, strict=True):
        torch.testing.assert_close(p, q.detach(), rtol=1e-5, atol=1e-6)


def test_a_copied_agent_optimises_its_own_parameters():
    agent = make_agent()
    before, clone = copy.deepcopy(agent.state_dict()), copy.deepcopy(agent)
    run_updates(clone, sac.Args(), [random_batch()])
    assert same(agent.state_dict(), before)
    assert not torch.equal(clone.critic.mlp.layers[0].weight, agent.critic.mlp.layers[0].weight)


# ---- critic loss ----


def test_critic_loss_by_hand():
    """An ordinary, a terminated and a truncated transition; Q' = (4, 6), alpha 0.5, gamma 0.9, Q = (5, 3)."""
    agent = constant_agent(critic=(5.0, 3.0))
    batch = make_batch(
        size=3,
        obs_dim=1,
        action_dim=1,
        reward=torch.tensor([[1.0, 2.0, 3.0]]),
        terminated=torch.tensor([[0.0, 1.0, 0.0]]),
        truncated=torch.tensor([[0.0, 0.0, 1.0]]),
    )
    params = dict(agent.critic.named_parameters())
    grads, (loss, (metrics, q)) = grad_and_value(sac.critic_loss, has_aux=True)(
        params, agent, batch, torch.zeros(1, 3, 1), sac.Args(gamma=0.9)
    )
    # soft value: min(4, 6) + 0.5 * 0.9189385 = 4.4594693
    # y: 1 + 0.9 * 4.4594693 = 5.0135224; 2 (terminated); 3 + 4.0135224 = 7.0135224 (truncated); mean 4.6756816
    # critic 1: (0.0135224^2 + 3^2 + 2.0135224^2) / 3 = 4.3514851
    # critic 2: (2.0135224^2 + 1^2 + 4.0135224^2) / 3 = 7.0542113
    assert metrics["q/target"].item() == pytest.approx(4.6756816)
    assert loss.item() == pytest.approx(4.3514851 + 7.0542113)
    assert q.tolist() == [[[5, 5, 5], [3, 3, 3]]]
    # 2 (5 - 4.6756816) and 2 (3 - 4.6756816): the mean over the batch, the sum over critics
    torch.testing.assert_close(grads["values.0"], torch.tensor([[[0.6486368], [-3.3513632]]]))


def test_critic_loss_is_the_sum_over_seeds():
    agent, batch, noise, args = make_agent(seeds=(1, 2)), random_batch(2), torch.randn(2, 16, 2), sac.Args()
    agent.log_alpha.copy_(torch.tensor([0.0, -1.0]))
    loss, (metrics, _) = sac.critic_loss(dict(agent.critic.named_parameters()), agent, batch, noise, args)
    alone = []
    for i, seed in enumerate((1, 2)):
        one = make_agent(seeds=(seed,))
        one.log_alpha.fill_(-float(i))
        only = sac.Batch(*(column[i : i + 1] for column in batch))
        alone.append(sac.critic_loss(dict(one.critic.named_parameters()), one, only, noise[i : i + 1], args)[0])
    torch.testing.assert_close(metrics["loss/critic"], torch.stack(alone))
    torch.testing.assert_close(loss, alone[0] + alone[1])


# ---- actor loss ----


def actor_loss_by_row(**options):
    """Actor loss and its gradient where the policy's Q is 1, 2, 3, 4 (min of two critics), the data's 1, 2, 3, 6."""
    agent = constant_agent()
    agent.critic = Fixed(lambda obs, action: torch.stack([obs + 1, obs], 1)[..., 0] + 0 * action.mT)
    batch = make_batch(obs=torch.tensor([[[1.0], [2.0], [3.0], [4.0]]]), action_dim=1)
    params, data_q = dict(agent.actor.named_parameters()), torch.tensor([[1.0, 2.0, 3.0, 6.0]])
    return grad_and_value(sac.actor_loss, has_aux=True)(
        params, agent, batch, torch.zeros(1, 4, 1), sac.Args(**options), data_q
    )


@pytest.mark.parametrize(
    "options, mean_q",
    [
        ({}, 2.5),  # (1 + 2 + 3 + 4) / 4
        ({"q_filter_percentile": 25}, 3.0),  # threshold 1.75: rows 2, 3, 4
        ({"q_filter_percentile": 50}, 3.5),  # threshold 2.5: rows 3, 4
        ({"q_filter_percentile": 25, "q_filter_weight": 0.1}, 9.1 / 3.1),
        ({"q_filter_value": 6.0}, 4.0),  # the data's Q: row 4, a tie with the threshold
        ({"q_filter_value": 3.0, "q_filter_actions": "policy"}, 3.5),  # the policy's Q: rows 3, 4
        ({"q_filter_percentile": 75, "q_filter_actions": "policy"}, 4.0),  # threshold 3.25: row 4
    ],
)
def test_actor_loss_by_hand(options, mean_q):
    """sum w (alpha log pi - Q) / sum w, alpha = 0.5, log pi = -0.9189385 in every row."""
    _, (loss, metrics) = actor_loss_by_row(**options)
    assert loss.item() == pytest.approx(0.5 * LOG_NORMAL_AT_0 - mean_q)
    assert metrics["q/policy"].item() == 2.5 and metrics["policy/entropy"].item() == pytest.approx(-LOG_NORMAL_AT_0)


def test_actor_gradient_by_hand():
    """Q = 2 a; mean 0.4, std exp(-1), noise 0.3, alpha 0.5."""
    agent = constant_agent()
    agent.actor = Constant([[[0.4]]], [[[-1.0]]])
    agent.critic = Fixed(lambda obs, action: (2 * action.mT).expand(-1, 2, -1))
    grads, _ = grad_and_value(sac.actor_loss, has_aux=True)(
        dict(agent.actor.named_parameters()),
        agent,
        make_batch(size=1, obs_dim=1, action_dim=1),
        torch.full((1, 1, 1), 0.3),
        sac.Args(),
        torch.zeros(1, 1),
    )
    # x = 0.4 + exp(-1) 0.3 = 0.5103638, t = tanh x = 0.4702286, da/dx = 1 - t^2 = 0.7788850
    # d log pi / d mean = 2 t; d log pi / d log std = -1 + 2 t * 0.1103638 = -0.8962075
    # d mean: 0.5 * 0.9404573 - 2 * 0.7788850; d log std: 0.5 * -0.8962075 - 2 * 0.7788850 * 0.1103638
    assert grads["values.0"].item() == pytest.approx(-1.0875414)
    assert grads["values.1"].item() == pytest.approx(-0.6200252)


def test_everything_filtered_means_no_gradient_and_no_nan():
    grads, (loss, metrics) = actor_loss_by_row(q_filter_value=1e6)
    assert loss.item() == 0 and metrics["filter/fraction"].item() == 1
    assert [grad.item() for grad in grads.values()] == [0, 0]


def test_filter_threshold_is_numpys_percentile_of_each_seed():
    q = torch.randn(3, 17, generator=torch.Generator().manual_seed(0)) * torch.tensor([[1.0], [10.0], [100.0]])
    for percentile in (1, 25, 33.3, 90):
        weight, metrics = sac.q_filter(q, sac.Args(q_filter_percentile=percentile, q_filter_weight=0.25))
        threshold = np.percentile(q.numpy().astype(float), percentile, axis=1)  # linear interpolation
        np.testing.assert_allclose(metrics["filter/threshold"], threshold, rtol=1e-5)
        np.testing.assert_array_equal(weight, np.where(q.numpy() >= threshold[:, None], 1, 0.25))
        np.testing.assert_allclose(metrics["filter/fraction"], (q.numpy() < threshold[:, None]).mean(1))


def test_filter_keeps_ties():
    weight, metrics = sac.q_filter(torch.tensor([[1.0, 1.0, 1.0, 2.0]]), sac.Args(q_filter_percentile=50))
    assert weight.tolist() == [[1, 1, 1, 1]] and metrics["filter/fraction"].item() == 0  # the threshold is 1


def test_percentile_0_is_no_filter():
    """To the last bit: off; percentile 0 whatever the other options; a threshold that every row reaches."""
    states = []
    for options in ({}, {"q_filter_percentile": 0, "q_filter_weight": 0.3}, {"q_filter_value": -1e9}):
        agent = make_agent()
        run_updates(agent, sac.Args(actor_lr=1e-2, **options), [random_batch(seed=i) for i in range(3)])
        states.append(agent.state_dict())
    assert same(states[0], states[1]) and same(states[0], states[2])
    agent = make_agent()
    run_updates(agent, sac.Args(actor_lr=1e-2, q_filter_percentile=25), [random_batch(seed=i) for i in range(3)])
    assert not torch.equal(agent.state_dict()["actor.mlp.layers.0.weight"], states[0]["actor.mlp.layers.0.weight"])


# ---- temperature and constraint ----


def test_temperature_rises_under_the_target_entropy_and_falls_above():
    """Each seed its own. Two action dimensions: the target is -2. Adam's first step is the step size."""
    agent = make_agent(seeds=(1, 2))
    last = agent.actor.mlp.layers[-1]
    last.weight.zero_()
    last.bias.zero_()
    last.bias[0, :, 2:] = -20.0  # log std -5: entropy near 2 * (1.42 - 5) = -7.2
    last.bias[1, :, 2:] = 0.4581454  # log std 0: entropy near 2 * 0.6
    metrics = run_updates(agent, sac.Args(alpha_lr=1e-3), [random_batch(2, size=256)])
    assert metrics["policy/entropy"].tolist() == pytest.approx([-7.2, 1.2], abs=0.3)
    torch.testing.assert_close(agent.log_alpha.data, torch.tensor([1e-3, -1e-3]))


def constraint_terms(epsilon):
    """Loss and metrics where the means are (0.5, 0) in two rows, and the target's (0.1, 0.3) and (0.5, 0)."""
    agent = make_agent(obs_dim=1)
    half = math.atanh(0.5)
    agent.actor = Constant([[[half, 0.0]]], [[[0.0, 0.0]]])
    target = torch.tensor([[[0.1, 0.3], [0.5, 0.0]]]).atanh()
    agent.target_actor = Fixed(lambda obs: (target, torch.zeros_like(target)))
    agent.critic = Fixed(lambda obs, action: torch.zeros(1, 2, 2))
    agent.log_dual.fill_(math.log(2))
    args, batch = sac.Args(epsilon=epsilon), make_batch(size=2, obs_dim=1)
    params = dict(agent.actor.named_parameters())
    return grad_and_value(sac.actor_loss, has_aux=True)(
        params, agent, batch, torch.zeros(1, 2, 2), args, torch.zeros(1, 2)
    )


def test_constraint_by_hand():
    grads, (loss, metrics) = constraint_terms(epsilon=0.1)
    free_grads, (free_loss, _) = constraint_terms(epsilon=math.inf)
    assert metrics["constraint/distance"].item() == pytest.approx(0.125)  # rows 0.4^2 + 0.3^2 = 0.25 and 0
    assert (3 * loss - free_loss).item() == pytest.approx(0.05, abs=1e-6)  # lambda (d^2 - epsilon) = 2 * 0.025
    # d/dx lambda d^2 = 2 * mean over rows of 2 (a - a') (1 - a^2): 2 * 0.4 * 0.75 and 2 * -0.3 * 1
    torch.testing.assert_close((3 * grads["values.0"] - free_grads["values.0"])[0, 0], torch.tensor([0.6, -0.6]))


def test_dual_rises_where_violated_and_falls_where_slack():
    """By the relative violation, at most dual_lr: d^2 = 1.5 epsilon is half a step, 50 epsilon a whole one."""
    agent, args = make_agent(seeds=(1, 2, 3, 4)), sac.Args(epsilon=0.02, dual_lr=1e-2)
    for bias, distance in zip(agent.target_actor.mlp.layers[-1].bias, (0.0, 0.03, 0.02, 1.0), strict=True):
        bias[0, :2] = math.atanh(min(math.sqrt(distance / 2), 0.999))
    for network in (agent.actor, agent.target_actor):  # the means are the biases, the actor's are 0
        network.mlp.layers[-1].weight.zero_()
    agent.actor.mlp.layers[-1].bias.zero_()
    metrics = run_updates(agent, args, [random_batch(4)])
    torch.testing.assert_close(metrics["constraint/distance"], torch.tensor([0.0, 0.03, 0.02, 1.0]))
    torch.testing.assert_close(agent.log_dual, torch.tensor([-1e-2, 0.5e-2, 0.0, 1e-2]), rtol=0, atol=1e-6)
    assert metrics["constraint/dual"].tolist() == [1, 1, 1, 1]  # the one that the loss was made with


@pytest.mark.parametrize("epsilon, bound", [(100.0, sac.LOG_DUAL_MIN), (1e-9, sac.LOG_DUAL_MAX)])
def test_dual_stops_at_its_bounds(epsilon, bound):
    agent = make_agent()
    agent.target_actor.mlp.layers[-1].bias += 1
    agent.log_dual.fill_(0.999 * bound)
    run_updates(agent, sac.Args(epsilon=epsilon, dual_lr=0.1), [random_batch()])
    assert agent.log_dual.item() == bound


def test_epsilon_inf_leaves_the_constraint_out():
    """To the last bit: neither target policy nor dual plays a part."""
    plain, other, batches = make_agent(), make_agent(), [random_batch(seed=i) for i in range(3)]
    other.target_actor.mlp.layers[-1].bias += 1
    other.log_dual.fill_(5)
    for agent in (plain, other):
        metrics = run_updates(agent, sac.Args(), batches)
    assert same(plain.actor.state_dict(), other.actor.state_dict())
    assert same(plain.critic.state_dict(), other.critic.state_dict())
    assert other.log_dual.item() == 5 and not any(name.startswith("constraint") for name in metrics)
    run_updates(other, sac.Args(epsilon=0.1), batches)  # and it does play a part otherwise
    assert other.log_dual.item() != 5


# ---- the whole update ----


@pytest.mark.parametrize("tau", [0.005, 1.0, 0.0])
def test_targets_move_by_tau(tau):
    agent = make_agent()
    run_updates(agent, sac.Args(), [random_batch()])  # apart, so that there is a way to go
    before = {name: copy.deepcopy(getattr(agent, f"target_{name}").state_dict()) for name in ("actor", "critic")}
    run_updates(agent, sac.Args(tau=tau, critic_lr=0.1, actor_lr=0.1), [random_batch(seed=1)])
    for name, old in before.items():
        new, target = getattr(agent, name).state_dict(), getattr(agent, f"target_{name}").state_dict()
        for key in old:
            assert not torch.equal(old[key], new[key])
            torch.testing.assert_close(target[key], (1 - tau) * old[key] + tau * new[key], rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("still, moving", [("actor", "critic"), ("critic", "actor")])
def test_each_loss_moves_its_own_network_only(still, moving):
    agent = make_agent()
    before = copy.deepcopy(agent.state_dict())
    args = sac.Args(**{f"{still}_lr": 0.0}, tau=0.0, epsilon=0.1)
    run_updates(agent, args, [random_batch(seed=i) for i in range(3)])
    after = agent.state_dict()
    for name in before:
        network = name.split(".")[0]
        if network in (still, "target_actor", "target_critic"):
            assert torch.equal(before[name], after[name]), name
        if network == moving:
            assert not torch.equal(before[name], after[name]), name
    assert all(p.grad is None and not p.requires_grad for p in agent.parameters())


class PlainMLP(nn.Sequential):
    def __init__(self, in_dim, out_dim, hidden_dim, layer_norm):
        norm = (lambda: nn.LayerNorm(hidden_dim, elementwise_affine=False)) if layer_norm else nn.Identity
        super().__init__(
            *(nn.Linear(in_dim, hidden_dim), norm(), nn.ReLU()),
            *(nn.Linear(hidden_dim, hidden_dim), norm(), nn.ReLU()),
            nn.Linear(hidden_dim, out_dim),
        )

    def copy_from(self, mlp, index):
        for plain, layer in zip((m for m in self if isinstance(m, nn.Linear)), mlp.layers, strict=True):
            plain.weight.data, plain.bias.data = layer.weight[index].T.clone(), layer.bias[index, 0].clone()
        return self

    def flat(self):
        return torch.cat([p.detach().flatten() for p in self.parameters()])


class PlainSAC:
    """SAC in plain PyTorch: separate critics, autograd, torch.optim, torch.distributions; one seed."""

    def __init__(self, agent, args):
        self.args = args
        self.actor = PlainMLP(3, 4, 8, False).copy_from(agent.actor.mlp, 0)
        self.critics = [PlainMLP(5, 1, 8, True).copy_from(agent.critic.mlp, e) for e in range(2)]
        self.targets, self.target_actor = copy.deepcopy(self.critics), copy.deepcopy(self.actor)
        self.log_alpha, self.dual = torch.zeros((), requires_grad=True), 1.0
        self.actor_adam = torch.optim.Adam(self.actor.parameters(), args.actor_lr)
        self.critic_adam = torch.optim.Adam([p for c in self.critics for p in c.parameters()], args.critic_lr)
        self.alpha_adam = torch.optim.Adam([self.log_alpha], args.alpha_lr)

    def act(self, obs, noise):
        mean, log_std = self.actor(obs).chunk(2, 1)
        normal = torch.distributions.Normal(mean, (-5 + 3.5 * (log_std.tanh() + 1)).exp())
        x = normal.loc + normal.scale * noise
        return x.tanh(), (normal.log_prob(x) - torch.log(1 - x.tanh() ** 2)).sum(1), mean.tanh()

    def q(self, critics, obs, action):
        return torch.stack([critic(torch.cat([obs, action], 1))[:, 0] for critic in critics])

    def step(self, adam, loss):
        adam.zero_grad()
        loss.backward()
        adam.step()

    def update(self, batch, noise):
        obs, action, reward, next_obs, terminated, _ = (column[0] for column in batch)
        alpha = self.log_alpha.exp().detach()
        with torch.no_grad():
            next_action, next_log_prob, _ = self.act(next_obs, noise[0])
            next_value = self.q(self.targets, next_obs, next_action).min(0)[0] - alpha * next_log_prob
            target = reward + self.args.gamma * (1 - terminated) * next_value
        q = self.q(self.critics, obs, action)
        data_q = q.detach().min(0)[0]  # as it was before this step of the critics
        self.step(self.critic_adam, ((q - target) ** 2).mean(1).sum())

        new_action, log_prob, mean = self.act(obs, noise[1])
        loss = alpha * log_prob - self.q(self.critics, obs, new_action).min(0)[0]
        kept = data_q >= data_q.quantile(self.args.q_filter_percentile / 100)
        loss = loss[kept].mean()
        if self.args.epsilon < math.inf:
            distance = (mean - self.target_actor(obs)[:, :2].detach().tanh()).pow(2).sum(1).mean()
            loss = (loss + self.dual * (distance - self.args.epsilon)) / (1 + self.dual)
        self.step(self.actor_adam, loss)
        self.step(self.alpha_adam, self.log_alpha.exp() * (-log_prob.detach().mean() + 2))
        if self.args.epsilon < math.inf:
            relative = distance.item() / self.args.epsilon - 1
            self.dual *= math.exp(self.args.dual_lr * max(-1, min(1, relative)))
        for target, online in zip([*self.targets, self.target_actor], [*self.critics, self.actor], strict=True):
            for p, q in zip(target.parameters(), online.parameters(), strict=True):
                p.data += self.args.tau * (q.data - p.data)


@pytest.mark.parametrize("options", [{}, {"q_filter_percentile": 25, "epsilon": 1e-3}])
def test_update_equals_plain_pytorch(options, double):
    args = sac.Args(actor_lr=1e-2, critic_lr=2e-2, alpha_lr=5e-3, tau=0.1, gamma=0.9, **options)
    agent = make_agent()
    plain = PlainSAC(agent, args)
    for i in range(5):
        batch = random_batch(seed=i)
        torch.manual_seed(i)
        sac.update(agent, batch, args, policy_turn=True)
        torch.manual_seed(i)
        plain.update(batch, torch.randn(2, 1, 16, 2)[:, 0])  # the critics' noise, then the policy's
    pairs = [(agent.critic, plain.critics), (agent.target_critic, plain.targets)]
    pairs += [(agent.actor, [plain.actor]), (agent.target_actor, [plain.target_actor])]
    for ours, networks in pairs:
        for e, theirs in enumerate(networks):
            mine = copy.deepcopy(theirs).copy_from(ours.mlp, e)
            torch.testing.assert_close(mine.flat(), theirs.flat(), rtol=1e-5, atol=1e-8)
    torch.testing.assert_close(agent.log_alpha.data[0], plain.log_alpha.data, rtol=1e-5, atol=1e-8)
    assert agent.log_dual.item() == pytest.approx(math.log(plain.dual), rel=1e-5)
    assert plain.log_alpha.item() != 0 and (plain.dual != 1) == ("epsilon" in options)


EVERYTHING = {"q_filter_percentile": 25, "epsilon": 1e-3, "actor_lr": 1e-2, "critic_lr": 1e-2}


def test_a_stack_of_two_equals_two_single_runs(double, monkeypatch):
    noise, batches = torch.randn(3, 2, 2, 16, 2), [random_batch(2, seed=i) for i in range(3)]

    def run(agent, seeds):
        for i, batch in enumerate(batches):
            monkeypatch.setattr(torch, "randn", lambda *shape, i=i, **_: noise[i][:, seeds].reshape(shape))
            sac.update(agent, sac.Batch(*(column[seeds] for column in batch)), sac.Args(**EVERYTHING), True)
        return agent

    stack = seed_slices(run(make_agent(seeds=(1, 2)), slice(0, 2)), 2)
    for i in range(2):
        (single,) = seed_slices(run(make_agent(seeds=(i + 1,)), slice(i, i + 1)), 1)
        for name, value in single.items():
            torch.testing.assert_close(stack[i][name], value, rtol=1e-7, atol=1e-9)


def test_compiled_update_gives_the_eager_numbers(monkeypatch):
    """The whole update is one graph (fullgraph) with its in-place writes, on the same draws.

    By default without the C++ code generation, which takes a minute on a slow core: TEST_INDUCTOR=1 has it.
    """
    backend = "inductor" if os.environ.get("TEST_INDUCTOR") else "aot_eager"
    if backend == "inductor" and not shutil.which(os.environ.get("CXX", "g++")):
        pytest.skip("no C++ compiler")
    import torch._inductor.config as inductor

    monkeypatch.setattr(inductor, "fallback_random", True)  # else compiled code has a random stream of its own
    eager, compiled, batches = make_agent(), make_agent(), [random_batch(seed=i) for i in range(3)]
    run_updates(eager, sac.Args(**EVERYTHING), batches)
    monkeypatch.setattr(sac, "update", torch.compile(sac.update, fullgraph=True, backend=backend))
    run_updates(compiled, sac.Args(**EVERYTHING), batches)
    for name, value in eager.state_dict().items():
        torch.testing.assert_close(compiled.state_dict()[name], value, rtol=1e-4, atol=1e-6)
    assert compiled.actor_adam.t == 3


def test_logged_metrics_are_the_means_since_the_last_reading():
    """Each call runs the step twice: 1 2 3 4, then 5 6."""
    values = iter(range(1, 100))

    def count(turn):
        return {"m": torch.full((1,), next(values))}

    loop = sac.Loop(count, make_agent(), sac.Args(), compiled=False, repeat=2)
    assert loop.read() == {}
    loop()
    loop()
    assert loop.read()["m"].tolist() == [2.5]
    loop()
    assert loop.read()["m"].tolist() == [5.5]
    assert loop.read() == {}


@pytest.mark.parametrize("fails", [False, True])
def test_compiling_leaves_no_trace_and_may_fail(fails, monkeypatch, capsys):
    """Warming up runs real updates; parameters, optimisers, random state and metrics are as before them."""

    def compiled(function, **_):
        def run(turn):
            result = function(turn)
            if fails:
                raise RuntimeError("no compiler")
            return result

        return run

    monkeypatch.setattr(torch, "compile", compiled)
    agent, args, batch = make_agent(), sac.Args(), random_batch()
    before, random_state = copy.deepcopy(agent.state_dict()), torch.get_rng_state()
    loop = sac.Loop(lambda turn: sac.update(agent, batch, args, turn), agent, args, compiled=True)
    assert same(agent.state_dict(), before) and torch.equal(torch.get_rng_state(), random_state)
    assert loop.read() == {} and ("eagerly" in capsys.readouterr().out) == fails
    other = make_agent()
    expected = run_updates(other, args, [batch])
    torch.manual_seed(0)
    loop()
    assert same(agent.state_dict(), other.state_dict())
    assert loop.read()["loss/critic"] == expected["loss/critic"].numpy()


def test_q_learns_the_value_of_a_constant_reward():
    """Reward 1, gamma 0.5, no entropy bonus: Q is 1 where the episode ends, 1 / (1 - 0.5) = 2 where it goes on."""
    going_on = (torch.arange(32) % 2).to(torch.float32).view(1, 32)
    obs = going_on[..., None] * 2 - 1
    args = sac.Args(gamma=0.5, tau=0.1, critic_lr=5e-3, alpha_lr=0.0)
    agent = make_agent(obs_dim=1, action_dim=1, hidden_dim=16)
    agent.log_alpha.fill_(-20)
    torch.manual_seed(0)
    for i in range(300):
        truncated = going_on if i % 2 else torch.zeros(1, 32)  # the clock takes nothing off the value
        batch = sac.Batch(obs, 2 * torch.rand(1, 32, 1) - 1, torch.ones(1, 32), obs, 1 - going_on, truncated)
        sac.update(agent, batch, args, policy_turn=True)
    q = agent.critic(batch.obs, batch.action)[0].mean(0)
    assert q[0::2].tolist() == pytest.approx([1] * 16, abs=0.1)
    assert q[1::2].tolist() == pytest.approx([2] * 16, abs=0.1)


# ---- optimistic actions (O3F) ----


def candidate_agent(q, seeds=1):
    """One action dimension, a policy that is nearly 0 (std exp(-5)), critics that are functions of the action."""
    agent = make_agent(seeds=range(seeds), obs_dim=1, action_dim=1)
    agent.actor = Fixed(lambda obs: (torch.zeros(*obs.shape[:2], 1), torch.full((*obs.shape[:2], 1), -5.0)))
    agent.critic = Fixed(lambda obs, action: torch.stack([f(action[..., 0]) for f in q], 1))
    return agent


PEAK_AT_03 = [lambda a: -((a - 0.3) ** 2)] * 2


def test_the_best_candidate_of_each_seed_is_executed():
    agent, args = candidate_agent(PEAK_AT_03, seeds=2), sac.Args(num_candidates=4, candidate_std=0.2)
    noise = torch.tensor([[-1.0, 1.0, 2.5, 10.0], [3.5, 0.5, -0.5, -50.0]])[..., None]
    start = torch.tensor([0.0, -0.2]).view(2, 1, 1)
    action, metrics = sac.optimistic_action(agent, torch.zeros(2, 1, 1), start, noise, args)
    # seed 1 has -0.2, 0.2, 0.5, 1 (clipped); seed 2 has 0.5, -0.1, -0.3, -1 (clipped)
    torch.testing.assert_close(action.flatten(), torch.tensor([0.2, 0.5]))
    # Q: -0.01 after -0.09; -0.04 after -0.25
    torch.testing.assert_close(metrics["candidates/q_advantage"], torch.tensor([0.08, 0.21]))
    torch.testing.assert_close(metrics["candidates/distance"], torch.tensor([0.2, 0.7]))


@pytest.mark.parametrize("optimism, best", [(0.0, -0.2), (1.0, -0.2), (1.5, 0.5), (-2.0, 0.1)])
def test_optimism_weighs_the_critics_disagreement(optimism, best):
    """Q = (a, -3a): mean -a, (population) standard deviation 2 |a|; candidates -0.2, 0.1, 0.5.

    Scores: 0.2 + 0.4 omega, -0.1 + 0.2 omega, -0.5 + omega: the third beats the first from omega 7/6 on (with
    the sample standard deviation, from 0.82), the second at -2: -0.6, -0.5, -2.5.
    """
    agent, args = candidate_agent([lambda a: a, lambda a: -3 * a]), sac.Args(candidate_std=0.1, optimism=optimism)
    noise = torch.tensor([[[-2.0], [1.0], [5.0]]])
    action, _ = sac.optimistic_action(agent, torch.zeros(1, 1, 1), torch.zeros(1, 1, 1), noise, args)
    assert action.item() == pytest.approx(best)


def test_candidates_are_clipped():
    agent, args = candidate_agent([lambda a: a] * 2), sac.Args(num_candidates=50, candidate_std=100.0)
    assert sac.select_action(agent, torch.zeros(1, 1, 1), args)[0].item() == 1


def test_number_of_candidates():
    """2,000 seeds that act once: 0 is the policy itself, 1 a noisy draw however bad, 100 nearly the best action."""
    torch.manual_seed(0)
    agent, obs = candidate_agent(PEAK_AT_03), torch.zeros(2000, 1, 1)
    action, metrics = sac.select_action(agent, obs, sac.Args(num_candidates=0))
    assert action.shape == (2000, 1, 1) and metrics == {}
    assert action.std().item() == pytest.approx(math.exp(-5), rel=0.1)
    action, _ = sac.select_action(agent, obs, sac.Args(num_candidates=1, candidate_std=0.2))
    assert action.mean().item() == pytest.approx(0, abs=0.02) and action.std().item() == pytest.approx(0.2, rel=0.1)
    action, _ = sac.select_action(agent, obs, sac.Args(num_candidates=100, candidate_std=0.2))
    assert action.mean().item() == pytest.approx(0.3, abs=0.01) and action.std().item() < 0.03


def test_evaluations_take_the_squashed_mean():
    agent, obs = make_agent(), torch.randn(1, 5, 3)
    expected = functional_call(agent.actor, dict(agent.actor.named_parameters()), (obs,))[0].tanh()
    assert torch.equal(sac.best_action(agent, obs), expected)
