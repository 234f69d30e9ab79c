"""IQL's and AWAC's mathematics: on numbers computed by hand, against plain PyTorch, on problems with a known answer.

What they share with SAC (networks, Adam, the filter's threshold, the choice of a candidate) is tested in test_sac.py.
"""

import math
from functools import partial

import numpy as np
import pytest
import torch
from torch.func import grad_and_value
from torch.utils._pytree import tree_leaves, tree_map

import awac
import iql

CLASS = {iql: iql.IQL, awac: awac.AWAC}
BOTH = pytest.mark.parametrize("script", [iql, awac], ids=["iql", "awac"])
SHAPE = {"obs_dim": 3, "action_dim": 2, "hidden_dim": 8, "num_critics": 2, "layer_norm": False}
gradient = partial(grad_and_value, has_aux=True)  # (gradients, (loss, the rest))
ONLINE = {"offline_steps": 0, "online_steps": 9}
V0 = {"0.weight": torch.zeros(1, 1), "0.bias": torch.zeros(1)}  # a network of one layer: V = 0


def make(script, shape=None, **options):
    return CLASS[script](script.Args(batch_size=16, **options), **(SHAPE | (shape or {})))


def batch_and_noise(script, algorithm, seed=0):
    g = torch.Generator().manual_seed(seed)
    obs, next_obs = torch.randn(2, 16, 3, generator=g)
    action, reward = torch.rand(16, 2, generator=g) * 2 - 1, torch.randn(16, generator=g)
    noise = {name: torch.randn(shape, generator=g) for name, shape in algorithm.update_noise.items()}
    return script.Batch(obs, action, reward, next_obs, (obs[:, 0] > 1).float()), noise


def rows_of(script, size=3, **columns):
    """A batch of rows with one-dimensional observations and actions; zeros but for the given columns."""
    zeros = dict.fromkeys(("obs", "action", "next_obs"), torch.zeros(size, 1))
    zeros |= dict.fromkeys(("reward", "terminated"), torch.zeros(size))
    given = {name: torch.as_tensor(column).float() for name, column in columns.items()}
    return script.Batch(**{name: given.get(name, zero).view_as(zero) for name, zero in zeros.items()})


def fixed_policy(script, critic=None, **options):
    """pi = N(0.5, 2^2) for one action; Q = critic(params, obs, action), (E, B); halfway through the online steps."""

    class Fixed(CLASS[script]):
        def actor(self, params, obs):
            return params["mean"].expand(len(obs), -1), params["log_std"]

        def critics(self, params, obs, action):
            return critic(params, obs, action)

    actor = {"mean": torch.tensor([0.5]), "log_std": torch.tensor([math.log(2)])}
    state = {"actor": actor, "critic": {"q": torch.tensor([25.0, 20.0])}, "target_critic": {}, "value": V0}
    state |= {"progress": torch.tensor(0.5), "reward_scale": torch.tensor(1.0)}
    return Fixed(script.Args(**options), 1, 1, 8, 2, False), state


# ---- losses of value and critics by hand ----


def test_expectile_loss_by_hand():
    """V = 0; Q 2, -1, 0.5: weight 0.7 where Q is above V, or 0.3."""
    algorithm, state = fixed_policy(iql, expectile=0.7)
    q = torch.tensor([2.0, -1.0, 0.5])
    grads, (loss, (metrics, advantage)) = gradient(algorithm.value_loss)(V0, state, rows_of(iql), q)
    assert loss.item() == pytest.approx((0.7 * 4 + 0.3 * 1 + 0.7 * 0.25) / 3)
    assert grads["0.bias"].item() == pytest.approx(-2 * (0.7 * 2 - 0.3 * 1 + 0.7 * 0.5) / 3)
    assert torch.equal(advantage, q) and metrics["q/value"].item() == 0


