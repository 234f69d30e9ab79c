"""O3F on LAPO: selection, losses and updates by hand and against plain PyTorch, short runs.

And the scales, and goal environments, whose text is the same in the other scripts.
"""

import copy
import csv
import importlib
import json
import math
import os
import shlex
import subprocess
import sys
import warnings
from pathlib import Path

import gymnasium as gym
import h5py
import minari
import numpy as np
import pytest
import torch
import torch.nn as nn
import torch.nn.functional as F
from minari.data_collector import EpisodeBuffer
from torch.distributions import Normal, kl_divergence
from torch.func import grad_and_value

import awac
import cql_sac
import iql
import o3f_select as o3f
import td3_bc
from first_house import Constant, Fixed, PlainMLP, make_batch, random_batch

ROOT = Path(__file__).resolve().parents[1]
NEVER = Fixed(lambda *inputs: pytest.fail("this network has no part in it"))
POLICY_SIDE = {"actor", "vae", "target_actor", "target_decoder"}
NETWORKS = {"critic", "value", "target_critic"} | POLICY_SIDE


class Rows(nn.Module):
    """A network that is its parameter, whatever its input: V (S, B), latents (S, B, Z)."""

    def __init__(self, values):
        super().__init__()
        self.values = nn.Parameter(torch.tensor(values))

    def forward(self, *_):
        return self.values


def make_agent(seeds=(1,), obs_dim=3, action_dim=2, num_critics=5, layer_norm=False):
    return o3f.Agent(list(seeds), obs_dim, action_dim, 8, num_critics, layer_norm)


def gradient(loss, network, *others):
    """(gradients by parameter, (loss, metrics)) by the parameters of `network`."""
    return grad_and_value(loss, has_aux=True)(dict(network.named_parameters()), *others)


def always(mlp, *biases):
    """Makes every network of the stack say its own of `biases`, whatever its input."""
    mlp.layers[-1].weight.zero_()
    mlp.layers[-1].bias.copy_(torch.tensor(biases)[:, None].view_as(mlp.layers[-1].bias))


def moved(before, after):
    """The modules of an agent of which anything changed between two states."""
    return {name.split(".")[0] for name in before if not torch.equal(before[name], after[name])}


# ---- which action is executed ----


def acting_agent(q, policy=(0.0,)):
    """One action dimension, seeds with actions `policy`; q(action (S, N)) gives Q (S, E, N)."""
    agent, policy = make_agent(range(len(policy)), 1, 1), torch.tensor(policy)[:, None, None]
    agent.actor = Fixed(lambda obs: torch.zeros(*obs.shape[:2], 2))
    agent.target_decoder = Fixed(lambda obs, latent: policy.expand(*obs.shape[:2], 1))
    agent.critic = Fixed(lambda obs, action: q(action[..., 0]))
    return agent


def tilted(a):
    """Two critics, of mean -1.5 (a - 0.3)^2; the first rises with a, the minimum falls."""
    return torch.stack([4 * a, -4 * a - 3 * (a - 0.3) ** 2], 1)


def peaked(*tops):
    """Five equal critics -(a - top)^2, a top for each seed."""
    return lambda a: -((a - torch.tensor(tops)[:, None]) ** 2)[:, None].expand(-1, 5, -1)


def test_the_candidate_with_the_highest_mean_over_the_critics_is_executed():
    """Seed 1 has -0.2, 0.2, 0.5, 1 (clipped) around 0: by the first critic 1 were best, by the minimum -0.2.

    Seed 2 has 0.5, -0.1, -0.3, -1 (clipped) around -0.2. Seed 3's are all worse than its policy's 0.3.
    """
    agent, args = acting_agent(tilted, (0.0, -0.2, 0.3)), o3f.Args(candidate_std=0.2)
    noise = [[-1.0, 1.0, 2.5, 10.0], [3.5, 0.5, -0.5, -50.0], [1.5, -2.5, 9.0, -9.0]]
    start = torch.tensor([0.0, -0.2, 0.3]).view(3, 1, 1)
    action, metrics = o3f.optimistic_action(
        agent, torch.zeros(3, 1, 1), start, torch.tensor(noise)[..., None], args
    )
    torch.testing.assert_close(action.flatten(), torch.tensor([0.2, 0.5, 0.6]))
    # means of Q: 1.5 * (-0.1^2 + 0.3^2) = 0.12; 1.5 * (-0.2^2 + 0.5^2) = 0.315; 1.5 * (-0.3^2) = -0.135
    torch.testing.assert_close(metrics["candidates/q_advantage"], torch.tensor([0.12, 0.315, -0.135]))
    torch.testing.assert_close(metrics["candidates/distance"], torch.tensor([0.2, 0.7, 0.3]))


@pytest.mark.parametrize("optimism, best", [(0.0, -0.2), (1.0, -0.2), (1.5, 0.5), (-2.0, 0.1)])
def test_optimism_adds_the_critics_standard_deviation_to_the_score(optimism, best):
    """Q = (a, -3a, a, -3a): mean -a, standard deviation 2 |a|; candidates -0.2, 0.1, 0.5.

    Scores: 0.2 + 0.4 omega, -0.1 + 0.2 omega, -0.5 + omega: the third beats the first from omega 7/6 on (with
    the sample standard deviation from 0.96); at -2 the second does: -0.6, -0.5, -2.5. The log has none of it.
    """
    agent = acting_agent(lambda a: torch.stack([a, -3 * a, a, -3 * a], 1))
    args, noise = o3f.Args(candidate_std=0.1, optimism=optimism), torch.tensor([[[-2.0], [1.0], [5.0]]])
    action, metrics = o3f.optimistic_action(agent, torch.zeros(1, 1, 1), torch.zeros(1, 1, 1), noise, args)
    assert action.item() == pytest.approx(best)
    assert metrics["candidates/q_advantage"].item() == pytest.approx(-best)
    assert metrics["candidates/distance"].item() == pytest.approx(abs(best))


def test_optimism_is_of_the_population_with_one_critic_too():
    agent = acting_agent(lambda a: a[:, None])
    noise, args = torch.tensor([[[-2.0], [1.0]]]), o3f.Args(candidate_std=0.1, optimism=5.0)
    action, _ = o3f.optimistic_action(agent, torch.zeros(1, 1, 1), torch.zeros(1, 1, 1), noise, args)
    assert action.item() == pytest.approx(0.1)  # a deviation of 0, not of 0 / 0


def test_the_distance_is_that_of_the_whole_action():
    agent, noise = make_agent(), torch.tensor([[[3.0, -4.0]]])
    obs, start = torch.zeros(1, 1, 3), torch.tensor([[[0.5, 0.5]]])
    action, metrics = o3f.optimistic_action(agent, obs, start, noise, o3f.Args(candidate_std=0.1))
    torch.testing.assert_close(action, torch.tensor([[[0.8, 0.1]]]))
    assert metrics["candidates/distance"].item() == pytest.approx(0.5)


def test_without_candidates_it_is_the_policys_action_and_nothing_is_drawn():
    agent, state = acting_agent(peaked(0.9, 0.9), (0.25, 7.0)), torch.get_rng_state()
    action, metrics = o3f.select_action(agent, torch.zeros(2, 1, 1), o3f.Args(num_candidates=0))
    assert action.flatten().tolist() == [0.25, 1] and metrics == {}  # a decoder's 7 is clipped
    assert torch.equal(torch.get_rng_state(), state)


def test_one_candidate_is_one_noisy_draw_however_bad():
    """The policy is at the peak: every draw is worse, by its squared distance."""
    agent, obs = acting_agent(peaked(0.3), (0.3,)), torch.zeros(1, 1, 1)
    for seed in range(5):
        torch.manual_seed(seed)
        action, metrics = o3f.select_action(agent, obs, o3f.Args(num_candidates=1, candidate_std=0.1))
        torch.manual_seed(seed)
        draw = 0.1 * torch.randn(1, 1, 1)
        torch.testing.assert_close(action, 0.3 + draw)
        torch.testing.assert_close(metrics["candidates/q_advantage"], -draw.square()[0, 0])


