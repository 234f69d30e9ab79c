"""Seeds of one stack are independent of each other, in the six scripts of the first house."""

import importlib
from dataclasses import fields

import pytest
import torch

from first_house import random_batch, same, seed_slices

SCRIPTS = ["cql_sac", "td3_bc", "td3_c", "iql", "awac", "o3f_select"]
FAST = {"q_filter_percentile": 25, "epsilon": 1e-3}
FAST |= {"actor_lr": 1e-2, "critic_lr": 1e-2}  # every step seen in float32


def make(script, seeds, **options):
    """The agent of some seeds, small, and the options that the script has."""
    options = {field.name: options[field.name] for field in fields(script.Args) if field.name in options}
    shape = {"obs_dim": 3, "action_dim": 2, "hidden_dim": 8, "num_critics": 5, "layer_norm": False}
    return script.Agent(list(seeds), **shape), script.Args(**options)


@pytest.mark.parametrize("name", SCRIPTS)
def test_seeds_do_not_touch_each_other(name):
    """Other parameters, targets, temperature and data in seed 2: not a bit changes in seeds 1 and 3."""
    script, states = importlib.import_module(name), []
    for perturbed in (False, True):
        agent, args = make(script, (1, 2, 3), **FAST, cql_alpha=5.0, subset_size=2)
        batches = [script.Batch(*random_batch(3, seed=i)) for i in range(3)]
        if perturbed:
            for tensor_name, t in seed_slices(agent, 3)[1].items():
                t.add_(0.1 * torch.rand_like(t)) if "adam" not in tensor_name else None
            for column in (c for batch in batches for c in (batch.obs, batch.action, batch.reward)):
                column[1] = column[1].flip(0) * 0.5
        torch.manual_seed(0)
        for batch in batches:
            script.update(agent, batch, args, True)
        states.append(seed_slices(agent, 3))
    assert same(states[0][0], states[1][0]) and same(states[0][2], states[1][2])
    one, other = states[0][1], states[1][1]
    changed = {tensor_name for tensor_name in one if not torch.equal(one[tensor_name], other[tensor_name])}
    idle = {"cql_alpha_adam.m.0", "cql_alpha_adam.v.0"}  # without --cql-threshold
    assert changed == one.keys() - idle


@pytest.mark.parametrize("name", SCRIPTS)
def test_a_seed_starts_as_it_does_alone(name):
    script = importlib.import_module(name)
    stack, alone = make(script, (5, 6, 7))[0], make(script, (6,))[0]
    torch.testing.assert_close(seed_slices(stack, 3)[1], seed_slices(alone, 1)[0])
