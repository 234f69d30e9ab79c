"""Roll out a policy into a Minari dataset, or mix datasets that exist.

The policy is uniformly random or a checkpoint's; its actions are drawn (D4RL's convention), deterministic,
or deterministic with noise. --mix takes whole episodes of other datasets, drawn without replacement.

Exactly --steps transitions are written, and the episode that they end in is cut: it counts as truncated.
Episode k has its own reset seed and its own noise, which follow from (--seed, k). Several run side by side,
for one batched call of the policy, but they are kept in the order of k: this is what a single environment
gives, one episode after the other, so that stopping favours neither short episodes nor long ones.

Reads   --policy: checkpoint.pt; or --mix: Minari datasets (a folder, Minari's cache or datasets/).
Writes  <dataset-id> in Minari's cache (MINARI_DATASETS_PATH, else ~/.minari/datasets), as float32:
        observations in the environment's units, actions as executed (in the environment's own bounds),
        rewards a step (undiscounted), each episode's reset seed; as metadata the environment, the command,
        what acted, D4RL's reference returns. Plain Minari loads it.

Conventions (D4RL's). N: the first step in the expert's eval.csv with a third of its last return.
    expert         sac_scratch.py --online-steps 1000000
                   collect_dataset.py --policy runs/Hopper-v4/sac_scratch-online1000k --dataset-id hopper/expert-v0
    medium-replay  sac_scratch.py --online-steps N --save-dataset hopper/medium-replay-v1
    medium         collect_dataset.py --policy runs/Hopper-v4/sac_scratch-onlineN --dataset-id hopper/medium-v1
    medium-expert  collect_dataset.py --mix hopper/medium-v1=0.5 hopper/expert-v0=0.5 --steps 200000
                   --dataset-id hopper/medium-expert-v0
Such data are self-collected, D4RL-style: do not compare them with tables that were made with D4RL's.

Run, under a minute on one CPU core (about 900 episodes, mean return about 19):
    python collect_dataset.py --policy random --dataset-id hopper/random-v0 --steps 20000
"""

from __future__ import annotations

import math
import os
import shlex
import shutil
import sys
import warnings
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Annotated, Any, Literal, NoReturn

import gymnasium as gym
import minari
import numpy as np
import torch
import torch.nn as nn
import torch.nn.functional as F
import tyro
from torch import Tensor
from tqdm import tqdm

LOG_STD_MIN, LOG_STD_MAX = -5.0, 2.0  # CleanRL's range for the policy's log standard deviation
UNIFORM_SCALE = 0.333  # of Acme's initial weights: uniform within UNIFORM_SCALE * sqrt(3 / inputs)
LAST_LAYER_SCALE = 0.01  # the same for the policy's last layer, which starts near zero
NUM_ENVS = 8  # episodes side by side; another number gives the same ones, but for rounding
Recipe = tuple[Callable[[], tuple[np.ndarray, list]], str, str, str]  # see `collect`; env, algorithm, what acts


@dataclass
class Args:
    # source: one of the two
    policy: str | None = None  # random, or a checkpoint: checkpoint.pt, its folder, or the folder of a run of one seed
    mix: tuple[str, ...] = ()
    """Minari ids or folders with their shares of the transitions (hopper/medium-v0=0.5 hopper/expert-v0=0.5);
    a dataset without a share gets an equal one"""
    # dataset
    dataset_id: str = ""  # Minari id of the new dataset (hopper/medium-v1)
    steps: int = 100_000  # transitions to write
    env_id: Annotated[str | None, tyro.conf.arg(name="env")] = None
    """Gymnasium id. Default: that of the checkpoint or of the datasets; Hopper-v4 for random"""
    data_seed: Annotated[int, tyro.conf.arg(name="seed")] = 1  # of starts, noise and drawn episodes
    # actions of a checkpoint
    actions: Literal["stochastic", "deterministic", "noisy"] = "stochastic"  # noisy: deterministic plus Gaussian noise
    noise_std: float = 0.1  # of noisy actions, in units of actions in [-1, 1]; the sum is clipped


