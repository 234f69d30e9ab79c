"""CQL's penalty, multiplier, annealing and Cal-QL's returns, by hand; what SAC has too is in test_sac.py."""

import math

import numpy as np
import pytest
import torch
import tyro
from torch.distributions import Normal
from torch.utils._pytree import tree_leaves, tree_map

import cql_sac as cql
import online_finetune_sac as sac

SHAPE = {"obs_dim": 3, "action_dim": 2, "hidden_dim": 8, "num_critics": 2, "layer_norm": False}
UNKNOWN = -math.inf


def make(**options):
    """One seed, its state and the noise of an update."""
    algorithm = cql.CQL(cql.Args(batch_size=16, **options), **SHAPE)
    g = torch.Generator().manual_seed(0)
    noise = {name: torch.randn(shape, generator=g) for name, shape in algorithm.update_noise.items()}
    return algorithm, algorithm.init(0), noise


def random_batch():
    obs, next_obs = torch.randn(2, 16, 3, generator=torch.Generator().manual_seed(0))
    reward, terminated = obs[:, 1], (obs[:, 0] > 1).to(obs.dtype)
    return cql.ReturnBatch(obs, next_obs[:, 1:].tanh(), reward, next_obs, terminated, 3 * reward)


class TwoStates(cql.CQL):
    """Critics Q_1 = obs + a, Q_2 = obs + 3 a; pushed are one uniform action per state and two of the policy's."""

    def critics(self, params, obs, action):
        return (obs + params["slope"].view(-1, *[1] * obs.dim()) * action)[..., 0]

    def pushed_actions(self, state, batch, noise):
        actions = torch.tensor([[[-1.0], [0.0], [1.0]], [[0.2], [0.4], [0.6]]])
        return actions, torch.log(torch.tensor([[0.5, 0.1, 0.2], [0.5, 1.0, 2.0]]))


def two_states(progress=0.0, returns=(0.0, 0.0), **options):
    """Loss, metrics and gradient by the slopes: states 0 and 2, data's actions 0.5 and -0.5, targets 0."""
    algorithm = TwoStates(cql.Args(batch_size=2, cql_actions=1, **options), 1, 1, 8, 2, False)
    params = {"slope": torch.tensor([1.0, 3.0], requires_grad=True)}
    obs, action = torch.tensor([[0.0], [2.0]]), torch.tensor([[0.5], [-0.5]])
    batch = cql.ReturnBatch(obs, action, torch.zeros(2), obs, torch.ones(2), torch.tensor(returns))
    state = algorithm.init(0) | {"target_critic": params, "progress": torch.tensor(progress)}
    loss, (metrics, q) = algorithm.critic_loss(params, state, batch, {"next_action": torch.zeros(2, 1)})
    assert q.tolist() == [[0.5, 1.5], [1.5, 0.5]]
    (gradient,) = torch.autograd.grad(loss, params["slope"])
    return loss.item(), {name: value.item() for name, value in metrics.items()}, gradient


def gap_of(first, first_data, second, second_data):
    """Mean over two states of log sum_j exp(Q_j) / p_j, minus Q of the data."""
    one = math.log((np.exp(first) / [0.5, 0.1, 0.2]).sum()) - first_data
    return (one + math.log((np.exp(second) / [0.5, 1.0, 2.0]).sum()) - second_data) / 2


