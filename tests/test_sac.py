"""SAC's mathematics, on numbers computed by hand, against plain PyTorch, and on problems with a known answer.

The blocks under test have one text in every SAC script, so they are tested once, in online_finetune_sac.py.
"""

import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch.utils._pytree import tree_leaves, tree_map

import offline_pretrain_sac
import online_finetune_sac as sac
import sac_scratch

SHAPE = {"obs_dim": 3, "action_dim": 2, "hidden_dim": 8, "num_critics": 2, "layer_norm": True}


def make(shape=None, **options):
    return sac.SAC(sac.Args(batch_size=16, **options), **(SHAPE | (shape or {})))


def random_batch(size=16, seed=0):
    g = torch.Generator().manual_seed(seed)
    obs, next_obs = torch.randn(2, size, 3, generator=g)
    action = torch.rand(size, 2, generator=g) * 2 - 1
    return sac.Batch(obs, action, torch.randn(size, generator=g), next_obs, (obs[:, 0] > 1).float())


def noise_for(algorithm, seed=0):
    g = torch.Generator().manual_seed(seed)
    return {name: torch.randn(shape, generator=g) for name, shape in algorithm.update_noise.items()}


class Constants(sac.SAC):
    """Networks that ignore their input: the policy's mean, log std and the critics' values are parameters."""

    def actor(self, params, obs):
        return tuple(params[name].expand(len(obs), -1) for name in ("mean", "log_std"))

    def critics(self, params, obs, action):
        return params["q"][:, None].expand(-1, len(obs))


def constant_state(q=(2.0, 1.0), target_q=(4.0, 6.0), alpha=0.5, dual=1.0):
    """One action dimension, a ~ tanh(N(0, 1))."""
    actor = {"mean": torch.zeros(1), "log_std": torch.zeros(1)}
    state = {"actor": actor, "target_actor": {**actor, "mean": torch.tensor([0.5])}}
    state |= {"critic": {"q": torch.tensor(q)}, "target_critic": {"q": torch.tensor(target_q)}}
    logs = {"log_alpha": torch.tensor(alpha).log(), "log_dual": torch.tensor(dual).log()}
    return state | logs | {"progress": torch.tensor(0.5)}


def constants(**options):
    return Constants(sac.Args(batch_size=2, **options), 1, 1, 8, 2, False)


def small_batch():
    zeros = torch.zeros(2, 1)
    return sac.Batch(zeros, zeros, torch.tensor([1.0, 2.0]), zeros, torch.tensor([0.0, 1.0]))


def zero_noise(size=2):
    return {"next_action": torch.zeros(size, 1), "action": torch.zeros(size, 1), "subset": torch.zeros(2)}


# ---- densities and the optimiser ----


def test_log_probability_is_that_of_a_transformed_normal(double):
    mean, log_std, noise = 0.5 * torch.randn(3, 5, 2, generator=torch.Generator().manual_seed(0))
    action, log_prob = sac.sample_action(mean, log_std, noise)
    normal = torch.distributions.Normal(mean, log_std.exp())
    tanh = torch.distributions.TransformedDistribution(
        normal, torch.distributions.TanhTransform(cache_size=1)
    )
    torch.testing.assert_close(action, (mean + log_std.exp() * noise).tanh())
    torch.testing.assert_close(log_prob, tanh.log_prob(action).sum(1), atol=1e-6, rtol=1e-6)
    torch.testing.assert_close(sac.log_density(mean, log_std, action), log_prob, atol=1e-6, rtol=1e-6)


def test_log_probability_is_finite_at_the_border_and_so_is_its_gradient():
    mean = torch.tensor([[50.0, -50.0]], requires_grad=True)
    _, log_prob = sac.sample_action(mean, torch.zeros(1, 2), torch.zeros(1, 2))
    density = sac.log_density(mean, torch.zeros(1, 2), torch.tensor([[1.0, -1.0]]))
    (gradient,) = torch.autograd.grad(log_prob.sum() + density.sum(), mean)
    assert log_prob.isfinite().all() and density.isfinite().all() and gradient.isfinite().all()


def test_log_std_stays_in_its_range():
    algorithm = make()
    params = tree_map(lambda p: 1e3 * torch.randn_like(p), algorithm.init(0)["actor"])
    _, log_std = algorithm.actor(params, torch.randn(100, 3))
    assert -5 <= log_std.min() < -4.9 and 1.9 < log_std.max() <= 2