def test_iql_critic_loss_by_hand():
    """V(s') = 4, 5, 6, gamma 0.9, rewards times 10, Q 25 and 20: y = 13.6, 20 where it ended, 35.4; mean 23."""
    algorithm, state = fixed_policy(iql, lambda params, *_: params["q"][:, None].expand(-1, 3), gamma=0.9)
    state |= {"value": V0 | {"0.weight": torch.ones(1, 1)}, "reward_scale": torch.tensor(10.0)}
    batch = rows_of(iql, obs=[-99] * 3, reward=[1, 2, 3], next_obs=[4, 5, 6], terminated=[0, 1, 0])
    grads, (loss, metrics) = gradient(algorithm.critic_loss)(state["critic"], state, batch)
    assert loss.item() == pytest.approx((11.4**2 + 5**2 + 10.4**2 + 6.4**2 + 0 + 15.4**2) / 3)
    assert metrics["q/target"].item() == pytest.approx(23) and metrics["q/data"].item() == 22.5
    assert grads["q"].tolist() == pytest.approx([4, -6])


def test_awac_critic_loss_by_hand():
    """Q' = (10 a, 20 a - 5), Q = (25, 20), gamma 0.5; a' = 0.7, 1 (clipped), -, 0.4: min Q' = 7, 10, -, 3."""

    def critic(params, obs, action):
        if params:
            return params["q"][:, None].expand(-1, 4)
        return torch.stack([10 * action, 20 * action - 5])[..., 0]

    algorithm, state = fixed_policy(awac, critic, gamma=0.5)
    batch = rows_of(awac, 4, reward=[1, 1, 2, 3], terminated=[0, 0, 1, 0])
    noise, y = {"next_action": torch.tensor([[0.1], [9.0], [9.0], [-0.05]])}, np.array([4.5, 6, 2, 4.5])
    grads, (loss, (metrics, q)) = gradient(algorithm.critic_loss)(state["critic"], state, batch, noise)
    assert loss.item() == pytest.approx(((25 - y) ** 2).mean() + ((20 - y) ** 2).mean())
    assert metrics["q/target"].item() == pytest.approx(4.25) and q.tolist() == [[25] * 4, [20] * 4]
    assert grads["q"].tolist() == pytest.approx([2 * (25 - 4.25), 2 * (20 - 4.25)])


# ---- policy losses by hand: the data's actions 0.5, -0.5, 1 are noise (a - 0.5) / 2 = 0, -0.5, 0.25 ----

ACTIONS, NOISE, DATA_Q = [0.5, -0.5, 1.0], np.array([0, -0.5, 0.25]), torch.tensor([1.0, 2.0, 3.0])
FILTERS = [  # options, and the rows' shares in the loss: the data's Q rises by row, the policy's falls
    ({}, [1, 1, 1]),
    ({"q_filter_percentile": 50, "q_filter_weight": 0.1}, [0.1, 1, 1]),
    ({"q_filter_value": 2.5}, [0, 0, 1]),
    ({"q_filter_percentile": 50, "q_filter_actions": "policy"}, [1, 1, 0]),
]


def check_policy_loss(algorithm, state, q, other, keep, weight, obs=(0, 0, 0)):
    """-sum k w log pi / sum k; d log pi / d mean = noise / 2, d log pi / d log std = noise^2 - 1."""
    batch = rows_of(iql, action=ACTIONS, obs=obs)
    grads, (loss, metrics) = gradient(algorithm.actor_loss)(state["actor"], state, batch, q, other)
    keep, weight = np.array(keep), np.array(weight)
    log_pi = -(NOISE**2) / 2 - math.log(2 * math.sqrt(2 * math.pi))
    for found, slope in ((loss, log_pi), (grads["mean"], NOISE / 2), (grads["log_std"], NOISE**2 - 1)):
        assert found.item() == pytest.approx(-(keep * weight * slope).sum() / keep.sum(), rel=1e-5)
    assert metrics["policy/std"].item() == pytest.approx(2)
    assert metrics["weight/mean"].item() == pytest.approx(weight.mean(), rel=1e-5)
    share = (keep * weight).sum() ** 2 / (3 * (keep**2 * weight**2).sum())
    assert metrics["weight/effective_share"].item() == pytest.approx(share, rel=1e-5)
    return metrics


