"""What the tests of td3_bc, td3_c, cql_sac, iql, awac and o3f_select share: networks and batches."""

import torch
import torch.nn as nn

from td3_bc import Batch

LOG_NORMAL_AT_0 = -0.9189385  # -log(2 pi) / 2: log-density of a standard normal at 0


class Fixed(nn.Module):
    """A network without parameters: any function."""

    def __init__(self, function):
        super().__init__()
        self.function = function

    def forward(self, *inputs):
        return self.function(*inputs)


class Constant(nn.Module):
    """A network whose output is its parameters: critic values (S, E, 1), or an actor's two (S, 1, A)."""

    def __init__(self, *values):
        super().__init__()
        self.values = nn.ParameterList(torch.tensor(v) for v in values)

    def forward(self, obs, *_):
        if len(self.values) == 1:
            return self.values[0].expand(-1, -1, obs.shape[1])
        return tuple(value.expand(-1, obs.shape[1], -1) for value in self.values)


class PlainMLP(nn.Sequential):
    """One network of a stack as ordinary modules."""

    def __init__(self, in_dim, out_dim, hidden_dim, layer_norm):
        norm = (lambda: nn.LayerNorm(hidden_dim, elementwise_affine=False)) if layer_norm else nn.Identity
        super().__init__(
            *(nn.Linear(in_dim, hidden_dim), norm(), nn.ReLU()),
            *(nn.Linear(hidden_dim, hidden_dim), norm(), nn.ReLU()),
            nn.Linear(hidden_dim, out_dim),
        )

    def copy_from(self, mlp, index):
        for plain, layer in zip((m for m in self if isinstance(m, nn.Linear)), mlp.layers, strict=True):
            plain.weight.data, plain.bias.data = layer.weight[index].T.clone(), layer.bias[index, 0].clone()
        return self

    def flat(self):
        return torch.cat([p.detach().flatten() for p in self.parameters()])


def make_batch(seeds=1, size=4, obs_dim=3, action_dim=2, **columns):
    """Zeros, but for the given columns."""
    shapes = {"obs": (obs_dim,), "action": (action_dim,), "reward": (), "next_obs": (obs_dim,)}
    shapes |= {"terminated": (), "truncated": ()}
    return Batch(*(columns.get(name, torch.zeros(seeds, size, *shape)) for name, shape in shapes.items()))


def random_batch(seeds=1, size=16, seed=0):
    g = torch.Generator().manual_seed(seed)
    ends = torch.rand(seeds, size, generator=g)
    return make_batch(
        obs=torch.randn(seeds, size, 3, generator=g),
        action=torch.rand(seeds, size, 2, generator=g) * 2 - 1,
        reward=torch.randn(seeds, size, generator=g),
        next_obs=torch.randn(seeds, size, 3, generator=g),
        terminated=(ends < 0.2).to(ends.dtype),
        truncated=(ends > 0.8).to(ends.dtype),
    )


def seed_slices(agent, seeds):
    """The state of each seed: [{name: tensor}]."""
    state = {name: t for name, t in agent.state_dict().items() if t.dim()}
    return [{name: t.unflatten(0, (seeds, -1))[i] for name, t in state.items()} for i in range(seeds)]


def same(one, two):
    return one.keys() == two.keys() and all(torch.equal(one[name], two[name]) for name in one)