def test_more_candidates_come_nearer_to_the_peak():
    """400 seeds, a deviation of 0.2 around 0, peak at 0.3: a draw is 0 on average, the best of 100 near."""
    torch.manual_seed(0)
    agent, obs = acting_agent(peaked(*[0.3] * 400), (0.0,) * 400), torch.zeros(400, 1, 1)
    action, _ = o3f.select_action(agent, obs, o3f.Args(num_candidates=1))
    assert action.mean().item() == pytest.approx(0, abs=0.03)
    assert action.std().item() == pytest.approx(0.2, rel=0.1)
    action, metrics = o3f.select_action(agent, obs, o3f.Args())
    assert action.shape == (400, 1, 1) and action.mean().item() == pytest.approx(0.3, abs=0.01)
    assert action.std().item() < 0.03 and metrics["candidates/q_advantage"].min() > 0.05  # of at most 0.3^2


@pytest.mark.parametrize("sign", [1, -1])
def test_candidates_stay_in_the_bounds(sign):
    agent = acting_agent(lambda a: sign * a[:, None], (0.9 * sign,))
    action, metrics = o3f.select_action(
        agent, torch.zeros(1, 1, 1), o3f.Args(num_candidates=50, candidate_std=100.0)
    )
    assert action.item() == sign and metrics["candidates/distance"].item() == pytest.approx(0.1)


def test_candidates_are_each_seeds_own():
    """Another Q and another policy in seed 2: not a bit changes in seed 1; the seeds draw other noise."""
    found = []
    for tops, policy in (((0.3, 0.3), (0.0, 0.0)), ((0.3, -0.4), (0.0, 0.1))):
        torch.manual_seed(0)
        action, metrics = o3f.select_action(
            acting_agent(peaked(*tops), policy), torch.zeros(2, 1, 1), o3f.Args()
        )
        found.append(torch.stack([action[:, 0, 0], *metrics.values()], 1))
    assert torch.equal(found[0][0], found[1][0]) and not torch.isclose(found[0], found[1])[1].any()
    assert found[0][0, 0] != found[0][1, 0]  # one Q, one policy


def test_evaluations_execute_the_target_decoders_action_of_the_policys_latent():
    agent, obs = make_agent((1, 2)), random_batch(2).obs
    agent.target_actor, agent.vae = NEVER, NEVER
    agent.target_decoder.mlp.layers[-1].bias.add_(0.2)
    expected = agent.target_decoder(obs, 2 * agent.actor.mlp(obs).tanh())
    torch.testing.assert_close(o3f.best_action(agent, obs), expected.clamp(-1, 1))
    assert (expected.abs() < 1).double().mean() > 0.9
    agent.target_decoder.mlp.layers[-1].bias.add_(torch.tensor([[[5.0, -5.0]]] * 2))
    assert o3f.best_action(agent, obs).unique(dim=1).tolist() == [[[1, -1]]] * 2


# ---- losses by hand ----


def test_the_policys_latent_stays_within_2():
    agent = make_agent(obs_dim=1, action_dim=2)
    always(agent.actor.mlp, [0.5, -0.5, 1e3, -1e3])
    expected = torch.tensor([[[2 * math.tanh(0.5), -2 * math.tanh(0.5), 2, -2]]])
    torch.testing.assert_close(agent.actor(torch.ones(1, 1, 1)), expected)


def test_the_encoders_log_std_stays_within_4():
    agent = make_agent(action_dim=1)
    for bias, expected in (([9.0, -9.0, 5.0, -1.0], [4, -1]), ([9.0, -9.0, -5.0, 3.0], [-4, 3])):
        always(agent.vae.encoder, bias)
        _, mean, log_std = agent.vae(torch.ones(1, 1, 3), torch.ones(1, 1, 1), torch.ones(1, 1, 2))
        assert mean.tolist() == [[[9, -9]]] and log_std.tolist() == [[expected]]


def test_critic_loss_by_hand():
    """An ordinary, a terminated and a truncated transition; V(s') = 4, 5, 6, rewards times 10.

    Gamma is 0.9, Q (25, 20). V is the first number of an observation, -100 in s. Neither policy nor targets
    play a part.
    """
    agent = make_agent(num_critics=2)
    agent.critic, agent.value = Constant([[[25.0], [20.0]]]), Fixed(lambda obs: obs[..., 0])
    agent.actor, agent.target_actor, agent.target_decoder, agent.target_critic, agent.vae = [NEVER] * 5
    agent.reward_scale.fill_(10)
    agent.value_min.fill_(0)  # the bounds are V's
    agent.value_max.fill_(1)
    batch = make_batch(
        size=3,
        obs=torch.full((1, 3, 3), -100.0),
        reward=torch.tensor([[1.0, 2.0, 3.0]]),
        next_obs=torch.tensor([[[4.0, 0, 0], [5.0, 0, 0], [6.0, 0, 0]]]),
        terminated=torch.tensor([[0.0, 1.0, 0.0]]),
        truncated=torch.tensor([[0.0, 0.0, 1.0]]),
    )
    grads, (loss, (metrics, q)) = gradient(o3f.critic_loss, agent.critic, agent, batch, o3f.Args(gamma=0.9))
    # y: 10 + 0.9 * 4 = 13.6; 20 (terminated); 30 + 0.9 * 6 = 35.4 (truncated); mean 23
    # critic 1: (11.4^2 + 5^2 + 10.4^2) / 3 = 263.12 / 3; critic 2: (6.4^2 + 0 + 15.4^2) / 3 = 278.12 / 3
    assert metrics["q/target"].item() == pytest.approx(23) and metrics["q/data"].item() == 22.5
    assert loss.item() == metrics["loss/critic"].item() == pytest.approx(541.24 / 3)
    assert q.tolist() == [[[25] * 3, [20] * 3]]
    torch.testing.assert_close(grads["values.0"], torch.tensor([[[4.0], [-6.0]]]))  # 2 (25 - 23), 2 (20 - 23)


def test_value_loss_by_hand():
    """f'(s) = s = 1.9, 0.5, -1; noise 10, -1, 0 gives the latents 2.1 (0.1 * 10 is clipped to 0.2), 0.4, -1.

    D' = 3 z = 6.3, 1.2, -3, not clipped; Q' = a, 2 a, -100, of which the subset has the first two, so the
    minimum is 6.3, 1.2, -6; in the bounds 5, 1.2, -1. V is 2.
    """
    agent = make_agent(obs_dim=1, action_dim=1, num_critics=3)
    agent.actor, agent.vae, agent.critic = NEVER, NEVER, NEVER
    agent.target_actor = Fixed(lambda obs: obs.expand(-1, -1, 2))
    agent.target_decoder = Fixed(lambda obs, latent: 3 * latent[..., :1])
    agent.target_critic = Fixed(lambda obs, a: torch.cat([a, 2 * a, torch.full_like(a, -100)], 2).mT)
    agent.value = Rows([[2.0, 2.0, 2.0]])
    agent.value_min.fill_(-1)
    agent.value_max.fill_(5)
    batch = make_batch(obs=torch.tensor([[[1.9], [0.5], [-1.0]]]), reward=torch.full((1, 3), 50.0))
    noise = torch.tensor([[[10.0, 0], [-1.0, 0], [0.0, 0]]])
    grads, (loss, (metrics, value)) = gradient(
        o3f.value_loss, agent.value, agent, batch, noise, torch.tensor([[1, 0]])
    )
    assert loss.item() == metrics["loss/value"].item() == pytest.approx((3**2 + 0.8**2 + 3**2) / 3)
    torch.testing.assert_close(grads["values"], torch.tensor([[-2.0, 1.6 / 3, 2.0]]))  # 2 (V - y) / 3
    assert value.tolist() == [[2, 2, 2]] and metrics["q/value"].item() == 2
    agent.target_actor = Fixed(lambda obs: obs.expand(-1, -1, 2) - 4)  # and downwards: 1.9 - 4 - 0.2
    seen = []
    agent.target_decoder = Fixed(lambda obs, latent: seen.append(latent) or latent[..., :1])
    gradient(o3f.value_loss, agent.value, agent, batch, -noise, torch.tensor([[1, 0]]))
    torch.testing.assert_close(seen[0][..., 0], torch.tensor([[-2.3, -3.4, -5.0]]))


def vae_agent(mean=(0.0, 0.0), log_std=(0.0, 0.0), decoded=0.0):
    """One action dimension: q(z|s, a) = N(mean, exp(log_std)^2), a decoder of `decoded` standard units."""
    agent = make_agent(action_dim=1, num_critics=2)
    always(agent.vae.encoder, [*mean, *log_std])
    always(agent.vae.decoder.mlp, [decoded])
    return agent