@pytest.mark.parametrize("steps, tolerance", [(1, 3e-7), (20, 3e-7), (2000, 3e-6)])
def test_adam_is_torch_adam(steps, tolerance):
    g = torch.Generator().manual_seed(0)
    params = {"w": torch.randn(4, 3, generator=g), "b": torch.randn(4, generator=g)}
    moments, leaves = sac.adam_init(params), [p.clone().requires_grad_() for p in params.values()]
    reference = torch.optim.Adam(leaves, lr=1e-3)
    for _ in range(steps):
        grads = {name: torch.randn(p.shape, generator=g) for name, p in params.items()}
        params, moments = sac.adam(params, grads, moments, 1e-3)
        for leaf, grad in zip(leaves, grads.values(), strict=True):
            leaf.grad = grad.clone()
        reference.step()
    for p, leaf in zip(params.values(), leaves, strict=True):
        torch.testing.assert_close(p, leaf.detach(), atol=tolerance, rtol=0)


# ---- losses by hand ----


def test_critic_loss_by_hand():
    """y = 1 + 0.9 (min(4, 6) - 0.5 log pi) and, where the task ended, y = 2; log pi(tanh 0) = -0.9189385."""
    loss, (metrics, q) = constants(gamma=0.9).critic_loss(
        {"q": torch.tensor([2.0, 1.0])}, constant_state(), small_batch(), zero_noise()
    )
    y = 1 + 0.9 * (4 + 0.5 * 0.9189385)
    by_hand = ((2 - y) ** 2 + (2 - 2) ** 2) / 2 + ((1 - y) ** 2 + (1 - 2) ** 2) / 2
    assert loss.item() == pytest.approx(by_hand, rel=1e-6)
    assert metrics["q/target"].item() == pytest.approx((y + 2) / 2) and q.tolist() == [[2, 2], [1, 1]]


@pytest.mark.parametrize("first, target", [(0, 4.0), (1, 6.0)])
def test_a_subset_of_the_critics_makes_the_target(first, target):
    """REDQ: with one of two critics, the target is that one's, not the minimum."""
    noise = zero_noise() | {"subset": F.one_hot(torch.tensor(first), 2).float()}
    args = ({"q": torch.zeros(2)}, constant_state(alpha=1e-9), small_batch(), noise)
    _, (metrics, _) = constants(gamma=1.0, critic_subset=1).critic_loss(*args)
    assert metrics["q/target"].item() == pytest.approx((1 + target + 2) / 2)


@pytest.mark.parametrize(
    "options, expected",
    [
        ({}, 0.5 * -0.9189385 - 1),
        # the bonus, halfway from 2 to 1: minus 1.5 log pi(0|s)
        ({"bc_alpha": 2.0, "bc_alpha_end": 1.0}, 0.5 * -0.9189385 - 1 + 1.5 * 0.9189385),
        # the constraint: (L + 1 (tanh(0.5)^2 - 0.1)) / 2
        ({"epsilon": 0.1}, (0.5 * -0.9189385 - 1 + math.tanh(0.5) ** 2 - 0.1) / 2),
    ],
)
def test_actor_loss_by_hand(options, expected):
    """alpha log pi - min(2, 1)."""
    state = constant_state()
    loss, _ = constants(**options).actor_loss(
        state["actor"], state, small_batch(), zero_noise(), torch.zeros(2)
    )
    assert loss.item() == pytest.approx(expected, rel=1e-5)


def test_the_bonus_is_annealed_and_of_the_kept_rows():
    """A quarter of the way from 2 to 1; the second row, of Q 1, is under 3: alpha log pi - 1 - 1.75 log pi(0|s)."""
    algorithm = constants(bc_alpha=2.0, bc_alpha_end=1.0, q_filter_value=3.0)
    state = constant_state() | {"progress": torch.tensor(0.25)}
    batch = small_batch()._replace(action=torch.tensor([[0.0], [0.9]]))
    loss, _ = algorithm.actor_loss(state["actor"], state, batch, zero_noise(), torch.tensor([5.0, 1.0]))
    assert loss.item() == pytest.approx(0.5 * -0.9189385 - 1 + 1.75 * 0.9189385, rel=1e-5)


def test_the_distance_to_the_target_policy_is_summed_over_actions():
    zeros = torch.zeros(2)
    algorithm = Constants(sac.Args(batch_size=2, epsilon=0.1), 1, 2, 8, 2, False)
    state = constant_state() | {"actor": {"mean": zeros, "log_std": zeros}}
    state["target_actor"] = {"mean": torch.tensor([0.5, 1.0]), "log_std": zeros}
    noise = {"action": torch.zeros(2, 2)}
    _, metrics = algorithm.actor_loss(state["actor"], state, small_batch(), noise, zeros)
    assert metrics["constraint/distance"].item() == pytest.approx(math.tanh(0.5) ** 2 + math.tanh(1) ** 2)


