"""What batches are drawn from, what an online loop stores, and what an evaluation measures.

The blocks under test stand word for word in every script, so they are tested once, in sac_scratch.py.
"""

import math
import os
import signal
import time
from types import SimpleNamespace

import gymnasium as gym
import numpy as np
import pytest
import torch
import torch.nn as nn

import sac_scratch as sac

SIZES = {"obs_dim": 1, "action_dim": 1}


class Counter(gym.Env):
    """Counts its steps: obs (step, start); reward: the action; ends after `length` steps, or after 2 to 6 of them.

    `start` is drawn from the environment's seed. Actions are in [-2, 2].
    """

    def __init__(self, length: int | None, end: str):
        self.observation_space = gym.spaces.Box(-np.inf, np.inf, (2,), np.float64)
        self.action_space = gym.spaces.Box(-2.0, 2.0, (1,), np.float32)
        self.length, self.end, self.steps = length, end, 0

    def reset(self, seed=None, options=None):
        super().reset(seed=seed)
        self.t, self.start = 0, self.np_random.uniform()
        self.last = self.length or self.np_random.integers(2, 7)
        return np.array([self.t, self.start]), {}

    def step(self, action):
        self.t, self.steps = self.t + 1, self.steps + 1
        assert self.steps < 1000, "an evaluation that does not end"
        over = self.t == self.last
        ends = over and self.end == "terminated", over and self.end == "truncated"
        return np.array([self.t, self.start]), float(action[0]), *ends, {}


for name, kwargs in {
    "Terminates-v0": {"length": 3, "end": "terminated"},
    "Truncates-v0": {"length": 3, "end": "truncated"},
    "AnyLength-v0": {"length": None, "end": "terminated"},
}.items():
    gym.register(name, entry_point=Counter, kwargs=kwargs)


class Fixed(nn.Module):
    """A network without parameters: any function."""

    def __init__(self, function):
        super().__init__()
        self.function = function

    def forward(self, *inputs):
        return self.function(*inputs)


def make_table(replay, offline=0, seeds=1, capacity=100, added=0):
    """Offline row i has obs -1 - i; online row t of seed s has obs 1000 s + t. The reward is 10 obs."""
    rows = np.zeros((offline, 6), np.float32)
    rows[:, 0] = -1 - np.arange(offline)
    rows[:, 2] = 10 * rows[:, 0]
    table = sac.ReplayTable(rows if offline else None, seeds, SIZES, capacity, replay, "cpu")
    for t in range(added):
        add_step(table, t)
    return table


def add_step(table, t):
    obs, zero = 1000.0 * np.arange(table.seeds) + t, np.zeros(table.seeds)
    table.add(obs[:, None], zero[:, None], 10 * obs, obs[:, None], zero, zero)


def sampled_obs(table, size):
    torch.manual_seed(0)
    return table.sample(size).obs[..., 0]


# ---- draws ----


def test_a_batch_holds_what_was_added_column_by_column():
    table = sac.ReplayTable(None, 2, {"obs_dim": 2, "action_dim": 1}, 10, "online", "cpu")
    added = {
        "obs": [[1.0, 2.0], [11.0, 12.0]],
        "action": [[3.0], [13.0]],
        "reward": [4.0, 14.0],
        "next_obs": [[5.0, 6.0], [15.0, 16.0]],
        "terminated": [True, False],
        "truncated": [False, True],
    }
    table.add(*(np.array(column) for column in added.values()))
    batch = table.sample(3)
    for name, column in added.items():
        assert getattr(batch, name).tolist() == [[value] * 3 for value in column], name


def test_offline_rows_are_read_in_the_order_of_the_columns():
    offline = np.array([[1, 2, 3, 4, 5, 6, 0, 1]], np.float32)  # obs 1 2, action 3, reward 4, next 5 6, 0, 1
    table = sac.ReplayTable(offline, 2, {"obs_dim": 2, "action_dim": 1}, 0, "append", "cpu")
    assert [column[1, 0].tolist() for column in table.sample(4)] == [[1, 2], [3], 4, [5, 6], 0, 1]


