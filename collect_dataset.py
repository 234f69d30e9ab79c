"""Make a Minari dataset from a policy's episodes, a run's transitions, other datasets, or a D4RL file.

--policy    Uniformly random actions, or those of a checkpoint of any training script beside this file: drawn
            (D4RL's convention; the policies of TD3 and LAPO have no distribution), deterministic or noisy.
            Exactly --steps transitions; the episode that they end in counts as truncated. Episode k's reset
            seed and noise follow from (--seed, k). Several run side by side, for one batched call of the
            policy, but are kept in the order of k: stopping favours neither short episodes nor long ones.
--from-run  The online transitions that a run keeps in resume.pt: with --keep-replay, or while unfinished.
--mix       Whole episodes of other datasets, drawn without replacement; each dataset's last one may be cut.
--convert   A D4RL .hdf5 file.

Reads   what the option names; never changes it.
Writes  --dataset-id in Minari's cache (MINARI_DATASETS_PATH, else ~/.minari/datasets), whole or not at all.
        Observations (float32) are in the environment's own space, actions in its own bounds, as executed;
        rewards per step (undiscounted); the reset seed of an episode where it is known; as metadata the
        environment, the command, what acted and D4RL's reference returns. Plain Minari loads it.

How to make D4RL's kinds. N: the first step in the expert's eval.csv with a third of its last return.
    expert         sac_scratch.py --online-steps 1000000
                   collect_dataset.py --policy <folder of that run> --dataset-id hopper/expert-v0
    medium-replay  sac_scratch.py --online-steps N --keep-replay
                   collect_dataset.py --from-run <folder of that run> --dataset-id hopper/medium-replay-v1
    medium         collect_dataset.py --policy <folder of that run> --dataset-id hopper/medium-v1
    medium-expert  collect_dataset.py --mix hopper/medium-v1=0.5 hopper/expert-v0=0.5 --steps 200000
                   --dataset-id hopper/medium-expert-v0
Such data are self-collected: do not compare them with tables that were made with D4RL's.

Run, under a minute on one CPU core (about 900 episodes, mean return about 19):
    python collect_dataset.py --policy random --dataset-id hopper/random-v0 --steps 20000
"""

import json
import os
import re
import shlex
import shutil
import sys
from collections.abc import Callable
from dataclasses import replace
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from typing import Annotated, Literal, NamedTuple

import gymnasium as gym
import minari
import numpy as np
import tyro
from minari.dataset.minari_storage import MinariStorage
from pydantic import Field
from pydantic.dataclasses import dataclass
from tqdm import tqdm

# Same name, same text in every training script: it does not matter of which one this is taken.
from offline_pretrain_sac import (
    BUNDLED,
    D4RL_SCORES,
    ROUNDING,
    Adapter,
    fail,
    load,
    make_env,
    read_hdf5,
    read_minari,
    task_of,
    to_vector,
)
from watch_policy import Policy, checkpoints_in, load_policy

NUM_ENVS = 8  # episodes side by side; another number gives the same ones, but for rounding
DEFAULT_STEPS = 100_000

Whole = Annotated[int, Field(ge=0)]
Count = Annotated[int, Field(ge=1)]
NonNegative = Annotated[float, Field(ge=0, allow_inf_nan=False)]


@dataclass
class Args:
    dataset_id: str  # Minari id of the new dataset, like hopper/medium-v1
    # source: one of these
    policy: str | None = None  # random, or a checkpoint.pt, its folder, or the folder of a run with one seed
    from_run: str | None = None  # folder of a run (its first seed) or of one of its seeds
    mix: tuple[str, ...] = ()  # Minari ids or folders with their shares: hopper/a-v0=0.5 hopper/b-v0=0.5
    convert: str | None = None  # D4RL .hdf5 file
    # what is taken
    steps: Count | None = None  # transitions to write; default: 100,000, or all with --from-run and --convert
    env: str | None = None  # Gymnasium id or module:Id-v0; default: the source's; Hopper-v4 for random
    seed: Whole = 1  # of starts, noise and drawn episodes
    # actions of a checkpoint
    actions: Literal["stochastic", "deterministic", "noisy"] = "stochastic"  # noisy: deterministic plus noise
    noise_std: NonNegative = 0.1  # of noisy actions, in units of actions in [-1, 1]; the sum is clipped


# ---- environments ----


