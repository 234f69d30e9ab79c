"""collect_dataset.py: what is stored is what was executed, the stop is unbiased, mixing is exact, bad input."""

import json
import shutil
import subprocess
import sys
from itertools import count
from pathlib import Path

import gymnasium as gym
import minari
import numpy as np
import pytest
import torch
import tyro

import collect_dataset
import sac_scratch

HOPPER_SCORES = (-20.272305, 3234.3)  # D4RL's


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A run folder of two seeds, as sac_scratch.py leaves it."""
    runs = tmp_path_factory.mktemp("runs")
    short = {"online_steps": 20, "warmup_steps": 10, "eval_every": 20, "eval_episodes": 1, "batch_size": 4}
    sac_scratch.main(sac_scratch.Args(**short, num_seeds=2, hidden_dim=16, compile="off", runs_dir=str(runs)))
    (folder,) = (runs / "Hopper-v4").iterdir()
    return folder


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
    arrays = [(getattr(e, key) for key in ("observations", "actions", "rewards", "terminations")) for e in (a, b)]
    return all(np.array_equal(x, y) for x, y in zip(*arrays, strict=True))


def agent_of(checkpoint):
    saved = torch.load(checkpoint, weights_only=True)
    agent = sac_scratch.Agent([0], **saved["shape"])
    agent.load_state_dict(saved["agent"])
    return agent


def one_after_the_other(env_id, action_of, steps, seed):
    """Rows of a single plain environment, an independent second implementation; (rows, reset seeds)."""
    env, rows, seeds = gym.make(env_id), [], []
    for k in count():
        words = np.random.SeedSequence((seed, k)).generate_state(2, np.uint32)
        seeds.append((int(words[1]) << 32 | int(words[0])) >> 1)
        obs, ended, generator = env.reset(seed=seeds[-1])[0], False, np.random.default_rng((seed, k))
        while not ended:
            action = action_of(obs, generator)
            next_obs, reward, terminated, truncated, _ = env.step(action)
            rows.append((obs, action, reward, next_obs, terminated))
            obs, ended = next_obs, terminated or truncated
            if len(rows) == steps:
                return rows, seeds


def uniform(obs, generator):
    return generator.uniform(-1, 1, 3).astype(np.float32)


@pytest.mark.parametrize("env_id", ["Hopper-v4", "InvertedPendulum-v4"])  # the pendulum's bounds are -3 and 3
def test_every_episode_replays_exactly_in_the_recovered_environment(collect, env_id):
    dataset = collect(f"--policy random --env {env_id} --dataset-id task/random-v0 --steps 120")
    env = dataset.recover_environment()
    assert env.spec.id == env_id and dataset.total_steps == 120 and len(dataset) > 3
    lengths, actions = [], []
    for episode, seed in zip(dataset.iterate_episodes(), seeds_of(dataset), strict=True):
        obs, _ = env.reset(seed=seed)
        assert np.array_equal(episode.observations[0], obs.astype(np.float32))
        for t, action in enumerate(episode.actions):
            obs, reward, terminated, truncated, _ = env.step(action)
            assert np.array_equal(episode.observations[t + 1], obs.astype(np.float32))
            assert episode.rewards[t] == np.float32(reward)
            assert episode.terminations[t] == terminated
            cut = sum(lengths) + t + 1 == 120 and not terminated
            assert episode.truncations[t] == (truncated or cut)
        lengths.append(len(episode.actions))
        actions.append(episode.actions)
    assert sum(lengths) == 120
    bound = env.action_space.high[0]
    assert 0.9 * bound < np.abs(np.concatenate(actions)).max() <= bound


def test_the_data_are_those_of_one_environment_after_the_other(collect):
    dataset = collect("--policy random --dataset-id hopper/random-v0 --steps 200 --seed 7")
    rows, seeds = one_after_the_other("Hopper-v4", uniform, 200, seed=7)
    assert seeds_of(dataset) == seeds
    obs, actions, rewards, next_obs, terminations = (np.array(column) for column in zip(*rows, strict=True))
    episodes = list(dataset.iterate_episodes())
    assert np.array_equal(np.concatenate([e.observations[:-1] for e in episodes]), obs.astype(np.float32))
    assert np.array_equal(np.concatenate([e.observations[1:] for e in episodes]), next_obs.astype(np.float32))
    assert np.array_equal(np.concatenate([e.actions for e in episodes]), actions)
    assert np.array_equal(np.concatenate([e.rewards for e in episodes]), rewards.astype(np.float32))
    assert np.array_equal(np.concatenate([e.terminations for e in episodes]), terminations)
    ends = [(e.terminations[-1], e.truncations[-1]) for e in episodes]
    assert ends == [(True, False)] * (len(ends) - 1) + [(False, True)]


@pytest.mark.parametrize("extra", [0, 1])
def test_steps_that_end_with_an_episode_cut_nothing_and_one_more_step_starts_the_next(collect, extra):
    lengths = [len(e.actions) for e in collect("--policy random --dataset-id hopper/a-v0 --steps 200")]
    dataset = collect(f"--policy random --dataset-id hopper/b-v0 --steps {sum(lengths[:3]) + extra}")
    episodes = list(dataset.iterate_episodes())
    assert [len(e.actions) for e in episodes] == lengths[:3] + [1] * extra
    assert episodes[2].terminations[-1] and not episodes[2].truncations[-1]
    if extra:
        assert episodes[3].truncations.tolist() == [True] and episodes[3].terminations.tolist() == [False]


def test_a_seed_gives_the_same_data_again_a_prefix_when_shorter_and_others_with_another_seed(collect, trained):
    policy = f"--policy {trained}/seed1 --steps"
    long, again = collect(f"{policy} 150 --dataset-id hopper/a-v0"), collect(f"{policy} 150 --dataset-id hopper/b-v0")
    short = collect(f"{policy} 60 --dataset-id hopper/c-v0")
    other = collect(f"{policy} 60 --seed 2 --dataset-id hopper/d-v0")
    assert len(long) == len(again) > len(short) > 1
    assert all(same(a, b) for a, b in zip(long, again, strict=True)) and seeds_of(long) == seeds_of(again)
    assert all(same(long[i], short[i]) for i in range(len(short) - 1))
    kept = len(short[-1].actions)
    assert np.array_equal(long[len(short) - 1].actions[:kept], short[-1].actions)
    assert not np.array_equal(other[0].observations[0], short[0].observations[0])


@pytest.mark.parametrize("options", ["", "--actions deterministic", "--actions noisy --noise-std 0.5"])
def test_actions_are_those_of_the_checkpoint(collect, trained, options):
    agent = agent_of(trained / "seed2" / "checkpoint.pt")
    dataset = collect(f"--policy {trained}/seed2 --dataset-id hopper/a-v0 --steps 150 --seed 3 {options}")
    clipped = 0
    for k, episode in enumerate(dataset):
        obs, generator = torch.from_numpy(episode.observations[:-1])[None], np.random.default_rng((3, k))
        noise = torch.tensor(generator.standard_normal((len(episode.actions), 3)), dtype=torch.float32)[None]
        expected = sac_scratch.best_action(agent, obs)
        if not options:
            expected, _ = sac_scratch.sample_action(*agent.actor(obs), noise)
        if "noisy" in options:
            expected = (expected + 0.5 * noise).clamp(-1, 1)
        assert np.allclose(episode.actions, expected[0], atol=1e-6)
        clipped += (np.abs(episode.actions) == 1).sum()
    assert (clipped > 0) == ("noisy" in options)


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
    plain = subprocess.run([sys.executable, "-c", PLAIN], cwd=work, capture_output=True, text=True, check=True)
    assert json.loads(plain.stdout) == [["hopper/medium-v0"], 50, "Hopper-v4", True, 1.0, []]
    metadata = dataset.storage.metadata
    assert (metadata["ref_min_score"], metadata["ref_max_score"]) == HOPPER_SCORES
    assert metadata["algorithm_name"] == "SAC" and metadata["author"]
    assert metadata["requirements"] == [f"{name}=={sys.modules[name].__version__}" for name in ("gymnasium", "mujoco")]
    assert (metadata["total_steps"], metadata["total_episodes"]) == (50, len(dataset.episode_indices))
    text = metadata["description"]
    saved = torch.load(trained / "seed1" / "checkpoint.pt", weights_only=True)
    assert f"python collect_dataset.py {arguments}" in text and "stochastic actions" in text
    assert f"run {saved['run']}, seed 1, after 20 environment steps and 10 updates" in text and "seed 4." in text
    assert all(isinstance(seed, int) for seed in seeds_of(dataset)) and len(set(seeds_of(dataset))) == len(dataset)


def test_the_training_scripts_read_it(collect):
    dataset = collect("--policy random --env InvertedPendulum-v4 --dataset-id pendulum/random-v0 --steps 40")
    args = sac_scratch.Args(env="InvertedPendulum-v4", dataset="pendulum/random-v0")
    loaded = sac_scratch.load_dataset(args, 4, np.full(1, -3, np.float32), np.full(1, 3, np.float32))
    executed = np.concatenate([e.actions for e in dataset])
    assert loaded.rows.shape == (40, 4 + 1 + 1 + 4 + 2) and np.allclose(3 * loaded.rows[:, 4:5], executed, atol=1e-6)
    assert np.allclose(loaded.returns, [e.rewards.sum() for e in dataset])


@pytest.fixture
def sources(collect):
    a = collect("--policy random --dataset-id hopper/a-v0 --steps 300")
    b = collect("--policy random --dataset-id hopper/b-v0 --steps 300 --seed 2")
    return list(a), list(b), seeds_of(a), seeds_of(b)


@pytest.mark.parametrize("shares, expected", [(("=0.25", "=0.75"), (51, 152)), (("", ""), (102, 101))])
def test_a_mix_has_exact_shares_of_whole_episodes_in_their_order(collect, sources, shares, expected):
    mix = collect(f"--mix hopper/a-v0{shares[0]} hopper/b-v0{shares[1]} --steps 203 --dataset-id hopper/mix-v0")
    a, b, *seeds = sources
    taken, drawn, cut = [0, 0], [[], []], [0, 0]
    for episode, seed in zip(mix, seeds_of(mix), strict=True):
        part = 0 if seed in seeds[0] else 1
        number = seeds[part].index(seed)
        whole, length = (a, b)[part][number], len(episode.actions)
        assert np.array_equal(episode.observations, whole.observations[: length + 1])
        assert np.array_equal(episode.actions, whole.actions[:length])
        assert np.array_equal(episode.rewards, whole.rewards[:length])
        assert episode.terminations[-1] or episode.truncations[-1]
        assert not (episode.terminations | episode.truncations)[:-1].any()
        if length < len(whole.actions):
            cut[part] += 1
            assert episode.truncations[-1] and not episode.terminations[-1]
        else:
            assert same(episode, whole)
        taken[part] += length
        drawn[part].append(number)
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


def test_a_mix_of_everything_is_the_source(collect, sources):
    everything = collect("--mix hopper/a-v0 --steps 300 --dataset-id hopper/all-v0")
    assert all(same(x, y) for x, y in zip(everything, sources[0], strict=True))
    assert everything[-1].truncations[-1] and seeds_of(everything) == sources[2]


class Code:
    """Pickles as a call that makes a folder."""

    def __reduce__(self):
        return Path.mkdir, (Path("executed"),)


@pytest.fixture
def bad(work, trained):
    """Files that cannot be used, in the working directory."""
    saved = torch.load(trained / "seed1" / "checkpoint.pt", weights_only=True)
    weight = "actor.mlp.layers.0.weight"
    nan, narrow = (dict(saved["agent"]) for _ in range(2))
    nan[weight], narrow[weight] = nan[weight] * torch.nan, narrow[weight][:, :, :8]
    torch.save(saved | {"agent": nan}, "nan.pt")
    torch.save(saved | {"agent": narrow}, "narrow.pt")
    torch.save(saved | {"algorithm": "dqn"}, "dqn.pt")
    torch.save(saved | {"env": "HalfCheetah-v4"}, "cheetah.pt")
    torch.save({"weights": torch.zeros(3)}, "foreign.pt")
    torch.save(saved | {"run": Code()}, "code.pt")
    Path("cut.pt").write_bytes((trained / "seed1" / "checkpoint.pt").read_bytes()[:5000])
    Path("good.pt").write_bytes((trained / "seed1" / "checkpoint.pt").read_bytes())
    rows = np.zeros((6, 11 + 3 + 1 + 11 + 2), np.float32)
    sac_scratch.write_minari("hopper/here-v0", rows.copy(), [11, 3, 1, 11, 1, 1], "Hopper-v4")
    sac_scratch.write_minari("hopper/five-v0", rows.copy(), [11, 3, 1, 11, 1, 1], "Hopper-v5")
    sac_scratch.write_minari("hopper/cut-v0", rows.copy(), [11, 3, 1, 11, 1, 1], "Hopper-v4")
    with open("minari/hopper/cut-v0/data/main_data.hdf5", "r+b") as file:
        file.truncate(1000)
    rows[3, 12] = np.nan
    sac_scratch.write_minari("hopper/nan-v0", rows.copy(), [11, 3, 1, 11, 1, 1], "Hopper-v4")
    (work / "empty").mkdir()
    return trained


NEW = "--dataset-id hopper/new-v0"
BAD = {
    "neither": (f"{NEW}", "--policy or --mix"),
    "both": (f"--policy random --mix hopper/here-v0 {NEW}", "--policy or --mix"),
    "no id": ("--policy random", "--dataset-id"),
    "malformed id": ("--policy random --dataset-id hopper/new", "--dataset-id hopper/new"),
    "escaping id": ("--policy random --dataset-id ../new-v0", "--dataset-id ../new-v0"),
    "existing id": ("--policy random --dataset-id hopper/here-v0", "exists"),
    "no steps": (f"--policy random --steps 0 {NEW}", "--steps 0"),
    "fewer steps": (f"--policy random --steps -5 {NEW}", "--steps -5"),
    "seed": (f"--policy random --seed -1 {NEW}", "--seed -1"),
    "negative noise": (f"--policy good.pt --actions noisy --noise-std -0.1 {NEW}", "--noise-std -0.1"),
    "nan noise": (f"--policy good.pt --actions noisy --noise-std nan {NEW}", "--noise-std nan"),
    "infinite noise": (f"--policy good.pt --actions noisy --noise-std inf {NEW}", "--noise-std inf"),
    "noise on random": (f"--policy random --actions noisy {NEW}", "--actions noisy"),
    "unknown env": (f"--policy random --env Hoper-v4 {NEW}", "--env Hoper-v4"),
    "unknown version": (f"--policy random --env Hopper-v99 {NEW}", "--env Hopper-v99"),
    "unknown module": (f"--policy random --env nowhere:Hopper-v4 {NEW}", "--env nowhere:Hopper-v4"),
    "discrete env": (f"--policy random --env CartPole-v1 {NEW}", "--env CartPole-v1"),
    "no checkpoint": (f"--policy nowhere.pt {NEW}", "--policy nowhere.pt"),
    "empty folder": (f"--policy empty {NEW}", "--policy empty"),
    "two seeds": (f"--policy RUN {NEW}", "holds 2 seeds"),
    "cut checkpoint": (f"--policy cut.pt {NEW}", "--policy cut.pt"),
    "foreign checkpoint": (f"--policy foreign.pt {NEW}", "--policy foreign.pt"),
    "code in checkpoint": (f"--policy code.pt {NEW}", "--policy code.pt"),
    "other family": (f"--policy dqn.pt {NEW}", "dqn"),
    "nan parameters": (f"--policy nan.pt {NEW}", "not finite"),
    "other tensors": (f"--policy narrow.pt {NEW}", "tensors do not fit"),
    "other shapes": (f"--policy cheetah.pt {NEW}", "HalfCheetah-v4"),
    "other env": (f"--policy good.pt --env Hopper-v5 {NEW}", "--env Hopper-v5"),
    "shares": (f"--mix hopper/here-v0=0.5 hopper/five-v0=0.4 {NEW}", "sum to 0.9"),
    "negative share": (f"--mix hopper/here-v0=1.5 hopper/five-v0=-0.5 {NEW}", "share"),
    "nan share": (f"--mix hopper/here-v0=nan {NEW}", "share"),
    "empty share": (f"--mix hopper/here-v0= {NEW}", "share"),
    "tiny share": (f"--mix hopper/here-v0=0.999 hopper/five-v0=0.001 --steps 4 {NEW}", "less than a transition"),
    "twice": (f"--mix hopper/here-v0=0.5 hopper/here-v0=0.5 {NEW}", "once"),
    "missing source": (f"--mix hopper/nowhere-v0 {NEW}", "hopper/nowhere-v0"),
    "cut source": (f"--mix hopper/cut-v0 --steps 4 {NEW}", "hopper/cut-v0: cannot be read"),
    "nan source": (f"--mix hopper/nan-v0 --steps 4 {NEW}", "episode 0"),
    "source of another env": (f"--mix hopper/here-v0 hopper/five-v0 --steps 4 {NEW}", "recorded in Hopper-v5"),
    "source of another --env": (f"--mix hopper/five-v0 --env Hopper-v4 --steps 4 {NEW}", "recorded in Hopper-v5"),
    "small source": (f"--mix hopper/here-v0 --steps 7 {NEW}", "6 transitions"),
}


@pytest.mark.parametrize("arguments, wanted", BAD.values(), ids=BAD)
def test_bad_input_is_one_line_and_writes_nothing(collect, bad, work, capfd, arguments, wanted):
    before = sorted(work.rglob("*"))
    capfd.readouterr()
    with pytest.raises(SystemExit) as stopped:
        collect(arguments.replace("RUN", str(bad)))
    out, err = capfd.readouterr()
    assert stopped.value.code == 2 and out == ""
    assert err.startswith("error: --") and err.count("\n") == 1 and wanted in err
    assert sorted(work.rglob("*")) == before


@pytest.mark.parametrize(
    "target, error", [("Episode.step", KeyboardInterrupt()), ("write_atomically", OSError("full"))]
)
def test_an_interruption_or_a_full_disk_leaves_no_dataset(collect, work, capfd, monkeypatch, target, error):
    def stop(*_):
        raise error

    monkeypatch.setattr(f"collect_dataset.{target}", stop)
    with pytest.raises(SystemExit) as stopped:
        collect("--policy random --dataset-id hopper/new-v0 --steps 20")
    last = capfd.readouterr().err.splitlines()[-1]
    assert stopped.value.code == 2 and "nothing was written" in last and (str(error) or "interrupted") in last
    assert not (work / "minari" / "hopper" / "new-v0").exists() and not minari.list_local_datasets()