def test_append_draws_every_row_alike():
    table = make_table("append", offline=30, seeds=2, added=10)
    obs = sampled_obs(table, 20_000)
    for seed in (0, 1):
        values, counts = obs[seed].unique(return_counts=True)
        assert values.tolist() == [*range(-30, 0), *range(1000 * seed, 1000 * seed + 10)]
        # each row's count is binomial(20000, 1/40): mean 500, deviation 22; five deviations
        assert (counts - 500).abs().max() < 110
        # online rows together: mean 5000, deviation 61
        assert abs((obs[seed] >= 0).sum().item() - 5000) < 306
    assert table.online_share() == 0.25


def test_online_draws_only_what_was_added_so_far():
    table = make_table("online", offline=30, seeds=2, capacity=8)
    for added in range(1, 6):
        add_step(table, added - 1)
        obs = sampled_obs(table, 500)
        for seed in (0, 1):
            assert obs[seed].unique().tolist() == list(range(1000 * seed, 1000 * seed + added))
    assert table.online_share() == 1


@pytest.mark.parametrize("share, rows", [(0.0, 0), (0.25, 2), (0.3, 3), (0.5, 5), (0.96, 10), (1.0, 10)])
def test_ratio_draws_exactly_its_share_offline(share, rows):
    """round(share * 10) rows; 2.5 rounds to 2."""
    table = make_table("ratio", offline=30, seeds=3, added=4)
    table.offline_share.fill_(share)
    obs = torch.cat([sampled_obs(table, 10), table.sample(10).obs[..., 0]])  # two batches, three seeds each
    assert (obs < 0).sum(1).tolist() == [rows] * 6
    assert table.online_share() == pytest.approx(1 - share)


def test_ratio_draws_each_part_evenly():
    table = make_table("ratio", offline=20, seeds=2, added=10)
    table.offline_share.fill_(0.5)
    obs = sampled_obs(table, 20_000)
    for seed in (0, 1):
        for part, rows, mean in ((obs[seed][obs[seed] < 0], 20, 500), (obs[seed][obs[seed] >= 0], 10, 1000)):
            values, counts = part.unique(return_counts=True)
            assert len(values) == rows
            assert (counts - mean).abs().max() < 5 * math.sqrt(mean)  # a binomial deviation is under sqrt(mean)
    assert set(obs[1][obs[1] >= 0].tolist()) == set(range(1000, 1010))


@pytest.mark.parametrize("replay", ["append", "online", "ratio"])
def test_a_full_ring_overwrites_the_oldest(replay):
    table = make_table(replay, offline=2, seeds=2, capacity=3, added=5)
    table.offline_share.fill_(0.5)
    obs = sampled_obs(table, 200)
    assert set(obs[0].tolist()) - {-1, -2} == {2, 3, 4} and set(obs[1].tolist()) - {-1, -2} == {1002, 1003, 1004}
    batch = table.sample(200)
    assert torch.equal(batch.reward, 10 * batch.obs[..., 0])  # no row is torn


def test_a_draw_is_repeated_by_its_random_state_and_differs_between_seeds():
    table = make_table("online", seeds=2, added=50)
    first, second = sampled_obs(table, 20), sampled_obs(table, 20)
    assert torch.equal(first, second) and not torch.equal(first[0], first[1] - 1000)
    assert not torch.equal(first, table.sample(20).obs[..., 0])


# ---- evaluation ----


def make_args(tmp_path, **options):
    base = {"env": "Terminates-v0", "hidden_dim": 8, "batch_size": 4, "compile": "off", "device": "cpu"}
    base |= {"runs_dir": str(tmp_path), "warmup_steps": 4, "eval_every": 100, "eval_episodes": 1}
    options = base | options
    return sac.Args(**options | {"env": f"{__name__}:{options['env']}"})  # a worker process must find it