class TD3MLP(nn.Module):
    """Two hidden layers on standardised inputs: LayerNorm, tanh, ELU (TD3-C, appendix B), or ReLU twice (TD3)."""

    def __init__(self, generators, copies, in_dim, hidden_dim, out_dim, layer_norm):
        super().__init__()
        self.layers = nn.ModuleList(
            StackedLinear(generators, copies, i, o)
            for i, o in ((in_dim, hidden_dim), (hidden_dim, hidden_dim), (hidden_dim, out_dim))
        )
        stack = len(generators) * copies
        self.register_buffer("input_mean", torch.zeros(stack, 1, in_dim))
        self.register_buffer("input_std", torch.ones(stack, 1, in_dim))
        self.layer_norm = layer_norm
        if layer_norm:
            self.scale = nn.Parameter(torch.ones(stack, 1, hidden_dim))
            self.shift = nn.Parameter(torch.zeros(stack, 1, hidden_dim))
            for layer in self.layers:
                layer.weight.data *= UNIFORM_SCALE * math.sqrt(3)
                layer.bias.data.zero_()

    def forward(self, x: Tensor) -> Tensor:
        first, second, last = self.layers
        x = first((x - self.input_mean) / self.input_std)
        if not self.layer_norm:
            return last(F.relu(second(F.relu(x))))
        x = F.layer_norm(x, x.shape[-1:]) * self.scale + self.shift
        return last(F.elu(second(x.tanh())))


class GaussianActor(nn.Module):
    """Tanh-Gaussian policy: obs (S, B, O) -> mean and log_std (S, B, A), before the tanh."""

    def __init__(self, generators, obs_dim, action_dim, hidden_dim):
        super().__init__()
        self.mlp = MLP(generators, 1, obs_dim, hidden_dim, 2 * action_dim, layer_norm=False)

    def forward(self, obs: Tensor) -> tuple[Tensor, Tensor]:
        mean, log_std = self.mlp(obs).chunk(2, -1)
        log_std = LOG_STD_MIN + 0.5 * (LOG_STD_MAX - LOG_STD_MIN) * (log_std.tanh() + 1)
        return mean, log_std


class DeterministicActor(nn.Module):
    """Deterministic policy: obs (S, B, O) -> action (S, B, A) in [-1, 1]."""

    def __init__(self, generators, obs_dim, action_dim, hidden_dim, layer_norm):
        super().__init__()
        self.mlp = TD3MLP(generators, 1, obs_dim, hidden_dim, action_dim, layer_norm)
        if layer_norm:
            self.mlp.layers[-1].weight.data *= LAST_LAYER_SCALE / UNIFORM_SCALE

    def forward(self, obs: Tensor) -> Tensor:
        return self.mlp(obs).tanh()


def gaussian_action(actor: GaussianActor, obs: Tensor, noise: Tensor, args: Args) -> Tensor:
    """obs (1, B, O), standard normal noise (1, B, A) -> action (1, B, A) in [-1, 1], a draw if stochastic."""
    mean, log_std = actor(obs)
    return (mean + log_std.exp() * noise).tanh() if args.actions == "stochastic" else mean.tanh()


def deterministic_action(actor: DeterministicActor, obs: Tensor, noise: Tensor, args: Args) -> Tensor:
    """obs (1, B, O), noise (1, B, A) and args, which are not used -> action (1, B, A) in [-1, 1]."""
    return actor(obs)


# Family of checkpoints: its actor, the sizes that make one, and how it acts.
SIZES = "obs_dim", "action_dim", "hidden_dim"
FAMILIES = {
    "sac": (GaussianActor, SIZES, gaussian_action),
    "td3": (DeterministicActor, (*SIZES, "layer_norm"), deterministic_action),
}
BUNDLED = Path(__file__).resolve().parent / "datasets"
D4RL_SCORES = {  # undiscounted returns of a random and of an expert policy (Fu et al. 2020, arXiv 2004.07219)
    "HalfCheetah": (-280.178953, 12135.0),
    "Hopper": (-20.272305, 3234.3),
    "Walker2d": (1.629008, 4592.3),
    "Ant": (-325.6, 3879.7),
}


