"""TD3+BC and TD3-C: numbers computed by hand, plain PyTorch, and problems with a known answer.

Text that the SAC scripts share (Adam, the filter's threshold, the best candidate) is tested in test_sac.py.
"""

import math

import numpy as np
import pytest
import torch
import torch.nn as nn
import torch.nn.functional as F
from torch.func import grad_and_value
from torch.utils._pytree import tree_leaves, tree_map

import td3_bc
import td3_c

SHAPE = {"obs_dim": 3, "action_dim": 2, "hidden_dim": 8, "num_critics": 2, "network": "layernorm"}
TD3 = {"epsilon": math.inf, "clip_dqda": False}
HALF = {"q_filter_value": 2.0, "q_filter_weight": 0.5, "q_filter_actions": "policy"}
BOTH = pytest.mark.parametrize("script", [td3_bc, td3_c], ids=["td3_bc", "td3_c"])


def make(script, shape=None, **options):
    return script.TD3(script.Args(batch_size=16, **options), **(SHAPE | (shape or {})))


def known(script, obs_dim=1, action_dim=2, **options):
    """TD3 whose policy's action is its parameter, (1 or B, A), and whose critics are slopes (E, O + A)."""

    class Known(script.TD3):
        def actor(self, params, obs):
            return params["action"].expand(len(obs), -1)

        def critics(self, params, obs, action):
            return params["slope"] @ torch.cat([obs, action], 1).T

    return Known(script.Args(**options), obs_dim, action_dim, 8, 2, "relu")


def random_batch(seed=0):
    g = torch.Generator().manual_seed(seed)
    obs, next_obs = torch.randn(2, 16, 3, generator=g)
    action, reward = torch.rand(16, 2, generator=g) * 2 - 1, torch.randn(16, generator=g)
    return td3_c.Batch(obs, action, reward, next_obs, (obs[:, 0] > 1).float())


def noise(seed=0):
    return {"next_action": torch.randn(16, 2, generator=torch.Generator().manual_seed(seed))}


def moved_target(state):
    """The state with a target policy whose actions are others."""
    return state | {"target_actor": state["actor"] | {"2.bias": state["actor"]["2.bias"] + 0.3}}


# ---- losses by hand ----


@BOTH
def test_critic_loss_by_hand(script):
    """Q' = (4, 6), Q = (5, 3): y = 1 + 0.9 * 4 = 4.6, 2 (terminated), 3 + 0.9 * 4 = 6.6, mean 4.4."""
    algorithm, one, zero = known(script, action_dim=1, gamma=0.9), torch.ones(3, 1), torch.zeros(3, 1)
    batch = script.Batch(one, zero, torch.tensor([1.0, 2.0, 3.0]), one, torch.tensor([0.0, 1.0, 0.0]))
    state = {"target_actor": {"action": torch.zeros(1, 1)}}
    state["target_critic"] = {"slope": torch.tensor([[4.0, 0.0], [6.0, 0.0]])}
    params = {"slope": torch.tensor([[5.0, 0.0], [3.0, 0.0]])}
    gradient = grad_and_value(algorithm.critic_loss, has_aux=True)
    grads, (loss, (metrics, q)) = gradient(params, state, batch, {"next_action": zero})
    # critic 1: (0.4^2 + 3^2 + 1.6^2) / 3 = 11.72 / 3; critic 2: (1.6^2 + 1^2 + 3.6^2) / 3 = 16.52 / 3
    assert loss.item() == pytest.approx(28.24 / 3) and metrics["q/target"].item() == pytest.approx(4.4)
    assert q.tolist() == [[5, 5, 5], [3, 3, 3]]
    torch.testing.assert_close(grads["slope"][:, 0], torch.tensor([1.2, -2.8]))  # 2 (5 - 4.4), 2 (3 - 4.4)