def constant_policy(num_seeds=1, action=0.5, q=(5.0, 7.0)):
    """The best action is `action`, the policy's own are far from it; the critics say `q` of everything."""
    agent = sac.Agent(list(range(1, num_seeds + 1)), 2, 1, 8, 2, True)
    last = agent.actor.mlp.layers[-1]
    last.weight.zero_()
    last.bias[..., 0], last.bias[..., 1] = math.atanh(action), 10.0
    agent.critic = Fixed(lambda obs, _: torch.tensor(q)[None, :, None].expand(len(obs), -1, obs.shape[1]))
    return agent


def evaluate(agent, args, seed=1, gradient_step=0, env_step=0):
    return sac.evaluate(agent, seed, (gradient_step, env_step), args)


@pytest.mark.parametrize("env", ["Terminates-v0", "Truncates-v0"])
def test_evaluation_by_hand(env, tmp_path):
    """Action 0.5 is 1 in the environment's bounds of 2, so three rewards of 1; gamma 0.5; min Q = 5."""
    args = make_args(tmp_path, env=env, gamma=0.5, eval_episodes=3)
    result = evaluate(constant_policy(), args)
    assert result.returns.tolist() == [3, 3, 3] and result.lengths.tolist() == [3, 3, 3]
    assert result.first_q == 5 and result.q_bias == 5 - 1.75  # 1 + 0.5 + 0.25


def test_episodes_end_where_they_end(tmp_path):
    args = make_args(tmp_path, env="AnyLength-v0", gamma=0.5, eval_episodes=12)
    before = [env.unwrapped.steps for env in sac.eval_envs(args.env, 12)]
    result = evaluate(constant_policy(), args)
    assert len(set(result.lengths)) > 2
    np.testing.assert_allclose(result.returns, result.lengths)  # rewards of 1
    discounted = 2 - 2 * 0.5 ** result.lengths.astype(float)  # 1 + 1/2 + ... of each length
    assert result.q_bias == pytest.approx(5 - discounted.mean())
    after = [env.unwrapped.steps for env in sac.eval_envs(args.env, 12)]
    assert (np.array(after) - before).tolist() == result.lengths.tolist()  # nothing is stepped beyond its end


def test_evaluations_are_repeatable_new_each_time_and_leave_the_random_state_alone(tmp_path):
    args = make_args(tmp_path, env="AnyLength-v0", eval_episodes=8)
    agent, state = constant_policy(), torch.get_rng_state()
    first, again = (evaluate(agent, args, gradient_step=100).lengths.tolist() for _ in range(2))
    others = dict(seed=2, gradient_step=100), dict(gradient_step=200), dict(gradient_step=100, env_step=1)
    assert first == again
    assert all(evaluate(agent, args, **other).lengths.tolist() != first for other in others)
    assert torch.equal(torch.get_rng_state(), state)


def test_a_diverged_seed_is_named_before_it_is_evaluated_or_saved(tmp_path, capsys):
    """And given up, while the others are evaluated as if it had not; a run with nobody left ends."""
    args = make_args(tmp_path, env="AnyLength-v0", num_seeds=3)
    agent = sac.Agent([1, 2, 3], 2, 1, 8, 2, True)
    run = sac.Run(args, None, None)
    with pytest.raises(SystemExit) as given, run.recording():
        run.evaluator.start(agent, {})
        agent.critic.mlp.layers[1].bias[2] = torch.inf  # one of seed 2's two
        run.gradient_step = 10
        run.evaluator.start(agent, {"loss/critic": np.ones(3)})
        assert "seed 2 diverged before offline step 10; the others go on" in capsys.readouterr().out
        assert not agent.actor.mlp.layers[0].weight[1].any()
        run.evaluator.finish()
        steps = {k: {row.split(",")[1] for row in read_rows(run, k, "eval.csv")} for k in (1, 2, 3)}
        assert steps == {1: {"0", "10"}, 2: {"0"}, 3: {"0", "10"}}
        assert [torch.load(f / "checkpoint.pt")["gradient_step"] for f in run.folders] == [10, 0, 10]
    with pytest.raises(SystemExit, match="error: diverged: {2:"):
        raise given.value