class StackedLinear(nn.Module):
    """Independent linear layers side by side: (stack, B, in) -> (stack, B, out).

    A seed's CPU generator draws its `copies` neighbouring layers, whatever seeds are beside it; PyTorch's defaults.
    """

    def __init__(self, generators: list[torch.Generator], copies: int, in_dim: int, out_dim: int):
        super().__init__()
        bound = 1 / math.sqrt(in_dim)

        def uniform(*shape: int) -> nn.Parameter:
            draws = [torch.empty(copies, *shape).uniform_(-bound, bound, generator=g) for g in generators]
            return nn.Parameter(torch.cat(draws))

        self.weight = uniform(in_dim, out_dim)
        self.bias = uniform(1, out_dim)

    def forward(self, x: Tensor) -> Tensor:
        if self.weight.shape[2] == 1:  # a matrix with one column: multiply and sum is the faster kernel
            return (x * self.weight.mT).sum(2, keepdim=True) + self.bias
        return torch.bmm(x, self.weight) + self.bias  # baddbmm would first copy the bias to the output


class MLP(nn.Module):
    """Two hidden ReLU layers, with LayerNorm (no scale, no shift) before each ReLU if asked."""

    def __init__(self, generators, copies, in_dim, hidden_dim, out_dim, layer_norm):
        super().__init__()
        sizes = in_dim, hidden_dim, hidden_dim, out_dim
        self.layers = nn.ModuleList(StackedLinear(generators, copies, *sizes[i : i + 2]) for i in range(3))
        self.layer_norm = layer_norm

    def forward(self, x: Tensor) -> Tensor:
        for layer in self.layers[:-1]:
            x = layer(x)
            x = F.relu(F.layer_norm(x, x.shape[-1:]) if self.layer_norm else x)
        return self.layers[-1](x)


def fail(message: str) -> NoReturn:
    """Bad input: one line on stderr, exit status 2."""
    print(f"error: {message}", file=sys.stderr)
    raise SystemExit(2)


def make_env(env_id: str) -> gym.Env:
    """One environment whose observations are vectors and whose actions are in [-1, 1]."""
    with suppress(ImportError):  # without this, MuJoCo writes its warnings to MUJOCO_LOG.TXT where one works
        import mujoco

        mujoco.set_mju_user_warning(lambda message: None)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # "Hopper-v4 is out of date"
        env = gym.make(env_id, disable_env_checker=True)
    if isinstance(env.observation_space, gym.spaces.Dict):  # an observation and its goal, flattened in Minari's order
        env.observation_space = gym.spaces.Dict(dict(env.observation_space))  # its keys sorted
        env = gym.wrappers.FlattenObservation(env)
    box = isinstance(env.action_space, gym.spaces.Box) and env.action_space.is_bounded()
    return gym.wrappers.RescaleAction(env, np.float32(-1), np.float32(1)) if box else env


def open_env(env_id: str) -> gym.Env:
    """The environment, actions in [-1, 1]; ends with one line if there is none, or none of vectors."""
    try:
        env = make_env(env_id)
    except (gym.error.Error, ImportError) as error:
        fail(f"--env {env_id}: Gymnasium cannot make it ({str(error).strip().splitlines()[0]})")
    spaces, limit = (env.observation_space, env.action_space), env.spec.max_episode_steps
    if not all(isinstance(s, gym.spaces.Box) and len(s.shape) == 1 for s in spaces) or limit is None:
        fail(f"--env {env_id}: must have vector observations and actions (one-dimensional Boxes) and a step limit")
    if not env.action_space.is_bounded():
        fail(f"--env {env_id}: its actions must be bounded")
    return env