def test_the_filter_leaves_rows_out_of_the_actor_loss():
    """Q of the data 5 and 1, threshold 3: the first row alone, or the second with weight 0.5."""
    algorithm = make({"num_critics": 3}, q_filter_value=3.0)
    state, batch = algorithm.init(0), random_batch(2)
    noise = {"action": torch.randn(2, 2), "subset": torch.zeros(3)}
    losses = []
    for weight in (0.0, 0.5):
        algorithm.args.q_filter_weight = weight
        losses.append(algorithm.actor_loss(state["actor"], state, batch, noise, torch.tensor([5.0, 1.0]))[0])
    rows = [sac.Batch(*(column[i : i + 1] for column in batch)) for i in range(2)]
    noises = [{"action": noise["action"][i : i + 1]} for i in range(2)]
    plain = make({"num_critics": 3})
    pairs = zip(rows, noises, strict=True)
    one, two = (plain.actor_loss(state["actor"], state, row, n, torch.zeros(1))[0] for row, n in pairs)
    torch.testing.assert_close(losses[0], one)
    torch.testing.assert_close(losses[1], (one + 0.5 * two) / 1.5)


def test_the_threshold_is_numpys_percentile_and_ties_are_kept():
    q = torch.randn(37, generator=torch.Generator().manual_seed(0))
    for percentile in (1, 25, 50, 99.5):
        _, metrics = sac.q_filter(q, sac.Args(q_filter_percentile=percentile))
        assert metrics["filter/threshold"].item() == pytest.approx(
            np.percentile(q.numpy(), percentile), abs=1e-6
        )
    weight, metrics = sac.q_filter(torch.tensor([1.0, 2.0, 2.0, 3.0]), sac.Args(q_filter_percentile=50))
    assert weight.tolist() == [0, 1, 1, 1] and metrics["filter/fraction"].item() == 0.25
    assert sac.q_filter(q, sac.Args())[0].tolist() == [1.0] * 37


def test_everything_filtered_means_no_gradient_and_no_nan():
    algorithm = make(q_filter_value=1e9)
    state = algorithm.init(0)
    new, metrics = algorithm.update(state, random_batch(), noise_for(algorithm), True)
    assert all(leaf.isfinite().all() for leaf in tree_leaves((new, metrics)))
    assert all(torch.equal(p, state["actor"][name]) for name, p in new["actor"].items())


def test_q_of_the_policys_actions_can_be_filtered():
    options = {"q_filter_value": 0.0, "q_filter_actions": "policy"}
    state = constant_state(q=(2.0, -1.0))
    _, metrics = constants(**options).actor_loss(
        state["actor"], state, small_batch(), zero_noise(), torch.tensor([5.0, 5.0])
    )
    assert metrics["filter/fraction"].item() == 1  # min(2, -1) is under 0 in both rows


# ---- one update ----


@pytest.mark.parametrize("target_entropy", [-100.0, 100.0, None])
def test_the_temperature_falls_where_entropy_is_above_its_target_and_rises_below(target_entropy):
    """By default the target is minus the number of actions, 2. Adam's first step is the learning rate."""
    algorithm = make(target_entropy=target_entropy)
    new, metrics = algorithm.update(algorithm.init(0), random_batch(), noise_for(algorithm), True)
    target = -2.0 if target_entropy is None else target_entropy
    falls = metrics["policy/entropy"].item() > target
    assert new["log_alpha"].item() == pytest.approx(-3e-4 if falls else 3e-4, rel=1e-3)


@pytest.mark.parametrize("distance, step", [(0.3, 1.0), (1e-9, -1.0)])
def test_lambda_rises_where_the_constraint_is_violated_and_falls_where_it_is_slack(distance, step):
    """log lambda += dual_lr clip(d^2 / epsilon - 1, -1, 1); the target policy moves by tau."""
    algorithm = make(epsilon=1e-3, dual_lr=0.01, dual_init=10.0)
    state = algorithm.init(0)
    last = "2.bias"
    state["target_actor"] = state["actor"] | {last: state["actor"][last] + distance}
    new, metrics = algorithm.update(state, random_batch(), noise_for(algorithm), True)
    assert new["log_dual"].item() == pytest.approx(math.log(10) + 0.01 * step, rel=1e-5)
    moved = state["target_actor"][last] + 0.005 * (new["actor"][last] - state["target_actor"][last])
    torch.testing.assert_close(new["target_actor"][last], moved)
    assert metrics["constraint/dual"].item() == pytest.approx(10)