def read_rows(run, seed, name):
    return (run.folder / f"seed{seed}" / name).read_text().splitlines()[1:]


@pytest.mark.parametrize("cores", [1, 2, 4])
def test_evaluation_beside_training_finds_what_one_in_between_finds(cores, tmp_path, monkeypatch):
    """Of the agent as it was, while training goes on; logged where it was started."""
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: range(cores))
    args = make_args(tmp_path, env="AnyLength-v0", num_seeds=3, eval_episodes=4)
    agent, run = sac.Agent([1, 2, 3], 2, 1, 8, 2, True), sac.Run(args, None, None)
    wanted = []
    for seed in (1, 2, 3):
        one = sac.Agent([seed], 2, 1, 8, 2, True)
        wanted.append(evaluate(one, args, seed, gradient_step=5))
    with run.recording():
        assert not run.evaluator.finish()  # none was started
        run.gradient_step = 5
        run.evaluator.start(agent, {"loss/critic": np.arange(3.0)})
        for tensor in agent.state_dict().values():
            tensor.add_(1)
        run.gradient_step = 9
        assert run.evaluator.finish() and not run.evaluator.finish()
        np.testing.assert_array_equal(run.last, [result.returns.mean() for result in wanted])
    for seed, result in zip(run.seeds, wanted, strict=True):
        rows = [row.split(",") for row in read_rows(run, seed, "eval.csv")]
        assert [float(row[4]) for row in rows] == result.returns.round(3).tolist()
        assert [int(row[5]) for row in rows] == result.lengths.tolist() and {row[1] for row in rows} == {"5"}
        metrics = dict(row.split(",")[3:] for row in read_rows(run, seed, "metrics.csv"))
        assert float(metrics["eval/q_bias"]) == float(result.q_bias)
        assert float(metrics["loss/critic"]) == seed - 1


def test_training_goes_on_while_an_evaluation_runs(tmp_path, monkeypatch):
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: range(2))
    gate = tmp_path / "gate"

    def slow(*given):
        while not gate.exists():
            time.sleep(0.01)
        return evaluate_copy(*given)

    evaluate_copy = sac.evaluate_copy
    monkeypatch.setattr(sac, "evaluate_copy", slow)
    slow.__module__, slow.__qualname__ = "sac_scratch", "evaluate_copy"  # so that it can be sent
    run = sac.Run(make_args(tmp_path, env="AnyLength-v0"), None, None)
    with run.recording():
        run.evaluator.start(sac.Agent([1], 2, 1, 8, 2, True), {})
        assert not run.evaluator.finish(wait=False) and not read_rows(run, 1, "eval.csv")
        gate.touch()
    assert read_rows(run, 1, "eval.csv")  # the run does not end without it


@pytest.mark.parametrize("cores", [1, 2])
def test_an_environment_that_fails_in_an_evaluation_is_named(cores, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: range(cores))
    monkeypatch.setattr(Counter, "step", lambda self, action: 1 / 0)
    run = sac.Run(make_args(tmp_path, env="Truncates-v0"), None, None)
    line = "error: the environment of seed 1 failed .ZeroDivisionError"
    with pytest.raises(SystemExit, match=line) as ended, run.recording():
        run.evaluator.start(sac.Agent([1], 2, 1, 8, 2, True), {})
    assert "--resume" in str(ended.value) and '"failed"' in (run.folders[0] / "config.json").read_text()


def test_an_evaluation_process_that_is_killed_ends_the_run(tmp_path, monkeypatch):
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: range(2))
    run = sac.Run(make_args(tmp_path, env="AnyLength-v0"), None, None)
    line = "error: A .*process.* terminated abruptly"
    with pytest.raises(SystemExit, match=line), run.recording():
        (process,) = run.evaluator.pool._processes.values()
        os.kill(process.pid, signal.SIGKILL)
        process.join()
        run.evaluator.start(sac.Agent([1], 2, 1, 8, 2, True), {})
        run.evaluator.finish()