def test_penalty_by_hand():
    """Q_1 is a at state 0 and 2 + a at state 2, Q_2 is 3 a and 2 + 3 a."""
    bellman = (0.5**2 + 1.5**2) / 2 + (1.5**2 + 0.5**2) / 2
    gaps = gap_of([-1, 0, 1], 0.5, [2.2, 2.4, 2.6], 1.5) + gap_of([-3, 0, 3], 1.5, [2.6, 3.2, 3.8], 0.5)
    loss, metrics, gradient = two_states()
    assert metrics["loss/critic"] == pytest.approx(bellman) and loss == pytest.approx(bellman + 5 * gaps)
    assert metrics["cql/gap"] == pytest.approx(gaps / 2) and metrics["cql/alpha"] == 5
    # by the first slope: the mean action under the softmax of Q_1 - log p, minus the data's
    weights = np.exp([[-1, 0, 1], [2.2, 2.4, 2.6]]) / [[0.5, 0.1, 0.2], [0.5, 1, 2]]
    means = (weights * [[-1, 0, 1], [0.2, 0.4, 0.6]]).sum(1) / weights.sum(1)
    penalty = gradient[0] - two_states(cql_alpha=0.0)[2][0]
    assert penalty.item() == pytest.approx(5 * (means - [0.5, -0.5]).mean(), rel=1e-4)


def test_calibration_bounds_the_policys_q_from_below():
    """Returns 1 and 2.5: the policy's Q_1 of 0, 1 become 1, 1; of 2.4, 2.6 2.5, 2.6; uniform ones stay."""
    gaps = gap_of([-1, 1, 1], 0.5, [2.2, 2.5, 2.6], 1.5) + gap_of([-3, 1, 3], 1.5, [2.6, 3.2, 3.8], 0.5)
    assert two_states(returns=(1.0, 2.5), calibrated=True)[1]["cql/gap"] == pytest.approx(gaps / 2)
    loss, _, gradient = two_states(returns=(UNKNOWN, UNKNOWN), calibrated=True)  # is CQL
    assert loss == pytest.approx(two_states()[0]) and torch.equal(gradient, two_states()[2])