@BOTH
def test_target_noise_and_target_action_are_clipped(script):
    """0.2 * 10 is clipped to 0.5: 0.9 + 0.5 is clipped to 1, 0.9 - 0.5 = 0.4; 0.9 - 0.2 = 0.7. Q' = a_1 + 3 a_2."""
    algorithm, obs = known(script, gamma=1.0, target_noise=0.2, noise_clip=0.5), torch.zeros(3, 1)
    batch = script.Batch(obs, torch.zeros(3, 2), torch.zeros(3), obs, torch.zeros(3))
    state = {"target_actor": {"action": torch.tensor([[0.9, -0.9]])}}
    state["target_critic"] = {"slope": torch.tensor([[0.0, 1.0, 3.0]] * 2)}
    noise = {"next_action": torch.tensor([[10.0, -10.0], [-10.0, 10.0], [-1.0, 1.0]])}
    loss, _ = algorithm.critic_loss({"slope": torch.zeros(1, 3)}, state, batch, noise)
    assert loss.item() == pytest.approx(((1 - 3) ** 2 + (0.4 - 1.2) ** 2 + (0.7 - 2.1) ** 2) / 3)


def three_rows():
    """(state, batch, Q of the data): mu = (0.5, -0.5), Q_1 = 2 s + a_1 + 2 a_2 for s = -1, 1, 2: -2.5, 1.5, 3.5.

    (mu - a)^2, mean over dimensions: 0, 0.5, 0.625. (mu - mu')^2, sum over dimensions: 0, 0.16, 0.09.
    """
    state = {"actor": {"action": torch.tensor([[0.5, -0.5]])}, "log_dual": torch.tensor(3.0).log()}
    state["critic"] = {"slope": torch.tensor([[2.0, 1.0, 2.0], [9.0, 9.0, 9.0]])}
    state["target_actor"] = {"action": torch.tensor([[0.5, -0.5], [0.1, -0.5], [0.5, -0.2]])}
    obs, zeros = torch.tensor([[-1.0], [1.0], [2.0]]), torch.zeros(3)
    action = torch.tensor([[0.5, -0.5], [0.5, 0.5], [-0.5, -1.0]])
    return state, td3_c.Batch(obs, action, zeros, obs, zeros), torch.tensor([1.0, 2.0, 3.0])


@pytest.mark.parametrize(
    "script, options, loss, gradient",
    [
        # mean |Q_1| = 2.5, so kappa = 5 / 2.5 = 2; gradient: (0 + 0 + 1) / 3 - 2 * 1, (0 - 1 + 0.5) / 3 - 2 * 2
        (td3_bc, {"alpha": 5.0}, 0.375 - 5 / 3, [1 / 3 - 2, -1 / 6 - 4]),
        (td3_bc, {"alpha": 5.0, "clip_dqda": True}, 0.375 - 5 / 3, [1 / 3 - 2, -1 / 6 - 2]),
        # rows 2 and 3 stay: 0.5625 - 2 * 2.5; kappa is over all rows
        (td3_bc, {"alpha": 5.0, "q_filter_percentile": 50}, 0.5625 - 5, [1 / 2 - 2, -1 / 4 - 4]),
        # under Q_1 = 2 with a weight of 0.5: (0.5 (0 + 5) + 0.5 (0.5 - 3) + (0.625 - 7)) / 2
        (td3_bc, {"alpha": 5.0} | HALF, -5.125 / 2, [0.5 - 2, (-0.5 + 0.5) / 2 - 4]),
        (td3_bc, {"alpha": math.inf}, -2.5 / 3, [-1.0, -2.0]),
        # 3 (d^2 - epsilon) = 0.25 - 0.15; gradient: (-1 + 3 * 2 * 0.4 / 3) / 4, (-2 + 3 * 2 * -0.3 / 3) / 4
        (td3_c, {"epsilon": 0.05, "clip_dqda": False}, (-2.5 / 3 + 0.1) / 4, [-0.2 / 4, -2.6 / 4]),
        (td3_c, {"epsilon": 0.05}, (-2.5 / 3 + 0.1) / 4, [-0.2 / 4, -1.6 / 4]),
        (td3_c, {"epsilon": 0.05, "q_filter_percentile": 50}, (-2.5 + 0.1) / 4, [-0.2 / 4, -1.6 / 4]),
        (td3_c, TD3, -2.5 / 3, [-1.0, -2.0]),
        # the arm TD3+BC: neither bound nor clipping
        (td3_c, {"alpha": 5.0}, 0.375 - 5 / 3, [1 / 3 - 2, -1 / 6 - 4]),
    ],
)
def test_policy_loss_by_hand(script, options, loss, gradient):
    state, *rest = three_rows()
    gradient_of = grad_and_value(known(script, **options).actor_loss, has_aux=True)
    grads, (value, metrics) = gradient_of(state["actor"], state, *rest)
    assert value.item() == pytest.approx(loss) and metrics["q/policy"].item() == pytest.approx(2.5 / 3)
    torch.testing.assert_close(grads["action"], torch.tensor([gradient]))
    assert metrics.get("policy/distance_to_data", torch.tensor(0.375)).item() == pytest.approx(0.375)
    assert metrics.get("constraint/distance", torch.tensor(0.25 / 3)).item() == pytest.approx(0.25 / 3)
    assert ("constraint/distance" in metrics) == ("epsilon" in options and options["epsilon"] < math.inf)