def test_without_the_constraint_the_target_policy_stands_still():
    algorithm = make()
    new, metrics = algorithm.update(algorithm.init(0), random_batch(), noise_for(algorithm), True)
    assert not {"target_actor", "log_dual"} & new.keys() and "constraint/distance" not in metrics


def test_critics_move_in_every_update_and_the_rest_on_the_policys_turn():
    algorithm = make()
    state = algorithm.init(0)
    new, _ = algorithm.update(state, random_batch(), noise_for(algorithm), False)
    assert new.keys() == {"critic", "critic_adam", "target_critic"}
    new, _ = algorithm.update(state, random_batch(), noise_for(algorithm), True)
    for name in ("actor", "critic"):
        assert all(not torch.equal(p, state[name][key]) for key, p in new[name].items()), name
    for key, target in new["target_critic"].items():
        moved = state["target_critic"][key].lerp(new["critic"][key], 0.005)
        torch.testing.assert_close(target, moved)


@pytest.mark.parametrize("options", [{}, {"q_filter_percentile": 25.0}, {"epsilon": 1e-3}, {"bc_alpha": 0.5}])
def test_update_is_plain_autograd(options, double):
    """Gradients of the losses by ordinary backward(), steps by torch.optim.Adam."""
    algorithm = make(**options)
    state = tree_map(torch.Tensor.double, algorithm.init(0))
    batch = sac.Batch(*(column.double() for column in random_batch()))
    noise = {name: value.double() for name, value in noise_for(algorithm).items()}
    new, _ = algorithm.update(state, batch, noise, True)
    critic = {name: p.clone().requires_grad_() for name, p in state["critic"].items()}
    loss, (_, q) = algorithm.critic_loss(critic, state, batch, noise)
    loss.backward()
    torch.optim.Adam(critic.values(), lr=3e-4).step()
    stepped = state | {"critic": {name: p.detach() for name, p in critic.items()}}
    actor = {name: p.clone().requires_grad_() for name, p in state["actor"].items()}
    algorithm.actor_loss(actor, stepped, batch, noise, q.detach().amin(0))[0].backward()
    torch.optim.Adam(actor.values(), lr=3e-4).step()
    for found, expected in ((new["critic"], critic), (new["actor"], actor)):
        for name, p in expected.items():
            torch.testing.assert_close(found[name], p.detach(), atol=1e-9, rtol=0)


@pytest.mark.parametrize("script", [sac_scratch, offline_pretrain_sac])
@pytest.mark.parametrize("policy_turn", [False, True])
def test_the_other_sac_scripts_make_the_same_update(script, policy_turn):
    """test_no_drift.py does not compare the classes; what they have in common has one result."""
    options = {"actor_lr": 0.01, "critic_lr": 0.02, "alpha_lr": 0.03, "tau": 0.1, "batch_size": 16}
    options |= {"q_filter_percentile": 25.0, "critic_subset": 1, "epsilon": 1e-3}
    algorithm, finetuning = (module.SAC(module.Args(**options), **SHAPE) for module in (script, sac))
    state, other = finetuning.init(1), algorithm.init(2)
    assert all(map(torch.equal, tree_leaves(algorithm.init(1)["critic"]), tree_leaves(state["critic"])))
    state |= {
        "target_critic": other["critic"],
        "target_actor": other["actor"],
        "log_alpha": torch.tensor(-1.0),
    }
    inputs = state, random_batch(), noise_for(finetuning), policy_turn
    torch.testing.assert_close(algorithm.update(*inputs), finetuning.update(*inputs))
    obs, action = torch.randn(4, 3), torch.zeros(4, 2)
    for name, arguments in (("best_action", (state, obs)), ("action_value", (state, obs, action))):
        assert torch.equal(getattr(algorithm, name)(*arguments), getattr(finetuning, name)(*arguments))


# ---- seeds ----


def test_a_seed_starts_the_same_whatever_seeds_are_beside_it():
    algorithm = make()
    alone = algorithm.init(6)
    stacked = sac.stack([algorithm.init(seed) for seed in (5, 6, 7)])
    for leaf, stacked_leaf in zip(tree_leaves(alone), tree_leaves(stacked), strict=True):
        assert torch.equal(leaf, stacked_leaf[1])
    assert not torch.equal(stacked["actor"]["0.weight"][0], stacked["actor"]["0.weight"][1])