def random_recipe(args: Args) -> Recipe:
    """Uniformly random actions."""
    env_id = args.env_id or "Hopper-v4"
    (action_dim,) = open_env(env_id).action_space.shape

    def act(obs: np.ndarray, generators: list[np.random.Generator]) -> np.ndarray:
        return np.stack([g.uniform(-1, 1, action_dim) for g in generators]).astype(np.float32)

    return partial(collect, act, env_id, args), env_id, "random", "uniformly random actions"


def checkpoint_recipe(args: Args) -> Recipe:
    """The actor behind --policy; ends with one line if that is no checkpoint of ours or does not fit."""
    folder = Path(args.policy)
    paths = [folder, folder / "checkpoint.pt", *sorted(folder.glob("seed*/checkpoint.pt"))]
    if len(paths := [path for path in paths if path.is_file()]) != 1:
        several = paths and f"holds {len(paths)} seeds; name the folder of one, such as {paths[0].parent}"
        fail(f"--policy {folder}: {several or 'neither random, nor a checkpoint.pt, nor a folder with one'}")
    path = paths[0]
    try:  # weights_only: a file that carries code is refused, not run
        facts = torch.load(path, map_location="cpu", weights_only=True)
        shape = dict(facts["shape"])
        algorithm, env_id = str(facts["algorithm"]), str(facts["env"])
        about = f"{args.actions} actions{f' ({args.noise_std:g})' if args.actions == 'noisy' else ''} of run "
        about += f"{facts['run']}, seed {facts['seed']}, after {facts['env_step']:,} environment steps and "
        about += f"{facts['gradient_step']:,} updates ({facts['phase']} phase)"
        state = {name[6:]: value for name, value in facts["agent"].items() if name.startswith("actor.")}
        finite = all(value.isfinite().all() for value in state.values())
    except Exception as error:  # whatever torch.load raises on a damaged or foreign file
        fail(f"--policy {path}: is no checkpoint of these scripts ({type(error).__name__})")
    if algorithm not in FAMILIES:
        fail(f"--policy {path}: its algorithm is {algorithm}, none of {', '.join(FAMILIES)}")
    if args.env_id not in (None, env_id):
        fail(f"--env {args.env_id}: the checkpoint {path} is of {env_id}")
    env = open_env(env_id)
    dims = {"obs_dim": env.observation_space.shape[0], "action_dim": env.action_space.shape[0]}
    if dims.items() - shape.items() or not finite:
        fail(f"--policy {path}: its parameters are not finite, or of other shapes than {env_id}")
    make_actor, sizes, family_action = FAMILIES[algorithm]
    if family_action is deterministic_action and args.actions == "stochastic":
        fail(f"--actions stochastic: the policy of {path} has no distribution; say deterministic or noisy")
    try:
        actor = make_actor([torch.Generator()], *(shape[size] for size in sizes)).requires_grad_(False)
        actor.load_state_dict(state)
    except (RuntimeError, TypeError, KeyError) as error:
        fail(f"--policy {path}: its tensors do not fit ({str(error).splitlines()[0]})")

    def act(obs: np.ndarray, generators: list[np.random.Generator]) -> np.ndarray:
        noise = torch.from_numpy(np.stack([g.standard_normal(dims["action_dim"]) for g in generators])[None]).float()
        action = family_action(actor, torch.from_numpy(obs[None]).float(), noise, args)
        if args.actions == "noisy":
            action = (action + args.noise_std * noise).clamp(-1, 1)
        return action[0].numpy()

    return partial(collect, act, env_id, args), env_id, algorithm.upper(), about


class Episode:
    """An episode that runs in `env`; what happens in it follows from the policy and (seed, number) alone."""

    def __init__(self, env: gym.Env, seed: int, number: int):
        self.env, self.rows, self.total, self.ended = env, [], 0.0, False
        self.seed = int(np.random.SeedSequence((seed, number)).generate_state(1, np.uint64)[0] >> 1)  # fits an int64
        self.generator = np.random.default_rng((seed, number))
        self.obs, _ = env.reset(seed=self.seed)

    def step(self, action: np.ndarray) -> None:
        next_obs, reward, terminated, truncated, _ = self.env.step(action)
        row = [self.obs, action, [reward], next_obs, [terminated, truncated]]
        self.rows.append(np.concatenate(row, dtype=np.float32))
        self.obs, self.total, self.ended = next_obs, self.total + reward, terminated or truncated


