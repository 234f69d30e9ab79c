"""collect_dataset.py: what is stored is what was executed, stopping is unbiased, mixing exact; bad input."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import gymnasium as gym
import h5py
import minari
import numpy as np
import pytest
import torch
import tyro

import collect_dataset
import odd_envs  # noqa: F401  registers environments
import sac_scratch
from test_watch_policy import new_checkpoint
from watch_policy import load_policy

SHORT = "--batch-size 4 --eval-episodes 1 --compile off --hidden-dim 16 --warmup-steps 20 --keep-replay"


def train(folder: Path, arguments: str) -> Path:
    """The folder of a short run, which keeps its transitions."""
    words = f"{SHORT} {arguments} --runs-dir {folder}".split()
    sac_scratch.main(tyro.cli(sac_scratch.Args, args=words))
    (run,) = folder.glob("*/*")
    return run


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A run of two seeds and 30 steps."""
    return train(tmp_path_factory.mktemp("runs"), "--num-seeds 2 --online-steps 30")


@pytest.fixture
def work(tmp_path, monkeypatch):
    """An empty working directory, and an empty Minari cache in it."""
    monkeypatch.setenv("MINARI_DATASETS_PATH", str(tmp_path / "minari"))
    (tmp_path / "minari").mkdir()
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def collect(work, monkeypatch):
    """collect("--policy random --dataset-id hopper/a-v0") -> the dataset, read by Minari."""

    def run(arguments: str) -> minari.MinariDataset:
        argv = ["collect_dataset.py", *arguments.split()]
        monkeypatch.setattr(sys, "argv", argv)
        collect_dataset.main(tyro.cli(collect_dataset.Args))
        return minari.load_dataset(argv[argv.index("--dataset-id") + 1])

    return run


def seeds_of(dataset):
    return [about.get("seed") for about in dataset.storage.get_episode_metadata(range(len(dataset)))]


def same(a, b):
    names = ("observations", "actions", "rewards", "terminations")
    return all(np.array_equal(getattr(a, name), getattr(b, name)) for name in names)


def ends_of(dataset):
    """(terminated, truncated) at the end of each episode."""
    for episode in dataset:
        assert not (episode.terminations | episode.truncations)[:-1].any()
    return [(bool(e.terminations[-1]), bool(e.truncations[-1])) for e in dataset]


def rows_of(dataset):
    """obs, action, reward, next_obs, terminated of all episodes, in a row."""
    parts = []
    for e in dataset:
        obs = sac_scratch.to_vector(e.observations, 1)
        parts.append(np.column_stack([obs[:-1], e.actions, e.rewards, obs[1:], e.terminations]))
    return np.concatenate(parts)


# ---- --policy ----

ODD = [f"odd_envs:{name}-v0" for name in ("UnitLine", "Goal", "SharedArray", "Lopsided", "ArrayReward")]


@pytest.mark.parametrize("env_id", ["InvertedPendulum-v4", *ODD])
def test_episodes_replay_in_the_recovered_environment_and_the_scripts_read_them(collect, env_id):
    """The pendulum's bounds are -3 and 3, those of UnitLine are of the environment as made."""
    dataset = collect(f"--policy random --env {env_id} --dataset-id task/random-v0 --steps 60")
    env = dataset.recover_environment()
    assert env.spec.id == env_id.rpartition(":")[2] and dataset.total_steps == 60 and len(dataset) > 3
    assert dataset.observation_space == env.observation_space and dataset.action_space == env.action_space
    for episode, seed in zip(dataset, seeds_of(dataset), strict=True):
        obs = [sac_scratch.to_vector(env.reset(seed=seed)[0])]
        for t, action in enumerate(episode.actions):
            next_obs, reward, terminated, _, _ = env.step(action)
            obs.append(sac_scratch.to_vector(next_obs))
            assert episode.rewards[t] == np.float32(reward) and episode.terminations[t] == terminated
        assert np.array_equal(sac_scratch.to_vector(episode.observations, 1), obs)
    assert ends_of(dataset)[-1] == (bool(terminated), not terminated)
    rows, low, high, column = rows_of(dataset), env.action_space.low, env.action_space.high, len(obs[0])
    assert 0.8 * high < rows[:, column].max() <= high
    rows[:, column] = (2 * rows[:, column] - high - low) / (high - low)
    args = sac_scratch.Args(env=env_id, dataset="task/random-v0")
    read = sac_scratch.load_dataset(args, sac_scratch.make_env(env_id)).rows
    assert np.allclose(read, rows, atol=1e-6)


