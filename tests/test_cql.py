"""CQL's penalty, its multiplier, Cal-QL's returns, annealing, and the switch to SAC, on numbers worked out by hand."""

import csv
import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn as nn
import torch.nn.functional as F
from torch.func import grad_and_value

import cql_sac as cql
import offline_pretrain_sac
import online_finetune_sac as finetune
from test_sac import Constant, Fixed, random_batch

SMALL = "--batch-size 16 --eval-episodes 2 --compile off"
OFFLINE = f"{SMALL} --hidden-dim 16 --dataset hopper/tiny-v0 --offline-steps 20 --eval-every 10 --cql-actions 2"
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
    """Agent, batch and pushed actions: states 0 and 2 with data actions 0.5 and -0.5; 1 uniform, 1 + 1 policy's."""
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
    """Q_1 is a at state 0 and 2 + a at state 2, Q_2 is 3 a and 2 + 3 a; each sum has an action a term, over its p."""
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
    moderate, border = torch.zeros(1, 1, 2), torch.full((1, 1, 2), scale)
    found = finetune.log_density(moderate, moderate, border)
    assert found.isfinite().all()
    torch.testing.assert_close(found, finetune.log_density(moderate, moderate, (1 - 1e-5) * border))


def test_a_weight_of_zero_is_sac(double):
    """Loss, gradient and Q; the same noise."""
    agent, batch, noise = cql.Agent([1, 2], 3, 2, 8, 2, False), random_batch(2), torch.randn(2, 16, 2)
    args, params = cql.Args(cql_alpha=0.0, cql_actions=2), dict(agent.critic.named_parameters())
    pushed = cql.penalty_actions(agent, batch, torch.rand(2, 16, 2, 2), torch.randn(2, 2, 16, 2, 2))
    mine, (loss, (_, q)) = grad_and_value(cql.critic_loss, has_aux=True)(params, agent, batch, noise, pushed, args)
    sac, args = offline_pretrain_sac.critic_loss, offline_pretrain_sac.Args()
    theirs, (sac_loss, (_, sac_q)) = grad_and_value(sac, has_aux=True)(params, agent, batch, noise, args)
    torch.testing.assert_close((loss, q), (sac_loss, sac_q), rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(mine, theirs, rtol=1e-9, atol=1e-12)

    params, data_q = dict(agent.actor.named_parameters()), q.amin(1)
    losses = []
    for script in (cql, offline_pretrain_sac):
        args = script.Args(q_filter_percentile=25)
        losses.append(grad_and_value(script.actor_loss, has_aux=True)(params, agent, batch, noise, args, data_q))
    torch.testing.assert_close(losses[0][0], losses[1][0], rtol=1e-12, atol=1e-12)
    assert losses[0][1][0] == losses[1][1][0]


def test_the_uniform_actions_fill_their_range(monkeypatch):
    drawn, penalty_actions = [], cql.penalty_actions
    monkeypatch.setattr(cql, "penalty_actions", lambda *given: drawn.append(given[2]) or penalty_actions(*given))
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
    """Returns 1 and 2.5: policy actions at Q_1 0, 1 become 1, 1; at 2.4, 2.6 become 2.5, 2.6; uniform ones stay."""
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


def test_returns_to_go():
    """gamma 0.2: two steps before its end a return lacks 0.8%. Episodes: terminated, ended by the clock, cut off."""
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
    seen, update = [], finetune.update

    def record(agent, *others):
        seen.append(agent.annealed.item())
        return update(agent, *others)

    call("offline_pretrain_sac", f"{OFFLINE.replace('--cql-actions 2', '')} --offline-steps 2")
    monkeypatch.setattr(finetune, "update", record)
    end = "" if schedule == "none" else f"--bc-alpha-end 0 --anneal {schedule}"
    call("online_finetune_sac", f"{SMALL} --online-steps 8 --eval-every 8 --bc-alpha 1 {end}")
    assert seen == expected


# ---- the bonus for in-distribution actions ----


def test_bonus_by_hand():
    """Means 0, standard deviations 1, two rows: log pi(a) = log N(atanh a) - log(1 - a^2), weight 2."""
    agent = finetune.Agent([1], 3, 1, 8, 2, True)
    agent.actor = Constant([[[0.0]]], [[[0.0]]])
    agent.critic = Fixed(lambda obs, action: torch.zeros(1, 2, 2))
    agent.annealed.fill_(0.5)
    batch = random_batch(size=2)._replace(action=torch.tensor([[[0.0], [0.5]]]))
    params = dict(agent.actor.named_parameters())
    noise, data_q = torch.zeros(1, 2, 1), torch.zeros(1, 2)
    losses = [
        finetune.actor_loss(params, agent, batch, noise, finetune.Args(bc_alpha=weight, bc_alpha_end=end), data_q)[0]
        for weight, end in ((0.0, None), (2.0, None), (0.0, 4.0), (0.0, 0.0))
    ]
    assert losses[1] == losses[2] and losses[0] == losses[3]  # half way from 0 to 4; from 0 to 0
    normal = -0.5 * math.log(2 * math.pi)
    log_prob = [normal, normal - 0.5 * math.atanh(0.5) ** 2 - math.log(1 - 0.25)]
    assert (losses[0] - losses[1]).item() == pytest.approx(2 * sum(log_prob) / 2, rel=1e-5)


def test_the_bonus_draws_the_policy_to_the_data():
    found = {}
    for weight in (0.0, 100.0):
        agent, batch = finetune.Agent([1], 3, 2, 8, 2, True), random_batch()
        for _ in range(50):
            torch.manual_seed(0)
            finetune.update(agent, batch, finetune.Args(bc_alpha=weight, actor_lr=1e-2), True)
        found[weight] = F.mse_loss(finetune.best_action(agent, batch.obs), batch.action).item()
    assert found[100.0] < 0.8 * found[0.0]


# ---- scripts ----


def metrics(folder):
    with open(folder / "metrics.csv") as file:
        return {row["name"]: float(row["value"]) for row in csv.DictReader(file)}  # the last one of each


def run_folder(pattern):
    (folder,) = Path("runs/Hopper-v4").glob(f"{pattern}/seed1")
    return folder


def checkpoint(folder):
    return torch.load(folder / "checkpoint.pt", weights_only=True)


def test_cql_to_sac_keeps_everything_and_the_temperature_learns(call):
    call("cql_sac", f"{OFFLINE} --cql-threshold 5")
    (source,) = Path("runs/Hopper-v4").glob("cql_sac-*/seed1")
    before = checkpoint(source)["agent"]
    assert before["log_cql_alpha"] != 0 and before["cql_alpha_adam.t"] == 20
    agent, facts = finetune.load_checkpoints(finetune.Args(), 11, 3)
    assert facts["run"].startswith("cql_sac")
    after = agent.state_dict()
    assert set(before) - set(after) == {n for n in before if "cql_alpha" in n} and set(after) <= set(before)
    assert all(torch.equal(before[name], tensor) for name, tensor in after.items())
    call("online_finetune_sac", f"{SMALL} --online-steps 20 --eval-every 20")
    agent = checkpoint(run_folder("online_finetune_sac-*from-cql_sac-*"))["agent"]
    assert agent["alpha_adam.t"] == 40 and not torch.equal(agent["log_alpha"], before["log_alpha"])
    assert not torch.equal(agent["critic.mlp.layers.0.weight"], before["critic.mlp.layers.0.weight"])


def test_candidates_with_cqls_critics_are_warned_of(call):
    call("cql_sac", f"{OFFLINE} --offline-steps 2")
    out, _ = call("online_finetune_sac", f"{SMALL} --online-steps 2 --eval-every 2 --num-candidates 3")
    assert "note: CQL's critics" in out
    with pytest.raises(SystemExit):
        call("cql_sac", f"{OFFLINE} --num-candidates 3")


@pytest.mark.parametrize("options", ["", "--calibrated", "--cql-threshold 5 --cql-threshold-end 0.5 --anneal linear"])
def test_cql_online(options, call):
    call("cql_sac", OFFLINE)
    before = checkpoint(run_folder("cql_sac-tiny*"))
    call("cql_sac", f"{SMALL} --offline-steps 0 --online-steps 20 --eval-every 20 --cql-actions 2 {options}")
    folder = run_folder("cql_sac-*-online20-*-from-cql_sac-*")
    after, logged = checkpoint(folder), metrics(folder)
    assert after["gradient_step"] == 40 and after["agent"]["critic_adam.t"] == 40
    assert not torch.equal(after["agent"]["critic.mlp.layers.0.weight"], before["agent"]["critic.mlp.layers.0.weight"])
    wanted = {"cql/gap", "cql/alpha", "loss/critic", "eval/q_bias", "eval/first_q", "q/random", "policy/drift"}
    assert wanted <= set(logged) and all(math.isfinite(logged[name]) for name in wanted)
    assert json.loads((folder / "config.json").read_text())["status"] == "finished"


def test_offline_and_online_in_one_run(call):
    call("cql_sac", f"{OFFLINE} --online-steps 10")
    with open(run_folder("cql_sac-*") / "eval.csv") as file:
        rows = {(r["phase"], int(r["gradient_step"]), int(r["env_step"])) for r in csv.DictReader(file)}
    assert rows == {("offline", 0, 0), ("offline", 10, 0), ("offline", 20, 0), ("online", 20, 0), ("online", 30, 10)}


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
    assert ended.value.code == 2 and error.startswith("error: ") and error.count("\n") == 1 and expected in error
    assert not Path("runs").exists()


def test_a_checkpoint_of_sac_is_refused(call, capsys):
    call("offline_pretrain_sac", f"{OFFLINE.replace('--cql-actions 2', '')} --offline-steps 2")
    (source,) = Path("runs/Hopper-v4").glob("offline_pretrain_sac-*")
    for arguments, expected in (
        (f"--checkpoint {source}", "its tensors do not fit (of offline_pretrain_sac-"),
        ("", "--checkpoint is missing"),  # by itself it takes only its own
    ):
        with pytest.raises(SystemExit):
            call("cql_sac", f"{SMALL} --offline-steps 0 --online-steps 2 {arguments}")
        assert expected in capsys.readouterr().err


@pytest.mark.parametrize(
    "arguments, expected",
    [
        ("--bc-alpha 1 --bc-alpha-end 0", "--bc-alpha-end: needs --anneal"),
        ("--bc-alpha 1 --anneal linear", "--anneal linear: needs --bc-alpha-end"),
        ("--bc-alpha -1", "--bc-alpha -1.0: must be in"),
    ],
)
def test_bad_input_of_the_bonus(arguments, expected, call, capsys):
    with pytest.raises(SystemExit) as ended:
        call("online_finetune_sac", arguments)
    error = capsys.readouterr().err
    assert ended.value.code == 2 and error.count("\n") == 1 and expected in error