def from_vector(vectors: np.ndarray, space: gym.Space) -> np.ndarray | dict:
    """Observations (T, O) as `space` has them, the inverse of to_vector; real numbers stay float32."""
    if not isinstance(space, gym.spaces.Dict):
        dtype = np.float32 if space.dtype.kind == "f" else space.dtype
        return vectors.reshape(len(vectors), *space.shape).astype(dtype)
    keys = sorted(space)
    sizes = [to_vector(space[key].sample()).size for key in keys]
    parts = np.split(vectors, np.cumsum(sizes)[:-1], 1)
    return {key: from_vector(part, space[key]) for key, part in zip(keys, parts, strict=True)}


def adapted_env(env_id: str) -> Adapter:
    """The environment, adapted; ends with one line if it cannot be used."""
    try:
        env = make_env(env_id)
        nothing = np.zeros((1, *env.observation_space.shape), np.float32)
        from_vector(nothing, env.env.observation_space)  # so that it does not fail in the end
    except Exception as error:  # its constructor may raise anything
        fail(f"--env {env_id}: cannot be used: {error!r:.300}")
    return env


def registration_of(env: Adapter) -> gym.envs.registration.EnvSpec | None:
    """What Minari makes the environment from again; None if that cannot be written down."""
    spec = gym.spec(env.unwrapped.spec.id)
    entry = spec.entry_point
    if callable(entry):
        name = getattr(entry, "__qualname__", "")  # a functools.partial has none
        if not name.isidentifier():  # nor is a lambda's one
            return None
        spec = replace(spec, entry_point=f"{entry.__module__}:{name}")
    return spec


class Data(NamedTuple):
    """Transitions, one episode after the other, each in the order of time.

    Columns: obs (N, O), action (N, A) as executed, reward (N,), next_obs (N, O), terminated (N,), last (N,):
    whether the episode ends there, reset_seed (N,) of the row's episode, -1 where it is not known.
    """

    env: Adapter
    env_id: str  # with its module
    columns: dict[str, np.ndarray]
    algorithm: str
    about: str


def columns_of(env: Adapter, rows: np.ndarray, last: np.ndarray, reset_seed: np.ndarray) -> dict:
    """Data's columns, from rows (N, 2 O + A + 2) as a replay has them: actions in [-1, 1]."""
    (obs_dim,), (action_dim,) = env.observation_space.shape, env.action_space.shape
    borders = np.cumsum([obs_dim, action_dim, 1, obs_dim])
    obs, action, reward, next_obs, terminated = np.split(rows, borders, 1)
    space = env.env.action_space
    executed = np.clip(env.center + env.scale * action, space.low, space.high).astype(space.dtype)
    return {
        "obs": obs,
        "action": executed,
        "reward": reward[:, 0],
        "next_obs": next_obs,
        "terminated": terminated[:, 0] > 0,
        "last": last,
        "reset_seed": reset_seed,
    }


def check_columns_of(option: str, env: Adapter, columns: dict[str, np.ndarray]) -> None:
    """Ends with one line if the columns do not fit the environment, or about an unusable row."""
    obs_shape, action_shape = env.observation_space.shape, env.action_space.shape
    shapes = {"obs": obs_shape, "action": action_shape, "reward": (), "next_obs": obs_shape}
    for name, shape in shapes.items():
        column = columns[name]
        if column.shape[1:] != shape:
            fail(f"{option}: {name} has shape {column.shape[1:]}; {env.spec.id} has {shape}")
        bad = ~np.isfinite(column).reshape(len(column), -1).all(1)
        if bad.any():
            row = bad.argmax()
            fail(f"{option}: {name} of row {row} is not finite: {column[row].tolist()!s:.200}")
    bad = np.abs((columns["action"] - env.center) / env.scale).max(1) > 1 + ROUNDING
    if bad.any():
        row = bad.argmax()
        fail(f"{option}: action of row {row} is out of bounds: {columns['action'][row].tolist()!s:.200}")


# ---- --policy ----


class Episode:
    """An episode that runs in `env`; what happens in it follows from the policy and (seed, number) alone."""

    def __init__(self, env: Adapter, seed: int, number: int):
        self.env, self.rows, self.ended = env, [], False
        (self.reset_seed,) = np.random.SeedSequence((seed, number)).generate_state(1).tolist()
        self.generator = np.random.default_rng((seed, number))
        self.obs, _ = env.reset(seed=self.reset_seed)

    def step(self, action: np.ndarray) -> None:
        next_obs, reward, terminated, truncated, _ = self.env.step(action)
        row = np.concatenate([self.obs, action, [reward], next_obs, [terminated]], dtype=np.float32)
        if not np.isfinite(row).all():
            fail(f"--env {self.env.spec.id}: an observation or a reward ({reward}) is not finite")
        self.rows.append(row)
        self.obs, self.ended = next_obs, terminated or truncated