def one_after_the_other(steps, seed):
    """Transitions of a single plain Hopper with random actions, an independent second implementation.

    Also the episodes' reset seeds, and the numbers of transitions at which they begin.
    """
    env, rows, seeds, starts = gym.make("Hopper-v4"), [], [], []
    while len(rows) < steps:
        k = len(seeds)
        seeds.append(int(np.random.SeedSequence((seed, k)).generate_state(1)[0]))
        starts.append(len(rows))
        obs, ended, generator = env.reset(seed=seeds[-1])[0], False, np.random.default_rng((seed, k))
        while not ended:
            action = generator.uniform(-1, 1, 3).astype(np.float32)
            next_obs, reward, ended, _, _ = env.step(action)
            rows.append([*obs, *action, reward, *next_obs, ended])
            obs = next_obs
    return np.array(rows, np.float32), seeds, starts


@pytest.mark.parametrize("seed", [1, 7])
def test_the_data_are_those_of_one_environment_after_the_other(collect, seed):
    """So a shorter call gives the beginning; steps that end with an episode cut none, one more starts the next."""
    rows, seeds, starts = one_after_the_other(200, seed)
    for steps in (starts[3], starts[3] + 1, 200):
        dataset = collect(f"--policy random --dataset-id hopper/n{steps}-v0 --steps {steps} --seed {seed}")
        assert np.array_equal(rows_of(dataset), rows[:steps])
        begun = [start for start in starts if start < steps]
        assert seeds_of(dataset) == seeds[: len(begun)]
        assert [len(e.actions) for e in dataset] == np.diff([*begun, steps]).tolist()
        cut = int(rows[steps - 1, -1] == 0)
        assert ends_of(dataset) == [(True, False)] * (len(begun) - cut) + [(False, True)] * cut


ACTIONS = [("sac_scratch", "deterministic"), ("sac_scratch", "stochastic"), ("iql", "stochastic")]
ACTIONS += [(script, "noisy --noise-std 0.5") for script in ("sac_scratch", "td3_bc", "o3f_select")]


@pytest.mark.parametrize("script, options", ACTIONS)
def test_actions_are_those_of_the_checkpoint(collect, work, script, options):
    args = collect_dataset.Args("hopper/a-v0", actions=options.split()[0])
    policy = load_policy(new_checkpoint(script, work / "run"), args)
    dataset = collect(f"--policy run --dataset-id hopper/a-v0 --steps 150 --seed 3 --actions {options}")
    clipped = 0
    for k, episode in enumerate(dataset):
        obs, generator = torch.from_numpy(episode.observations[:-1]), np.random.default_rng((3, k))
        noise = torch.from_numpy(generator.standard_normal((len(obs), 3))).float()
        expected = policy.algorithm.best_action(policy.state, obs)
        if options == "stochastic":
            expected = policy.draw(obs, noise)
        if "noisy" in options:
            expected = (expected + 0.5 * noise).clamp(-1, 1)
        assert np.allclose(episode.actions, expected, atol=1e-5)
        clipped += (np.abs(episode.actions) == 1).sum()
    assert clipped > 0 or "noisy" not in options
    assert dataset.storage.metadata["algorithm_name"] == policy.script.FAMILY.upper()


def test_a_policy_is_a_file_a_seed_folder_or_a_run_folder_of_one_seed(collect, trained, work):
    shutil.copytree(trained / "seed1", work / "lone" / "seed1")
    names = (trained / "seed1" / "checkpoint.pt", trained / "seed1", work / "lone")
    data = [collect(f"--policy {p} --dataset-id hopper/x{i}-v0 --steps 20") for i, p in enumerate(names)]
    assert same(data[0][0], data[1][0]) and same(data[0][0], data[2][0])