@pytest.mark.parametrize("beta", [1.0, 0.3])
def test_vae_loss_by_hand(beta):
    """The data's mean 0.5 and std 0.25: D = 0.5 + 0.25 * 2 = 1, errors of 0.5, 1, 0.75: -2, 0, -1 stds."""
    agent, batch = vae_agent((1.0, -1.0), (math.log(2), 0.0), 2.0), random_batch(size=3)
    agent.vae.decoder.mean.fill_(0.5)
    agent.vae.decoder.std.fill_(0.25)
    batch = batch._replace(action=torch.tensor([[[0.5], [1.0], [0.75]]]))
    advantage, args = torch.tensor([[1e-6, -1.0, 0.0]]), o3f.Args(kl_weight=beta)
    noise = torch.randn(1, 3, 2)
    grads, (loss, metrics) = gradient(o3f.vae_loss, agent.vae, agent, batch, noise, advantage, args)
    kl = 0.5 * (1 + 4 - 1) - math.log(2) + 0.5 * (1 + 1 - 1)  # 1.8069
    # weights 0.9, 0.1 and, as 0 is not above 0, 0.1
    expected = (0.9 * (4 + beta * kl) + 0.1 * (0 + beta * kl) + 0.1 * (1 + beta * kl)) / 3
    assert loss.item() == metrics["loss/vae"].item() == pytest.approx(expected)
    assert metrics["vae/error"].item() == pytest.approx(5 / 3)
    assert metrics["vae/kl"].item() == pytest.approx(kl)
    assert metrics["weight/positive_share"].item() == pytest.approx(1 / 3)
    # by the decoder's bias: w 2 (D - a) / std, 0.9 * 4, 0, 0.1 * 2
    # by the encoder's: w beta (mu, sigma^2 - 1)
    assert grads["decoder.mlp.layers.2.bias"].item() == pytest.approx(3.8 / 3)
    torch.testing.assert_close(
        grads["encoder.layers.2.bias"][0, 0], 1.1 / 3 * beta * torch.tensor([1.0, -1.0, 3.0, 0.0])
    )


def test_the_kl_divergence_is_torch_distributions(double):
    agent, batch, noise = make_agent((1, 2)), random_batch(2), torch.randn(2, 16, 4)
    agent.vae.encoder.layers[-1].weight *= 10
    _, mean, log_std = agent.vae(batch.obs, batch.action, noise)
    assert 0.5 < log_std.abs().max() < 4
    expected = (
        kl_divergence(Normal(mean, log_std.exp()), Normal(torch.zeros(()), torch.ones(()))).sum(2).mean(1)
    )
    _, (_, metrics) = gradient(o3f.vae_loss, agent.vae, agent, batch, noise, torch.ones(2, 16), o3f.Args())
    torch.testing.assert_close(metrics["vae/kl"], expected)


def test_the_decoder_sees_mean_plus_std_times_noise_and_speaks_in_units_of_the_data(double):
    agent, batch, noise, seen = make_agent(), random_batch(), torch.randn(1, 16, 4), []
    o3f.set_scales(agent, np.array([[0.5, -0.2], [0.9, 0.6]]), np.ones(2), 0.9)
    mlp = agent.vae.decoder.mlp
    agent.vae.decoder.mlp = Fixed(lambda x: seen.append(x) or mlp(x))
    decoded, mean, log_std = agent.vae(batch.obs, batch.action, noise)
    torch.testing.assert_close(seen[0], torch.cat([batch.obs, mean + log_std.exp() * noise], 2))
    torch.testing.assert_close(
        decoded, torch.tensor([0.7, 0.2]) + torch.tensor([0.201, 0.401]) * mlp(seen[0])
    )


def test_which_rows_get_the_large_weight():
    """Q' = (3, 1), V = 2, c = 0.5, gamma 0.9: the advantage is 0.5 r + 0.9 (1 - terminated) 1 - 2.

    r = 3: 0.4. r = 3, terminated: -0.5. r = 4, terminated: 0. r = 5, terminated: 0.5. r = 2, truncated: -0.1;
    r = 2.4, truncated: 0.1. The KL is 0, D = 0, and the squared actions tell the rows apart.
    """
    agent = vae_agent()
    always(agent.target_critic.mlp, 3.0, 1.0)
    always(agent.value.mlp, 2.0)
    agent.reward_scale.fill_(0.5)
    batch = make_batch(
        size=6,
        action=torch.tensor([[1.0, 1e-1, 1e-2, 1e-3, 1e-4, 1e-5]]).sqrt()[..., None],
        reward=torch.tensor([[3.0, 3.0, 4.0, 5.0, 2.0, 2.4]]),
        terminated=torch.tensor([[0.0, 1.0, 1.0, 1.0, 0.0, 0.0]]),
        truncated=torch.tensor([[0.0, 0.0, 0.0, 0.0, 1.0, 1.0]]),
    )
    args = o3f.Args(gamma=0.9, critic_lr=0.0, tau=0.0)
    metrics = o3f.update(agent, batch, args, True)
    assert metrics["weight/positive_share"].item() == 0.5
    assert 6 * metrics["loss/vae"].item() == pytest.approx(
        0.9 + 0.01 + 0.001 + 0.0009 + 0.00001 + 0.000009, abs=1e-7
    )


def filtered_policy(**options):
    """Rows s = 0, 1, 2, a latent (0.5, -0.5), D' = z_1 - 2 z_2 = 1.5, Q = s a, 3 s a and s a - 3.

    The mean is 5 / 3 * s a - 1: -1, 1.5, 4; the minimum s a - 3: -3, -1.5, 0.
    """
    agent = make_agent(obs_dim=1, action_dim=1, num_critics=3)
    agent.actor = Rows([[[0.5, -0.5]] * 3])
    agent.vae, agent.target_actor, agent.target_critic = NEVER, NEVER, NEVER
    agent.target_decoder = Fixed(
        lambda obs, latent: (latent * torch.tensor([1.0, -2.0])).sum(2, keepdim=True)
    )
    agent.critic = Fixed(
        lambda obs, action: torch.cat([obs * action, 3 * obs * action, obs * action - 3], 2).mT
    )
    batch, data_q = make_batch(obs=torch.tensor([[[0.0], [1.0], [2.0]]])), torch.tensor([[9.0, 4.0, 1.0]])
    return gradient(o3f.actor_loss, agent.actor, agent, batch, o3f.Args(**options), data_q)


@pytest.mark.parametrize(
    "options, keep",
    [
        ({}, [1, 1, 1]),
        ({"q_filter_percentile": 50}, [1, 1, 0]),  # the data's Q is 9, 4, 1
        ({"q_filter_percentile": 50, "q_filter_weight": 0.2}, [1, 1, 0.2]),
        ({"q_filter_value": 4.5}, [1, 0, 0]),
        # the policy's minimum is -3, -1.5, 0
        ({"q_filter_value": -1.6, "q_filter_actions": "policy"}, [0, 1, 1]),
        ({"q_filter_percentile": 100 / 3, "q_filter_actions": "policy"}, [0, 1, 1]),  # the threshold is -2
        ({"q_filter_value": 1e9}, [0, 0, 0]),
    ],
)
def test_actor_loss_by_hand(options, keep):
    """-sum k Q / sum k, with d Q / d z = 5 / 3 * s (1, -2); the decoder's 1.5 is not clipped."""
    grads, (loss, metrics) = filtered_policy(**options)
    total = max(sum(keep), 1e-6)
    assert loss.item() == pytest.approx(-(-1 * keep[0] + 1.5 * keep[1] + 4 * keep[2]) / total)
    slopes = [-k * 5 / 3 * s / total for k, s in zip(keep, (0, 1, 2), strict=True)]
    torch.testing.assert_close(grads["values"], torch.tensor([[[slope, -2 * slope] for slope in slopes]]))
    assert metrics["q/policy"].item() == pytest.approx(-1.5) and metrics["loss/actor"].item() == loss.item()
    assert ("filter/threshold" in metrics) == bool(options)


# ---- random subsets of the critics ----


def record_subsets(monkeypatch):
    seen, target_policy_q = [], o3f.target_policy_q

    def record(agent, obs, noise, subset):
        seen.append(subset.clone())
        return target_policy_q(agent, obs, noise, subset)

    monkeypatch.setattr(o3f, "target_policy_q", record)
    return seen


