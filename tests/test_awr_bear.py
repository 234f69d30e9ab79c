"""AWR's and BEAR's mathematics on numbers computed by hand, and a whole run; what they share is tested elsewhere."""

import math
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch.utils._pytree import tree_leaves, tree_map

import awr
import bear
from test_runs import SMALL, rows, run_folder

SHAPE = {"obs_dim": 3, "action_dim": 2, "hidden_dim": 8, "layer_norm": False}
SMALLEST = (1, 1, 8, False)  # AWR's shape with one observation and one action
NONE = -math.inf  # the return of a row whose episode is still running
RETURNS = {0: [6, 12, 3, 24, 30], 0.5: [5.4375, 7.75, 3, 21.5, 30], 1: [2.75, 3.5, 3, 19, 30]}
OUTER = [math.exp(-2), math.exp(2)]  # advantages 0 and 2, normalised, over beta 0.5
WEIGHTS = [  # options, weights and shares of the two rows that count
    ({}, OUTER, [1, 1]),
    ({"normalize_advantage": False}, [1, 20], [1, 1]),  # e^4 is clipped
    ({"q_filter_value": 1.0, "q_filter_weight": 0.5}, OUTER, [0.5, 1]),
    ({"q_filter_percentile": 50.0, "q_filter_weight": 0.5}, OUTER, [0.5, 1]),  # of the known: 1
]
WHOLE_RUNS = {"awr": (awr, "--returns-every 10", 3), "bear": (bear, "--mmd-warmup 10 --num-candidates 3", 5)}


def make(script, **options):
    shape = SHAPE | ({"num_critics": 2} if script is bear else {})
    return script.ALGORITHM(script.Args(batch_size=16, **options), **shape)


def inputs(script, algorithm, seed=0):
    """A state, a batch and noise."""
    state, g = algorithm.init(seed), torch.Generator().manual_seed(seed)
    obs, next_obs = torch.randn(2, 16, 3, generator=g)
    action, reward = torch.rand(16, 2, generator=g) * 2 - 1, torch.randn(16, generator=g)
    noise = {name: torch.randn(shape, generator=g) for name, shape in algorithm.update_noise.items()}
    if script is awr:
        return state, awr.EpisodeBatch(obs, action, reward), noise
    return state, bear.Batch(obs, action, reward, next_obs, (obs[:, 0] > 1).float()), noise


def pairs(one, other):
    return zip(tree_leaves(one), tree_leaves(other), strict=True)


@pytest.mark.parametrize("td_lambda, expected", RETURNS.items())
def test_td_lambda_returns_by_hand(td_lambda, expected):
    """V(s') = 10, 20, ... and gamma 0.5: three rows to a terminal, two to the clock's end, one still running."""
    reward, next_value = torch.arange(1.0, 7), torch.arange(10.0, 70, 10)
    terminated, ends = torch.tensor([0.0, 0, 1, 0, 0, 0]), torch.tensor([0, 0, 1, 0, 2, 0])
    found = awr.td_returns(reward, next_value, terminated, ends, 0.5, td_lambda)
    assert found.tolist() == pytest.approx([*expected, NONE])


def test_td_lambda_returns_of_long_episodes_are_the_recursion(double):
    reward, next_value, chance = torch.randn(3, 300, generator=torch.Generator().manual_seed(0))
    ends = torch.where(chance > 2, 1 + (reward > 0), 0)
    ends[-1], terminated, expected = 2, (ends == 1).double(), torch.zeros(300)
    for i in reversed(range(300)):
        after = next_value[i] if ends[i] else 0.1 * next_value[i] + 0.9 * expected[i + 1]
        expected[i] = reward[i] + 0.99 * (1 - terminated[i]) * after
    found = awr.td_returns(reward, next_value, terminated, ends, 0.99, 0.9)
    torch.testing.assert_close(found, expected, atol=1e-12, rtol=0)