PLAIN = """
import json, sys, minari
names = list(minari.list_local_datasets())
dataset = minari.load_dataset(names[0])
env = dataset.recover_environment()
obs, _ = env.reset(seed=int(next(iter(dataset.storage.get_episode_metadata([0])))["seed"]))
episode = dataset[0]
fits = bool(abs(env.step(episode.actions[0])[0] - episode.observations[1]).max() < 1e-6)
score = float(minari.get_normalized_score(dataset, 3234.3))
ours = sorted({"collect_dataset", "sac_scratch", "torch"} & set(sys.modules))
print(json.dumps([names, dataset.total_steps, env.spec.id, fits, score, ours]))
"""


def test_plain_minari_loads_it_and_its_metadata_are_complete(collect, trained, work):
    arguments = f"--policy {trained}/seed1 --dataset-id hopper/medium-v0 --steps 50 --seed 4"
    dataset = collect(arguments)
    command = [sys.executable, "-c", PLAIN]
    plain = subprocess.run(command, cwd=work, capture_output=True, text=True, check=True)
    assert json.loads(plain.stdout) == [["hopper/medium-v0"], 50, "Hopper-v4", True, 1.0, []]
    metadata = dataset.storage.metadata
    assert (metadata["ref_min_score"], metadata["ref_max_score"]) == (-20.272305, 3234.3)  # D4RL's
    assert metadata["algorithm_name"] == "SAC" and metadata["author"]
    versions = [f"{name}=={sys.modules[name].__version__}" for name in ("gymnasium", "mujoco")]
    assert metadata["requirements"] == versions
    assert (metadata["total_steps"], metadata["total_episodes"]) == (50, len(dataset.episode_indices))
    text = metadata["description"]
    assert f"python collect_dataset.py {arguments}" in text and "self-collected: stochastic actions" in text
    assert f"{trained.name}, seed 1, online after 30 environment steps and 10 updates" in text
    assert len(set(seeds_of(dataset))) == len(dataset) and "seed 4." in text
    assert "hopper" in minari.namespace.list_local_namespaces()


# ---- --from-run ----


def test_a_run_gives_its_online_transitions_by_seed_and_is_left_alone(collect, trained):
    path = trained / "seed1" / "resume.pt"
    before, saved = path.read_bytes(), torch.load(path, weights_only=True)
    for folder, index in ((trained, 0), (trained / "seed1", 0), (trained / "seed2", 1)):
        dataset = collect(f"--from-run {folder} --dataset-id hopper/run{folder.name[-5:]}-v0")
        ends, rows = saved["ends"][index], saved["rings"][index]
        assert np.allclose(rows_of(dataset), rows, atol=1e-6)  # Hopper's bounds are -1 and 1
        kinds = {1: (True, False), 2: (False, True)}
        expected = [kinds[int(end)] for end in ends if end] + [(False, True)] * int(ends[-1] == 0)
        assert ends_of(dataset) == expected and seeds_of(dataset) == [None] * len(dataset)
        assert f"run {trained.name}, seed {index + 1}" in dataset.storage.metadata["description"]
    assert path.read_bytes() == before
    short = collect(f"--from-run {trained} --steps 7 --dataset-id hopper/short-v0")
    assert np.allclose(rows_of(short), saved["rings"][0, :7], atol=1e-6)