@pytest.mark.parametrize("size", [1, 2, 4])
def test_subsets_are_drawn_without_replacement_anew_for_each_update_and_seed(size, monkeypatch):
    seen, agent, batch = record_subsets(monkeypatch), make_agent((1, 2, 3)), random_batch(3)
    torch.manual_seed(0)
    for i in range(30):
        o3f.update(agent, batch, o3f.Args(subset_size=size), i == 0)
    assert len(seen) == 31 and torch.equal(seen.pop(1), seen[0])  # one subset for the value and the weight
    draws = torch.stack(seen)
    assert draws.shape == (30, 3, size) and draws.min() == 0 and draws.max() == 4
    chosen = torch.zeros(30, 3, 5).scatter_(2, draws, 1.0)
    assert (chosen.sum(2) == size).all()  # no critic twice
    share = chosen.mean(0)  # each of 30 * size / 5 draws, within four standard deviations
    assert ((share - size / 5).abs() < 4 * math.sqrt(size / 5 * (1 - size / 5) / 30)).all()
    assert len(chosen[:, 0].unique(dim=0)) > 3 and not torch.equal(chosen[:, 0], chosen[:, 1])


def test_the_values_target_is_the_minimum_over_the_subset():
    """Q' = 3, 1, 2, 5, 4 and V = 0: of one critic any, of all five 1, of two never 5, of four 1 or 2."""
    agent, batch, found = make_agent(), random_batch(), {}
    always(agent.target_critic.mlp, 3.0, 1.0, 2.0, 5.0, 4.0)
    always(agent.value.mlp, 0.0)
    agent.value_max.fill_(100)
    torch.manual_seed(0)
    for size in (1, 2, 4, 5):
        args = o3f.Args(subset_size=size, critic_lr=0.0, tau=0.0)
        found[size] = {
            o3f.update(agent, batch, args, False)["loss/value"].sqrt().round().item() for _ in range(30)
        }
    assert found == {1: {1, 2, 3, 4, 5}, 2: {1, 2, 3, 4}, 4: {1, 2}, 5: {1}}


# ---- scales ----


def test_scales_by_hand():
    """Actions 0, 1, 0, 1 and a constant; the largest reward is -8: c = 1/8, V in [-1, 0.5] / (1 - 0.9)."""
    agent = make_agent((1, 2))
    action = np.array([[0, 0.3], [1, 0.3], [0, 0.3], [1, 0.3]], np.float32)
    o3f.set_scales(agent, action, np.array([-8.0, 4.0, 0.5, 0.0], np.float32), 0.9)
    for decoder in (agent.vae.decoder, agent.target_decoder):
        torch.testing.assert_close(decoder.mean, torch.tensor([[[0.5, 0.3]]] * 2))
        torch.testing.assert_close(decoder.std, torch.tensor([[[0.501, 0.001]]] * 2))
    scales = [scale.item() for scale in (agent.reward_scale, agent.value_min, agent.value_max)]
    assert scales == pytest.approx([1 / 8, -10, 5])


def test_ten_times_the_rewards_are_the_same_task():
    """The losses are in units of the largest reward; only the clip of --q-filter-value is in Q's own."""
    states = []
    for scale in (1, 10):
        agent, batch = make_agent(), random_batch()
        reward = scale * batch.reward
        o3f.set_scales(agent, batch.action[0].numpy(), reward.numpy(), 0.9)
        torch.manual_seed(0)
        for _ in range(3):
            o3f.update(agent, batch._replace(reward=reward), o3f.Args(gamma=0.9), True)
        states.append(agent.state_dict())
    assert states[0]["reward_scale"] / states[1]["reward_scale"] == pytest.approx(10)
    for name in states[0].keys() - {"reward_scale"}:
        torch.testing.assert_close(states[1][name], states[0][name], rtol=1e-3, atol=1e-4)


# ---- against plain PyTorch ----


class PlainLAPO:
    """LAPO of one seed of a stack, with REDQ's targets: separate networks, autograd, torch.optim.

    Reconstruction is in standardised actions, as in LAPO's code.
    """

    def __init__(self, agent, args, seed):
        def plain(mlp, in_dim, out_dim, index=seed):
            return PlainMLP(in_dim, out_dim, 8, mlp.layer_norm).copy_from(mlp, index)

        def critics(stack):
            return [plain(stack.mlp, 5, 1, seed * stack.num_critics + e) for e in range(stack.num_critics)]

        self.args, self.scale = args, agent.reward_scale.item()
        self.mean, self.std = agent.vae.decoder.mean[seed, 0], agent.vae.decoder.std[seed, 0]
        self.low, self.high = agent.value_min.item(), agent.value_max.item()
        self.critics, self.targets = critics(agent.critic), critics(agent.target_critic)
        self.value, self.encoder = plain(agent.value.mlp, 3, 1), plain(agent.vae.encoder, 5, 8)
        self.actor, self.target_actor = plain(agent.actor.mlp, 3, 4), plain(agent.target_actor.mlp, 3, 4)
        self.decoder, self.target_decoder = (
            plain(d.mlp, 7, 2) for d in (agent.vae.decoder, agent.target_decoder)
        )
        self.critic_adam = torch.optim.Adam([p for c in self.critics for p in c.parameters()], args.critic_lr)
        self.value_adam = torch.optim.Adam(self.value.parameters(), args.critic_lr)
        self.vae_adam = torch.optim.Adam(
            [*self.encoder.parameters(), *self.decoder.parameters()], args.actor_lr
        )
        self.actor_adam = torch.optim.Adam(self.actor.parameters(), args.actor_lr)
        self.shares = {"bounded": [], "positive": [], "clamped": []}

    def step(self, adam, loss):
        adam.zero_grad()
        loss.backward()
        adam.step()

    def follow(self, targets, networks):
        for target, network in zip(targets, networks, strict=True):
            for p, q in zip(target.parameters(), network.parameters(), strict=True):
                p.data += self.args.tau * (q.data - p.data)

    def q(self, critics, obs, action):
        return torch.stack([critic(torch.cat([obs, action], 1))[:, 0] for critic in critics])

    def act(self, actor, obs, noise=0.0):
        latent = 2 * actor(obs).tanh() + noise
        return self.mean + self.std * self.target_decoder(torch.cat([obs, latent], 1))

    @torch.no_grad()
    def target_q(self, obs, noise, subset):
        action = self.act(self.target_actor, obs, noise)
        return self.q([self.targets[e] for e in subset], obs, action).min(0)[0]

    def update(self, batch, noise, subset, policy_turn):
        obs, action, reward, next_obs, terminated, _ = batch
        args, reward, going_on = self.args, self.scale * reward, 1 - terminated
        q = self.q(self.critics, obs, action)
        data_q = q.detach().min(0)[0]
        target = reward + args.gamma * going_on * self.value(next_obs)[:, 0].detach()
        self.step(self.critic_adam, sum(F.mse_loss(one, target) for one in q))
        target = self.target_q(obs, (0.1 * noise[0]).clamp(-0.2, 0.2), subset)
        self.shares["bounded"].append((target < self.low) | (target > self.high))
        value = self.value(obs)[:, 0]
        self.step(self.value_adam, F.mse_loss(value, target.clamp(self.low, self.high)))
        self.follow(self.targets, self.critics)
        if not policy_turn:
            return
        advantage = reward + args.gamma * going_on * self.target_q(next_obs, 0.0, subset) - value.detach()
        weight = torch.where(advantage > 0, 0.9, 0.1)
        self.shares["positive"].append(advantage > 0)
        mean, log_std = self.encoder(torch.cat([obs, action], 1)).chunk(2, 1)
        self.shares["clamped"].append(log_std.abs() > 4)
        posterior = Normal(mean, log_std.clamp(-4, 4).exp())
        decoded = self.decoder(torch.cat([obs, posterior.mean + posterior.stddev * noise[1]], 1))
        error = F.mse_loss(decoded, (action - self.mean) / self.std, reduction="none").sum(1)
        kl = kl_divergence(posterior, Normal(torch.zeros(()), torch.ones(()))).sum(1)
        self.step(self.vae_adam, (weight * (error + args.kl_weight * kl)).mean())
        every_q = self.q(self.critics, obs, self.act(self.actor, obs))
        filter_q = data_q if args.q_filter_actions == "data" else every_q.detach().min(0)[0]
        kept = filter_q >= filter_q.quantile(args.q_filter_percentile / 100)
        self.step(self.actor_adam, -every_q.mean(0)[kept].mean())
        self.follow([self.target_decoder, self.target_actor], [self.decoder, self.actor])