def collect(act: Callable, env_id: str, args: Args) -> tuple[np.ndarray, list[int | None]]:
    """--steps rows as in a ReplayTable, and reset seeds; act: obs (B, O), a generator a row -> action (B, A)."""
    episodes = [Episode(make_env(env_id), args.data_seed, number) for number in range(NUM_ENVS)]
    running = list(episodes)
    first = before = 0  # the first episode that still runs, and the rows in front of it
    progress = tqdm(total=args.steps, unit=" steps", desc="collect", mininterval=1)
    while before + len(episodes[first].rows) < args.steps:
        actions = act(np.stack([e.obs for e in running]), [e.generator for e in running])
        for i, action in enumerate(actions):
            running[i].step(action)
            if running[i].ended:
                progress.set_postfix_str(f"last return {running[i].total:.0f}", refresh=False)
                running[i] = Episode(running[i].env, args.data_seed, len(episodes))
                episodes.append(running[i])
        while before < args.steps and episodes[first].ended:
            before += len(episodes[first].rows)
            first += 1
        progress.update(min(NUM_ENVS, args.steps - progress.n))
    progress.close()
    used = episodes[: first + (before < args.steps)]
    return np.array([row for e in used for row in e.rows][: args.steps]), [e.seed for e in used]


def parse_mix(args: Args) -> dict[str, int]:
    """Transitions to take of each dataset of --mix; they sum to --steps exactly."""
    shares: dict[str, float] = {}
    for item in args.mix:
        name, _, text = item.rpartition("=") if "=" in item else (item, "", str(1 / len(args.mix)))
        share = float(text) if text.replace(".", "", 1).isdecimal() else 0
        if name in shares or not 0 < share <= 1:
            fail(f"--mix {item}: name each dataset once, with a share above 0 and at most 1, like {name}=0.5")
        shares[name] = share
    total = sum(shares.values())
    counts = np.diff(np.round(np.cumsum([0, *shares.values()]) / total * args.steps).astype(int))
    if abs(total - 1) > 1e-6 or not counts.all():
        fail(f"--mix {' '.join(args.mix)}: the shares sum to {total:g}, not to 1, or one is of less than a transition")
    return dict(zip(shares, counts.tolist(), strict=True))


def read_source(name: str) -> tuple[Any, list[np.ndarray], list[int | None]]:
    """A Minari dataset, the rows and the reset seed of each episode; ends with one line if it is not sound."""
    places = Path(name), minari.storage.get_dataset_path(name), BUNDLED / name
    folders = [folder for folder in places if (folder / "data/metadata.json").is_file()]
    if not folders:
        cached = ", ".join(minari.list_local_datasets()) or "nothing"
        fail(f"--mix {name}: no Minari dataset on this machine; Minari's cache holds {cached}")
    try:
        dataset, episodes = minari.MinariDataset(folders[0] / "data"), []
        if dataset.env_spec is None:
            raise ValueError("it does not name its environment")
        low, high = dataset.action_space.low, dataset.action_space.high
        for e in tqdm(dataset.iterate_episodes(), f"read {name}", len(dataset), unit=" episodes", delay=1):
            action = (e.actions - (high + low) / 2) / ((high - low) / 2)
            columns = [e.observations[:-1], action, e.rewards[:, None], e.observations[1:]]
            columns += [e.terminations[:, None], e.truncations[:, None]]
            episodes.append(np.concatenate(columns, 1, dtype=np.float32))
            if not np.isfinite(episodes[-1]).all() or np.abs(action).max() > 1 + 1e-4 or episodes[-1][:-1, -2:].any():
                raise ValueError(f"episode {e.id}: not finite, out of bounds or not at its end")
        seeds = [about.get("seed") for about in dataset.storage.get_episode_metadata(range(len(dataset)))]
    except Exception as error:  # whatever Minari and HDF5 raise on damaged files
        fail(f"--mix {name}: cannot be read ({(str(error).splitlines() or [type(error).__name__])[0]})")
    return dataset, episodes, seeds