def test_three_seeds_together_are_three_seeds_alone(double):
    """Losses and parameters, and another batch in one seed changes nothing in the others."""
    algorithm, alone = make(q_filter_percentile=25.0, epsilon=1e-3, critic_subset=1), []
    batches, noises = [random_batch(seed=i) for i in range(3)], [noise_for(algorithm, i) for i in range(3)]
    states = [algorithm.init(i) for i in range(3)]
    for triple in zip(states, batches, noises, strict=True):
        alone.append(algorithm.update(*triple, True)[0])
    stacked = [tree_map(lambda *leaves: torch.stack(leaves), *trees) for trees in (states, batches, noises)]
    together, _ = sac.over_seeds(lambda s, b, n: algorithm.update(s, b, n, True), 3)(*stacked)
    for i in range(3):
        for one, several in zip(tree_leaves(alone[i]), tree_leaves(together), strict=True):
            torch.testing.assert_close(several[i], one.double().to(several.dtype), atol=1e-6, rtol=1e-5)


# ---- acting ----


def test_the_best_candidate_is_executed_and_optimism_weighs_the_critics_disagreement():
    """Mean 2, 3, 2.5 and standard deviation 0, 0, 1 of three candidates; the first column rates the policy's own."""
    q = torch.tensor([[9.0, 2.0, 3.0, 1.5], [9.0, 2.0, 3.0, 3.5]])
    candidates, action = torch.tensor([[0.1], [0.2], [0.3]]), torch.zeros(1)
    chosen, metrics = sac.optimistic_action(q, action, candidates, optimism=0.0)
    assert chosen.item() == pytest.approx(0.2) and metrics["candidates/q_advantage"].item() == pytest.approx(
        -6
    )
    assert metrics["candidates/distance"].item() == pytest.approx(0.2)
    assert sac.optimistic_action(q, action, candidates, optimism=1.0)[0].item() == pytest.approx(0.3)


def test_acting_draws_from_the_policy_and_candidates_are_clipped():
    algorithm = make()
    state, obs = algorithm.init(0), torch.randn(3)
    noise = {"action": torch.randn(2), "candidates": torch.zeros(0, 2)}
    action, metrics = algorithm.act(state, obs, noise)
    torch.testing.assert_close(
        action, sac.sample_action(*algorithm.actor(state["actor"], obs), noise["action"])[0]
    )
    assert metrics == {}
    algorithm = make(num_candidates=1, candidate_std=0.2)
    noise["candidates"] = torch.full((1, 2), 100.0)
    assert algorithm.act(state, obs, noise)[0].tolist() == [1, 1]


def test_evaluations_execute_the_squashed_mean_and_rate_it_by_the_lowest_critic():
    algorithm = make()
    state, obs = algorithm.init(0), torch.randn(4, 3)
    action = algorithm.best_action(state, obs)
    torch.testing.assert_close(action, algorithm.actor(state["actor"], obs)[0].tanh())
    q = algorithm.critics(state["critic"], obs, action)
    assert q.shape == (2, 4) and torch.equal(algorithm.action_value(state, obs, action), q.amin(0))


def test_finetuning_starts_from_the_pretrained_policy_and_a_slack_constraint():
    algorithm = make(dual_init=50.0)
    pretrained = make().init(3) | {"target_actor": make().init(9)["actor"], "log_dual": torch.tensor(1.0)}
    pretrained["critic_adam"]["t"] += 7
    state = algorithm.start_from(pretrained, seed=1)
    assert state["actor"] is pretrained["actor"] and state["target_actor"] is pretrained["actor"]
    assert state["critic_adam"]["t"].item() == 7 and state["log_dual"].item() == pytest.approx(math.log(50))


# ---- a problem with a known answer ----


def test_q_learns_the_value_of_a_constant_reward():
    """Reward 1, gamma 0.5, no entropy bonus; a state ends the task if its first number is 1, which half do.

    Q = 1 where it ends. Elsewhere Q = 1 + (1 + Q) / 4, so Q = 5 / 3.
    """
    algorithm = make(gamma=0.5, tau=0.05, critic_lr=3e-3)
    state, g = algorithm.init(0) | {"log_alpha": torch.tensor(-20.0)}, torch.Generator().manual_seed(0)
    for i in range(800):
        obs, next_obs = torch.rand(2, 16, 3, generator=g).round()
        action = torch.rand(16, 2, generator=g) * 2 - 1
        batch = sac.Batch(obs, action, torch.ones(16), next_obs, obs[:, 0])
        new, _ = algorithm.update(state, batch, noise_for(algorithm, i), False)
        state |= new
    obs, action = torch.rand(256, 3, generator=g).round(), torch.rand(256, 2, generator=g) * 2 - 1
    q, ends = algorithm.critics(state["critic"], obs, action).mean(0), obs[:, 0] == 1
    assert q[ends].mean().item() == pytest.approx(1, abs=0.15)
    assert q[~ends].mean().item() == pytest.approx(5 / 3, abs=0.2)