def test_a_ring_that_wrapped_around_is_put_in_order_in_the_environments_own_space(collect, work):
    """A run with Dict observations and a ring of 25 transitions."""
    goal_run = train(work / "runs", "--env odd_envs:Goal-v0 --online-steps 40 --replay-capacity 25")
    saved = torch.load(goal_run / "seed1" / "resume.pt", weights_only=True)
    assert (saved["added"], saved["rings"].shape[1]) == (40, 25)
    dataset = collect(f"--from-run {goal_run} --dataset-id odd/goal-v0")
    ring = saved["rings"][0].numpy()
    assert np.allclose(rows_of(dataset), np.concatenate([ring[15:], ring[:15]]), atol=1e-6)
    assert sorted(dataset[0].observations) == ["goal", "state"]
    assert dataset[0].observations["state"]["z"].tolist() == [[7.0]] * (len(dataset[0].actions) + 1)
    args = sac_scratch.Args(env="odd_envs:Goal-v0", dataset="odd/goal-v0")
    read = sac_scratch.load_dataset(args, sac_scratch.make_env(args.env))
    assert np.allclose(read.rows, np.concatenate([ring[15:], ring[:15]]), atol=1e-6)


def test_an_episode_ends_where_a_run_was_resumed(collect, trained, work):
    """There the next row begins a new episode though none had ended."""
    saved = torch.load(trained / "seed1" / "resume.pt", weights_only=True)
    saved["rings"][0, 4:, :11] += 1
    saved["rings"][0, 4:, 15:26] += 1
    saved["ends"][0, :8] = 0
    (work / "cut" / "seed1").mkdir(parents=True)
    torch.save(saved, "cut/seed1/resume.pt")
    dataset = collect("--from-run cut --dataset-id hopper/cut-v0 --steps 8")
    assert [len(e.actions) for e in dataset] == [4, 4] and ends_of(dataset) == [(False, True)] * 2


# ---- --convert ----


def write_d4rl(path: str, **changes) -> dict:
    """Three episodes of four steps of Hopper's sizes: a terminal, a timeout, and the end of the file."""
    rng = np.random.default_rng(0)
    data = {"observations": rng.standard_normal((12, 11)), "actions": rng.uniform(-1, 1, (12, 3))}
    data |= {"rewards": rng.standard_normal((12, 1)), "terminals": np.arange(12) == 3}
    data |= {"timeouts": np.arange(12) == 7} | changes
    with h5py.File(path, "w") as file:
        for name, value in data.items():
            file[name] = value
    return data


def test_a_d4rl_file_becomes_the_dataset_that_the_scripts_read_from_it(collect):
    data = write_d4rl("plain.hdf5")
    dataset = collect("--convert plain.hdf5 --env Hopper-v4 --dataset-id hopper/plain-v0")
    assert [len(e.actions) for e in dataset] == [4, 3, 3]
    assert ends_of(dataset) == [(True, False), (False, True), (False, True)]
    assert np.array_equal(dataset[1].observations, data["observations"][4:8].astype(np.float32))
    env = sac_scratch.make_env("Hopper-v4")
    names = ("plain.hdf5", "hopper/plain-v0")
    one, other = (sac_scratch.load_dataset(sac_scratch.Args(dataset=name), env) for name in names)
    kept = np.arange(10) != 3  # nothing follows a terminal
    assert np.array_equal(one.rows[kept], other.rows[kept]) and np.array_equal(one.ends, other.ends)


# ---- --mix ----


@pytest.fixture
def sources(collect):
    a = collect("--policy random --dataset-id hopper/a-v0 --steps 300")
    b = collect("--policy random --dataset-id hopper/b-v0 --steps 300 --seed 2")
    return list(a), list(b), seeds_of(a), seeds_of(b)


@pytest.mark.parametrize("shares, expected", [(("=0.25", "=0.75"), (51, 152)), (("", ""), (102, 101))])
def test_a_mix_has_exact_shares_of_whole_episodes_in_their_order(collect, sources, shares, expected):
    parts = f"hopper/a-v0{shares[0]} hopper/b-v0{shares[1]}"
    mix = collect(f"--mix {parts} --steps 203 --dataset-id hopper/mix-v0")
    a, b, *seeds = sources
    taken, drawn, cut = [0, 0], [[], []], [0, 0]
    for episode, seed in zip(mix, seeds_of(mix), strict=True):
        part = 0 if seed in seeds[0] else 1
        number = seeds[part].index(seed)
        whole, length = (a, b)[part][number], len(episode.actions)
        assert np.array_equal(episode.observations, whole.observations[: length + 1])
        assert np.array_equal(episode.actions, whole.actions[:length])
        assert np.array_equal(episode.rewards, whole.rewards[:length])
        if length < len(whole.actions):
            cut[part] += 1
            assert episode.truncations[-1] and not episode.terminations[-1]
        else:
            assert same(episode, whole)
        taken[part] += length
        drawn[part].append(number)
    ends_of(mix)
    assert tuple(taken) == expected and mix.total_steps == 203
    assert all(numbers == sorted(set(numbers)) for numbers in drawn) and max(cut) <= 1
    assert drawn[0] != list(range(len(drawn[0])))  # drawn, not the first ones