@pytest.mark.parametrize("outputs", [1, 4])
def test_the_network_of_td3_c_is_that_of_plain_pytorch(outputs):
    """Linear, LayerNorm, tanh, Linear, ELU, Linear; the other one is that of the SAC scripts."""
    params = tree_map(lambda p: p + 0.1 * torch.randn_like(p), td3_c.new_acme_mlp(3, 8, 8, outputs))
    first, second, last, norm = nn.Linear(3, 8), nn.Linear(8, 8), nn.Linear(8, outputs), nn.LayerNorm(8)
    for i, layer in enumerate((first, second, last)):
        layer.weight.data, layer.bias.data = params[f"{i}.weight"], params[f"{i}.bias"]
    norm.weight.data, norm.bias.data = params["norm.scale"], params["norm.shift"]
    x = torch.randn(5, 3)
    expected = last(F.elu(second(norm(first(x)).tanh()))).detach().view(5, *[outputs] * (outputs > 1))
    torch.testing.assert_close(td3_c.acme_mlp(params, x), expected)


def test_initial_weights_are_acmes_and_the_policy_starts_near_zero():
    """Uniform within 0.333 sqrt(3 / inputs), of standard deviation 0.333 / sqrt(inputs); 0.01 in the last layer."""
    state = make(td3_bc, {"hidden_dim": 256, "num_critics": 3}).init(1)
    for weight, scale in ((state["critic"]["1.weight"], 0.333), (state["actor"]["2.weight"], 0.01)):
        bound = scale * math.sqrt(3 / 256)
        assert 0.98 * bound < weight.abs().max() <= bound
        assert weight.std().item() == pytest.approx(scale / 16, rel=0.06)
    assert not torch.equal(*state["critic"]["1.weight"][:2])
    assert all(not state["critic"][f"{i}.bias"].any() for i in range(3))
    assert state["target_actor"] is state["actor"] and state["target_critic"] is state["critic"]


@pytest.mark.parametrize(
    "script, options",
    [(td3_bc, {"clip_dqda": True} | HALF), (td3_bc, {}), (td3_c, {"epsilon": 1e-3}), (td3_c, {"alpha": 2.5})],
)
def test_update_is_plain_autograd(script, options, double):
    """Gradients of the losses by ordinary backward(), steps by torch.optim.Adam, on standardised observations."""
    algorithm = make(script, **options)
    state, batch = moved_target(algorithm.init(0)), random_batch()
    state |= {"obs_mean": torch.full((3,), 0.5), "obs_std": torch.full((3,), 2.0)}
    new, _ = algorithm.update(state, batch, noise(), True)
    batch = batch._replace(obs=(batch.obs - 0.5) / 2, next_obs=(batch.next_obs - 0.5) / 2)
    actor, critic = tree_map(lambda p: p.clone().requires_grad_(), (state["actor"], state["critic"]))
    loss, (_, q) = algorithm.critic_loss(critic, state, batch, noise())
    loss.backward()
    torch.optim.Adam(critic.values(), lr=3e-4).step()
    stepped = state | {"critic": tree_map(torch.Tensor.detach, critic)}
    algorithm.actor_loss(actor, stepped, batch, q.detach().amin(0))[0].backward()
    torch.optim.Adam(actor.values(), lr=3e-4).step()
    torch.testing.assert_close(new["critic"], tree_map(torch.Tensor.detach, critic), atol=1e-9, rtol=0)
    torch.testing.assert_close(new["actor"], tree_map(torch.Tensor.detach, actor), atol=1e-9, rtol=0)