@pytest.mark.parametrize("options, keep", FILTERS)
def test_iql_policy_loss_by_hand(options, keep):
    """beta 2, advantages 0, 1, 3: weights 1, e^2, 100. Rewards times 0.5, which filters undo: Q' of the mean is 4, 3, 2."""

    def critic(params, obs, action):
        return 0.5 * torch.stack([obs + 2 * action, obs + 2 * action + 1])[..., 0]

    algorithm, state = fixed_policy(iql, critic, beta=2.0, **options)
    state |= {"reward_scale": torch.tensor(0.5)}
    advantage, weight = torch.tensor([0.0, 1.0, 3.0]), [1, math.exp(2), 100]
    metrics = check_policy_loss(algorithm, state, advantage, 0.5 * DATA_Q, keep, weight, obs=(3, 2, 1))
    assert options.get("q_filter_actions") != "policy" or metrics["filter/threshold"].item() == 3


@pytest.mark.parametrize("options, keep", FILTERS)
@pytest.mark.parametrize(
    "kind, weight", [("softmax", [3 / 1100, 297 / 1100, 3000 / 1100]), ("exp", [1, 99, 100])]
)
def test_awac_policy_loss_by_hand(kind, weight, options, keep):
    """lambda 2, advantages 2 log 1, 99, 1000; exp is clipped, softmax is over the whole batch, filtered or not."""
    algorithm, state = fixed_policy(awac, awac_lambda=2.0, awac_weights=kind, **options)
    policy_q = DATA_Q - 2 * torch.tensor([1.0, 99.0, 1000.0]).log()  # falls from row to row
    metrics = check_policy_loss(algorithm, state, DATA_Q, policy_q, keep, weight)
    assert metrics["q/policy"].item() == pytest.approx(policy_q.mean().item())


@pytest.mark.parametrize("kind, expected", [("linear", [0.6, 0.65, 0.8]), ("abrupt", [0.6, 0.8, 0.8])])
def test_annealing_moves_the_expectile_and_the_temperature_online(kind, expected):
    """From 0.6 to 0.8, offline, after a quarter and at the end, where u = 1: the value loss, AWAC's exponent."""
    value_of, state = fixed_policy(iql, expectile=0.6, expectile_end=0.8, anneal=kind)
    options = {"awac_lambda": 0.6, "awac_lambda_end": 0.8, "awac_weights": "exp"}
    actor_of, _ = fixed_policy(awac, anneal=kind, **options)
    for progress, coefficient in zip((0.0, 0.25, 1.0), expected, strict=True):
        state["progress"], batch = torch.tensor(progress), rows_of(iql)
        loss, _ = value_of.value_loss(V0, state, batch, torch.ones(3))
        _, metrics = actor_of.actor_loss(state["actor"], state, batch, torch.ones(3), torch.zeros(3))
        assert loss.item() == pytest.approx(coefficient)
        assert metrics["weight/mean"].item() == pytest.approx(math.exp(1 / coefficient))


def test_the_actors_rate_falls_along_a_half_cosine_offline_and_is_whole_online():
    """Three policy updates in seven offline steps: shares 1, 0.75, 0.25, then 1 again. A rate of 0 moves nothing."""
    algorithm = make(iql, offline_steps=7, policy_delay=2, actor_lr=0.1)
    rates = [float(algorithm.decayed_actor_lr(torch.tensor(float(t)))) for t in range(5)]
    assert rates == pytest.approx([0.1, 0.075, 0.025, 0.1, 0.1])
    for options in ({"cosine": False}, {"offline_steps": 0}):
        assert make(iql, actor_lr=0.1, **options).decayed_actor_lr(torch.tensor(1.0)) == 0.1
    params = torch.tensor([1.0, -2.0])
    assert torch.equal(iql.adam(params, params, iql.adam_init(params), torch.zeros(()))[0], params)
    algorithm, half = make(iql, offline_steps=2), make(iql, cosine=False, actor_lr=1.5e-4)
    state, (batch, _) = algorithm.init(0), batch_and_noise(iql, algorithm)
    state["actor_adam"]["t"] += 1  # one of two updates is done
    one, other = (each.update(state, batch, {}, True)[0]["actor"]["log_std"] for each in (algorithm, half))
    torch.testing.assert_close(one, other, atol=1e-9, rtol=0)