def test_a_mix_is_drawn_by_its_seed_and_says_what_it_took(collect, sources):
    arguments = "--mix hopper/a-v0=0.5 hopper/b-v0=0.5 --steps 100 --dataset-id hopper"
    one, again, other = (collect(f"{arguments}/{name}") for name in ("c-v0", "d-v0", "e-v0 --seed 2"))
    assert seeds_of(one) == seeds_of(again) != seeds_of(other)
    text = one.storage.metadata["description"]
    assert "hopper/a-v0 (50 transitions) and hopper/b-v0 (50 transitions)" in text
    assert f"python collect_dataset.py {arguments}/c-v0" in text
    assert (one.storage.metadata["algorithm_name"], one.env_spec.id) == ("random", "Hopper-v4")


def test_a_mix_of_everything_is_the_source_also_of_dict_observations(collect, sources):
    everything = collect("--mix hopper/a-v0 --steps 300 --dataset-id hopper/all-v0")
    assert all(same(x, y) for x, y in zip(everything, sources[0], strict=True))
    assert seeds_of(everything) == sources[2]
    env = "--env odd_envs:Goal-v0 --steps 25"
    goal = collect(f"--policy random {env} --dataset-id odd/goal-v0")
    again = collect(f"--mix odd/goal-v0 {env} --dataset-id odd/again-v0")
    assert np.array_equal(rows_of(goal), rows_of(again)) and again.observation_space == goal.observation_space


def test_two_datasets_of_a_mix_are_drawn_each_for_itself(collect):
    for name in ("a", "b"):  # alike
        collect(f"--policy random --dataset-id hopper/{name}-v0 --steps 300")
    mix = collect("--mix hopper/a-v0 hopper/b-v0 --steps 200 --dataset-id hopper/mix-v0")
    half = 1 + np.cumsum([len(episode.actions) for episode in mix]).tolist().index(100)
    seeds = seeds_of(mix)
    assert {*seeds[:half]} != {*seeds[half:]}


def test_the_summary_tells_quartiles_and_the_normalised_score(capsys):
    """Two episodes of one step, with the returns of D4RL's random and expert policies."""
    reward, obs = np.array([-20.272305, 3234.3]), np.zeros((2, 1))
    columns = {"reward": reward, "obs": obs, "next_obs": obs, "last": np.array([True, True])}
    collect_dataset.print_summary(collect_dataset.Data(None, "Hopper-v4", columns, "", ""))
    out = capsys.readouterr().out
    assert "return: mean 1607.0, min / quartiles / max -20 / 793 / 1607 / 2421 / 3234\n" in out
    assert "normalised score of the mean return: 50.0 (" in out


# ---- bad input ----