@pytest.mark.parametrize("options, weight, keep", WEIGHTS)
def test_awr_losses_by_hand(options, weight, keep):
    """V = 0, returns 0, 2 and none; pi = N(0, 1), actions 1, 2, 3: log pi = -a^2 / 2 - log(2 pi) / 2."""
    algorithm, zeros = awr.AWR(awr.Args(awr_beta=0.5, gamma=0.5, **options), *SMALLEST), torch.zeros(3, 1)
    v0 = {"0.weight": zeros[:1], "0.bias": zeros[0]}
    batch = awr.EpisodeBatch(zeros, torch.tensor([[1.0], [2], [3]]), torch.tensor([0, 2, NONE]))
    loss, (_, value, target) = algorithm.value_loss(v0, batch)
    assert loss.item() == pytest.approx((0.5 * 2) ** 2 / 2) and target.tolist() == [0, 2, 0]
    params, advantage = {"mean": v0, "log_std": zeros[0]}, target - value
    loss, metrics = algorithm.actor_loss(params, {"progress": 0}, batch, advantage)
    log_pi = -np.array([1, 4]) / 2 - math.log(2 * math.pi) / 2
    assert loss.item() == pytest.approx(-(np.multiply(keep, weight) * log_pi).sum() / sum(keep), rel=1e-4)
    if "q_filter_weight" in options:
        assert metrics["filter/fraction"] == 0.5 and metrics["filter/threshold"] == 1


def test_awr_rates_a_state_by_v_and_anneals_its_temperature():
    """V = 6 and V' = 0 with gamma 0.5; a quarter of the way from 0.5 to 2.5 beta is 1: advantages 1 weigh e."""
    options = {"awr_beta": 0.5, "awr_beta_end": 2.5, "normalize_advantage": False}
    algorithm, zeros = awr.AWR(awr.Args(gamma=0.5, **options), *SMALLEST), torch.zeros(3, 1)
    v0 = {"0.weight": zeros[:1], "0.bias": zeros[0]}
    state = {
        "value": v0 | {"0.bias": torch.tensor([3.0])},
        "target_value": v0,
        "progress": torch.tensor(0.25),
    }
    assert algorithm.action_value(state, zeros, zeros).tolist() == pytest.approx([6, 6, 6])
    params, batch = {"mean": v0, "log_std": zeros[0]}, awr.EpisodeBatch(zeros, zeros, torch.ones(3))
    _, metrics = algorithm.actor_loss(params, state, batch, torch.ones(3))
    assert metrics["weight/mean"].item() == pytest.approx(math.e)


def test_a_replay_knows_the_returns_of_whole_episodes():
    """Two seeds with V = 2 and 4 (gamma 0.5), a dataset of two rows, rings of three, rewards 1; lambda 1."""

    def add(*terminated):
        column = np.zeros((2, 1))
        replay.add(column, column, np.ones(2), column, np.array(terminated), np.zeros(2, bool))

    args = awr.Args(num_seeds=2, gamma=0.5, td_lambda=1.0)
    dataset = awr.Dataset(np.float32([[0, 0, 1, 0, 0]] * 2), np.array([0, 2], np.uint8), {})
    replay = type("EpisodeReplay", (awr.EpisodeReturns, awr.Replay), {})
    replay = replay(args, {"obs_dim": 1, "action_dim": 1}, dataset, 3, "cpu")
    value = {"0.weight": torch.zeros(2, 1, 1), "0.bias": torch.tensor([[1.0], [2.0]])}
    state = {"value": tree_map(lambda part: 2 * part, value), "target_value": value}
    replay.follow(awr.AWR(args, *SMALLEST), state)
    replay.compute_all(0)
    assert replay.returns.tolist() == [[2, 2, NONE, NONE, NONE], [2.5, 3, NONE, NONE, NONE]]
    add(False, False)
    add(True, False)
    assert replay.returns[:, 2:].tolist() == [[1.5, 1, NONE], [NONE, NONE, NONE]]
    add(False, True)
    add(False, False)  # over the first row, whose episode's other rows stay
    replay.compute_all(4)  # V = 4 and 8
    assert replay.returns.tolist() == [[2.5, 3, NONE, 1, NONE], [3.5, 5, NONE, 1.5, 1]]
    batch = replay.gather(torch.tensor([[0, 3, 2], [0, 6, 5]]))  # a seed's ring begins at row 2, or 5
    assert batch.td_return.tolist() == [[2.5, 1, NONE], [3.5, 1.5, NONE]]


def test_returns_are_computed_when_they_are_due():
    """Every 10 steps, and when a run begins or is resumed."""
    calls, base = [], {"between_steps": print, "args": awr.Args(returns_every=10), "env_step": 0}

    def compute_all(step):
        run.replay.computed_at = step
        calls.append(step)

    run = type("EpisodeRun", (awr.ReturnsOnTime, type("Run", (), base)), {})()
    for steps in ((0, 5, 10, 19, 20), (25, 29, 30)):
        run.replay = SimpleNamespace(computed_at=None, compute_all=compute_all)
        for run.step in steps:
            run.between_steps()
    assert calls == [0, 10, 20, 25, 30]