def roll_out(act: Callable, env_id: str, steps: int, seed: int) -> dict[str, np.ndarray]:
    """`steps` transitions; act: obs (B, O) and a random generator per row -> actions (B, A) in [-1, 1]."""
    episodes = [Episode(make_env(env_id), seed, number) for number in range(NUM_ENVS)]
    running = list(episodes)
    num_ended, stored, in_order = 0, 0, 0  # the first `num_ended` episodes have `stored` transitions
    progress = tqdm(total=steps, unit=" steps", desc="collect", disable=None)
    while in_order < steps:
        actions = act(np.stack([e.obs for e in running]), [e.generator for e in running])
        for i, action in enumerate(actions):
            running[i].step(action)
            if running[i].ended:
                running[i] = Episode(running[i].env, seed, len(episodes))
                episodes.append(running[i])
        while episodes[num_ended].ended:
            stored += len(episodes[num_ended].rows)
            num_ended += 1
        before, in_order = in_order, min(steps, stored + len(episodes[num_ended].rows))
        progress.update(in_order - before)
    progress.close()
    used = [e for e in episodes[: num_ended + 1] if e.rows]
    rows = np.concatenate([e.rows for e in used])[:steps]
    reset_seed = np.repeat([e.reset_seed for e in used], [len(e.rows) for e in used])[:steps]
    last = np.append(reset_seed[1:] != reset_seed[:-1], True)
    return columns_of(used[0].env, rows, last, reset_seed)


def find_policy(args: Args) -> Policy:
    """The policy of the one checkpoint that --policy names."""
    paths = checkpoints_in(Path(args.policy), "--policy")
    if len(paths) > 1:
        fail(f"--policy {args.policy}: holds {len(paths)} seeds; name the folder of one: {paths[0].parent}")
    return load_policy(paths[0], args, "--policy")


def read_policy(args: Args) -> Data:
    """Episodes of --policy."""
    if args.policy == "random":
        name, env_id, about = "random", args.env or "Hopper-v4", "uniformly random actions"
    else:
        policy, kind = find_policy(args), args.actions
        if kind == "noisy":
            kind = f"noisy ({args.noise_std:g})"
        name, env_id, about = policy.script.FAMILY.upper(), policy.env, f"{kind} actions of run {policy.run}"
        about += f", seed {policy.seed}, {policy.phase} after {policy.env_step:,} environment steps"
        about += f" and {policy.gradient_step:,} updates"
    env = adapted_env(env_id)
    (action_dim,) = env.action_space.shape

    def act(obs: np.ndarray, generators: list[np.random.Generator]) -> np.ndarray:
        if args.policy == "random":
            return np.stack([g.uniform(-1, 1, action_dim) for g in generators]).astype(np.float32)
        noise = np.stack([g.standard_normal(action_dim) for g in generators]).astype(np.float32)
        return policy.act(obs, noise, args)

    columns = roll_out(act, env_id, args.steps or DEFAULT_STEPS, args.seed)
    return Data(env, env_id, columns, name, f"self-collected: {about}; seed {args.seed}")


# ---- --convert ----


def read_d4rl(args: Args) -> Data:
    """The transitions of --convert."""
    if args.env is None:
        fail(f"--convert {args.convert}: does not name its environment; give --env")
    env, path = adapted_env(args.env), Path(args.convert)
    try:
        columns = read_hdf5(path, env.spec.max_episode_steps)
        columns["reward"] = columns["reward"].reshape(len(columns["obs"]))
        columns = {name: column[~columns["drop"]] for name, column in columns.items()}
    except Exception as error:  # whatever h5py and NumPy raise
        fail(f"--convert {path}: cannot be read: {error!r:.300}")
    if len(columns["obs"]) == 0:
        fail(f"--convert {path}: has no transition whose next observation is known")
    check_columns_of(f"--convert {path}", env, columns)
    space = env.env.action_space
    columns["action"] = np.clip(columns["action"], space.low, space.high).astype(space.dtype)
    columns["last"] = columns["terminated"] | columns["truncated"]
    columns["reset_seed"] = np.full(len(columns["obs"]), -1)
    return Data(env, args.env, columns, "unknown", f"converted from {path.name}")


# ---- --mix ----


