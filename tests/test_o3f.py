"""O3F on LAPO: selection and losses on numbers computed by hand, updates against plain PyTorch, known answers.

Adam, the Q-filter and the choice among candidates have one text in all scripts and are tested in test_sac.py.
"""

import math

import numpy as np
import pytest
import torch
from torch.utils._pytree import tree_leaves, tree_map

import o3f_select as o3f

CRITIC_SIDE = {"value_min", "value_max", "critic", "value", "target_critic", "critic_adam", "value_adam"}
POLICY_SIDE = {"actor", "vae", "target_actor", "target_decoder", "actor_adam", "vae_adam"}
GO_ON = {"offline_steps": 0, "online_steps": 9}


def make(shape=None, **options):
    sizes = {"obs_dim": 3, "action_dim": 2, "hidden_dim": 8, "num_critics": 5, "layer_norm": False}
    return o3f.LAPO(o3f.Args(**({"batch_size": 16} | options)), **(sizes | (shape or {})))


def random_batch(seed=0, size=16):
    g = torch.Generator().manual_seed(seed)
    obs, next_obs = torch.randn(2, size, 3, generator=g)
    action, reward = torch.rand(size, 2, generator=g) * 2 - 1, torch.randn(size, generator=g)
    return o3f.Batch(obs, action, reward, next_obs, (obs[:, 0] > 1).to(obs.dtype))


def noise_for(algorithm, seed=0):
    g = torch.Generator().manual_seed(seed)
    return {name: torch.randn(shape, generator=g) for name, shape in algorithm.update_noise.items()}


def always(params, *outputs):
    """The same network, or critics, but for its outputs: these, whatever the input."""
    weight, bias = list(params)[-2:]
    return params | {weight: 0 * params[weight], bias: torch.tensor(outputs).view_as(params[bias])}


class Line(o3f.LAPO):
    """obs is one number s, actions are equal numbers a: D(s, z) = z_1 - 2 z_2, Q by `rate(s, a)`."""

    def decode(self, params, state, obs, latent):
        return (latent[..., :1] - 2 * latent[..., 1:2]).expand(*obs.shape[:-1], self.action_dim)

    def critics(self, params, obs, action):
        return self.rate(obs[..., 0], action[..., 0])