@pytest.mark.parametrize("kernel, far, near", [("laplacian", 3, 2), ("gaussian", 9, 4)])
def test_mmd_of_three_points_by_hand(kernel, far, near):
    """0 and 1 against 3, sigma 2: k = exp(-distance / 4)."""
    x, y = torch.tensor([[[0.0], [1]]]), torch.tensor([[[3.0]]])
    same, other = (2 + 2 * math.exp(-1 / 4)) / 4, (math.exp(-far / 4) + math.exp(-near / 4)) / 2
    assert bear.mmd(x, y, kernel, 2.0).item() == pytest.approx(math.sqrt(same + 1 - 2 * other + 1e-6))
    assert bear.mmd(x, x, kernel, 2.0).item() == pytest.approx(1e-3, abs=1e-4)


def test_the_gradient_of_the_mmd_pulls_draws_together():
    """One draw at 0, the other at 3, sigma 2: k = exp(-9 / 4), dk/dx = 1.5 k, MMD = sqrt(2 - 2 k)."""
    x, y = torch.zeros(1, 1, 1, requires_grad=True), torch.full((1, 1, 1), 3.0)
    (slope,) = torch.autograd.grad(bear.mmd(x, y, "gaussian", 2.0).sum(), x)
    k = math.exp(-9 / 4)
    assert slope.item() == pytest.approx(-1.5 * k / math.sqrt(2 - 2 * k), rel=1e-5)


def test_bear_targets_are_convex_in_the_critics_and_of_the_best_action():
    q = torch.tensor([[[1.0, 5, 2]], [[3, 1, 6]]])  # (E, B, J): minima 1, 1, 2, maxima 3, 5, 6
    assert bear.convex_target(q, 0.75).tolist() == [3] and bear.convex_target(q, 0.0).tolist() == [6]
    algorithm = make(bear, eval_actions=7, target_min_share=1.0)
    state, batch, noise = inputs(bear, algorithm)
    loss, (_, data_q) = algorithm.critic_loss(state["critic"], state, batch, noise)
    next_actions = algorithm.draws(state["actor"], batch.next_obs, noise["next_action"])[0].tanh()
    each = [algorithm.action_value(state, batch.next_obs, next_actions[:, j]) for j in range(10)]
    y = batch.reward + 0.99 * (1 - batch.terminated) * torch.stack(each).amax(0)
    torch.testing.assert_close(loss, (data_q - y).square().mean(1).sum())
    actions, obs = algorithm.draws(state["actor"], batch.obs, state["eval_noise"])  # the mean, six draws
    torch.testing.assert_close(actions[:, 0], algorithm.actor(state["actor"], batch.obs)[0])
    best = actions[range(16), algorithm.action_value(state, obs, actions.tanh()).argmax(1)]
    assert torch.equal(algorithm.best_action(state, batch.obs), best.tanh())


def test_q_joins_the_policy_loss_after_the_warm_up():
    """nu = 2; both draws are cut at 0.5."""
    algorithm = make(bear, mmd_warmup=4)
    state, batch, noise = inputs(bear, algorithm)
    raw, obs = algorithm.draws(state["actor"], batch.obs, noise["action"].clamp(-0.5, 0.5))
    behaviour = algorithm.decode(state["vae"]["decoder"], obs, noise["behaviour"].clamp(-0.5, 0.5))
    distance = bear.mmd(raw, behaviour, "gaussian", 20.0).mean()
    q = algorithm.critics(state["critic"], obs, raw.tanh()).mean(2).amin(0).mean()
    for updates, share_of_q in ((3, 0), (4, 1)):
        now = state | {"log_nu": torch.tensor(2.0).log(), "actor_adam": {"t": torch.tensor(updates)}}
        loss, _ = algorithm.actor_loss(state["actor"], now, batch, noise, torch.zeros(16))
        torch.testing.assert_close(loss, 2 * distance - share_of_q * q)


def test_the_dual_rises_above_the_target_and_falls_below_it():
    for target, lr, expected in ((1e-6, 1e-3, 1e-3), (9, 1e-3, -1e-3), (1e-6, 99, 10), (9, 99, -5)):
        algorithm = make(bear, mmd_target=target, nu_lr=lr)
        new, _ = algorithm.update(*inputs(bear, algorithm), True)
        assert new["log_nu"].item() == pytest.approx(expected, rel=1e-3)