def parse_mix(args: Args) -> dict[str, int]:
    """Transitions to take of each dataset of --mix; they sum to --steps exactly."""
    shares: dict[str, float] = {}
    for item in args.mix:
        name, _, text = item.rpartition("=") if "=" in item else (item, "", str(1 / len(args.mix)))
        share = float(text) if text.replace(".", "", 1).isdecimal() else 0
        if name in shares or not 0 < share <= 1:
            fail(f"--mix {item}: name each dataset once, with a share above 0 and at most 1, like {name}=0.5")
        shares[name] = share
    total, borders = sum(shares.values()), np.cumsum([0, *shares.values()])
    counts = np.diff(np.round(borders / borders[-1] * (args.steps or DEFAULT_STEPS)).astype(int))
    if abs(total - 1) > 1e-6:
        fail(f"--mix {' '.join(args.mix)}: the shares sum to {total:g}, not to 1")
    if not counts.all():
        fail(f"--mix {' '.join(args.mix)}: a share is less than one transition")
    return dict(zip(shares, counts.tolist(), strict=True))


def read_source(name: str) -> tuple[dict[str, np.ndarray], dict]:
    """Columns and metadata of a dataset of --mix; ends with one line if it cannot be used."""
    places = Path(name), minari.storage.get_dataset_path(name), BUNDLED / name
    folders = [folder for folder in places if (folder / "data" / "metadata.json").is_file()]
    if not folders:
        cached = ", ".join(minari.list_local_datasets()) or "nothing"
        fail(f"--mix {name}: no Minari dataset on this machine; Minari's cache holds {cached}")
    try:
        columns, metadata = read_minari(folders[0])
        metadata["env_spec"] = json.loads(metadata["env_spec"])
        columns["last"] = (columns["terminated"] + columns["truncated"]) > 0
        storage = MinariStorage.read(folders[0] / "data")
        episodes = storage.get_episode_metadata(range(storage.total_episodes))
        seeds = [-1 if episode.get("seed") is None else episode["seed"] for episode in episodes]
        columns["reset_seed"] = np.repeat(seeds, np.diff(np.flatnonzero(columns["last"]), prepend=-1))
    except Exception as error:  # whatever Minari and HDF5 raise on damaged files
        fail(f"--mix {name}: cannot be read: {error!r:.300}")
    return columns, metadata


def draw_episodes(last: np.ndarray, count: int, generator: np.random.Generator) -> np.ndarray:
    """Which rows (N,) to take: whole episodes; the last one drawn is cut to `count`, and marked in `last`."""
    ends = np.flatnonzero(last) + 1
    starts = np.append(0, ends[:-1])
    taken = np.zeros(len(last), bool)
    for i in generator.permutation(len(ends)):
        if count == 0:
            break
        end = min(ends[i], starts[i] + count)
        taken[starts[i] : end], last[end - 1] = True, True
        count -= end - starts[i]
    return taken


def check_recorded_in(name: str, metadata: dict, env: Adapter) -> None:
    """Ends with one line if a dataset is of another environment."""
    recorded, spec = metadata["env_spec"], gym.spec(env.unwrapped.spec.id)
    settings = recorded["id"], recorded["kwargs"], recorded["max_episode_steps"], metadata["action_space"]
    if settings != (spec.id, spec.kwargs, spec.max_episode_steps, env.env.action_space):
        details = f"{recorded['kwargs'] or ''} with {recorded['max_episode_steps']} steps"
        fail(f"--mix {name}: recorded in {recorded['id']} {details}, not in {spec.id}")


def read_mix(args: Args) -> Data:
    """Episodes of one dataset after the other; ends with one line if they do not agree or do not suffice."""
    env_id, parts, algorithms, counts = args.env, [], [], parse_mix(args)
    for i, (name, count) in enumerate(counts.items()):
        columns, metadata = read_source(name)
        env_id = env_id or metadata["env_spec"]["id"]
        env = adapted_env(env_id)
        check_recorded_in(name, metadata, env)
        check_columns_of(f"--mix {name}", env, columns)
        if count > len(columns["obs"]):
            size = f"{len(columns['obs']):,} transitions, {count:,} are needed"
            fail(f"--mix {name}: has {size}; lower --steps")
        taken = draw_episodes(columns["last"], count, np.random.default_rng((args.seed, i)))
        parts.append({name: column[taken] for name, column in columns.items()})
        algorithms.append(metadata.get("algorithm_name", "unknown"))
    columns = {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}
    about = "episodes of " + " and ".join(f"{name} ({count:,} transitions)" for name, count in counts.items())
    algorithm = " + ".join(dict.fromkeys(algorithms))
    return Data(env, env_id, columns, algorithm, f"{about}; seed {args.seed}")