def mix_recipe(args: Args) -> Recipe:
    """Episodes of one dataset after the other; ends with one line if they do not agree or do not suffice."""
    env_id, parts, seeds, algorithms, counts = args.env_id, [], [], {}, parse_mix(args)
    for i, (name, count) in enumerate(counts.items()):
        dataset, episodes, reset_seeds = read_source(name)
        spec, env_id = dataset.env_spec, env_id or dataset.env_spec.id
        env = open_env(env_id).unwrapped
        if (spec.id, spec.kwargs, dataset.action_space) != (env_id, gym.spec(env_id).kwargs, env.action_space):
            fail(f"--mix {name}: recorded in {spec.id} {spec.kwargs or ''}, not in {env_id}")
        drawn, left = {}, count
        for number in np.random.default_rng((args.data_seed, i)).permutation(len(episodes)):
            if left > 0:
                drawn[number] = episodes[number][:left]
                left -= len(drawn[number])
        if left > 0:
            fail(f"--mix {name}: has {count - left:,} transitions, {count:,} are needed; take fewer --steps")
        for number, rows in sorted(drawn.items()):
            rows[-1, -1] = max(rows[-1, -1], 1 - rows[-1, -2])  # where it was cut
            parts.append(rows)
            seeds.append(reset_seeds[number])
        algorithms[dataset.storage.metadata.get("algorithm_name", "unknown")] = True
    about = "episodes of " + " and ".join(f"{name} ({count:,} transitions)" for name, count in counts.items())
    return lambda: (np.concatenate(parts), seeds), env_id, " + ".join(algorithms), about


def write_atomically(path: Path, write: Callable[[Path], object]) -> None:
    """A reader sees the old file or the new one, never a part."""
    part = path.with_name(path.name + ".part")
    try:
        write(part)
        with open(part, "rb+") as file:
            os.fsync(file.fileno())
        os.replace(part, path)
    except BaseException:
        part.unlink(missing_ok=True)
        raise


def check_new_dataset(name: str, option: str = "--save-dataset") -> None:
    """Ends with one line if `name` cannot be the id of a new Minari dataset in the local cache."""
    path = minari.storage.get_dataset_path(name)
    try:
        minari.dataset.minari_dataset.parse_dataset_id(name)
    except (ValueError, TypeError):
        fail(f"{option} {name}: a Minari id looks like hopper/mine-v0")
    if path.exists():
        fail(f"{option} {name}: {path} exists; delete it or take another name")


def write_minari(name: str, rows: np.ndarray, sizes: list[int], env_id: str, seeds=None, **metadata) -> None:
    """Rows of a ReplayTable, in order, as a Minari dataset; a last episode that was cut counts as truncated.

    Actions are stored as the environment got them, in its own bounds; `seeds` are what the episodes were
    reset with. float32 and gzipped, a third of the size of Minari's own files; plain Minari loads it.
    """
    import h5py

    obs, action, reward, next_obs, terminated, truncated = np.split(rows, np.cumsum(sizes)[:-1], 1)
    truncated[-1] = 1 - terminated[-1]
    ends = np.flatnonzero(terminated + truncated) + 1
    columns = {"actions": make_env(env_id).action(action), "rewards": reward[:, 0]}
    columns |= {"terminations": terminated[:, 0] > 0, "truncations": truncated[:, 0] > 0}
    scores = D4RL_SCORES.get(env_id.rsplit("-v", 1)[0], (None, None))
    metadata = {"ref_min_score": scores[0], "ref_max_score": scores[1], "author": "o2o-scripts", **metadata}
    metadata["requirements"] = [f"{package}=={version(package)}" for package in ("gymnasium", "mujoco")]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Minari misses an author's address and a link to code
        storage = minari.create_dataset_from_buffers(name, [], env=env_id, **metadata).storage

    def write(path: Path) -> None:
        with h5py.File(path, "w", libver="latest", track_order=True) as file:
            for i, (a, b, seed) in enumerate(zip([0, *ends[:-1]], ends, seeds or [None] * len(ends), strict=True)):
                group = file.create_group(f"episode_{i}")
                group.attrs.update({"id": i, "total_steps": b - a} | ({} if seed is None else {"seed": seed}))
                values = {"observations": np.concatenate([obs[a:b], next_obs[b - 1 : b]])}
                values |= {key: column[a:b] for key, column in columns.items()}
                for key, value in values.items():
                    group.create_dataset(key, data=value, compression="gzip", shuffle=True)

    path = storage.data_path / "main_data.hdf5"
    write_atomically(path, write)
    storage.update_metadata({"total_episodes": len(ends), "total_steps": len(rows)})
    storage.update_metadata({"dataset_size": storage.get_size()})
    print(f"wrote {name}: {len(rows):,} transitions, {len(ends):,} episodes, {path.stat().st_size / 1e6:.1f} MB")