def test_rewards_are_scaled_by_the_span_of_episodes_returns(capsys):
    """Episodes of 1 + 2, of 3 + 4 + 5 (cut by the clock), and of 9, which the data leave open."""
    rows, ends = np.zeros((6, 10), np.float32), np.array([0, 1, 0, 0, 2, 0], np.uint8)
    rows[:, 5] = [1, 2, 3, 4, 5, 9]
    assert make(iql).from_data(rows, ends)["reward_scale"].item() == pytest.approx(1000 / 9)
    assert make(iql, normalize_reward=False).from_data(rows, ends) == {}
    with pytest.raises(SystemExit):
        make(iql).from_data(0 * rows, ends)
    assert "say --no-normalize-reward" in capsys.readouterr().err


@BOTH
def test_everything_that_should_move_moves_and_the_policy_on_its_turn(script):
    algorithm = make(script)
    state, (batch, noise) = algorithm.init(0), batch_and_noise(script, algorithm)
    critics = {"critic", "value"} & state.keys()
    for policy_turn, moving in ((False, critics), (True, critics | {"actor"})):
        new, metrics = algorithm.update(state, batch, noise, policy_turn)
        assert new.keys() == moving | {f"{name}_adam" for name in moving} | {"target_critic"}
        assert all(leaf.isfinite().all() for leaf in tree_leaves((new, metrics)))
        assert ("loss/actor" in metrics) == policy_turn
        for name in moving:
            leaves = zip(tree_leaves(new[name]), tree_leaves(state[name]), strict=True)
            assert not any(torch.equal(*pair) for pair in leaves) and new[f"{name}_adam"]["t"] == 1
    arguments = state["actor"], state, batch, torch.linspace(-1e4, 1e4, 16), torch.zeros(16)
    grads, _ = gradient(algorithm.actor_loss)(*arguments)  # weights up to the clip
    assert all(grad.isfinite().all() for grad in tree_leaves(grads))


@BOTH
@pytest.mark.parametrize("actions", ["data", "policy"])
def test_update_is_plain_autograd(script, actions, double):
    """The losses by backward(), torch.optim.Adam, of the second of two seeds; targets differ, steps are large.

    IQL's advantage: target critics, V before its step. AWAC's: critics before theirs, a draw of its own.
    """
    rates = {"actor": 0.1, "critic": 0.2, "value": 0.2}
    options = {"q_filter_percentile": 25, "q_filter_actions": actions, "actor_lr": 0.1, "critic_lr": 0.2}
    algorithm, triples = make(script, tau=0.5, offline_steps=0, **options), []
    for i in range(2):
        state = algorithm.init(i) | {"target_critic": algorithm.init(9)["critic"]}
        triples.append(tree_map(torch.Tensor.double, (state, *batch_and_noise(script, algorithm, i))))
    update = script.over_seeds(lambda *triple: algorithm.update(*triple, True), 2)
    new, _ = update(*map(script.stack, zip(*triples, strict=True)))
    state, batch, noise = triples[1]

    def step(name, loss, *others):
        params = tree_map(lambda p: p.clone().requires_grad_(), state[name])
        value, rest = loss(params, *others)
        value.backward()
        torch.optim.Adam(tree_leaves(params), lr=rates[name]).step()
        stepped[name] = tree_map(torch.Tensor.detach, params)
        return rest

    stepped = {}
    if script is iql:
        data_q = algorithm.critics(state["target_critic"], batch.obs, batch.action).amin(0)
        _, advantage = step("value", algorithm.value_loss, state, batch, data_q)
        step("critic", algorithm.critic_loss, state | stepped, batch)
        pair = advantage.detach(), data_q
    else:
        mean, log_std = algorithm.actor(state["actor"], batch.obs)
        action = (mean + log_std.exp() * noise["action"]).clamp(-1, 1)
        _, q = step("critic", algorithm.critic_loss, state, batch, noise)
        pair = q.amin(0).detach(), algorithm.critics(state["critic"], batch.obs, action).amin(0)
    target_critic = script.polyak(state["target_critic"], stepped["critic"], 0.5)
    step("actor", algorithm.actor_loss, state | {"target_critic": target_critic}, batch, *pair)
    for name, expected in (stepped | {"target_critic": target_critic}).items():
        for found, leaf in zip(tree_leaves(new[name]), tree_leaves(expected), strict=True):
            torch.testing.assert_close(found[1], leaf, atol=1e-6, rtol=0)