# ---- --from-run ----


def find_replay(folder: Path) -> tuple[dict, int]:
    """The resume.pt behind --from-run, which holds all seeds of a run, and the seed that is wanted."""
    seed_folder, runs = re.fullmatch(r"seed(\d+)", folder.resolve().name), []
    run_folder = folder.resolve().parent if seed_folder else folder
    for path in sorted(run_folder.glob("seed*/resume.pt")):
        saved = load("--from-run", path, "rings")
        first = saved["args"]["seed"]
        seed = int(seed_folder[1]) if seed_folder else first
        if first <= seed < first + saved["num_seeds"]:
            runs.append((saved, seed))
    if not runs:
        fail(f"--from-run {folder}: is not the folder of a run with resume.pt, which --keep-replay keeps")
    if len(runs) > 1:
        fail(f"--from-run {folder}: holds {len(runs)} runs; name the folder of one of their seeds")
    return runs[0]


def read_run(args: Args) -> Data:
    """The online transitions of one seed that --from-run kept, the oldest first."""
    saved, seed = find_replay(Path(args.from_run))
    env_id, index = saved["env"], seed - saved["args"]["seed"]
    if args.env not in (None, env_id):
        fail(f"--env {args.env}: the run {args.from_run} is of {env_id}")
    env = adapted_env(env_id)
    rows, last = saved["rings"][index].numpy(), saved["ends"][index].numpy() > 0
    width = 2 * env.observation_space.shape[0] + env.action_space.shape[0] + 2
    if len(rows) == 0 or rows.shape[1] != width:
        size = f"{len(rows)} online transitions of {rows.shape[1]} numbers"
        fail(f"--from-run {args.from_run}: has {size}; {env_id} has {width}")
    oldest = saved["added"] % len(rows)  # where the next one would be written
    unknown = np.full(len(rows), -1)
    columns = columns_of(env, np.roll(rows, -oldest, 0), np.roll(last, -oldest), unknown)
    check_columns_of(f"--from-run {args.from_run}", env, columns)
    about = (
        f"the last {len(rows):,} of {saved['added']:,} online transitions of run {saved['run']}, seed {seed}"
    )
    return Data(env, env_id, columns, saved["family"].upper(), f"self-collected: {about}")


# ---- the dataset ----


def check_new_dataset(name: str) -> None:
    """Ends with one line if `name` cannot be the id of a new Minari dataset in the local cache."""
    try:
        minari.dataset.minari_dataset.parse_dataset_id(name)
    except (ValueError, TypeError):
        fail(f"--dataset-id {name}: a Minari id looks like hopper/mine-v0")
    path = minari.storage.get_dataset_path(name)
    if path.exists():
        fail(f"--dataset-id {name}: {path} exists; delete it or take another name")