# ---- the online loop ----


class Online:
    """train_online with `update` replaced by a recorder: (environment step, number of offline rows) a call."""

    def __init__(self, monkeypatch, args, replay="online", offline=0, gradient_step=0):
        self.updates, self.evaluations = [], []
        self.run = sac.Run(args, None, None)
        self.run.gradient_step = gradient_step
        self.run.config["checkpoint"] = {"gradient_step": gradient_step} if gradient_step else None
        rows = np.full((offline, 8), -1, np.float32)
        shape, seeds = {"obs_dim": 2, "action_dim": 1}, args.num_seeds
        self.table = sac.ReplayTable(rows if offline else None, seeds, shape, args.online_steps, replay, "cpu")
        agent = constant_policy(num_seeds=seeds)

        def update(agent, batch, args, policy_turn):
            self.updates.append((self.run.env_step, (batch.obs[..., 0] < 0).sum(1).tolist()))
            return {}

        def start(agent, metrics):
            self.evaluations.append((self.run.gradient_step, self.run.env_step))

        monkeypatch.setattr(sac, "update", update)
        self.run.evaluator = SimpleNamespace(start=start, finish=lambda wait: False)
        monkeypatch.setattr(self.run, "keep", lambda *_: None)
        torch.manual_seed(0)
        sac.train_online(agent, self.table, self.run, args)

    def column(self, name):
        """(S, steps, ...) of what the rings hold."""
        columns = self.table.rings[:, : self.table.added].split(self.table.sizes, 2)
        return columns[sac.Batch._fields.index(name)].numpy()


@pytest.mark.parametrize("cores", [1, 8])  # SyncVectorEnv, AsyncVectorEnv
@pytest.mark.parametrize("env, end", [("Terminates-v0", "terminated"), ("Truncates-v0", "truncated")])
def test_the_true_last_observation_and_the_kind_of_end_are_stored(cores, env, end, tmp_path, monkeypatch):
    """Episodes of 3 steps: obs 0 1 2 0 1 2 ..., next_obs 1 2 3 1 2 3 ..., never the 0 of the reset."""
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(cores)))
    args = make_args(tmp_path, env=env, num_seeds=2, online_steps=7)
    kinds, make_envs = [], sac.make_envs
    monkeypatch.setattr(sac, "make_envs", lambda *a: kinds.append(make_envs(*a)) or kinds[-1])
    online = Online(monkeypatch, args)
    assert {type(envs) for envs in kinds} == {gym.vector.AsyncVectorEnv if cores == 8 else gym.vector.SyncVectorEnv}
    for seed in (0, 1):
        assert online.column("obs")[seed, :, 0].tolist() == [0, 1, 2, 0, 1, 2, 0]
        assert online.column("next_obs")[seed, :, 0].tolist() == [1, 2, 3, 1, 2, 3, 1]
        ends = {"terminated": [0] * 7, "truncated": [0] * 7} | {end: [0, 0, 1, 0, 0, 1, 0]}
        for name, values in ends.items():
            assert online.column(name)[seed, :, 0].tolist() == values
        starts, next_starts = online.column("obs")[seed, :, 1], online.column("next_obs")[seed, :, 1]
        assert starts.tolist() == next_starts.tolist() and len(set(starts)) == 3  # of the same episode
    assert online.column("obs")[0, 0, 1] != online.column("obs")[1, 0, 1]  # each seed has its own starts


def test_episodes_that_end_at_different_times_stay_apart(tmp_path, monkeypatch):
    online = Online(monkeypatch, make_args(tmp_path, env="AnyLength-v0", num_seeds=2, online_steps=40))
    obs, next_obs, ended = (online.column(name) for name in ("obs", "next_obs", "terminated"))
    np.testing.assert_array_equal(next_obs[..., 0], obs[..., 0] + 1)
    np.testing.assert_array_equal(next_obs[..., 1], obs[..., 1])
    np.testing.assert_array_equal(obs[:, 1:, 0], np.where(ended[:, :-1, 0], 0, next_obs[:, :-1, 0]))
    assert ended[0].tolist() != ended[1].tolist() and (ended.sum(1) > 4).all()