@pytest.fixture
def bad(collect, work, trained):
    """Files that cannot be used, in the working directory; checkpoints: more in test_watch_policy.py."""
    saved = torch.load(trained / "seed1" / "checkpoint.pt", weights_only=True)
    torch.save(saved, "good.pt")
    torch.save({"weights": torch.zeros(3)}, "foreign.pt")
    first = {key: saved[key] for key in ("script", "env", "run", "phase")}
    torch.save(first | {"agent": saved["state"]["actor"]}, "first.pt")
    new_checkpoint("td3_bc", work / "td3_bc")
    write_d4rl("nan.hdf5", rewards=np.where(np.arange(12) == 5, np.nan, 1))
    write_d4rl("over.hdf5", actions=np.full((12, 3), 1.1))
    write_d4rl("short.hdf5", rewards=np.zeros(11))
    write_d4rl("fewer.hdf5", actions=np.zeros((11, 3)))
    write_d4rl("narrow.hdf5", observations=np.zeros((12, 8)))
    for name in ("here", "five", "cut", "nan"):
        env_id = "Hopper-v5" if name == "five" else "Hopper-v4"
        collect(f"--policy random --env {env_id} --steps 6 --dataset-id hopper/{name}-v0")
    with open("minari/hopper/cut-v0/data/main_data.hdf5", "r+b") as file:
        file.truncate(1000)
    with h5py.File("minari/hopper/nan-v0/data/main_data.hdf5", "r+") as file:
        file["episode_0/rewards"][3] = np.nan
    (work / "empty").mkdir()
    replay = torch.load(trained / "seed1" / "resume.pt", weights_only=True)
    for name, changes in {"none": {"rings": replay["rings"][:, :0]}, "old": {"format": 1}}.items():
        Path(name, "seed1").mkdir(parents=True)
        torch.save(replay | changes, f"{name}/seed1/resume.pt")
    shutil.copytree("none/seed1", "old/seed7")


NEW = "--dataset-id hopper/new-v0"
MIX = f"{NEW} --mix hopper/here-v0"
CONVERT = f"{NEW} --env Hopper-v4 --convert"
BAD = {
    "no source": (NEW, "give one of --policy, --from-run, --mix and --convert"),
    "two sources": (f"--policy random --mix hopper/here-v0 {NEW}", "give one of --policy"),
    "malformed id": ("--policy random --dataset-id hopper/new", "--dataset-id hopper/new"),
    "escaping id": ("--policy random --dataset-id ../new-v0", "--dataset-id ../new-v0"),
    "existing id": ("--policy random --dataset-id hopper/here-v0", "exists"),
    "noise on random": (f"--policy random --actions noisy {NEW}", "--actions noisy"),
    "unknown env": (f"--policy random --env Hoper-v4 {NEW}", "--env Hoper-v4"),
    "unknown module": (f"--policy random --env nowhere:Hopper-v4 {NEW}", "--env nowhere:Hopper-v4"),
    "discrete env": (f"--policy random --env CartPole-v1 {NEW}", "--env CartPole-v1"),
    "env that raises": (f"--policy random --env odd_envs:Raises-v0 {NEW}", "no display"),
    "infinite reward": (f"--policy random --env odd_envs:SometimesInfinite-v0 {NEW}", "(-inf) is not"),
    "no checkpoint": (f"--policy nowhere.pt {NEW}", "--policy nowhere.pt"),
    "empty folder": (f"--policy empty {NEW}", "--policy empty"),
    "two seeds": (f"--policy RUN {NEW}", "holds 2 seeds"),
    "foreign checkpoint": (f"--policy foreign.pt {NEW}", "--policy foreign.pt: not a checkpoint"),
    "checkpoint of the first version": (f"--policy first.pt {NEW}", "the first version of these scripts"),
    "no distribution": (f"--policy td3_bc {NEW}", "has no distribution"),
    "other env": (f"--policy good.pt --env Hopper-v5 {NEW}", "--env Hopper-v5"),
    "no run": (f"--from-run nowhere {NEW}", "--from-run nowhere: is not the folder of a run"),
    "run without replay": (f"--from-run td3_bc {NEW}", "--from-run td3_bc: is not the folder"),
    "run of the first format": (f"--from-run old/seed1 {NEW}", "has no rings in format 2"),
    "empty replay": (f"--from-run none {NEW}", "0 online transitions"),
    "run of another env": (f"--from-run RUN --env Hopper-v5 {NEW}", "--env Hopper-v5"),
    "seed that is not there": (f"--from-run RUN/seed9 {NEW}", "is not the folder of a run"),
    "more steps than the run's": (f"--from-run RUN --steps 31 {NEW}", "--steps 31: the source has 30"),
    "shares": (f"--mix hopper/here-v0=0.5 hopper/five-v0=0.4 {NEW}", "sum to 0.9"),
    "negative share": (f"--mix hopper/here-v0=1.5 hopper/five-v0=-0.5 {NEW}", "share"),
    "nan share": (f"--mix hopper/here-v0=nan {NEW}", "share"),
    "empty share": (f"--mix hopper/here-v0= {NEW}", "share"),
    "tiny share": (f"{MIX}=0.999 hopper/five-v0=0.001 --steps 4", "less than one transition"),
    "twice": (f"--mix hopper/here-v0=0.5 hopper/here-v0=0.5 {NEW}", "once"),
    "missing source": (f"--mix hopper/nowhere-v0 {NEW}", "hopper/nowhere-v0"),
    "cut source": (f"--mix hopper/cut-v0 --steps 4 {NEW}", "hopper/cut-v0: cannot be read"),
    "nan source": (f"--mix hopper/nan-v0 --steps 4 {NEW}", "reward of row 3 is not finite"),
    "source of another env": (f"{MIX} hopper/five-v0 --steps 4", "recorded in Hopper-v5"),
    "source of another --env": (f"{MIX} --env Hopper-v5 --steps 4", "recorded in Hopper-v4"),
    "small source": (f"--mix hopper/here-v0 --steps 7 {NEW}", "6 transitions"),
    "file without --env": (f"--convert nan.hdf5 {NEW}", "give --env"),
    "no file": (f"{CONVERT} nowhere.hdf5", "nowhere.hdf5: cannot be read"),
    "no HDF5 file": (f"{CONVERT} good.pt", "good.pt: cannot be read"),
    "short column": (f"{CONVERT} short.hdf5", "cannot reshape array of size 11"),
    "fewer rows": (f"{CONVERT} fewer.hdf5", "fewer.hdf5: cannot be read"),
    "narrow file": (f"{CONVERT} narrow.hdf5", "obs has shape (8,); Hopper-v4 has (11,)"),
    "nan in a file": (f"{CONVERT} nan.hdf5", "reward of row 5 is not finite: nan"),
    "action out of bounds": (f"{CONVERT} over.hdf5", "action of row 0 is out of bounds: [1.1, 1.1, 1.1]"),
}