def borders_of(columns: dict[str, np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
    """First rows of the episodes, and the rows after their last ones.

    An episode also ends where the next row does not go on from it: there a run was resumed.
    """
    last = columns["last"].copy()
    last[:-1] |= (columns["next_obs"][:-1] != columns["obs"][1:]).any(1)
    last[-1] = True
    ends = np.flatnonzero(last) + 1
    return np.append(0, ends[:-1]), ends


def write_arrays(group, name: str, values: np.ndarray | dict) -> None:
    """Into an HDF5 group: an array, or a Dict's arrays as a group of that name."""
    if isinstance(values, dict):
        for key, part in values.items():
            write_arrays(group.require_group(name), key, part)
    else:
        group.create_dataset(name, data=values, compression="gzip", shuffle=True)


def write_episodes(path: Path, data: Data) -> None:
    """Minari's HDF5 file; gzipped, a third of the size of its own."""
    import h5py

    columns = data.columns
    with h5py.File(path, "w", libver="latest", track_order=True) as file:
        for i, (start, end) in enumerate(zip(*borders_of(columns), strict=True)):
            group, rows = file.create_group(f"episode_{i}"), slice(start, end)
            group.attrs.update({"id": i, "total_steps": end - start})
            if columns["reset_seed"][start] >= 0:
                group.attrs["seed"] = columns["reset_seed"][start]
            obs = np.concatenate([columns["obs"][rows], columns["next_obs"][end - 1 : end]])
            terminated, truncated = columns["terminated"][rows].astype(bool), np.zeros(end - start, bool)
            truncated[-1] = not terminated[-1]
            write_arrays(group, "observations", from_vector(obs, data.env.env.observation_space))
            write_arrays(group, "actions", columns["action"][rows])
            write_arrays(group, "rewards", columns["reward"][rows].astype(np.float32))
            write_arrays(group, "terminations", terminated)
            write_arrays(group, "truncations", truncated)


def write_minari(name: str, data: Data, description: str) -> None:
    """The dataset `name` in Minari's cache; under a hidden name until it is whole."""
    path, env, packages = minari.storage.get_dataset_path(name), data.env.env, ("gymnasium", "mujoco")
    low, high = D4RL_SCORES.get(task_of(data.env_id), (None, None))
    metadata = {
        "dataset_id": name,
        "minari_version": minari.__version__,
        "author": {"o2o-scripts"},
        "algorithm_name": data.algorithm,
        "description": description,
        "requirements": [f"{package}=={version(package)}" for package in packages if find_spec(package)],
        "total_episodes": len(borders_of(data.columns)[0]),
        "total_steps": len(data.columns["obs"]),
    }
    if low is not None:
        metadata |= {"ref_min_score": low, "ref_max_score": high}
    part = path.with_name(f".{path.name}.part")
    shutil.rmtree(part, ignore_errors=True)  # of a call that was killed
    try:
        part.mkdir(parents=True)
        storage = MinariStorage.new(
            part / "data",
            env.observation_space,
            env.action_space,
            env_spec=registration_of(data.env),
            jpeg_encoding=False,
        )
        write_episodes(part / "data" / "main_data.hdf5", data)
        storage.update_metadata(metadata | {"dataset_size": storage.get_size()})
        namespace = name.rpartition("/")[0]
        if namespace and namespace not in minari.namespace.list_local_namespaces():
            minari.namespace.create_namespace(namespace)
        os.replace(part, path)
    except BaseException:
        shutil.rmtree(part, ignore_errors=True)
        raise


def print_summary(data: Data) -> None:
    """What the episodes are like."""
    starts, ends = borders_of(data.columns)
    returns = np.add.reduceat(data.columns["reward"].astype(float), starts)
    for name, values in (("return", returns), ("length", ends - starts)):
        quantiles = " / ".join(f"{q:.0f}" for q in np.quantile(values, (0, 0.25, 0.5, 0.75, 1)))
        print(f"{name}: mean {values.mean():.1f}, min / quartiles / max {quantiles}")
    scores = D4RL_SCORES.get(task_of(data.env_id))
    if scores:
        score = 100 * (returns.mean() - scores[0]) / (scores[1] - scores[0])
        print(f"normalised score of the mean return: {score:.1f} (0: D4RL's random policy, 100: its expert)")


def main(args: Args) -> None:
    sources = {"policy": read_policy, "from_run": read_run, "mix": read_mix, "convert": read_d4rl}
    given = [name for name in sources if getattr(args, name)]
    if len(given) != 1:
        fail("give one of --policy, --from-run, --mix and --convert")
    if args.actions != "stochastic" and args.policy in (None, "random"):
        fail(f"--actions {args.actions}: needs a checkpoint as --policy")
    try:
        check_new_dataset(args.dataset_id)
        data = sources[given[0]](args)
        count = args.steps or len(data.columns["obs"])
        if count > len(data.columns["obs"]):
            fail(f"--steps {count}: the source has {len(data.columns['obs']):,} transitions")
        data = data._replace(columns={name: column[:count] for name, column in data.columns.items()})
        command = shlex.join(["python", "collect_dataset.py", *sys.argv[1:]])
        text = f"{data.about}. {count:,} transitions of {data.env_id}. Command: {command}"
        write_minari(args.dataset_id, data, text)
    except (KeyboardInterrupt, OSError) as error:
        fail(f"--dataset-id {args.dataset_id}: nothing was written ({str(error) or 'interrupted'})")
    print(f"{data.env_id}: {data.about}")
    print(f"wrote {args.dataset_id}: {count:,} transitions, {len(borders_of(data.columns)[0]):,} episodes")
    print_summary(data)
    words = ["python", "offline_pretrain_sac.py", "--env", data.env_id, "--dataset", args.dataset_id]
    print("next:", shlex.join(words))


if __name__ == "__main__":
    os.environ.setdefault("PYDANTIC_ERRORS_INCLUDE_URL", "0")  # no link in tyro's box
    main(tyro.cli(Args, description=__doc__.split("\n\n")[0]))
