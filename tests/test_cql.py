"""CQL's penalty, multiplier, annealing, Cal-QL's returns: by hand and against plain PyTorch; short runs."""

import copy
import csv
import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn as nn
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st
from torch.distributions import Normal
from torch.func import grad_and_value

import cql_sac as cql
from first_house import Fixed, PlainMLP, random_batch

SMALL = "--batch-size 16 --eval-episodes 2 --compile off"
OFFLINE = f"{SMALL} --hidden-dim 16 --dataset hopper/tiny-v0 --offline-steps 20 --eval-every 10"
OFFLINE += " --cql-actions 2"
NO_NOISE = torch.zeros(1, 2, 1)


class Linear(nn.Module):
    """Two critics on one-dimensional obs and action: Q_1 = w obs + a, Q_2 = w obs + 3 a."""

    num_critics = 2

    def __init__(self):
        super().__init__()
        self.w, self.slope = nn.Parameter(torch.tensor(1.0)), nn.Parameter(torch.tensor([1.0, 3.0]))

    def forward(self, obs, action):
        return (self.w * obs + self.slope * action).mT


def two_states():
    """Agent, batch and pushed actions: states 0 and 2 with data actions 0.5 and -0.5.

    Pushed are one uniform action a state and two of the policy's.
    """
    agent = cql.Agent([1], 1, 1, 8, 2, False)
    agent.critic, agent.target_critic = Linear(), Fixed(lambda obs, action: torch.zeros(1, 2, 2))
    agent.requires_grad_(False)
    obs, action = torch.tensor([[[0.0], [2.0]]]), torch.tensor([[[0.5], [-0.5]]])
    zero, ones = torch.zeros(1, 2), torch.ones(1, 2)
    batch = cql.Batch(obs, action, zero, obs + 10, ones, zero)  # the target is the reward, 0
    actions = torch.tensor([[[[-1.0], [0.0], [1.0]], [[0.2], [0.4], [0.6]]]])
    log_density = torch.log(torch.tensor([[[0.5, 0.1, 0.2], [0.5, 1.0, 2.0]]]))
    return agent, batch, (actions, log_density)


def loss_of(agent, batch, pushed, **options):
    args = cql.Args(**{"cql_alpha": 5.0, "cql_actions": 1, **options})
    params = dict(agent.critic.named_parameters())
    return grad_and_value(cql.critic_loss, has_aux=True)(params, agent, batch, NO_NOISE, pushed, args)


def test_penalty_by_hand():
    """Q_1 is a at state 0 and 2 + a at state 2, Q_2 is 3 a and 2 + 3 a; a term an action, over p."""
    _, (loss, (metrics, q)) = loss_of(*two_states())
    exp, log = math.exp, math.log
    gap_1 = (log(exp(-1) / 0.5 + exp(0) / 0.1 + exp(1) / 0.2) - 0.5) / 2
    gap_1 += (log(exp(2.2) / 0.5 + exp(2.4) / 1 + exp(2.6) / 2) - 1.5) / 2
    gap_2 = (log(exp(-3) / 0.5 + exp(0) / 0.1 + exp(3) / 0.2) - 1.5) / 2
    gap_2 += (log(exp(2.6) / 0.5 + exp(3.2) / 1 + exp(3.8) / 2) - 0.5) / 2
    bellman = (0.5**2 + 1.5**2) / 2 + (1.5**2 + 0.5**2) / 2
    assert q.tolist() == [[[0.5, 1.5], [1.5, 0.5]]]
    assert metrics["loss/critic"].item() == pytest.approx(bellman)
    assert metrics["cql/gap"].item() == pytest.approx((gap_1 + gap_2) / 2)
    assert loss.item() == pytest.approx(bellman + 5 * (gap_1 + gap_2))