def test_bad_input_is_one_line_and_writes_nothing(collect, bad, trained, work, capfd, subtests):
    before = sorted(work.rglob("*"))
    for name, (arguments, wanted) in BAD.items():
        capfd.readouterr()
        with subtests.test(name):
            with pytest.raises(SystemExit) as stopped:
                collect(arguments.replace("RUN", str(trained)))
            out, err = capfd.readouterr()
            assert stopped.value.code == 2 and out == ""
            assert err.startswith("error: ") and err.count("\n") == 1 and wanted in err
            assert sorted(work.rglob("*")) == before


@pytest.mark.parametrize("option", ["steps 0", "seed -1", "noise-std nan"])
def test_an_option_out_of_range_is_refused_by_name(collect, work, capfd, option):
    with pytest.raises(SystemExit) as stopped:
        collect(f"--policy random {NEW} --{option}")
    out, err = capfd.readouterr()
    assert stopped.value.code == 2 and "Traceback" not in out + err
    assert option.split()[0].replace("-", "_") in out + err
    assert list((work / "minari").iterdir()) == []


STOPS = [("Episode.step", KeyboardInterrupt()), ("write_episodes", OSError("full"))]


@pytest.mark.parametrize("target, error", STOPS)
def test_an_interruption_or_a_full_disk_leaves_no_dataset(collect, work, capfd, monkeypatch, target, error):
    def stop(*_):
        raise error

    monkeypatch.setattr(f"collect_dataset.{target}", stop)
    with pytest.raises(SystemExit) as stopped:
        collect("--policy random --dataset-id hopper/new-v0 --steps 20")
    last = capfd.readouterr().err.splitlines()[-1]
    assert stopped.value.code == 2 and "nothing was written" in last and (str(error) or "interrupted") in last
    assert not minari.list_local_datasets() and not list((work / "minari").glob("*/*"))