@BOTH
def test_only_the_critics_move_between_policy_turns_and_targets_move_by_tau(script):
    algorithm = make(script, tau=0.5, actor_lr=0.1, critic_lr=0.1)
    state = moved_target(algorithm.init(0))
    new, _ = algorithm.update(state, random_batch(), noise(), False)
    assert new.keys() == {"critic", "critic_adam"}
    new, metrics = algorithm.update(state, random_batch(), noise(), True)
    others = {"actor", "actor_adam", "target_actor", "target_critic"} | ({"log_dual"} & state.keys())
    assert new.keys() == {"critic", "critic_adam", *others}
    assert all(leaf.isfinite().all() for leaf in tree_leaves((new, metrics)))
    for name in ("actor", "critic"):
        for key, p in new[name].items():
            assert not torch.equal(p, state[name][key]), (name, key)
            target = state[f"target_{name}"][key].lerp(p, 0.5)
            torch.testing.assert_close(new[f"target_{name}"][key], target)


@pytest.mark.parametrize("distance, step", [(0.0, -1.0), (0.03, 0.5), (0.02, 0.0), (1.0, 1.0)])
def test_lambda_rises_where_the_bound_is_violated_and_falls_where_it_is_kept(distance, step):
    """By the relative violation, at most dual_lr; the metric is the lambda that the loss was made with."""
    algorithm = make(td3_c, epsilon=0.02, dual_lr=0.01, dual_init=10.0)
    state = algorithm.init(0)
    still = state["actor"] | {"2.weight": torch.zeros(2, 8)}  # its action is tanh(bias), 0
    bias = torch.tensor([math.atanh(math.sqrt(distance / 2))] * 2 if distance < 1 else [20.0, 0.0])
    state |= {"actor": still, "target_actor": still | {"2.bias": bias}}
    new, metrics = algorithm.update(state, random_batch(), noise(), True)
    assert metrics["constraint/distance"].item() == pytest.approx(distance, abs=1e-6)
    assert new["log_dual"].item() == pytest.approx(math.log(10) + 0.01 * step, abs=1e-5)
    assert metrics["constraint/dual"].item() == pytest.approx(10)


@pytest.mark.parametrize("limit, distance", [(td3_c.LOG_DUAL_MAX, 0.3), (td3_c.LOG_DUAL_MIN, 0.0)])
def test_lambda_stays_in_its_range(limit, distance):
    algorithm = make(td3_c, epsilon=1e-3, dual_lr=0.5)
    state = algorithm.init(0) | {"log_dual": torch.tensor(limit)}
    state["target_actor"] = state["actor"] | {"2.bias": state["actor"]["2.bias"] + distance}
    new, metrics = algorithm.update(state, random_batch(), noise(), True)
    assert (metrics["constraint/distance"] > 1e-3) == (distance > 0) and new["log_dual"].item() == limit


def test_three_seeds_together_are_three_seeds_alone(double):
    algorithm = make(td3_c, q_filter_percentile=25.0, epsilon=1e-3)
    seeds = [(moved_target(algorithm.init(i)), random_batch(i), noise(i)) for i in range(3)]
    alone = [algorithm.update(*seed, True)[0] for seed in seeds]
    stacked = [td3_c.stack(trees) for trees in zip(*seeds, strict=True)]
    together, _ = td3_c.over_seeds(lambda s, b, n: algorithm.update(s, b, n, True), 3)(*stacked)
    torch.testing.assert_close(together, td3_c.stack(alone), atol=1e-9, rtol=1e-7)


# ---- a problem with a known answer: one step, reward -1 - 4 (a - 0.5)^2, the data's actions are 0 on average ----


@pytest.mark.parametrize(
    "script, options, lowest, highest",
    [
        (td3_bc, {"alpha": 0.0}, -0.15, 0.15),  # clones
        (td3_c, {"alpha": 0.3}, 0.1, 0.4),  # 2 a = 0.3 * 8 (0.5 - a) / (1 + 4 (a - 0.5)^2) at a = 0.24
        (td3_c, TD3, 0.3, 0.8),  # climbs the critic
        (td3_c, {"epsilon": 1e-5, "dual_init": 1.0}, -0.1, 0.4),  # climbs too, in smaller steps
    ],
)
def test_a_policy_clones_climbs_or_climbs_slowly(script, options, lowest, highest):
    """It begins at -0.46, when the critics have learned."""
    shape = {"action_dim": 1, "hidden_dim": 32, "network": "relu"}
    algorithm = make(script, shape, actor_lr=2e-3, critic_lr=1e-2, **options)
    state, g = algorithm.init(1), torch.Generator().manual_seed(1)
    state["actor"] |= {"2.bias": torch.tensor([-0.5])}
    for i in range(350):
        obs, action = torch.randn(32, 3, generator=g), 1 - 2 * torch.rand(32, 1, generator=g)
        batch = script.Batch(obs, action, -1 - 4 * (action[:, 0] - 0.5).square(), obs, torch.ones(32))
        state |= algorithm.update(state, batch, {"next_action": torch.zeros(32, 1)}, i >= 250)[0]
    action = algorithm.best_action(state, torch.randn(64, 3, generator=g))
    assert action.shape == (64, 1) and lowest < action.mean().item() < highest