@pytest.mark.parametrize(
    "num_critics, layer_norm, options",
    [
        (5, False, {}),
        (3, True, {"subset_size": 3, "kl_weight": 0.3, "q_filter_percentile": 25}),
        (2, False, {"subset_size": 1, "q_filter_percentile": 25, "q_filter_actions": "policy"}),
    ],
)
def test_update_equals_plain_pytorch(num_critics, layer_norm, options, double):
    """Two stacked seeds, a policy's turn in every second update; steep networks, so that bounds bite."""
    rates = {"actor_lr": 1e-2, "critic_lr": 2e-2, "tau": 0.1, "gamma": 0.9}
    agent = make_agent((1, 2), num_critics=num_critics, layer_norm=layer_norm)
    args = o3f.Args(**rates, **options)
    torch.manual_seed(0)
    for network in (agent.target_actor, agent.target_decoder, agent.target_critic):
        for p in network.parameters():  # apart from what they follow
            p.add_(0.2 * torch.randn_like(p))
    agent.vae.encoder.layers[-1].weight.mul_(60)
    for p in (agent.vae.decoder.mlp.layers[0].weight, agent.target_critic.mlp.layers[-1].weight):
        p.mul_(5)
    agent.target_decoder.mlp.layers[0].weight[:, 3:].mul_(5)  # so that noise on the latent matters
    rows = random_batch(seed=9)
    o3f.set_scales(agent, rows.action[0].numpy() * [0.3, 2] + 0.1, rows.reward.numpy(), args.gamma)
    q = o3f.target_policy_q(agent, random_batch(2).obs, 0.0, torch.zeros(2, 1, dtype=torch.int64))
    agent.value_min.copy_(q.quantile(0.3))
    agent.value_max.copy_(q.quantile(0.8))
    plains = [PlainLAPO(agent, args, seed) for seed in range(2)]
    for i in range(6):
        batch, turn = random_batch(2, seed=i), i % 2 == 1
        torch.manual_seed(i)
        noise, uniform, drawn = torch.randn(2, 2, 16, 4), torch.rand(2, num_critics), torch.get_rng_state()
        torch.manual_seed(i)
        metrics = o3f.update(agent, batch, args, turn)
        assert torch.equal(torch.get_rng_state(), drawn)
        assert ("loss/actor" in metrics) == ("vae/kl" in metrics) == turn
        for seed, plain in enumerate(plains):
            subset = uniform[seed].argsort(descending=True)[: args.subset_size].tolist()
            plain.update([column[seed] for column in batch], noise[:, seed], subset, turn)
    for seed, plain in enumerate(plains):
        pairs = [(agent.critic.mlp, plain.critics), (agent.target_critic.mlp, plain.targets)]
        pairs += [(agent.value.mlp, [plain.value]), (agent.vae.encoder, [plain.encoder])]
        pairs += [(agent.actor.mlp, [plain.actor]), (agent.target_actor.mlp, [plain.target_actor])]
        pairs += [
            (agent.vae.decoder.mlp, [plain.decoder]),
            (agent.target_decoder.mlp, [plain.target_decoder]),
        ]
        for ours, networks in pairs:
            for e, theirs in enumerate(networks):
                mine = copy.deepcopy(theirs).copy_from(ours, seed * len(networks) + e)
                torch.testing.assert_close(mine.flat(), theirs.flat(), rtol=1e-8, atol=1e-10)
    for name in ("bounded", "positive", "clamped"):
        share = torch.cat([one for plain in plains for one in plain.shares[name]]).double().mean()
        assert 0.05 < share < 0.95, name
    assert (agent.critic_adam.t, agent.value_adam.t, agent.vae_adam.t, agent.actor_adam.t) == (6, 6, 3, 3)


# ---- what moves, and by whose loss ----


def test_decoder_and_policy_move_on_their_turn_only():
    agent = make_agent()
    for turn in (False, True):
        before = copy.deepcopy(agent.state_dict())
        metrics = o3f.update(agent, random_batch(), o3f.Args(), turn)
        others = {*POLICY_SIDE, "vae_adam", "actor_adam"} if turn else set()
        critics = {"critic", "critic_adam", "target_critic", "value", "value_adam"}
        assert moved(before, agent.state_dict()) == critics | others
        assert {"loss/actor", "loss/vae", "q/policy", "weight/positive_share"} & metrics.keys() == (
            {"loss/actor", "loss/vae", "q/policy", "weight/positive_share"} if turn else set()
        )
        assert {"loss/critic", "loss/value", "q/data", "q/target", "q/value"} <= metrics.keys()
    assert all(p.grad is None and not p.requires_grad for p in agent.parameters())


@pytest.mark.parametrize(
    "options, still",
    [
        (
            {"critic_lr": 0.0, "tau": 0.0},
            {"critic", "value", "target_critic", "target_actor", "target_decoder"},
        ),
        ({"actor_lr": 0.0}, POLICY_SIDE),
        ({"tau": 0.0}, {"target_critic", "target_actor", "target_decoder"}),
    ],
)
def test_losses_move_their_own_networks_only(options, still):
    agent = make_agent()
    before = copy.deepcopy(agent.state_dict())
    for seed in range(3):
        o3f.update(agent, random_batch(seed=seed), o3f.Args(**options), True)
    assert {name for name in moved(before, agent.state_dict()) if "adam" not in name} == NETWORKS - still


def after_updates(count, **options):
    agent = make_agent()
    torch.manual_seed(0)
    for seed in range(count):
        o3f.update(agent, random_batch(seed=seed), o3f.Args(actor_lr=1e-2, **options), True)
    return agent.state_dict()


def test_the_vaes_loss_does_not_reach_the_policy_nor_the_policys_the_vae():
    """Another weight of the KL moves the encoder, in the next update the decoder too; a Q-filter the policy.

    Nothing else differs by a bit, until the targets that followed enter the next losses.
    """
    assert moved(after_updates(2), after_updates(2, kl_weight=7.0)) == {"vae", "vae_adam", "target_decoder"}
    filtered = after_updates(1, q_filter_percentile=50)
    assert moved(after_updates(1), filtered) == {"actor", "actor_adam", "target_actor"}


def test_lapo_learns_the_better_of_the_datas_actions():
    """Actions near -0.5 and 0.5 pay 0 and 1 and end it: Q learns that, V the policy's 1, the policy 0.5."""
    agent, size = make_agent(obs_dim=1, action_dim=1), 64
    torch.manual_seed(0)
    sign = torch.arange(size)[None] % 2 * 2.0 - 1
    action = (0.5 * sign + 0.05 * torch.randn(1, size))[..., None]
    columns = {"reward": (sign + 1) / 2, "terminated": torch.ones(1, size)}
    batch = make_batch(size=size, obs_dim=1, action=action, **columns)
    o3f.set_scales(agent, action[0].numpy(), columns["reward"].numpy(), 0.99)
    for _ in range(150):
        o3f.update(agent, batch, o3f.Args(actor_lr=2e-2, critic_lr=2e-2, tau=0.1), True)
    q = agent.critic(batch.obs, batch.action)[0].mean(0)
    assert (q - columns["reward"][0]).abs().mean() < 0.1
    assert o3f.best_action(agent, batch.obs)[0, 0].item() == pytest.approx(0.5, abs=0.15)
    assert agent.value(batch.obs)[0, 0].item() == pytest.approx(1, abs=0.15)


# ---- short runs ----

SHORT = "--batch-size 16 --eval-episodes 1 --compile off"
OFFLINE = f"{SHORT} --hidden-dim 16 --dataset hopper/tiny-v0 --offline-steps 20"
ONLINE = f"{SHORT} --offline-steps 0 --online-steps 30 --updates-per-step 4 --policy-updates-per-step 2"
SCALES = (
    "reward_scale",
    "value_min",
    "value_max",
    *(f"{d}.{s}" for d in ("vae.decoder", "target_decoder") for s in ("mean", "std")),
)


def run_folder(pattern, env="Hopper-v4"):
    (folder,) = Path("runs", env).glob(f"{pattern}/seed1")
    return folder


def saved(pattern, env="Hopper-v4"):
    return torch.load(run_folder(pattern, env) / "checkpoint.pt", weights_only=True)


def logged(pattern, env="Hopper-v4", seed=1):
    """{(phase, gradient step, env step): {metric: value}}."""
    found = {}
    for row in csv.DictReader((run_folder(pattern, env).with_name(f"seed{seed}") / "metrics.csv").open()):
        key = row["phase"], int(row["gradient_step"]), int(row["env_step"])
        found.setdefault(key, {})[row["name"]] = float(row["value"])
    return found