def test_the_executed_action_is_stored_in_unit_bounds(tmp_path, monkeypatch):
    """The environment's reward is the action that it got, twice the stored one; random and policy's alike."""
    online = Online(monkeypatch, make_args(tmp_path, num_seeds=2, online_steps=30, warmup_steps=15))
    action = online.column("action")
    np.testing.assert_allclose(online.column("reward"), 2 * action, rtol=1e-6)
    assert np.abs(action).max() <= 1 and len(np.unique(action)) > 50


@pytest.mark.parametrize("pretrained", [False, True])
def test_warmup_acts_randomly_only_without_a_pretrained_policy_and_updates_never(pretrained, tmp_path, monkeypatch):
    monkeypatch.setattr(sac, "select_action", lambda agent, obs, args: (torch.full((2, 1, 1), 0.25), {}))
    args = make_args(tmp_path, num_seeds=2, online_steps=60, warmup_steps=50)
    online = Online(monkeypatch, args, gradient_step=7 if pretrained else 0)
    warm, rest = online.column("action")[:, :50], online.column("action")[:, 50:]
    assert (rest == 0.25).all()
    if pretrained:
        assert (warm == 0.25).all()
    else:  # uniform: 100 draws, mean 0 and deviation 0.577 up to three standard errors
        assert len(np.unique(warm)) == 100 and abs(warm.mean()) < 0.18 and abs(warm.std() - 0.577) < 0.08
    assert [step for step, _ in online.updates] == list(range(50, 60))


@pytest.mark.parametrize("replay, offline, first", [("append", 5, 0), ("online", 0, 4), ("ratio", 5, 4)])
def test_first_update_without_warmup(replay, offline, first, tmp_path, monkeypatch):
    """At once where there are data; else when a batch of 4 has been collected."""
    args = make_args(tmp_path, online_steps=8, warmup_steps=0)
    online = Online(monkeypatch, args, replay, offline)
    assert [step for step, _ in online.updates] == list(range(first, 8))


def test_updates_and_evaluations_are_counted(tmp_path, monkeypatch):
    """2 updates in each of the steps 4 to 9, on top of 100; evaluations at 0, 4, 8 and at the end."""
    args = make_args(tmp_path, online_steps=10, updates_per_step=2, eval_every=4)
    online = Online(monkeypatch, args, gradient_step=100)
    assert [step for step, _ in online.updates] == [4, 4, 5, 5, 6, 6, 7, 7, 8, 8, 9, 9]
    assert online.evaluations == [(100, 0), (100, 4), (108, 8), (112, 10)]


def test_offline_share_is_annealed_to_none(tmp_path, monkeypatch):
    """From 1 to 0 in 16 steps, batches of 4: round(4 (1 - step / 16)) offline rows, from step 4 on."""
    args = make_args(tmp_path, num_seeds=2, online_steps=16, offline_ratio=1.0, offline_ratio_end=0.0)
    online = Online(monkeypatch, args, "ratio", offline=5)
    # 3, 2.75, 2.5, 2.25 | 2, 1.75, 1.5, 1.25 | 1, 0.75, 0.5, 0.25; halves round to even
    rows = [3, 3, 2, 2, 2, 2, 2, 1, 1, 1, 0, 0]
    assert online.updates == [(4 + i, [n, n]) for i, n in enumerate(rows)]


@pytest.mark.parametrize("options, rows", [({}, 2), ({"offline_ratio": 0.25}, 1), ({"offline_ratio": 0.0}, 0)])
def test_offline_share_is_constant_otherwise(options, rows, tmp_path, monkeypatch):
    online = Online(monkeypatch, make_args(tmp_path, online_steps=8, **options), "ratio", offline=5)
    assert [n for _, (n,) in online.updates] == [rows] * 4  # batches of 4; the default share is 0.5