def main(args: Args) -> None:
    # Checks
    if (args.policy is None) == (not args.mix):
        fail("--policy or --mix is needed, one of them: --policy random, --policy CHECKPOINT, --mix ID=SHARE ID=SHARE")
    for option, value, low in (("steps", args.steps, 1), ("seed", args.data_seed, 0), ("noise-std", args.noise_std, 0)):
        if not low <= value < math.inf:
            fail(f"--{option} {value}: must be a number of at least {low}")
    if args.policy in (None, "random") and args.actions != "stochastic":
        fail(f"--actions {args.actions}: needs a checkpoint as --policy")
    check_new_dataset(args.dataset_id, "--dataset-id")
    if args.env_id is not None:
        args.env_id = open_env(args.env_id).spec.id
    make_recipe = mix_recipe if args.mix else random_recipe if args.policy == "random" else checkpoint_recipe
    make, env_id, algorithm, about = make_recipe(args)

    # Collection
    env, path = make_env(env_id), minari.storage.get_dataset_path(args.dataset_id)
    sizes = [*env.observation_space.shape, *env.action_space.shape, 1, *env.observation_space.shape, 1, 1]
    print(f"{env_id}: {about}; seed {args.data_seed}\nwrites: {args.steps:,} transitions to {path}")
    text = f"Self-collected, D4RL-style: {about}. {args.steps:,} transitions of {env_id}, seed {args.data_seed}. "
    text += f"Command: {shlex.join(['python', Path(sys.argv[0]).name, *sys.argv[1:]])}"
    try:
        rows, seeds = make()
        write_minari(args.dataset_id, rows, sizes, env_id, seeds, algorithm_name=algorithm, description=text)
    except (KeyboardInterrupt, OSError) as error:
        shutil.rmtree(path, ignore_errors=True)
        fail(f"--dataset-id {args.dataset_id}: nothing was written ({str(error) or 'interrupted'})")

    # Summary
    ends = np.flatnonzero(rows[:, -2] + rows[:, -1]) + 1
    lengths = np.diff(ends, prepend=0)
    returns = np.add.reduceat(rows[:, sum(sizes[:2])].astype(np.float64), ends - lengths)
    for name, values in (("return", returns), ("length", lengths)):
        quantiles = " / ".join(f"{q:.0f}" for q in np.quantile(values, (0, 0.25, 0.5, 0.75, 1)))
        print(f"{name}: mean {values.mean():.1f}, min / quartiles / max {quantiles}")
    if scores := D4RL_SCORES.get(env_id.rsplit("-v", 1)[0]):
        score = 100 * (returns.mean() - scores[0]) / (scores[1] - scores[0])
        print(f"normalised score of the mean return: {score:.1f} (0: D4RL's random policy, 100: its expert)")
    print(f"next: python offline_pretrain_sac.py --env {env_id} --dataset {args.dataset_id}")


if __name__ == "__main__":
    main(tyro.cli(Args, description=__doc__.split("\n\n")[0]))