def counts(state):
    return {
        name.removesuffix("_adam.t"): t.item()
        for name, t in state["agent"].items()
        if name.endswith("adam.t")
    }


@pytest.fixture(scope="module")
def checkpoints(minari_cache, tmp_path_factory):
    """{script: run folder}: o3f_select after 20 updates with two seeds, the other families after one."""
    root, found = tmp_path_factory.mktemp("checkpoints"), {}
    for script in (o3f, iql, awac, td3_bc, cql_sac):
        sizes = {"offline_steps": 1, "eval_episodes": 1, "hidden_dim": 8, "batch_size": 16, "compile": "off"}
        sizes |= {"offline_steps": 20, "num_seeds": 2} if script is o3f else {}
        script.main(script.Args(dataset="hopper/tiny-v0", runs_dir=str(root / script.__name__), **sizes))
        (found[script.__name__],) = (root / script.__name__).glob("Hopper-v4/*")
    return found


LOGGED = "loss/critic loss/value loss/vae loss/actor q/data q/target q/value q/policy q/best q/random"
LOGGED += " vae/error vae/kl weight/positive_share policy/drift"
LOGGED += " eval/return eval/first_q eval/q_bias replay/online_share"


def check_metrics(metrics):
    assert metrics.keys() >= set(LOGGED.split()) and all(math.isfinite(value) for value in metrics.values())
    assert metrics["vae/kl"] > 0 and metrics["vae/error"] > 0 and 0 < metrics["weight/positive_share"] < 1
    assert metrics["loss/critic"] > 0 and metrics["loss/value"] > 0 and metrics["policy/drift"] > 0


def test_pretraining_moves_every_network_and_sets_the_scales(call):
    out, _ = call("o3f_select", f"{OFFLINE} --policy-delay 2")
    assert "next: python o3f_select.py --offline-steps 0 --online-steps 20000 --env Hopper-v4" in out
    state, metrics = saved("o3f_select-tiny-*"), logged("o3f_select-tiny-*")
    agent, fresh = state["agent"], o3f.Agent([1], **state["shape"]).state_dict()
    assert agent.keys() == fresh.keys() and agent["critic.mlp.layers.0.weight"].shape == (5, 14, 16)
    weights = [name for name in agent if name.endswith("weight")]
    assert not any(torch.equal(agent[name], fresh[name]) for name in weights) and len(weights) > 20
    assert counts(state) == {"critic": 20, "value": 20, "vae": 10, "actor": 10}
    assert (state["algorithm"], state["phase"], state["gradient_step"]) == ("lapo", "offline", 20)
    assert list(metrics) == [("offline", 0, 0), ("offline", 20, 0)]
    check_metrics(metrics["offline", 20, 0])
    assert "candidates/distance" not in metrics["offline", 20, 0]
    episodes = list(minari.load_dataset("hopper/tiny-v0").iterate_episodes())
    action, reward = (np.concatenate([getattr(e, name) for e in episodes]) for name in ("actions", "rewards"))
    largest = np.abs(reward).max()
    bounds = 100 * reward.min() / largest, 100 * reward.max() / largest  # 1 / (1 - gamma) = 100
    expected = 1 / largest, *bounds, *[action.mean(0), action.std(0) + 1e-3] * 2
    for name, value in zip(SCALES, expected, strict=True):
        np.testing.assert_allclose(agent[name].numpy().squeeze(), value, rtol=1e-4, atol=1e-6)


class Watch:
    """What a training phase executes: select_action's arguments and answers, actions that envs.step got."""

    def __init__(self, monkeypatch, seeds):
        self.obs, self.chosen, self.metrics, self.stepped, self.policy = [], [], [], [], []
        select_action, make_envs, table = o3f.select_action, o3f.make_envs, o3f.ReplayTable

        def select(agent, obs, args):
            action, metrics = select_action(agent, obs, args)
            self.obs.append(obs[:, 0].cpu().numpy().copy())
            self.chosen.append(action[:, 0].cpu().numpy().copy())
            self.policy.append(o3f.best_action(agent, obs)[:, 0].cpu().numpy().copy())
            self.metrics.append({name: value.cpu().numpy() for name, value in metrics.items()})
            return action, metrics

        def make(*given):
            envs = make_envs(*given)
            if envs.num_envs == seeds:  # the ones that are trained in; evaluations have two a seed
                step = envs.step
                envs.step = lambda action: self.stepped.append(action.copy()) or step(action)
            return envs

        def keep(*args):
            self.table = table(*args)
            return self.table

        monkeypatch.setattr(o3f, "select_action", select)
        monkeypatch.setattr(o3f, "make_envs", make)
        monkeypatch.setattr(o3f, "ReplayTable", keep)

    def rows(self):
        """Columns of the online rows (S, steps, ...)."""
        rows = self.table.rings.cpu().split(self.table.sizes, 2)
        return dict(zip(o3f.Batch._fields, (column.numpy() for column in rows), strict=True))


def test_the_executed_action_is_what_enters_the_replay(call, checkpoints, monkeypatch):
    """Two seeds, 150 steps: the chosen candidate goes to the environment and to the table.

    So it does while warming up, as the policy is pretrained. The logs are the means over the steps and over
    the episodes that ended.
    """
    watch = Watch(monkeypatch, seeds=2)
    options = f"--checkpoint {checkpoints['o3f_select']} --num-candidates 5 --num-seeds 2 --eval-episodes 2"
    call("o3f_select", f"{ONLINE} {options} --online-steps 150 --warmup-steps 145")
    rows, chosen = watch.rows(), np.stack(watch.chosen, 1)
    assert chosen.shape == (2, 150, 3) and (np.abs(chosen) <= 1).all()
    np.testing.assert_array_equal(np.stack(watch.stepped, 1), chosen)
    np.testing.assert_array_equal(rows["action"], chosen)
    np.testing.assert_array_equal(rows["obs"], np.stack(watch.obs, 1))
    distance = np.sqrt(((chosen - np.stack(watch.policy, 1)) ** 2).sum(2))
    assert distance.min() > 0.01
    ends = rows["terminated"][..., 0] + rows["truncated"][..., 0]
    going_on = ends[:, :-1] == 0
    np.testing.assert_array_equal(rows["next_obs"][:, :-1][going_on], rows["obs"][:, 1:][going_on])
    for i in range(2):
        metrics = logged("o3f_select-*", seed=i + 1)["online", 40, 150]
        assert metrics["candidates/distance"] == pytest.approx(distance[i].mean(), rel=1e-4)
        advantage = np.mean([m["candidates/q_advantage"][i] for m in watch.metrics])
        assert metrics["candidates/q_advantage"] == pytest.approx(advantage, rel=1e-3)
        last = np.flatnonzero(ends[i])[-1]
        mean_return = rows["reward"][i, : last + 1].sum() / ends[i].sum()
        assert 0 < ends[i].sum() < 20 and metrics["collect/return"] == pytest.approx(mean_return, rel=1e-4)


def test_continuing_online(call, checkpoints):
    """30 steps of 4 updates, 2 of them with decoder and policy; the scales stay."""
    before = torch.load(checkpoints["o3f_select"] / "seed1/checkpoint.pt", weights_only=True)["agent"]
    options = f"--checkpoint {checkpoints['o3f_select']} --num-candidates 5 --q-filter-percentile 25"
    call("o3f_select", f"{ONLINE} {options}")
    state, metrics = saved("o3f_select-*"), logged("o3f_select-*")
    assert counts(state) == {"critic": 140, "value": 140, "vae": 80, "actor": 80}
    assert state["gradient_step"] == 140
    weights = [name for name in before if name.endswith("weight")]
    assert not any(torch.equal(before[name], state["agent"][name]) for name in weights)
    assert all(torch.equal(before[name], state["agent"][name]) for name in SCALES)
    assert list(metrics) == [("online", 20, 0), ("online", 140, 30)]
    last = metrics["online", 140, 30]
    check_metrics(last)
    assert last.keys() >= {"candidates/q_advantage", "candidates/distance"}
    assert last.keys() >= {"collect/return", "filter/threshold"}
    assert last["replay/online_share"] == pytest.approx(30 / 430)
    assert "collect/return" not in metrics["online", 20, 0]