@BOTH
@pytest.mark.parametrize("size", [1, 2])
def test_acting_draws_clipped_actions_and_evaluations_execute_the_mean(script, size):
    algorithm, obs = make(script, {"action_dim": size}), torch.randn(4, 3)
    state = algorithm.init(0)
    mean, log_std = algorithm.actor(state["actor"], obs)
    assert mean.shape == (4, size) and mean.abs().max() < 1 and log_std.tolist() == [0] * size
    assert torch.equal(algorithm.best_action(state, obs), mean)
    noise = {"action": torch.full((size,), 0.1), "candidates": torch.full((1, size), 100.0)}
    torch.testing.assert_close(algorithm.act(state, obs[0], noise)[0], mean[0] + 0.1)
    low = noise | {"action": torch.full((size,), -9.0)}
    assert algorithm.act(state, obs[0], low)[0].tolist() == [-1] * size
    algorithm.args.num_candidates = 1
    assert algorithm.act(state, obs[0], noise)[0].tolist() == [1] * size
    q = algorithm.critics(state["critic"], obs, mean)
    assert q.shape == (2, 4) and torch.equal(algorithm.action_value(state, obs, mean), q.amin(0))
    if script is iql:  # in units of the environment's rewards
        state["reward_scale"] = torch.tensor(4.0)
        torch.testing.assert_close(algorithm.action_value(state, obs, mean), q.amin(0) / 4)
    params = state["actor"] | {"log_std": torch.tensor([-9.0, 9.0])}
    assert algorithm.actor(params, obs)[1].tolist() == [-5, 2]


@BOTH
def test_a_policy_learns_the_weighted_actions(script):
    """Actions -0.5 and 0.5 pay -1 and 1, the better counts three times: mean 0.25, variance 0.25 - 0.25^2."""
    beta, rates = math.log(3) / 2, {"actor_lr": 1e-2, "critic_lr": 1e-2, "tau": 0.1}
    options = {"beta": beta, "cosine": False} if script is iql else {"awac_lambda": 1 / beta}
    algorithm = make(script, {"obs_dim": 1, "action_dim": 1}, **rates, **options)
    sign, state = torch.tensor([-1.0, 1.0] * 8), algorithm.init(0)
    batch = rows_of(script, 16, action=sign / 2, reward=sign, terminated=[1] * 16)
    for i in range(200):
        _, noise = batch_and_noise(script, algorithm, i)
        state |= algorithm.update(state, batch, noise, True)[0]
    q = algorithm.action_value(state, batch.obs, batch.action)
    assert q.tolist() == pytest.approx(sign.tolist(), abs=0.05)
    mean, log_std = algorithm.actor(state["actor"], batch.obs)
    assert mean.mean().item() == pytest.approx(0.25, abs=0.03)
    assert log_std.exp().item() ** 2 == pytest.approx(0.1875, abs=0.03)
    assert script is awac or iql.mlp(state["value"], batch.obs).mean().item() == pytest.approx(0.4, abs=0.03)


@pytest.mark.parametrize(
    "script, options, expected",
    [
        (iql, ONLINE | {"cosine": False}, "--no-cosine: without --offline-steps there is no schedule"),
        (iql, {"anneal": "abrupt", "online_steps": 9}, "--anneal abrupt: needs --expectile-end, the"),
        (awac, {"anneal": "abrupt", "online_steps": 9}, "--anneal abrupt: needs --awac-lambda-end, the"),
    ],
)
def test_options_that_contradict_each_other_end_with_one_line(script, options, expected, capsys):
    script.check_args(script.Args(**ONLINE))  # which is fine
    with pytest.raises(SystemExit) as ended:
        script.check_args(script.Args(**options))
    error = capsys.readouterr().err
    assert ended.value.code == 2 and error.count("\n") == 1 and error.startswith(f"error: {expected}")


@pytest.mark.parametrize(
    "script, name, values",
    [(iql, "expectile", (0.4, 1)), (iql, "expectile_end", (0.4, 1)), (iql, "beta", (-1, math.nan))]
    + [(awac, "awac_lambda", (0, math.nan)), (awac, "awac_lambda_end", (0, -1))],
)
def test_limits(script, name, values):
    for value in values:
        with pytest.raises(ValueError, match=name):
            script.Args(**{name: value})