def test_pushed_actions_and_their_densities(double):
    """N uniform, N of pi(.|s), N of pi(.|s'), in this order; densities against torch.distributions."""
    algorithm, state, noise = make(cql_actions=200)
    batch = random_batch()
    actions, log_density = algorithm.pushed_actions(state, batch, noise)
    assert actions.shape == (16, 600, 2) and log_density.shape == (16, 600)
    ranks = torch.linspace(-1, 1, 6400)
    torch.testing.assert_close(actions[:, :200].flatten().sort().values, ranks, atol=0.06, rtol=0)
    torch.testing.assert_close(log_density[:, :200], torch.full((16, 200), math.log(0.25)))
    for i, name in ((1, "pushed"), (2, "next_pushed")):
        obs, rows = (batch.obs, batch.next_obs)[i - 1], slice(200 * i, 200 * i + 200)
        mean, log_std = algorithm.actor(state["actor"], obs[:, None])
        x = mean + log_std.exp() * noise[name]
        torch.testing.assert_close(actions[:, rows], x.tanh())
        expected = (Normal(mean, log_std.exp()).log_prob(x) - torch.log(1 - x.tanh() ** 2)).sum(-1)
        torch.testing.assert_close(log_density[:, rows], expected, atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize("critic_subset", [0, 1])
def test_without_the_penalty_an_update_is_sacs_and_sac_goes_on_from_a_checkpoint(critic_subset, double):
    options = {"q_filter_percentile": 25.0, "critic_subset": critic_subset}
    algorithm, state, noise = make(cql_alpha=0.0, **options)
    finetuning, batch = sac.SAC(sac.Args(batch_size=16, **options), **SHAPE), random_batch()
    new, metrics = algorithm.update(state, batch, noise, True)
    expected = finetuning.update(finetuning.start_from(state, 0), sac.Batch(*batch[:5]), noise, True)
    assert metrics.keys() - expected[1].keys() == {"cql/gap", "cql/alpha"}
    torch.testing.assert_close(new, expected[0], atol=1e-9, rtol=1e-9)
    back = algorithm.start_from(finetuning.init(3) | {"progress": torch.tensor(0.9)}, 1)
    assert back.keys() == state.keys() and back["progress"] == 0 and back["log_cql_alpha"] == 0
    torch.testing.assert_close(back["critic"], finetuning.init(3)["critic"])


@pytest.mark.parametrize("threshold, step", [(0.5, 3e-4), (50.0, -3e-4)])
def test_the_multiplier_grows_while_the_gap_is_above_the_threshold(threshold, step):
    algorithm, state, noise = make(cql_threshold=threshold)
    new, metrics = algorithm.update(state, random_batch(), noise, False)
    assert (metrics["cql/gap"].item() > threshold) == (step > 0)
    assert new["log_cql_alpha"].item() == pytest.approx(step, rel=1e-3)  # Adam's first step
    assert metrics["cql/alpha"].item() == 1  # the one that the loss was made with
    state["log_cql_alpha"] = torch.tensor(cql.LOG_CQL_MIN)
    new, _ = algorithm.update(state, random_batch(), noise, False)
    assert new["log_cql_alpha"] >= cql.LOG_CQL_MIN  # stays above 0, and can come back


@pytest.mark.parametrize(
    "anneal, progress, expected",
    [("linear", 0.0, 4), ("linear", 0.25, 3.25), ("linear", 1.0, 1), ("abrupt", 0.0, 4), ("abrupt", 1e-6, 1)],
)
def test_annealing_moves_the_weight_and_the_threshold(anneal, progress, expected):
    weight = two_states(progress, cql_alpha=4.0, cql_alpha_end=1.0, anneal=anneal)[1]["cql/alpha"]
    algorithm, state, noise = make(cql_threshold=4.0, cql_threshold_end=1.0, anneal=anneal)
    state |= {"progress": torch.tensor(progress), "alpha_adam": None}  # the temperature's, not for this
    new, metrics = algorithm.update(state, random_batch(), noise, False)
    moment = -0.1 * (metrics["cql/gap"].item() - expected)  # Adam's first: a tenth of the gradient
    assert weight == expected and new["cql_alpha_adam"]["m"].item() == pytest.approx(moment, rel=1e-4)


def test_everything_moves_stays_finite_and_seeds_are_independent():
    algorithm, _, noise = make(cql_threshold=5.0, calibrated=True)
    batch, states = random_batch(), [algorithm.init(seed) for seed in (1, 2, 3)]
    batch.mc_return[::2] = UNKNOWN
    update = cql.over_seeds(lambda *stacked: algorithm.update(*stacked, True), 3)
    together, _ = update(cql.stack(states), cql.stack([batch] * 3), cql.stack([noise] * 3))
    new, metrics = algorithm.update(states[1], batch, noise, True)
    torch.testing.assert_close(new, tree_map(lambda leaf: leaf[1], together), atol=1e-5, rtol=1e-4)
    assert all(leaf.isfinite().all() for leaf in tree_leaves((new, metrics)))
    for name in ("actor", "critic", "target_critic", "log_alpha", "log_cql_alpha"):
        assert all(tree_leaves(tree_map(lambda a, b: (a != b).any(), new[name], states[1][name]))), name
    action, _ = algorithm.act(states[0], batch.obs[0], {"action": torch.zeros(2)})
    torch.testing.assert_close(action, algorithm.best_action(states[0], batch.obs)[0])


def new_replay(rewards, ends, capacity, gamma=0.5):
    """Two seeds; a row's observation is its reward."""
    rows = np.array([[reward, 0, reward, reward, 0] for reward in rewards], np.float32)
    dataset = cql.Dataset(rows, np.array(ends, np.uint8), {"source": "some.hdf5"})
    args, shape = cql.Args(num_seeds=2, gamma=gamma), {"obs_dim": 1, "action_dim": 1}
    return cql.ReturnReplay(args, shape, dataset, capacity, "cpu")


def add(replay, reward, terminated=False, truncated=False):
    """One transition per seed, of which the second has ten times the reward."""
    reward, ends = np.array([reward, 10 * reward]), [np.full(2, end) for end in (terminated, truncated)]
    replay.add(reward[:, None], 0 * reward[:, None], reward, reward[:, None], *ends)


def test_returns_of_offline_rows(capsys):
    """gamma 0.2: two steps before its end a return lacks 0.8%. Ends: terminated, by the clock, cut off."""
    ends = [0, 0, 1, 0, 0, 0, 2, 0, 0]
    replay = new_replay([1, 2, 3, 1, 2, 3, 4, 5, 6], ends, capacity=0, gamma=0.2)
    assert replay.returns.tolist() == pytest.approx([1.52, 2.6, 3, 1.552, 2.76, *[UNKNOWN] * 4])
    with pytest.raises(SystemExit):
        new_replay([1, 1], [0, 2], capacity=0)
    assert "at --gamma 0.5, the clock cuts every return of the data short" in capsys.readouterr().err


def test_online_rows_get_their_returns_when_their_episode_ends():
    replay = new_replay([1, 2], [0, 1], capacity=4)
    add(replay, 1.0)
    add(replay, 2.0)
    assert replay.returns.tolist() == [2, 2, *[UNKNOWN] * 8]
    add(replay, 4.0, terminated=True)
    assert replay.ring_returns[:, :3].tolist() == [[3, 4, 4], [30, 40, 40]]
    add(replay, 1.0)
    add(replay, 2.0, terminated=True)  # the ring has four rows: this one replaces the first
    assert replay.ring_returns.tolist() == [[2, 4, 4, 2], [20, 40, 40, 20]]
    add(replay, 7.0)  # a new episode, in the second row
    assert replay.ring_returns.tolist() == [[2, UNKNOWN, 4, 2], [20, UNKNOWN, 40, 20]]
    replay.ring_returns[:], replay.ring_rewards[:] = 0, 0  # resumed
    replay.ring_ends[:, 1] = 2  # as Run.restore marks the row at which an episode broke off
    replay.restore_returns()
    assert replay.ring_returns.tolist() == [[2, UNKNOWN, 4, 2], [20, UNKNOWN, 40, 20]]
    add(replay, 3.0, terminated=True)
    assert replay.ring_returns[0].tolist() == [2, UNKNOWN, 3, 2]
    batch = replay.gather(torch.tensor([[1, 2], [0, 8]]))
    assert batch.mc_return.tolist() == [[2, 2], [2, 30]] and batch.obs[..., 0].tolist() == [[2, 2], [1, 30]]


def test_an_episode_that_the_clock_cuts_and_that_is_longer_than_the_ring():
    """gamma 0.09: the last row lacks 9% of the weight, the row before it 0.81%."""
    replay = new_replay([1, 1], [0, 1], capacity=3, gamma=0.09)
    for i in range(5):
        add(replay, 1.0, truncated=i == 4)  # the last step has row 1, the one before it row 0
    assert replay.ring_returns[0].tolist() == pytest.approx([1.09, UNKNOWN, 1.0981])


@pytest.mark.parametrize(
    "arguments, expected",
    [
        ("--cql-alpha 5 --cql-threshold 5", "--cql-threshold 5.0: learns the weight"),
        ("--cql-threshold 5 --cql-alpha-end 1 --anneal abrupt --online-steps 9", "its -end fix it"),
        ("--cql-threshold-end 1 --anneal abrupt --online-steps 9", "needs a --cql-threshold to start from"),
        ("--anneal abrupt --online-steps 9", "needs --cql-alpha-end or --cql-threshold-end"),
        *((f"--cql-{option}", "") for option in ("alpha -1", "threshold 0", "threshold nan", "actions 0")),
    ],
)
def test_bad_input(arguments, expected, capsys):
    with pytest.raises(SystemExit) as ended:
        cql.check_args(tyro.cli(cql.Args, args=arguments.split()))
    assert ended.value.code == 2 and expected in capsys.readouterr().err