def line(rate, num_critics=3, latent=(0.5, -0.5), **options):
    algorithm = Line(o3f.Args(batch_size=3, **options), 1, len(latent) // 2, 8, num_critics, False)
    algorithm.rate, state = rate, algorithm.init(0)
    return algorithm, state | {"actor": always(state["actor"], *(math.atanh(z / 2) for z in latent))}


ZEROS = torch.zeros(3, 1)
ROWS = o3f.Batch(torch.arange(3.0)[:, None], ZEROS, ZEROS[:, 0], ZEROS, ZEROS[:, 0])  # of Line: s is 0, 1, 2


@pytest.mark.parametrize("optimism, best", [(0.0, -0.2), (1.0, -0.2), (1.5, 0.5), (-2.0, 0.1)])
def test_the_best_candidate_by_mean_and_deviation_of_the_critics_is_executed(optimism, best):
    """Q = (a, -3a, a, -3a): mean -a, deviation 2 |a|; -0.2, 0.1, 0.5 score 0.2 + 0.4 w, -0.1 + 0.2 w, -0.5 + w."""
    algorithm, state = line(None, 4, (0.0, 0.0), num_candidates=3, candidate_std=0.1, optimism=optimism)
    algorithm.rate = lambda s, a: torch.stack([a, -3 * a, a, -3 * a])
    noise = {"candidates": torch.tensor([[-2.0], [1.0], [5.0]])}
    action, metrics = algorithm.act(state, torch.zeros(1), noise)
    assert algorithm.act_noise == {"candidates": (3, 1)} and action.tolist() == pytest.approx([best])
    assert metrics["candidates/q_advantage"].item() == pytest.approx(-best)
    assert metrics["candidates/distance"].item() == pytest.approx(abs(best))


def test_candidates_are_clipped_and_a_lone_one_is_executed_however_bad():
    algorithm, state = line(lambda s, a: -a.square()[None], 1, (0.9, 0.0), num_candidates=1, critic_subset=0)
    for noise, expected in ((1000.0, 1.0), (-1000.0, -1.0), (-0.5, 0.8)):
        action, _ = algorithm.act(state, torch.zeros(1), {"candidates": torch.tensor([[noise]])})
        assert action.tolist() == pytest.approx([expected])
    algorithm, state = line(None, latent=(1.5, -1.5), num_candidates=0)  # the policy's action is 4.5
    assert algorithm.act_noise == {} and algorithm.act(state, torch.zeros(1), {}) == (torch.ones(1), {})


def test_evaluations_execute_what_the_target_decoder_makes_of_the_policys_latent():
    algorithm, obs = make(), random_batch().obs
    state = algorithm.init(0) | {"target_actor": None, "vae": None, "reward_scale": torch.tensor(0.1)}
    state |= {"action_mean": torch.tensor([0.1, 5.0]), "action_std": torch.tensor([0.5, 1.0])}
    seen = torch.cat([obs, 2 * o3f.mlp(state["actor"], obs).tanh()], 1)
    action = algorithm.best_action(state, obs)
    torch.testing.assert_close(action[:, 0], 0.1 + 0.5 * o3f.mlp(state["target_decoder"], seen)[:, 0])
    assert action[:, 1].tolist() == [1] * 16  # clipped
    lowest = algorithm.critics(state["critic"], obs, action).amin(0)
    torch.testing.assert_close(
        algorithm.action_value(state, obs, action), 10 * lowest
    )  # in the environment's units


def test_critic_loss_by_hand():
    """y = 10 r + 0.9 V(s') with V = 4: 13.6, 20 (terminated) and 33.6, mean 67.2 / 3; Q = (25, 20)."""
    algorithm = make({"num_critics": 2}, gamma=0.9)
    state, batch = algorithm.init(0), random_batch(size=3)
    state |= {"value": always(state["value"], 4.0), "reward_scale": torch.tensor(10.0)}
    batch = batch._replace(reward=torch.tensor([1.0, 2, 3]), terminated=torch.tensor([0.0, 1, 0]))
    loss, (metrics, q) = algorithm.critic_loss(always(state["critic"], 25.0, 20.0), state, batch)
    by_hand = (11.4**2 + 5**2 + 8.6**2) / 3 + (6.4**2 + 0 + 13.6**2) / 3
    assert loss.item() == metrics["loss/critic"].item() == pytest.approx(by_hand)
    assert metrics["q/target"].item() == pytest.approx(67.2 / 3) and q.tolist() == [[25] * 3, [20] * 3]


def test_value_loss_by_hand():
    """s = -1, 1, 1, 2; D' = 1.5, 1.4, 1.7 (noise of 10, clipped to 0.2), 1.5; min Q' = -4.5, 1.4, 1.7, 3; V = 2."""
    algorithm, state = line(lambda s, a: torch.stack([3 * s * a, s * a, 2 * s * a]), critic_subset=0)
    state |= {"target_actor": state["actor"], "actor": None, "vae": None, "critic": None}
    state |= {"value_min": torch.tensor(0.5), "value_max": torch.tensor(2.6)}
    batch = ROWS._replace(obs=torch.tensor([[-1.0], [1], [1], [2]]))
    noise = {"target_latent": torch.tensor([[0.0, 0], [-1, 0], [10, 0], [0, 0]])}
    loss, (metrics, value) = algorithm.value_loss(always(state["value"], 2.0), state, batch, noise)
    assert loss.item() == pytest.approx((1.5**2 + 0.6**2 + 0.3**2 + 0.6**2) / 4)
    assert value.tolist() == [2] * 4 and metrics["q/value"].item() == 2


@pytest.mark.parametrize("size, expected", [(0, 1.0), (1, 4.0), (2, 3.0), (3, 2.0), (5, 1.0)])
def test_the_values_target_is_the_minimum_over_a_random_subset(size, expected):
    """Q' = 3, 1, 2, 5, 4; the noise puts the critics in the order 5, 1, 3, 4, 2."""
    algorithm = make(critic_subset=size)
    state, noise = algorithm.init(0), {"subset": torch.tensor([3.0, 0, 2, 1, 4])}
    state["target_critic"] = always(state["target_critic"], 3.0, 1, 2, 5, 4)
    assert ("subset" in algorithm.update_noise) == (size > 0)
    assert algorithm.target_policy_q(state, torch.zeros(3, 3), 0.0, noise).tolist() == pytest.approx(
        [expected] * 3
    )


@pytest.mark.parametrize("kl_weight, log_std, clamped", [(1.0, 0.5, 0.5), (0.3, -9.0, -4.0), (1.0, 9.0, 4.0)])
def test_vae_loss_by_hand(kl_weight, log_std, clamped):
    """z = (1, -1) + (std, 1) noise: D = 3, 3 + std, 1, in a_1 by 2, 0, 1 times 0.25 off; weights 0.9, 0.1, 0.1."""
    algorithm, state = line(None, latent=[0.0] * 4, kl_weight=kl_weight)
    state["action_std"], std = torch.tensor([0.25]), math.exp(clamped)
    params = {"encoder": always(state["vae"]["encoder"], 1.0, -1, 0, 0, log_std, 0, 0, 0), "decoder": None}
    batch = ROWS._replace(action=torch.tensor([[2.5, 3], [3 + std, 3 + std], [0.75, 1]]))
    noise = {"latent": torch.tensor([[0.0, 0, 0, 0], [1, 0, 0, 0], [0, 1, 0, 0]])}
    loss, metrics = algorithm.vae_loss(params, state, batch, noise, torch.tensor([1e-6, -1.0, 0.0]))
    kl = 0.5 * (1 + std**2 - 1) - clamped + 0.5 * (1 + 1 - 1)
    assert loss.item() == pytest.approx((0.9 * 4 + 0.1 * 0 + 0.1 * 1 + 1.1 * kl_weight * kl) / 3)
    logged = [metrics[name].item() for name in ("vae/error", "vae/kl", "weight/positive_share")]
    assert logged == pytest.approx([5 / 3, kl, 1 / 3])


@pytest.mark.parametrize(
    "options, weight",
    [
        ({}, [1, 1, 1]),
        ({"q_filter_percentile": 50}, [1, 1, 0]),  # the data's Q is 9, 4, 1
        ({"q_filter_value": 45, "q_filter_weight": 0.2}, [1, 0.2, 0.2]),  # in the environment's units
        ({"q_filter_value": -16, "q_filter_actions": "policy"}, [0, 1, 1]),  # the policy's is -3, -1.5, 0
        ({"q_filter_value": 1e9}, [0, 0, 0]),
    ],
)
def test_actor_loss_by_hand(options, weight):
    """D'(s, f(s)) = 0.5 + 1 = 1.5; Q = s a, 3 s a, s a - 3 has mean -1, 1.5, 4 and minimum -3, -1.5, 0."""
    algorithm, state = line(lambda s, a: torch.stack([s * a, 3 * s * a, s * a - 3]), **options)
    state |= {"reward_scale": torch.tensor(0.1), "vae": None}
    loss, metrics = algorithm.actor_loss(state["actor"], state, ROWS, torch.tensor([9.0, 4, 1]))
    mean = sum(w * q for w, q in zip(weight, (-1, 1.5, 4), strict=True)) / max(sum(weight), 1e-6)
    assert loss.item() == pytest.approx(-mean, rel=1e-5)
    assert metrics["q/policy"].item() == pytest.approx(-1.5)


@pytest.mark.parametrize("options", [{}, {"critic_subset": 0, "kl_weight": 0.3, "q_filter_percentile": 25.0}])
def test_update_is_plain_autograd(options, double):
    """The losses in their order, by backward() and torch.optim.Adam: V before its step and Q' after it in w."""
    algorithm = make({"layer_norm": True}, critic_lr=0.1, tau=0.5, **options)
    batch, noise = random_batch(), noise_for(algorithm)
    state = algorithm.init(0) | {"reward_scale": torch.tensor(0.5)}
    state |= {"value_min": torch.tensor(-1.0), "value_max": torch.tensor(1.0)}  # narrower than the batch's
    for name in ("value", "target_actor", "target_decoder", "target_critic"):  # apart from what they follow
        state[name] = tree_map(lambda p: p + 0.5 * torch.randn_like(p), state[name])
    lowest, highest = 0.5 * batch.reward.min() / 0.01, 0.5 * batch.reward.max() / 0.01
    stepped = state | {"value_min": lowest, "value_max": highest}
    assert lowest < -1 and highest > 1

    def step(name, lr, loss, *inputs):
        params = tree_map(lambda p: p.clone().requires_grad_(), state[name])
        value, aux = loss(params, stepped, batch, *inputs)
        value.backward()
        torch.optim.Adam(tree_leaves(params), lr).step()
        stepped[name] = tree_map(torch.Tensor.detach, params)
        return aux

    q = step("critic", 0.1, algorithm.critic_loss)[1].detach()
    value = step("value", 0.1, algorithm.value_loss, noise)[1].detach()
    stepped["target_critic"] = o3f.polyak(state["target_critic"], stepped["critic"], 0.5)
    next_q = algorithm.target_policy_q(stepped, batch.next_obs, 0.0, noise)
    advantage = 0.5 * batch.reward + 0.99 * (1 - batch.terminated) * next_q - value
    step("vae", 3e-4, algorithm.vae_loss, noise, advantage)
    step("actor", 3e-4, algorithm.actor_loss, q.amin(0))
    stepped["target_decoder"] = o3f.polyak(state["target_decoder"], stepped["vae"]["decoder"], 0.5)
    stepped["target_actor"] = o3f.polyak(state["target_actor"], stepped["actor"], 0.5)
    new, metrics = algorithm.update(state, batch, noise, True)
    assert metrics["weight/positive_share"] == (advantage > 0).double().mean() < 1
    assert new.keys() == CRITIC_SIDE | POLICY_SIDE
    for name in (name for name in new if "adam" not in name):
        trees = [tree_leaves(tree[name]) for tree in (new, stepped, state)]
        for found, expected, before in zip(*trees, strict=True):
            torch.testing.assert_close(found, expected, atol=1e-9, rtol=0)
            assert not torch.equal(found, before), name
    new, metrics = algorithm.update(state, batch, noise, False)
    assert new.keys() == CRITIC_SIDE and not {"loss/vae", "loss/actor"} & metrics.keys()


def test_three_seeds_together_are_three_seeds_alone(double):
    algorithm = make(q_filter_percentile=25.0)

    def update_and_act(state, batch, noise):
        acting = {"candidates": noise["latent"].reshape(32, 2)}
        return algorithm.update(state, batch, noise, True), algorithm.act(state, batch.obs[0], acting)

    seeds = [(algorithm.init(i), random_batch(i), noise_for(algorithm, i)) for i in range(3)]
    together = o3f.over_seeds(update_and_act, 3)(*(o3f.stack(trees) for trees in zip(*seeds, strict=True)))
    for i, seed in enumerate(seeds):
        for one, several in zip(tree_leaves(update_and_act(*seed)), tree_leaves(together), strict=True):
            torch.testing.assert_close(several[i], one, atol=1e-6, rtol=1e-5)


def test_scales_by_hand(capsys):
    """Actions 0, 1, 0, 1 and a constant; the largest reward is -8: the scale is 1/8, V in [-1, 0.5] / (1 - 0.9)."""
    algorithm, rows = make(gamma=0.9), np.zeros((4, 10), np.float32)
    rows[:, 3:6] = [[0, 0.3, -8], [1, 0.3, 4], [0, 0.3, 0.5], [1, 0.3, 0]]
    scales = algorithm.from_data(rows)
    assert scales["action_mean"].tolist() == pytest.approx([0.5, 0.3])
    assert scales["action_std"].tolist() == pytest.approx([0.501, 0.001], abs=1e-6)
    assert [scale.item() for scale in [*scales.values()][2:]] == pytest.approx([1 / 8, -10, 5])
    assert {k: v.dtype for k, v in scales.items()} == {k: algorithm.init(0)[k].dtype for k in scales}
    assert algorithm.from_data(9 + rows)["value_min"] == algorithm.from_data(rows - 9)["value_max"] == 0
    with pytest.raises(SystemExit):
        algorithm.from_data(0 * rows)
    assert "all its rewards are 0" in capsys.readouterr().err


def test_lapo_learns_the_better_of_the_datas_actions_and_what_they_are_worth():
    """Actions near -0.5 and 0.5 pay 0 and 1; state 0 leads to state 1, which ends it: V is 1 + gamma and 1."""
    rates = {"actor_lr": 2e-2, "critic_lr": 2e-2, "tau": 0.1}
    algorithm = make({"obs_dim": 1, "action_dim": 1}, gamma=0.5, batch_size=64, **rates)
    number, sign = torch.arange(64), torch.arange(64) % 2 * 2.0 - 1
    action = 0.5 * sign[:, None] + 0.05 * torch.randn(64, 1, generator=torch.Generator().manual_seed(0))
    obs, reward = (number // 2 % 2).float()[:, None], (sign + 1) / 2
    batch = o3f.Batch(obs, action, reward, torch.ones(64, 1), obs[:, 0])
    state = algorithm.init(0) | algorithm.from_data(torch.column_stack(batch).numpy())
    for i in range(150):
        state |= algorithm.update(state, batch, noise_for(algorithm, i), True)[0]
    later = 0.5 * (1 - obs[:, 0])
    assert (algorithm.critics(state["critic"], obs, action) - reward - later).abs().mean() < 0.1
    assert (o3f.mlp(state["value"], obs) - 1 - later).abs().mean() < 0.15
    assert (algorithm.best_action(state, obs) - 0.5).abs().max() < 0.15


@pytest.mark.parametrize(
    "options, expected",
    [
        (GO_ON | {"policy_delay": 3}, "--policy-delay 3: is for the offline phase"),
        ({"policy_updates_per_step": 3}, "--policy-updates-per-step 3: must divide --updates-per-step 20"),
        ({"gamma": 1.0}, "--gamma 1: must be below 1"),
        ({"critic_subset": 6}, "--critic-subset 6: there are 5 critics"),
    ],
)
def test_contradictions_are_refused(options, expected, capsys):
    with pytest.raises(SystemExit) as ended:
        o3f.check_args(o3f.Args(**options))
        make(**options)
    assert ended.value.code == 2 and expected in capsys.readouterr().err


def test_each_phase_makes_its_own_number_of_policy_updates(call):
    """20 updates with a policy's turn in every fifth, then 6 steps of 6 with a turn in every second."""
    short = "--batch-size 16 --eval-episodes 1 --compile off --dataset hopper/tiny-v0 --hidden-dim 8"
    online = "--online-steps 6 --updates-per-step 6 --policy-updates-per-step 3"
    call("o3f_select", f"{short} --offline-steps 20 --policy-delay 5 {online} --runs-dir runs")
    (path,) = o3f.Path("runs").glob("*/*/seed1/checkpoint.pt")
    state = torch.load(path, weights_only=True)["state"]
    counts = {name: state[f"{name}_adam"]["t"].item() for name in ("critic", "value", "vae", "actor")}
    assert counts == {"critic": 20 + 36, "value": 20 + 36, "vae": 4 + 18, "actor": 4 + 18}
    assert 0 < state["reward_scale"] < 1 and not torch.equal(state["action_std"], torch.ones(3))