@pytest.mark.parametrize("number", [0, 1])
def test_the_policys_own_action_and_one_noisy_draw(number, call, checkpoints, monkeypatch):
    watch = Watch(monkeypatch, seeds=1)
    options = f"--checkpoint {checkpoints['o3f_select']} --num-candidates {number} --eval-episodes 2"
    call("o3f_select", f"{ONLINE} {options} --online-steps 60 --warmup-steps 55")
    difference = watch.rows()["action"] - np.stack(watch.policy, 1)
    last = logged("o3f_select-*")["online", 40, 60]
    check_metrics(last)
    if number == 0:
        assert not difference.any() and not any(name.startswith("candidates") for name in last)
    else:  # 180 draws of N(0, 0.2^2), hardly any of them clipped
        assert difference.std() == pytest.approx(0.2, rel=0.2)
        assert difference.mean() == pytest.approx(0, abs=0.05)
        distance = np.linalg.norm(difference, axis=2).mean()
        assert last["candidates/distance"] == pytest.approx(distance, rel=1e-4)


@pytest.mark.parametrize("options, share", [("--replay online", 1), ("--offline-ratio 0.25", 0.75)])
def test_the_other_replay_strategies(options, share, call, checkpoints):
    call("o3f_select", f"{ONLINE} --checkpoint {checkpoints['o3f_select']} {options} --online-steps 24")
    state, metrics = saved("o3f_select-*"), logged("o3f_select-*")  # 16 own rows are needed first
    assert counts(state) == {"critic": 20 + 32, "value": 20 + 32, "vae": 20 + 16, "actor": 20 + 16}
    check_metrics(metrics["online", 52, 24])
    assert metrics["online", 52, 24]["replay/online_share"] == share


def test_offline_and_online_in_one_run(call):
    """20 updates with a policy's turn in every fifth, then 12 steps of 6 with a turn in every second."""
    options = "--policy-delay 5 --online-steps 12 --updates-per-step 6 --policy-updates-per-step 3"
    options += " --num-critics 3 --subset-size 3 --layer-norm --warmup-steps 2"
    call("o3f_select", f"{OFFLINE} {options}")
    state, metrics = saved("o3f_select-tiny-*"), logged("o3f_select-tiny-*")
    assert counts(state) == {"critic": 20 + 60, "value": 20 + 60, "vae": 4 + 30, "actor": 4 + 30}
    assert list(metrics) == [("offline", 0, 0), ("offline", 20, 0), ("online", 20, 0), ("online", 80, 12)]
    check_metrics(metrics["online", 80, 12])
    assert state["shape"]["num_critics"] == 3 and state["shape"]["layer_norm"]
    assert json.loads((run_folder("o3f_select-*") / "config.json").read_text())["status"] == "finished"


def test_the_offline_phases_policy_delay_changes_nothing_online(call, checkpoints):
    for delay in (1, 3):
        options = f"--checkpoint {checkpoints['o3f_select']} --policy-delay {delay} --runs-dir {delay}"
        call("o3f_select", f"{ONLINE} {options}")
    (one,), (other,) = (Path(runs).glob("*/*/seed1/checkpoint.pt") for runs in "13")
    assert one.parts[1:] == other.parts[1:]
    one, other = (torch.load(path, weights_only=True)["agent"] for path in (one, other))
    assert all(torch.equal(one[name], other[name]) for name in one)


# ---- bad input ----

GO_ON = "--offline-steps 0 --online-steps 9"


def refusal(call, capsys, arguments):
    """The one line that ends it, with status 2 and nothing written."""
    before = sorted(Path("..").rglob("*"))
    with pytest.raises(SystemExit) as ended:
        call("o3f_select", arguments)
    error = capsys.readouterr().err
    assert ended.value.code == 2 and error.startswith("error: ") and error.count("\n") == 1
    assert sorted(Path("..").rglob("*")) == before
    return error


@pytest.mark.parametrize(
    "family, command",
    [
        ("iql", "iql.py --offline-steps 0 --online-steps 20000"),
        ("awac", "awac.py --offline-steps 0 --online-steps 20000"),
        ("td3_bc", "td3_c.py"),
    ],
)
def test_another_familys_checkpoint_is_refused_and_the_command_that_is_named_works(
    family, command, call, checkpoints, capsys
):
    error = refusal(call, capsys, f"{SHORT} {GO_ON} --num-candidates 3 --checkpoint {checkpoints[family]}")
    assert f"python {command}" in error and str(checkpoints[family]) in error and "CQL" not in error
    line = error[error.index(f"python {command}") :].removeprefix("python ")
    script, *options = line[: line.index(".pt") + 3].split()
    assert "--num-candidates" in options
    options = " ".join(options).replace("20000", "2")
    call(script.removesuffix(".py"), f"{options} {SHORT} --online-steps 2")
    metrics = logged(f"*from-{family}-*")
    assert "candidates/distance" in list(metrics.values())[-1]


def test_of_cql_the_reason_is_told(call, checkpoints, capsys):
    error = refusal(call, capsys, f"{SHORT} {GO_ON} --num-candidates 3 --checkpoint {checkpoints['cql_sac']}")
    assert "CQL trained its critics to rate unseen actions low" in error and "--num-candidates" not in error


@pytest.mark.parametrize(
    "arguments, expected",
    [
        ("--subset-size 6", "--subset-size 6: there are 5 critics"),
        ("--subset-size 3 --num-critics 2", "--subset-size 3: there are 2 critics"),
        (f"{GO_ON} --checkpoint {{o3f_select}} --subset-size 6", "--subset-size 6: there are 5 critics"),
        ("--subset-size 0", "--subset-size 0: must be above 0"),
        ("--policy-updates-per-step 3", "--policy-updates-per-step 3: must divide --updates-per-step 20"),
        ("--updates-per-step 4 --policy-updates-per-step 8", "--policy-updates-per-step 8: must divide"),
        ("--policy-updates-per-step 0", "--policy-updates-per-step 0: must be above 0"),
        ("--kl-weight nan", "--kl-weight nan: must be above 0"),
        ("--kl-weight -1", "--kl-weight -1.0: must be above 0"),
        ("--num-candidates -1", "--num-candidates -1: must be in [0, "),
        ("--candidate-std -0.1", "--candidate-std -0.1: must be in [0, "),
        ("--optimism nan", "--optimism nan: must be in [-1000000000.0, 1e+09]"),
        ("--checkpoint {o3f_select}", "is continued online; say --offline-steps 0 and --online-steps"),
        (
            f"{GO_ON} --checkpoint {{o3f_select}} --num-critics 2",
            "--num-critics 2: the checkpoint decides that",
        ),
        (f"{GO_ON} --checkpoint {{o3f_select}} --gamma 0.9", "its gamma is 0.99, here it is 0.9"),
        (f"{GO_ON} --checkpoint {{text}}", "is no checkpoint of these scripts"),
        (GO_ON, "--checkpoint is missing: runs/Hopper-v4 has no finished offline run of the lapo family"),
        (GO_ON, "python o3f_select.py --env Hopper-v4 makes one"),
        ("--offline-steps 0", "--online-steps 0: there is nothing to do"),
        ("--dataset {zeros}", "zeros.hdf5: all its rewards are 0"),
    ],
)
def test_bad_input(arguments, expected, call, checkpoints, capsys, tmp_path):
    (tmp_path / "text").write_text("hello")
    with h5py.File(tmp_path / "zeros.hdf5", "w") as file:
        for key, shape in {"observations": (9, 11), "actions": (9, 3), "rewards": 9, "terminals": 9}.items():
            file[key] = np.zeros(shape)
    files = {"text": tmp_path / "text", "zeros": tmp_path / "zeros.hdf5"}
    defaults = {"--offline-steps": "1", "--dataset": "hopper/tiny-v0"}
    defaults = (
        "" if GO_ON in arguments else " ".join(f"{k} {v}" for k, v in defaults.items() if k not in arguments)
    )
    assert expected in refusal(call, capsys, f"{SHORT} {defaults} {arguments}".format(**checkpoints, **files))


# ---- goal environments ----

REACH = '''
import gymnasium as gym
import numpy as np


class Reach(gym.Env):
    """A point in a plane: reward 1 and the end near its goal, else 0; it also sees its last place."""

    def __init__(self):
        shapes = {"observation": (2, 2), "desired_goal": (2,), "achieved_goal": (2,)}
        boxes = {key: gym.spaces.Box(-9, 9, shape, np.float64) for key, shape in shapes.items()}
        self.observation_space = gym.spaces.Dict(boxes)
        self.action_space = gym.spaces.Box(-2, 2, (2,), np.float32)

    def seen(self):
        seen = {"observation": self.places, "achieved_goal": self.places[1], "desired_goal": self.goal}
        return {key: value.copy() for key, value in seen.items()}

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.places, self.goal = np.zeros((2, 2)), self.np_random.uniform(-1, 1, 2)
        return self.seen(), {}

    def step(self, action):
        self.places = np.stack([self.places[1], self.places[1] + action / 4])
        near = bool(np.linalg.norm(self.places[1] - self.goal) < 0.5)
        return self.seen(), float(near), near, False, {}


gym.register("Reach-v0", "reach_probe:Reach", max_episode_steps=5)
'''
ENV = "reach_probe:Reach-v0"