def test_data_actions_are_pushed_up_and_sampled_ones_down():
    """d gap / d slope: the softmax's mean of the sampled actions minus the data's action, each state half."""
    agent, batch, pushed = two_states()
    grads, _ = loss_of(agent, batch, pushed)
    bellman, _ = loss_of(agent, batch, pushed, cql_alpha=0.0)
    weights = [torch.tensor([math.exp(a) / p for a, p in ((-1, 0.5), (0, 0.1), (1, 0.2))])]
    weights.append(torch.tensor([math.exp(a) / p for a, p in ((0.2, 0.5), (0.4, 1.0), (0.6, 2.0))]))
    means = [(w / w.sum() * a[:, 0]).sum() for w, a in zip(weights, pushed[0][0], strict=True)]
    expected = 5 * ((means[0] - 0.5) + (means[1] + 0.5)) / 2
    assert (grads["slope"] - bellman["slope"])[0].item() == pytest.approx(expected.item(), rel=1e-5)


def test_pushed_actions_and_their_densities():
    """N uniform, N of pi(.|s), N of pi(.|s'), in this order; densities against torch.distributions."""
    agent, batch = cql.Agent([1, 2], 3, 2, 8, 2, False), random_batch(2, size=5)
    g = torch.Generator().manual_seed(1)
    uniform, noise = 2 * torch.rand(2, 5, 4, 2, generator=g) - 1, torch.randn(2, 2, 5, 4, 2, generator=g)
    actions, log_density = cql.penalty_actions(agent, batch, uniform, noise)
    assert actions.shape == (2, 5, 12, 2) and log_density.shape == (2, 5, 12)
    assert torch.equal(actions[:, :, :4], uniform)
    torch.testing.assert_close(log_density[:, :, :4], torch.full((2, 5, 4), math.log(0.25)))
    for i, obs in enumerate((batch.obs, batch.next_obs)):
        mean, log_std = agent.actor(obs)
        normal = torch.distributions.Normal(mean[:, :, None], log_std.exp()[:, :, None])
        x = normal.loc + normal.scale * noise[i]
        part = slice(4 + 4 * i, 8 + 4 * i)
        torch.testing.assert_close(actions[:, :, part], x.tanh())
        expected = (normal.log_prob(x) - torch.log(1 - x.tanh() ** 2)).sum(3)
        torch.testing.assert_close(log_density[:, :, part], expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("scale", [1.0, -1.0])
def test_actions_on_the_border_have_finite_densities(scale):
    mean, log_std = torch.full((1, 1, 2), 40 * scale), torch.full((1, 1, 2), 2.0)
    action, log_prob = cql.sample_action(mean, log_std, torch.full((1, 1, 2), 4 * scale))
    assert action.abs().min() == 1 and log_prob.isfinite().all()


class PlainCQL:
    """One seed of a stack: separate critics, autograd, torch.optim, torch.distributions."""

    def __init__(self, agent, args, seed):
        def critics(stack):
            return [PlainMLP(5, 1, 8, False).copy_from(stack.mlp, 2 * seed + e) for e in range(2)]

        self.args, self.critics, self.targets = args, critics(agent.critic), critics(agent.target_critic)
        self.actor = PlainMLP(3, 4, 8, False).copy_from(agent.actor.mlp, seed)
        self.target_actor = copy.deepcopy(self.actor)
        self.log_alpha, self.log_weight = (torch.zeros((), requires_grad=True) for _ in range(2))
        self.actor_adam = torch.optim.Adam(self.actor.parameters(), args.actor_lr)
        self.critic_adam = torch.optim.Adam([p for c in self.critics for p in c.parameters()], args.critic_lr)
        self.alpha_adam = torch.optim.Adam([self.log_alpha], args.alpha_lr)
        self.weight_adam = torch.optim.Adam([self.log_weight], args.critic_lr)

    def step(self, adam, loss):
        adam.zero_grad()
        loss.backward()
        adam.step()

    def act(self, obs, noise):
        mean, log_std = self.actor(obs).chunk(2, -1)
        normal = Normal(mean, (-5 + 3.5 * (log_std.tanh() + 1)).exp())
        x = normal.loc + normal.scale * noise
        return x.tanh(), (normal.log_prob(x) - torch.log(1 - x.tanh() ** 2)).sum(-1)

    def q(self, critics, obs, action):
        return torch.stack([critic(torch.cat([obs, action], -1))[..., 0] for critic in critics])

    def gap(self, obs, next_obs, uniform, noise, data_q):
        """A critic, averaged over the batch."""
        rows = obs.expand(len(uniform), -1, -1)
        pushed = [(uniform, torch.full(uniform.shape[:2], math.log(1 / 4)))]
        pushed += [self.act(own.expand_as(rows), n) for own, n in zip((obs, next_obs), noise, strict=True)]
        terms = [self.q(self.critics, rows, action.detach()) - density.detach() for action, density in pushed]
        return (torch.cat(terms, 1).logsumexp(1) - data_q).mean(1)

    def update(self, batch, noise, uniform, normal):
        obs, action, reward, next_obs, terminated, _ = batch
        args, alpha = self.args, self.log_alpha.exp().detach()
        with torch.no_grad():
            next_action, next_log_prob = self.act(next_obs, noise[0])
            next_value = self.q(self.targets, next_obs, next_action).min(0)[0] - alpha * next_log_prob
            target = reward + args.gamma * (1 - terminated) * next_value
        q = self.q(self.critics, obs, action)
        data_q = q.detach().min(0)[0]  # as it was before this step of the critics
        gap = self.gap(obs, next_obs, uniform, normal, q)
        weight = args.cql_alpha if args.cql_threshold is None else self.log_weight.exp().detach()
        self.step(self.critic_adam, ((q - target) ** 2).mean(1).sum() + weight * gap.sum())
        if args.cql_threshold is not None:
            self.step(self.weight_adam, -self.log_weight.exp() * (gap.mean().detach() - args.cql_threshold))

        new_action, log_prob = self.act(obs, noise[1])
        loss = alpha * log_prob - self.q(self.critics, obs, new_action).min(0)[0]
        self.step(self.actor_adam, loss[data_q >= data_q.quantile(args.q_filter_percentile / 100)].mean())
        self.step(self.alpha_adam, self.log_alpha.exp() * (-log_prob.detach().mean() + 2))
        pairs = zip([*self.targets, self.target_actor], [*self.critics, self.actor], strict=True)
        for target, online in pairs:
            for p, q in zip(target.parameters(), online.parameters(), strict=True):
                p.data += args.tau * (q.data - p.data)


@pytest.mark.parametrize(
    "options", [{"cql_alpha": 0.0}, {"cql_alpha": 5.0, "q_filter_percentile": 25}, {"cql_threshold": 3.0}]
)
def test_update_equals_plain_pytorch(options, double):
    """Two stacked seeds; a weight of 0 is SAC."""
    rates = {"actor_lr": 1e-2, "critic_lr": 2e-2, "alpha_lr": 5e-3, "tau": 0.1, "gamma": 0.9}
    agent, args = cql.Agent([1, 2], 3, 2, 8, 2, False), cql.Args(cql_actions=4, **rates, **options)
    plains = [PlainCQL(agent, args, seed) for seed in range(2)]
    for i in range(5):
        batch = random_batch(2, seed=i)
        torch.manual_seed(i)
        cql.update(agent, batch, args, True)
        torch.manual_seed(i)
        noise, normal = torch.randn(2, 2, 16, 2), torch.randn(2, 2, 16, 4, 2)  # two uses, two seeds
        uniform = 2 * torch.rand(2, 16, 4, 2) - 1
        for seed, plain in enumerate(plains):
            drawn = uniform[seed].transpose(0, 1), normal[:, seed].transpose(1, 2)  # actions before rows
            plain.update([column[seed] for column in batch], noise[:, seed], *drawn)
    for seed, plain in enumerate(plains):
        pairs = [(agent.critic, plain.critics), (agent.target_critic, plain.targets)]
        pairs += [(agent.actor, [plain.actor]), (agent.target_actor, [plain.target_actor])]
        for ours, networks in pairs:
            for e, theirs in enumerate(networks):
                mine = copy.deepcopy(theirs).copy_from(ours.mlp, seed * len(networks) + e)
                torch.testing.assert_close(mine.flat(), theirs.flat(), rtol=1e-8, atol=1e-10)
        for mine, theirs in ((agent.log_alpha, plain.log_alpha), (agent.log_cql_alpha, plain.log_weight)):
            assert mine[seed].item() == pytest.approx(theirs.item(), rel=1e-8, abs=1e-10)
        assert plain.log_alpha.item() != 0 and (plain.log_weight.item() != 0) == ("cql_threshold" in options)


def test_the_uniform_actions_fill_their_range(monkeypatch):
    drawn, penalty_actions = [], cql.penalty_actions

    def record(*given):
        drawn.append(given[2])
        return penalty_actions(*given)

    monkeypatch.setattr(cql, "penalty_actions", record)
    cql.update(cql.Agent([1], 3, 2, 8, 2, False), random_batch(), cql.Args(cql_alpha=1.0), True)
    (uniform,) = drawn
    assert uniform.shape == (1, 16, 10, 2) and uniform.min() < -0.95 and uniform.max() > 0.95


def test_the_multiplier_grows_while_the_gap_is_too_large_and_shrinks_while_small():
    for threshold, change in ((0.5, 3e-4), (50.0, -3e-4)):
        agent = cql.Agent([1], 3, 2, 8, 2, False)
        metrics = cql.update(agent, random_batch(), cql.Args(cql_threshold=threshold, cql_actions=2), True)
        assert (metrics["cql/gap"] > threshold).item() == (change > 0)
        assert agent.log_cql_alpha.item() == pytest.approx(change, rel=1e-3)  # Adam's first step
        assert metrics["cql/alpha"].item() == 1  # the one that the loss was made with
    agent.log_cql_alpha.fill_(cql.LOG_CQL_MIN)
    cql.update(agent, random_batch(), cql.Args(cql_threshold=50.0, cql_actions=2), True)
    assert agent.log_cql_alpha.item() == cql.LOG_CQL_MIN  # stays above 0, and can come back


def with_returns(batch, values):
    return cql.ReturnBatch(*batch, torch.tensor([values]))


def test_calibration_bounds_the_policys_q_from_below():
    """Returns 1 and 2.5: the policy's Q_1 of 0, 1 become 1, 1; of 2.4, 2.6 2.5, 2.6; uniform ones stay."""
    agent, batch, pushed = two_states()
    _, (_, (metrics, _)) = loss_of(agent, with_returns(batch, [1.0, 2.5]), pushed, calibrated=True)
    exp, log = math.exp, math.log
    gap_1 = (log(exp(-1) / 0.5 + exp(1) / 0.1 + exp(1) / 0.2) - 0.5) / 2
    gap_1 += (log(exp(2.2) / 0.5 + exp(2.5) / 1 + exp(2.6) / 2) - 1.5) / 2
    gap_2 = (log(exp(-3) / 0.5 + exp(1) / 0.1 + exp(3) / 0.2) - 1.5) / 2
    gap_2 += (log(exp(2.6) / 0.5 + exp(3.2) / 1 + exp(3.8) / 2) - 0.5) / 2
    assert metrics["cql/gap"].item() == pytest.approx((gap_1 + gap_2) / 2)


def test_calibration_without_known_returns_is_cql():
    agent, batch, pushed = two_states()
    plain = loss_of(agent, batch, pushed)
    unknown = loss_of(agent, with_returns(batch, [-math.inf, -math.inf]), pushed, calibrated=True)
    assert plain[1][0] == unknown[1][0]
    assert all(torch.equal(plain[0][name], unknown[0][name]) for name in plain[0])


def test_returns_to_go_by_hand():
    """gamma 0.2: two steps before its end a return lacks 0.8%. Ends: terminated, by the clock, cut off."""
    rewards = np.array([1, 2, 3, 1, 2, 3, 4, 5, 6], np.float32)
    terminated, truncated = np.zeros(9), np.zeros(9)
    terminated[2], truncated[6] = 1, 1
    found = cql.returns_to_go(rewards, terminated, truncated, 0.2)
    np.testing.assert_allclose(found, [1.52, 2.6, 3, 1.552, 2.76, *[-math.inf] * 4], rtol=1e-6)


def step(table, reward, terminated=False, truncated=False):
    """One transition a seed, with its reward as observation."""
    reward = np.array(reward, np.float32)
    ends = [np.full(len(reward), end, np.float32) for end in (terminated, truncated)]
    table.add(reward[:, None], reward[:, None] * 0, reward, reward[:, None], *ends)


def test_online_rows_get_their_returns_when_their_episode_ends():
    offline = np.zeros((2, 6), np.float32)
    offline[:, 2], offline[1, 4] = (1, 2), 1  # rewards; the second row terminates
    shape = {"obs_dim": 1, "action_dim": 1}
    table = cql.ReturnTable(offline, 2, shape, 4, "append", "cpu", gamma=0.5)
    unknown = [-math.inf] * 8
    assert table.mc_return.tolist() == [2, 2, *unknown]
    step(table, [1, 10])
    step(table, [2, 20])
    assert table.mc_return.tolist() == [2, 2, *unknown]
    step(table, [4, 40], terminated=True)
    assert table.ring_returns[:, :3].tolist() == [[3, 4, 4], [30, 40, 40]]
    step(table, [1, 10])
    step(table, [2, 20], terminated=True)  # the ring has four rows: this one replaces the first
    assert table.ring_returns.tolist() == [[2, 4, 4, 2], [20, 40, 40, 20]]
    step(table, [7, 70])  # a new episode, in the second row
    assert table.ring_returns.tolist() == [[2, -math.inf, 4, 2], [20, -math.inf, 40, 20]]
    batch = table.sample(200)
    online = batch.obs[..., 0] == batch.reward
    assert (online & (batch.reward > 0)).any() and set(batch.mc_return[0].tolist()) == {2, 4, -math.inf}


def test_an_episode_longer_than_the_ring():
    table = cql.ReturnTable(None, 1, {"obs_dim": 1, "action_dim": 1}, 2, "online", "cpu", gamma=0.5)
    for i in range(5):
        step(table, [8.0], terminated=i == 4)
    assert table.mc_return.tolist() == [8, 12]  # the last step has row 0, the one before it row 1


# ---- Monte-Carlo returns, by hypothesis ----

REWARD = st.integers(-1000, 1000).map(lambda n: n / 8)
ENDS = st.sampled_from("......tcb")  # none, terminated, truncated by the clock, both
GAMMA = st.sampled_from([0.0, 0.3, 0.9, 0.99, 1.0]) | st.floats(0, 1)


def examples(count):
    checks = [HealthCheck.too_slow]
    return settings(deadline=None, derandomize=True, max_examples=count, suppress_health_check=checks)


def returns_by_definition(rewards, ends, gamma):
    """sum_j gamma^(j - i) r_j to the end of i's episode; -inf where the clock cut over 0.01 of the weight."""
    returns = []
    for i in range(len(rewards)):
        end = next((j for j in range(i, len(rewards)) if ends[j] != "."), len(rewards) - 1)
        missing = 0 if ends[end] in "tb" else gamma ** (end + 1 - i)
        assume(abs(missing - 0.01) > 1e-9)
        total = sum(gamma ** (j - i) * rewards[j] for j in range(i, end + 1))
        returns.append(total if missing <= 0.01 else -math.inf)
    return returns


def close(values):
    """To float32's rounding."""
    return pytest.approx(values, rel=2e-7, abs=1e-9)


@examples(200)
@given(steps=st.lists(st.tuples(REWARD, ENDS), max_size=40), gamma=GAMMA)
def test_returns_to_go(steps, gamma):
    rewards, ends = [reward for reward, _ in steps], [end for _, end in steps]
    terminated, truncated = (np.array([end in kinds for end in ends], bool) for kinds in ("tb", "cb"))
    returns = cql.returns_to_go(np.array(rewards, np.float32), terminated, truncated, gamma)
    assert returns.tolist() == close(returns_by_definition(rewards, ends, gamma))


@examples(80)
@given(data=st.data(), seeds=st.integers(1, 3), capacity=st.integers(1, 12), gamma=GAMMA)
def test_a_return_table_knows_the_returns_of_ended_episodes(data, seeds, capacity, gamma):
    """Of offline rows at once, of online ones when their episode ends, as long as the ring holds them."""
    offline = data.draw(st.lists(st.tuples(REWARD, ENDS), max_size=10))
    online = data.draw(st.lists(st.tuples(*[st.tuples(REWARD, ENDS)] * seeds), max_size=30))

    def row(number, reward, end):
        return [number, 0, reward, number, end in "tb", end in "cb"]

    rows = np.array([row(-1 - i, *step) for i, step in enumerate(offline)], np.float32) if offline else None
    shape = {"obs_dim": 1, "action_dim": 1}
    table = cql.ReturnTable(rows, seeds, shape, capacity, "append", "cpu", gamma=gamma)
    known, started = {}, [0] * seeds  # returns by a row's number; the running episodes' first steps
    if offline:
        known |= enumerate(returns_by_definition(*zip(*offline, strict=True), gamma))
        known = {-1 - i: value for i, value in known.items()}
    for t, step in enumerate(online):
        new = np.array([row(1000 * (s + 1) + t, *own) for s, own in enumerate(step)], np.float64)
        table.add(new[:, :1], new[:, 1:2], new[:, 2], new[:, 3:4], new[:, 4], new[:, 5])
        for s in range(seeds):
            known[1000 * (s + 1) + t] = -math.inf
            if step[s][1] != ".":
                episode = zip(*(earlier[s] for earlier in online[started[s] : t + 1]), strict=True)
                values = returns_by_definition(*episode, gamma)
                known |= {1000 * (s + 1) + started[s] + i: value for i, value in enumerate(values)}
                started[s] = t + 1
            steps = range(max(0, t + 1 - capacity), t + 1)
            got = [table.ring_returns[s, u % capacity].item() for u in steps]
            assert got == close([known[1000 * (s + 1) + u] for u in steps])
    assume(known)
    batch = table.sample(50)
    for numbers, got in zip(batch.obs[..., 0].tolist(), batch.mc_return.tolist(), strict=True):
        assert got == close([known[number] for number in numbers])


# ---- annealing ----


def test_scheduled():
    agent = cql.Agent([1], 3, 2, 8, 2, False)
    assert cql.scheduled(agent, 5.0, None) == 5
    values = [cql.scheduled(agent, 5.0, 0.5).item()]
    for share in (0.5, 1):
        agent.annealed.fill_(share)
        values.append(cql.scheduled(agent, 5.0, 0.5).item())
    assert values == [5, 2.75, 0.5]


def test_annealing_moves_the_weight():
    agent, batch, pushed = two_states()
    agent.annealed.fill_(0.5)
    half = loss_of(agent, batch, pushed, cql_alpha=5.0, cql_alpha_end=1.0)
    assert half[1][0] == loss_of(agent, batch, pushed, cql_alpha=3.0)[1][0]


def test_annealing_moves_the_threshold():
    """The gap is under 50 and over -50: the multiplier turns round as the threshold passes it."""
    agent = cql.Agent([1], 3, 2, 8, 2, False)
    args = cql.Args(cql_threshold=50.0, cql_threshold_end=0.0, cql_actions=2)
    for share, sign in ((0, -1), (1, 1)):
        agent.annealed.fill_(share)
        agent.cql_alpha_adam = cql.Adam([agent.log_cql_alpha]).requires_grad_(False)
        before = agent.log_cql_alpha.item()
        cql.update(agent, random_batch(), args, True)
        assert (agent.log_cql_alpha.item() - before) * sign > 0


@pytest.mark.parametrize(
    "schedule, expected",
    [("none", [0] * 8), ("abrupt", [1] * 8), ("linear", [i / 8 for i in range(8)])],
)
def test_schedules(schedule, expected, call, monkeypatch):
    seen, update = [], cql.update

    def record(agent, *others):
        seen.append(agent.annealed.item())
        return update(agent, *others)

    call("cql_sac", f"{OFFLINE} --offline-steps 2")
    monkeypatch.setattr(cql, "update", record)
    end = "" if schedule == "none" else f"--cql-alpha-end 0 --anneal {schedule}"
    options = "--offline-steps 0 --online-steps 8 --eval-every 8 --cql-actions 2 --cql-alpha 1"
    call("cql_sac", f"{SMALL} {options} {end}")
    assert seen == expected


# ---- scripts ----


def metrics(folder):
    with open(folder / "metrics.csv") as file:
        return {row["name"]: float(row["value"]) for row in csv.DictReader(file)}  # the last one of each


def run_folder(pattern):
    (folder,) = Path("runs/Hopper-v4").glob(f"{pattern}/seed1")
    return folder


def checkpoint(folder):
    return torch.load(folder / "checkpoint.pt", weights_only=True)


@pytest.mark.parametrize(
    "options", ["", "--calibrated", "--cql-threshold 5 --cql-threshold-end 0.5 --anneal linear"]
)
def test_cql_online(options, call):
    call("cql_sac", OFFLINE)
    before = checkpoint(run_folder("cql_sac-tiny*"))
    call("cql_sac", f"{SMALL} --offline-steps 0 --online-steps 20 --eval-every 20 --cql-actions 2 {options}")
    folder = run_folder("cql_sac-*-online20-*-from-cql_sac-*")
    after, logged = checkpoint(folder), metrics(folder)
    assert after["gradient_step"] == 40 and after["agent"]["critic_adam.t"] == 40
    weight = "critic.mlp.layers.0.weight"
    assert not torch.equal(after["agent"][weight], before["agent"][weight])
    wanted = {"cql/gap", "cql/alpha", "loss/critic", "eval/q_bias", "eval/first_q", "policy/drift"}
    assert wanted <= set(logged) and all(math.isfinite(logged[name]) for name in wanted)
    assert json.loads((folder / "config.json").read_text())["status"] == "finished"


def test_offline_and_online_in_one_run(call):
    call("cql_sac", f"{OFFLINE} --online-steps 10")
    with open(run_folder("cql_sac-*") / "eval.csv") as file:
        rows = {(r["phase"], int(r["gradient_step"]), int(r["env_step"])) for r in csv.DictReader(file)}
    offline, online = {("offline", step, 0) for step in (0, 10, 20)}, {("online", 20, 0), ("online", 30, 10)}
    assert rows == offline | online


@pytest.mark.parametrize(
    "arguments, expected",
    [
        ("--cql-alpha 5 --cql-threshold 5", "--cql-threshold 5.0: learns the weight"),
        ("--cql-alpha -1", "--cql-alpha -1.0: must be in"),
        ("--cql-threshold 0", "--cql-threshold 0.0: must be above 0"),
        ("--cql-actions 0", "--cql-actions 0: must be above 0"),
        ("--anneal linear --online-steps 9", "--anneal linear: needs --cql-alpha-end or --cql-threshold-end"),
        ("--anneal linear --cql-alpha-end 0", "--anneal linear: needs --online-steps"),
        ("--cql-alpha-end 1 --online-steps 9", "--cql-alpha-end: needs --anneal"),
        ("--cql-threshold-end 1 --anneal abrupt --online-steps 9", "needs a --cql-threshold to start from"),
        ("--cql-threshold 5 --cql-alpha-end 1 --anneal abrupt --online-steps 9", "the weight is learned"),
        ("--offline-steps 0", "there is nothing to do"),
        ("--offline-steps 0 --online-steps 9", "python cql_sac.py --env Hopper-v4 makes one"),
        ("--checkpoint nowhere", "--checkpoint nowhere: is continued online"),
        ("--cql-threshold nan", "--cql-threshold nan: must be above 0"),
        ("--calibrated --dataset clocked.hdf5", "--calibrated: at --gamma 0.99, the clock cuts every return"),
        ("--calibrated --dataset endless.hdf5", "--calibrated: endless.hdf5 has no ends of episodes"),
    ],
)
def test_bad_input(arguments, expected, call, capsys, tmp_path):
    import h5py

    columns = {"observations": (9, 11), "next_observations": (9, 11), "actions": (9, 3)}
    columns |= {"rewards": (9,), "terminals": (9,)}
    for path in ("endless.hdf5", "clocked.hdf5"):
        with h5py.File(path, "w") as file:
            for name, shape in columns.items():
                file[name] = np.zeros(shape, np.float32)
            if path == "clocked.hdf5":
                file["timeouts"] = np.arange(9) == 8
    dataset = "" if "--dataset" in arguments else "--dataset hopper/tiny-v0"
    with pytest.raises(SystemExit) as ended:
        call("cql_sac", f"{dataset} {arguments}")
    error = capsys.readouterr().err
    assert ended.value.code == 2 and error.startswith("error: ") and error.count("\n") == 1
    assert expected in error
    assert not Path("runs").exists()