def test_statistics_of_the_data_standardise_observations():
    rows = np.random.default_rng(0).normal([3, -2, 7], [4, 0.1, 0], (500, 3)).astype(np.float32)
    rows = np.column_stack([rows, np.full((500, 7), 9, np.float32)])
    assert make(td3_bc).from_data(rows) == {}
    algorithm = make(td3_bc, normalize_obs=True)
    neutral = algorithm.init(0)
    state = neutral | algorithm.from_data(rows)
    obs, action = torch.from_numpy(rows[:5, :3]), torch.rand(5, 2)
    standardised = ((rows[:, :3] - rows[:, :3].mean(0)) / (rows[:, :3].std(0) + 1e-3))[:5]
    expected = algorithm.action_value(neutral, torch.from_numpy(standardised), action)
    torch.testing.assert_close(algorithm.action_value(state, obs, action), expected, atol=1e-4, rtol=1e-4)


def test_actions_have_noise_and_are_clipped_candidates_too_and_evaluations_have_none():
    algorithm, obs = make(td3_c, exploration_noise=0.1), torch.randn(3)
    state = algorithm.init(0) | {"obs_mean": torch.full((3,), 0.5)}
    mean = algorithm.actor(state["actor"], obs - 0.5)
    torch.testing.assert_close(algorithm.best_action(state, obs[None])[0], mean)
    noise = {"action": torch.tensor([1.0, -2.0]), "candidates": torch.full((1, 2), 100.0)}
    torch.testing.assert_close(algorithm.act(state, obs, noise), (mean + torch.tensor([0.1, -0.2]), {}))
    noise["action"] *= 100
    assert algorithm.act(state, obs, noise)[0].tolist() == [1, -1]
    assert make(td3_c, num_candidates=1).act(state, obs, noise)[0].tolist() == [1, 1]
    q = algorithm.critics(state["critic"], obs[None] - 0.5, mean[None])
    torch.testing.assert_close(algorithm.action_value(state, obs[None], mean[None]), q.amin(0))


@pytest.mark.parametrize("options, copies", [({"dual_init": 50.0}, True), ({"alpha": 2.5}, False)])
def test_td3_c_starts_with_what_td3_bc_left_but_bound_to_its_policy(options, copies):
    pretrained = moved_target(make(td3_bc).init(3)) | {"obs_mean": torch.ones(3), "log_dual": torch.ones(())}
    pretrained["critic_adam"]["t"] += 7
    state = make(td3_c, **options).start_from(pretrained, seed=1)
    for name in pretrained.keys() - {"target_actor", "log_dual"}:
        assert state[name] is pretrained[name], name
    assert state["target_actor"] is pretrained["actor" if copies else "target_actor"]
    assert state["log_dual"].exp().item() == pytest.approx(options.get("dual_init", 100.0))


@pytest.mark.parametrize(
    "options, message",
    [
        ({"scratch": True, "checkpoint": "x"}, "--checkpoint x: --scratch starts without one"),
        ({"hidden_dim": 16}, "--hidden-dim 16: the checkpoint decides that"),
        ({"num_critics": 3}, "--num-critics 3: the checkpoint decides that"),
        ({"network": "relu"}, "--network relu: the checkpoint decides that"),
        ({"alpha": 2.5, "epsilon": 1e-3}, "--epsilon 0.001: has no effect with --alpha"),
    ],
)
def test_contradictions_are_refused(options, message, capsys):
    with pytest.raises(SystemExit, match="2"):
        td3_c.check_args(td3_c.Args(**options))
    assert capsys.readouterr().err.startswith(f"error: {message}")
    fine = {"scratch": True, "hidden_dim": 16, "network": "relu"}, {"alpha": 2.5}, {"alpha": 2.5, **TD3}
    for options in fine:
        td3_c.check_args(td3_c.Args(**options))