@pytest.fixture(scope="module")
def reach(minari_cache, tmp_path_factory):
    """Folder of a module with a goal environment, and 40 recorded episodes of it, reach/tiny-v0."""
    folder = tmp_path_factory.mktemp("reach")
    (folder / "reach_probe.py").write_text(REACH)
    sys.path.append(str(folder))
    importlib.import_module("reach_probe")
    env, rng, episodes = gym.make("Reach-v0"), np.random.default_rng(0), []
    for seed in range(40):
        (obs, _), steps, done = env.reset(seed=seed), [], False
        seen = [obs]
        while not done:
            action = rng.uniform(-2, 2, 2).astype(np.float32)
            obs, reward, terminated, truncated, _ = env.step(action)
            steps.append((action, reward, terminated, truncated))
            seen.append(obs)
            done = terminated or truncated
        episodes.append((seen, steps))
    buffers, fields = [], ("actions", "rewards", "terminations", "truncations")
    for seen, steps in episodes:
        columns = {"observations": {key: np.stack([obs[key] for obs in seen]) for key in seen[0]}}
        columns |= zip(fields, map(np.array, zip(*steps, strict=True)), strict=True)
        buffers.append(EpisodeBuffer(**columns))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of metadata that nobody reads
        minari.create_dataset_from_buffers("reach/tiny-v0", buffers, env="Reach-v0")
    yield folder, episodes
    minari.delete_dataset("reach/tiny-v0")
    sys.path.remove(str(folder))
    gym.registry.pop("Reach-v0")


def test_goal_observations_are_flattened_as_gymnasium_does(reach):
    """A step of a is one of 2 a in the environment's own units."""
    ours, theirs = o3f.make_env(ENV), gym.wrappers.FlattenObservation(gym.make("Reach-v0"))
    assert ours.observation_space == theirs.observation_space and ours.observation_space.shape == (8,)
    assert o3f.check_args(o3f.Args(env=ENV))[0] == 8
    rng, ends = np.random.default_rng(0), []
    for seed in range(5):
        one, two, done = ours.reset(seed=seed)[0], theirs.reset(seed=seed)[0], False
        while not done:
            np.testing.assert_array_equal(one, two)
            action = rng.uniform(-1, 1, 2).astype(np.float32)
            (one, *rest, _), (two, *others, _) = ours.step(action), theirs.step(2 * action)
            done = rest[1] or rest[2]
            assert rest == others
        ends.append(rest)
    assert {True, False} == {terminated for _, terminated, _ in ends}  # at the goal, and by the clock


def test_a_recorded_goal_dataset_is_read_as_gymnasium_flattens_it(reach, minari_cache):
    folder, episodes = reach
    space = gym.make("Reach-v0").observation_space
    columns, metadata = o3f.read_minari(minari_cache / "reach/tiny-v0")
    flat = [[gym.spaces.flatten(space, obs) for obs in seen] for seen, _ in episodes]
    assert metadata["recorded_in"] == "Reach-v0"
    np.testing.assert_array_equal(columns[0], np.concatenate([seen[:-1] for seen in flat]))
    np.testing.assert_array_equal(columns[3], np.concatenate([seen[1:] for seen in flat]))
    steps = [step for _, steps in episodes for step in steps]
    action, reward, terminated, truncated = (np.array(column) for column in zip(*steps, strict=True))
    for i, column in ((1, action), (2, reward), (4, terminated), (5, truncated & ~terminated)):
        np.testing.assert_array_equal(columns[i], column)
    assert columns[4].sum() + columns[5].sum() == 40 and 0 < columns[4].sum() == columns[2].sum() < 40
    args = o3f.Args(env=ENV, dataset="reach/tiny-v0")
    dataset = o3f.load_dataset(args, 8, np.full(2, -2.0), np.full(2, 2.0))
    np.testing.assert_array_equal(dataset.rows[:, :8], columns[0].astype(np.float32))
    np.testing.assert_array_equal(dataset.rows[:, 8:10], columns[1] / 2)
    assert dataset.returns.tolist() == [steps[-1][1] for _, steps in episodes]


def test_nested_goal_observations_are_flattened_and_plain_ones_left_alone():
    box = gym.spaces.Box(-1, 1, (2, 3))
    space = gym.spaces.Dict({"b": box, "a": gym.spaces.Dict({"y": gym.spaces.Box(-1, 1, ()), "x": box})})
    steps = [space.sample() for _ in range(4)]
    together = {"b": np.stack([s["b"] for s in steps])}
    together["a"] = {key: np.stack([s["a"][key] for s in steps]) for key in "xy"}
    expected = np.stack([gym.spaces.flatten(space, s) for s in steps])
    np.testing.assert_array_equal(o3f.flatten_obs(space, together), expected)
    assert expected.shape == (4, 13) and o3f.flatten_obs(box, expected) is expected


def test_iql_trains_on_a_goal_environment(reach, call):
    options = f"{SHORT} --env {ENV} --dataset reach/tiny-v0 --hidden-dim 8 --no-normalize-reward"
    call("iql", f"{options} --offline-steps 4 --online-steps 12 --num-candidates 3")
    state, metrics = saved("iql-tiny-*", ENV), logged("iql-tiny-*", ENV)
    assert state["shape"]["obs_dim"] == 8 and state["gradient_step"] == state["agent"]["critic_adam.t"] == 16
    last = metrics["online", 16, 12]
    assert 0 <= last["collect/return"] <= 1 and last["loss/critic"] > 0


def test_o3f_trains_on_a_goal_environment_and_the_next_command_works_in_a_new_process(
    reach, call, monkeypatch
):
    """An id with its module's name stays whole in folder, config and the printed command."""
    watch = Watch(monkeypatch, seeds=1)
    options = f"{SHORT} --eval-episodes 2 --env {ENV} --dataset reach/tiny-v0 --hidden-dim 8"
    call("o3f_select", f"{options} --offline-steps 4 --online-steps 12 --updates-per-step 2 --tau 0.1")
    state = saved("o3f_select-tiny-*-tau0.1*", ENV)
    assert state["env"] == ENV and state["shape"]["obs_dim"] == 8 and counts(state)["critic"] == 4 + 24
    rows = watch.rows()  # (achieved goal, desired goal, last place, place)
    np.testing.assert_array_equal(rows["obs"][0, :, :2], rows["obs"][0, :, 6:])
    np.testing.assert_allclose(
        rows["next_obs"][0, :, 6:], rows["obs"][0, :, 6:] + rows["action"][0] / 2, atol=1e-6
    )
    near = np.linalg.norm(rows["next_obs"][0, :, 6:] - rows["obs"][0, :, 2:4], axis=1) < 0.5
    np.testing.assert_array_equal(rows["reward"][0, :, 0], near)
    np.testing.assert_array_equal(rows["terminated"][0, :, 0], near)

    out, _ = call("o3f_select", f"{options} --offline-steps 4")
    folder = run_folder("o3f_select-tiny-????-offline4-batch-size16-hidden-dim8", ENV)
    config = json.loads((folder / "config.json").read_text())
    assert config["env"] == config["args"]["env"] == ENV and config["status"] == "finished"
    (line,) = [line for line in out.splitlines() if line.startswith("next: python ")]
    script, *rest = shlex.split(line.removeprefix("next: python ").replace("20000", "4"))
    assert rest[rest.index("--env") + 1] == ENV and rest[rest.index("--checkpoint") + 1] == str(folder.parent)
    command = [sys.executable, str(ROOT / script), *rest, *SHORT.split(), "--updates-per-step", "2"]
    environment = os.environ | {"PYTHONPATH": str(reach[0])}
    run = subprocess.run(command, capture_output=True, text=True, env=environment)
    assert run.returncode == 0, run.stderr
    state = saved("o3f_select-tiny-*-from-o3f_select-*", ENV)
    assert (state["env"], state["env_step"], counts(state)["critic"]) == (ENV, 4, 4 + 8)