def test_the_target_of_the_mmd_is_annealed():
    """From 1 to 9: 3 after a quarter of the online steps; Adam's first moment is a tenth of nu (target - mmd)."""
    algorithm = make(bear, mmd_target=1.0, mmd_target_end=9.0)
    state, batch, noise = inputs(bear, algorithm)
    new, metrics = algorithm.update(state | {"progress": torch.tensor(0.25)}, batch, noise, True)
    moment = 0.1 * (3 - metrics["constraint/mmd"].item())
    assert new["nu_adam"]["m"].item() == pytest.approx(moment, rel=1e-4)


def test_bears_behaviour_model_by_hand():
    """Latents have mean 1 and log std 0.5, D is 0, actions are 0.6: error 0.36, KL (1 + e - 1) / 2 - 0.5."""
    algorithm = make(bear)
    state, batch, noise = inputs(bear, algorithm)
    params = tree_map(torch.zeros_like, state["vae"])
    params["encoder"]["2.bias"] += torch.tensor([1.0] * 4 + [0.5] * 4)
    loss, metrics = algorithm.vae_loss(params, batch._replace(action=torch.full((16, 2), 0.6)), noise)
    kl = math.e / 2 - 0.5
    assert metrics["vae/error"].item() == pytest.approx(0.36) and metrics["vae/kl"].item() == pytest.approx(
        kl
    )
    assert loss.item() == pytest.approx(0.36 + bear.LATENT_KL_WEIGHT * kl)


def test_bears_filter_leaves_rows_out_of_the_policy_loss():
    """Q of four rows is 5, of twelve 1, the threshold 3: the twelve count half."""
    algorithm = make(bear, mmd_warmup=0, q_filter_value=3.0, q_filter_weight=0.5)
    state, batch, noise = inputs(bear, algorithm)
    data_q = torch.tensor([5.0] * 4 + [1.0] * 12)
    loss, _ = algorithm.actor_loss(state["actor"], state, batch, noise, data_q)
    plain, means = make(bear, mmd_warmup=0), []
    for rows_of in (slice(4), slice(4, 16)):
        part = bear.Batch(*(column[rows_of] for column in batch))
        some = {name: value[rows_of] for name, value in noise.items()}
        means.append(plain.actor_loss(state["actor"], state, part, some, data_q[rows_of])[0])
    torch.testing.assert_close(loss, (4 * means[0] + 6 * means[1]) / 10)


@pytest.mark.parametrize("script", [awr, bear])
def test_everything_that_learns_moves_and_two_seeds_as_one(script, double):
    """Stacked seeds do what each does alone; without the policy's turn the policy stands still."""
    algorithm = make(script)
    triples = [tree_map(torch.Tensor.double, inputs(script, algorithm, seed)) for seed in (0, 1)]
    stacked = script.over_seeds(lambda *triple: algorithm.update(*triple, True)[0], 2)
    both = stacked(*map(script.stack, zip(*triples, strict=True)))
    for i, (state, batch, noise) in enumerate(triples):
        new, metrics = algorithm.update(state, batch, noise, True)
        assert all(leaf.isfinite().all() for leaf in tree_leaves((new, metrics)))
        assert not any(torch.equal(*pair) for name in new for pair in pairs(new[name], state[name]))
        for one, other in pairs(new, both):
            torch.testing.assert_close(one, other[i], atol=1e-9, rtol=0)
        assert "actor" not in algorithm.update(state, batch, noise, False)[0]


@pytest.mark.parametrize("name", WHOLE_RUNS)
def test_a_run_offline_and_online_moves_every_network(call, name):
    script, options, num_networks = WHOLE_RUNS[name]
    options += " --dataset hopper/tiny-v0 --hidden-dim 16 --offline-steps 40 --online-steps 40"
    call(name, f"{SMALL} --eval-every 40 --log-every 10 --offline-ratio 0.5 {options}")
    folder = run_folder(f"{name}-*/seed1")
    saved = torch.load(folder / "checkpoint.pt")
    assert saved["gradient_step"] == 40 + 40 - 16  # the first online batch needs 16 rows
    start = script.ALGORITHM(script.Args(), **saved["shape"]).init(1)
    networks = [key for key, part in start.items() if isinstance(part, dict) and "adam" not in key]
    still = [key for key in networks for pair in pairs(start[key], saved["state"][key]) if torch.equal(*pair)]
    assert len(networks) == num_networks and not still
    logged = {row["name"] for row in rows(folder / "metrics.csv") if row["phase"] == "online"}
    assert {"eval/q_bias", "train/return", "loss/actor"} <= logged
