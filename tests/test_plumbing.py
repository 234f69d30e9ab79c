"""Data, environments, replay, the loop and names: the blocks that have one text in every script of the second house."""

import json
import math
import pwd
import shutil
import time
from dataclasses import fields
from pathlib import Path
from types import SimpleNamespace

import gymnasium as gym
import h5py
import minari
import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch.utils._pytree import tree_map

import odd_envs
import offline_pretrain_sac
import online_finetune_sac as script
import sac_scratch

HOPPER = {"obs_dim": 11, "action_dim": 3}


# ---- environments ----


def test_the_adapter_gives_vectors_unit_actions_and_arrays_of_ones_own():
    env = script.make_env("odd_envs:Lopsided-v0")
    obs, _ = env.reset(seed=0)
    assert obs.dtype == np.float32 and env.action_space.low == -1 and env.action_space.high == 1
    for action, executed in ((-1, -0.5), (0, 0.5), (1, 1.5)):
        before = obs[0]
        obs, reward, terminated, truncated, _ = env.step(np.array([action], np.float32))
        assert obs[0] - before == pytest.approx(0.5 * executed, abs=1e-6)
        assert (type(reward), type(terminated), type(truncated)) == (float, bool, bool)
    held, _ = (env := script.make_env("odd_envs:SharedArray-v0")).reset(seed=0)
    kept = held.copy()
    env.step(np.array([1.0], np.float32))
    assert (held == kept).all()


def test_bounds_are_those_of_the_environment_as_made():
    """UnitLine-v0 rescales its actions itself: what is 1 for it is 1 for us."""
    env = script.make_env("odd_envs:UnitLine-v0")
    obs, _ = env.reset(seed=0)
    assert (env.center, env.scale) == (0, 1)
    assert env.step(np.array([1.0], np.float32))[0][0] - obs[0] == pytest.approx(0.5 * 2, abs=1e-6)


def test_dictionaries_become_vectors_in_the_order_of_their_keys_at_every_level():
    env = script.make_env("odd_envs:Goal-v0")
    obs, _ = env.reset(seed=0)
    np.testing.assert_allclose(obs, [2, env.unwrapped.place, 7], rtol=1e-6)
    episode = {
        "state": {"z": np.full((4, 1), 7.0), "place": np.arange(4.0)[:, None]},
        "goal": np.full((4, 1), 2.0),
    }
    np.testing.assert_array_equal(script.to_vector(episode, 1), [[2, i, 7] for i in range(4)])


def test_a_reward_may_be_an_array_of_one_number():
    env = script.make_env("odd_envs:ArrayReward-v0")
    env.reset(seed=0)
    assert env.step(np.zeros(1, np.float32))[1] == 1.0


@pytest.mark.parametrize("env_id, bound", [("Hopper-v4", 1), ("Pendulum-v1", 2)])
def test_episodes_are_those_of_gymnasium(env_id, bound):
    ours, plain = script.make_env(env_id), gym.make(env_id)
    rng = np.random.default_rng(0)
    obs, expected = ours.reset(seed=3)[0], plain.reset(seed=3)[0]
    for _ in range(30):
        np.testing.assert_allclose(obs, expected, rtol=1e-5, atol=1e-6)
        action = rng.uniform(-1, 1, ours.action_space.shape).astype(np.float32)
        (obs, reward, *ends, _), (expected, plain_reward, *plain_ends, _) = (
            ours.step(action),
            plain.step(bound * action),
        )
        assert ends == plain_ends and reward == pytest.approx(plain_reward, rel=1e-5)
        if any(ends):
            obs, expected = ours.reset()[0], plain.reset()[0]


def test_an_environment_without_a_step_limit_is_taken_with_a_line(capsys):
    script.open_env("odd_envs:OwnClock-v0")
    assert "no step limit" in capsys.readouterr().out


# ---- data ----


def write_hdf5(path, episodes, given_next=False, timeouts=True, **change):
    """Episodes [(length, terminated)] whose observation tells (episode, step), as D4RL's flat arrays."""
    rows = [(e, t, t == length - 1, end) for e, (length, end) in enumerate(episodes) for t in range(length)]
    number, step, last, terminal = (np.array(column) for column in zip(*rows, strict=True))
    obs = np.zeros((len(rows), 11), np.float32)
    obs[:, 0], obs[:, 1] = number, step
    data = {"observations": obs, "actions": np.full((len(rows), 3), 0.5), "rewards": np.ones(len(rows))}
    data["terminals"] = last & terminal
    if timeouts:
        data["timeouts"] = last & ~terminal
    if given_next:
        data["next_observations"] = obs + np.eye(11)[1]
    with h5py.File(path, "w") as file:
        for key, value in (data | change).items():
            if value is not None:
                file[key] = value
    return path


def read(path, env_id="Hopper-v4", **options):
    env = script.make_env(env_id)
    return script.load_dataset(script.Args(dataset=str(path), env=env_id, **options), env)


EPISODES = st.lists(st.tuples(st.integers(1, 6), st.booleans()), min_size=1, max_size=6)


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(episodes=EPISODES, given_next=st.booleans())
def test_a_d4rl_file_is_read_as_its_episodes_are(tmp_path, episodes, given_next):
    """Never across an end; the last transition of a truncated episode needs its next observation."""
    kept = [(n if terminal or given_next else n - 1, terminal) for n, terminal in episodes]
    if sum(n for n, _ in kept) == 0:
        return
    dataset = read(write_hdf5(tmp_path / "x.hdf5", episodes, given_next))
    assert len(dataset.rows) == sum(n for n, _ in kept)
    obs, next_obs, terminated = dataset.rows[:, :11], dataset.rows[:, 15:26], dataset.rows[:, 26]
    alive = terminated == 0
    assert (next_obs[alive, 0] == obs[alive, 0]).all() and (next_obs[alive, 1] == obs[alive, 1] + 1).all()
    assert terminated.sum() == sum(terminal for _, terminal in kept)
    ends = [end for n, terminal in kept if n for end in [0] * (n - 1) + [1 if terminal else 2]]
    assert dataset.ends.tolist() == ends


@pytest.mark.parametrize("terminal_at, expected", [(None, 2997), (500, 2998)])
def test_without_timeouts_an_episode_ends_at_the_step_limit(tmp_path, terminal_at, expected):
    """D4RL's v0 files. Counted anew after a terminal: 500 steps, then 1,000, 1,000 and 500."""
    obs = np.zeros((3000, 11))
    obs[:, 0] = np.arange(3000)
    terminals = np.arange(1, 3001) == terminal_at
    columns = {
        "observations": obs,
        "rewards": np.ones(3000),
        "actions": np.zeros((3000, 3)),
        "terminals": terminals,
    }
    dataset = read(write_hdf5(tmp_path / "v0.hdf5", [(1, True)], timeouts=False, **columns))
    if terminal_at is None:
        assert len(dataset.rows) == expected and dataset.rows[998, 0] == 998 and dataset.rows[999, 0] == 1000
    else:  # the terminal keeps its row; ends at 1,500, 2,500 and 3,000 lose theirs
        assert len(dataset.rows) == 2997 and dataset.ends[499] == 1 and dataset.rows[1499, 0] == 1500
    assert (dataset.ends > 0).sum() == (3 if terminal_at is None else 4)


@pytest.mark.parametrize(
    "kind", ["rewards", "terminals", "float16", "big endian", "gzip", "other keys", "d3rlpy"]
)
def test_arrangements_of_d4rl_files(tmp_path, kind):
    episodes, path = [(4, True), (3, False)], tmp_path / "x.hdf5"
    plain = read(write_hdf5(path, episodes)).rows
    with h5py.File(path, "a") as file:
        data = {key: file[key][()] for key in file}
        if kind in ("rewards", "terminals"):
            data[kind] = data[kind][:, None]
        if kind in ("float16", "big endian"):
            dtype = {"float16": np.float16, "big endian": ">f4"}[kind]
            data |= {key: data[key].astype(dtype) for key in ("observations", "actions", "rewards")}
        if kind == "d3rlpy":  # 1.x: MDPDataset.dump
            terminals = data["terminals"].astype(np.float32)
            data["terminals"], data["episode_terminals"] = terminals, terminals + data.pop("timeouts")
            data |= {"discrete_action": False, "version": "1.0"}
        if kind == "other keys":
            data |= {"infos/qpos": np.zeros(7), "metadata/name": "x"}
        for key in list(file):
            del file[key]
        for key, value in data.items():
            file.create_dataset(key, data=value, compression="gzip" if kind == "gzip" else None)
    np.testing.assert_array_equal(read(path).rows, plain)


BAD_FILES = {
    "nan": ({"observations": np.where(np.arange(55).reshape(5, 11) == 25, np.nan, 0)}, "obs[2, 3] is nan"),
    "over": ({"actions": np.full((5, 3), 1.2)}, "15 values are out of bounds, action[0, 0] is 1.2"),
    "shape": ({"observations": np.zeros((5, 17))}, "obs has shape (5, 17); Hopper-v4 has (11,) per row"),
    "length": ({"rewards": np.ones(4)}, "cannot reshape array of size 4"),
    "missing": ({"terminals": None}, "object 'terminals' doesn't exist"),
    "reward": ({"rewards": np.ones((5, 2))}, "cannot be read"),
    "text": ({"actions": np.array([b"a"] * 5)}, "cannot be read"),
    "d3rlpy before 1.0": ({"discrete_action": False}, "with rewards one row late"),
}


@pytest.mark.parametrize("case", BAD_FILES)
def test_a_bad_file_is_refused_with_what_is_wrong_and_where(tmp_path, case, capsys):
    change, expected = BAD_FILES[case]
    path = write_hdf5(tmp_path / "x.hdf5", [(5, True)], **change)
    with pytest.raises(SystemExit) as ended:
        read(path)
    error = capsys.readouterr().err
    assert ended.value.code == 2 and error.count("\n") == 1 and expected in error


def test_actions_a_little_outside_are_clipped_if_asked_and_rounding_is_forgiven(tmp_path):
    path = write_hdf5(tmp_path / "x.hdf5", [(5, True)], actions=np.full((5, 3), 1.0008))
    assert read(path, clip_actions=True).rows[:, 11:14].max() == 1
    path = write_hdf5(tmp_path / "x.hdf5", [(5, True)], actions=np.full((5, 3), 1.00001))
    assert read(path).rows[:, 11:14].max() == 1


def test_actions_are_scaled_by_the_environments_bounds(tmp_path):
    columns = {
        "observations": np.zeros((3, 2)),
        "actions": np.array([[-0.5], [0.5], [1.5]]),
        "rewards": np.ones(3),
    }
    path = write_hdf5(tmp_path / "x.hdf5", [(3, True)], **columns)
    assert read(path, "odd_envs:Lopsided-v0").rows[:, 2].tolist() == [-1, 0, 1]


def test_episodes_beyond_the_limit_are_noted(tmp_path, capsys):
    columns = {"observations": np.zeros((25, 2)), "actions": np.zeros((25, 1))}
    read(write_hdf5(tmp_path / "x.hdf5", [(25, True)], **columns), "odd_envs:Line-v0")
    assert "beyond 10 steps" in capsys.readouterr().out


def test_a_minari_dataset_is_read_episode_by_episode(minari_cache):
    dataset = read("hopper/tiny-v0")
    plain = minari.load_dataset("hopper/tiny-v0")
    episodes = list(plain.iterate_episodes())
    first = episodes[0]
    n = len(first.rewards)
    np.testing.assert_allclose(dataset.rows[:n, :11], first.observations[:-1].astype(np.float32))
    np.testing.assert_allclose(dataset.rows[:n, 15:26], first.observations[1:].astype(np.float32))
    np.testing.assert_allclose(dataset.rows[:n, 14], first.rewards.astype(np.float32))
    assert len(dataset.rows) == 400 and np.flatnonzero(dataset.ends)[0] == n - 1
    assert (dataset.ends == 1).sum() == sum(e.terminations[-1] for e in episodes)
    assert dataset.description["recorded_in"] == "Hopper-v4" and dataset.description["scores"] == [
        -20.272305,
        3234.3,
    ]


@pytest.fixture
def copied(minari_cache, tmp_path):
    """copied(ref_min_score=None): the path of a copy of the small dataset with other metadata."""
    folder = tmp_path / "copy"
    shutil.copytree(Path(minari_cache, "hopper/tiny-v0"), folder)
    path = folder / "data" / "metadata.json"
    metadata = json.loads(path.read_text())

    def change(env_spec=None, **changes):
        if isinstance(env_spec, str):  # damaged
            changes["env_spec"] = env_spec
        elif env_spec is not None:
            changes["env_spec"] = json.dumps(json.loads(metadata["env_spec"]) | env_spec)
        path.write_text(json.dumps(metadata | changes))
        return folder

    return change


DIFFERENCES = {  # what the metadata say, and what is said about it
    "nothing": ({}, None),
    "version": (
        {"env_spec": {"id": "Hopper-v5"}},
        "id is Hopper-v5 in the dataset, Hopper-v4 in Hopper-v4",
    ),
    "limit": ({"env_spec": {"max_episode_steps": 300}}, "max_episode_steps is 300 in the dataset, 1000"),
    "keywords": ({"env_spec": {"kwargs": {"a": [1]}}}, "kwargs is {'a': [1]} in the dataset, {} in"),
}


@pytest.mark.parametrize("case", DIFFERENCES)
def test_what_a_dataset_was_recorded_with_is_compared_as_text(copied, case, capsys):
    """A dataset never makes the reader import what it names."""
    metadata, expected = DIFFERENCES[case]
    if "env_spec" in metadata:
        metadata["env_spec"]["entry_point"] = "no_such_module:Env"
    assert len(read(copied(**metadata)).rows) == 400
    notes = [line for line in capsys.readouterr().out.split("\n") if line.startswith("note")]
    assert len(notes) == (expected is not None) and all(expected in note for note in notes)


@pytest.mark.parametrize(
    "spec, expected", [({"id": "Walker2d-v4"}, "recorded in Walker2d-v4, not in"), (None, "")]
)
def test_a_dataset_of_another_environment_is_refused_and_damaged_metadata_too(copied, spec, expected, capsys):
    folder = copied(env_spec=spec) if spec else copied(env_spec="Hopper-v4")
    with pytest.raises(SystemExit):
        read(folder)
    error = capsys.readouterr().err
    assert error.count("\n") == 1 and (expected or "cannot be read: JSONDecodeError") in error


@pytest.mark.parametrize("low, high", [(1, 1), (1.0, None), ("1", "2"), (math.nan, 2.0), (None, None)])
def test_reference_scores_that_say_nothing_are_left_out(copied, low, high):
    assert read(copied(ref_min_score=low, ref_max_score=high)).description["scores"] is None


@pytest.mark.parametrize("terminal", [True, False])
def test_minari_episodes_without_a_last_observation_and_with_columns_of_one(copied, terminal):
    """After a truncation the last transition is dropped; after a terminal, none needs the observation."""
    folder = copied()
    plain = read(folder).rows
    with h5py.File(folder / "data" / "main_data.hdf5", "a") as file:
        for group in file.values():
            values = {key: group[key][()] for key in group if isinstance(group[key], h5py.Dataset)}
            values["observations"] = values["observations"][:-1]
            values["terminations"][-1], values["truncations"][-1] = terminal, not terminal
            for key in ("rewards", "terminations", "truncations"):
                values[key] = values[key][:, None]
            for key, value in values.items():
                del group[key]
                group[key] = value
        lengths = [len(group["rewards"]) for group in file.values()]
    dataset = read(folder)
    assert len(dataset.rows) == 400 - len(lengths) * (not terminal)
    ends = np.flatnonzero(dataset.ends)
    assert (dataset.ends[ends] == (1 if terminal else 2)).all() and len(ends) == len(lengths)
    np.testing.assert_array_equal(dataset.rows[: ends[0]], plain[: ends[0]])


def test_a_path_comes_before_the_cache_and_the_cache_before_the_bundled(minari_cache, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert script.find_dataset("hopper/tiny-v0") == Path(minari_cache, "hopper/tiny-v0")
    assert script.find_dataset("hopper/medium-replay-v0") == script.BUNDLED / "hopper/medium-replay-v0"
    (tmp_path / "hopper/tiny-v0/data").mkdir(parents=True)
    (tmp_path / "hopper/tiny-v0/data/metadata.json").write_text("{}")
    assert script.find_dataset("hopper/tiny-v0") == Path("hopper/tiny-v0")


def test_what_is_nowhere_is_downloaded(minari_cache, monkeypatch, capsys):
    """Only the call that reaches the hub is replaced."""
    asked = []
    monkeypatch.setattr(minari, "download_dataset", asked.append)
    assert script.find_dataset("mujoco/hopper/simple-v0") == Path(minari_cache, "mujoco/hopper/simple-v0")
    assert asked == ["mujoco/hopper/simple-v0"]

    def offline(_):
        raise ConnectionError("no route\nto host")

    monkeypatch.setattr(minari, "download_dataset", offline)
    with pytest.raises(SystemExit):
        script.find_dataset("mujoco/hopper/simple-v0")
    error = capsys.readouterr().err
    assert "cannot be downloaded" in error and error.count("\n") == 1


@pytest.mark.parametrize("name", ["hopper-medium-v2", "nowhere.hdf5", "../elsewhere"])
def test_what_is_no_dataset_says_what_minari_calls_it(minari_cache, name, capsys):
    with pytest.raises(SystemExit):
        script.find_dataset(name)
    assert "mujoco/hopper/medium-v0" in capsys.readouterr().err


def test_an_unwritable_home_does_not_matter_where_a_path_is_given(tmp_path, monkeypatch):
    monkeypatch.delenv("MINARI_DATASETS_PATH", raising=False)
    monkeypatch.setenv("HOME", "/proc/none")
    assert len(read(write_hdf5(tmp_path / "x.hdf5", [(5, True)])).rows) == 5
    monkeypatch.delenv("HOME")  # and no entry of the user in the system's list
    monkeypatch.setattr(pwd, "getpwuid", {}.__getitem__)
    assert len(read(tmp_path / "x.hdf5").rows) == 5


# ---- replay ----


def toy_dataset(count):
    """Rows whose first number is their place."""
    rows = np.zeros((count, 27), np.float32)
    rows[:, 0] = np.arange(count)
    return script.Dataset(rows, np.zeros(count, np.uint8), {})


def make_replay(count, seeds=2, capacity=5, ratio=None, added=0):
    """Online rows of seed i are 1000 (i + 1), 1000 (i + 1) + 1, ..."""
    replay = script.Replay(
        script.Args(num_seeds=seeds), HOPPER, toy_dataset(count) if count else None, capacity, "cpu"
    )
    if ratio is not None:
        replay.offline_ratio = torch.tensor(ratio)
    for step in range(added):
        obs = np.zeros((seeds, 11), np.float32)
        obs[:, 0] = 1000 * np.arange(1, seeds + 1) + step
        end = np.full(seeds, step == 1)
        replay.add(obs, np.full((seeds, 3), 0.5), np.full(seeds, 2.0), obs + 1, end, ~end)
    return replay


def test_a_batch_holds_what_was_added_column_by_column():
    batch = make_replay(0, added=3).sample(64)
    assert batch.obs.shape == (2, 64, 11) and batch.reward.shape == (2, 64)
    torch.testing.assert_close(batch.next_obs, batch.obs + 1)
    assert (batch.action == 0.5).all() and (batch.reward == 2).all()
    assert torch.equal(batch.terminated == 1, batch.obs[..., 0] % 1000 == 1)


@pytest.mark.parametrize("added", [0, 3, 8])
def test_all_rows_are_drawn_alike_and_a_full_ring_forgets_the_oldest(added):
    replay = make_replay(10, added=added)
    drawn = replay.sample(4000).obs[..., 0]
    for i in range(2):
        online = [1000 * (i + 1) + step for step in range(max(0, added - 5), added)]
        values, counts = drawn[i].unique(return_counts=True)
        assert values.tolist() == [*range(10), *online]
        expected = 4000 / len(values)
        assert (counts - expected).abs().max() < 6 * math.sqrt(expected)


@pytest.mark.parametrize("ratio, rows", [(0.0, 0), (0.25, 4), (0.3, 5), (0.5, 8), (1.0, 16)])
def test_a_ratio_is_exact_in_every_batch(ratio, rows):
    drawn = make_replay(10, ratio=ratio, added=3).sample(16).obs[..., 0]
    assert ((drawn < 1000).sum(1) == rows).all()


def test_the_ends_of_rows_are_kept_beside_them():
    replay = make_replay(10, added=7)  # the sixth and seventh overwrote the first two
    assert replay.ring_ends.tolist() == [[2, 2, 2, 2, 2]] * 2 and replay.added == 7
    assert make_replay(10, added=3).ends[10:].tolist() == [2, 1, 2, 0, 0] * 2


def test_a_task_that_ends_at_the_clocks_last_step_has_terminated():
    replay, both = make_replay(0), np.ones(2, bool)
    replay.add(np.zeros((2, 11)), np.zeros((2, 3)), np.ones(2), np.zeros((2, 11)), both, both)
    assert replay.ring_ends[:, 0].tolist() == [1, 1]


def test_a_full_ring_goes_on_after_a_resume_where_it_was():
    """Seven rows in rings of five: the next one replaces the third."""
    old, new = make_replay(0, added=7), make_replay(0)
    saved = {"rings": old.rings.clone(), "ends": torch.from_numpy(old.ring_ends.copy()), "added": old.added}
    saved |= {"random": [torch.get_rng_state()], "logs": {}}
    script.Run.restore(SimpleNamespace(saved=saved), {}, new)
    assert torch.equal(new.rings, old.rings) and (new.added, new.size.item()) == (7, 5)
    ends = np.zeros(2, bool)
    new.add(np.full((2, 11), 9.0), np.zeros((2, 3)), np.ones(2), np.zeros((2, 11)), ends, ends)
    assert new.rings[0, :, 0].tolist() == [1005, 1006, 9, 1003, 1004]


def test_the_share_of_dataset_rows_is_annealed():
    args, state = script.Args(offline_ratio=0.5, offline_ratio_end=0.1), {"progress": torch.zeros(())}
    replay = make_replay(10, ratio=0.5)
    for progress, ratio in ((0.25, 0.4), (1.0, 0.1)):
        script.anneal(args, state, replay, progress)
        assert (state["progress"].item(), replay.offline_ratio.item()) == pytest.approx((progress, ratio))


def test_a_replay_that_does_not_fit_is_refused_before_it_is_allocated(monkeypatch, capsys):
    monkeypatch.setattr(script.psutil, "virtual_memory", lambda: type("Memory", (), {"available": 5000}))
    with pytest.raises(SystemExit):
        make_replay(10, capacity=100)
    error = capsys.readouterr().err
    assert "0.0 GB are free on cpu; lower it, --batch-size or --replay-capacity" in error
    with pytest.raises(SystemExit):
        make_replay(10, capacity=1)  # 12 rows, and two batches of 256


# ---- the loop ----


def loop_of(step, **options):
    return script.Loop(step, "cpu", script.Args(**options))


def test_the_policys_turn_is_every_nth_update_however_the_calls_are_cut():
    taken = []
    loop = loop_of(lambda turn: taken.append(turn) or {}, policy_delay=3)
    for first, count in ((1, 2), (3, 5), (8, 1), (9, 1)):
        loop(first, count)
    assert taken == [False, False, True] * 3


def test_a_compiler_that_fails_is_said_and_the_same_step_is_taken(monkeypatch, capsys):
    def broken(step, **_):
        def compiled(turn):
            raise RuntimeError("no compiler\nfound")

        return compiled

    monkeypatch.setattr(torch, "compile", broken)
    loop = script.Loop(lambda turn: {"x": torch.ones(1)}, "cpu", script.Args(), compiled=True)
    loop(1, 3)
    assert "running eagerly" in capsys.readouterr().out and loop.metrics["x"].item() == 1


def test_a_step_that_fails_by_itself_ends_the_run():
    def step(turn):
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        loop_of(step)()


def test_a_run_is_saved_every_so_many_minutes():
    saves, args = [], script.Args(checkpoint_every=5.0)
    run = SimpleNamespace(phase="online", env_step=1, stop_signal=0, args=args, pending={})
    run.save, run.log_evaluation = (lambda: saves.append(age)), (lambda: None)
    for age in (200, 290, 310):
        run.saved_at = time.time() - age
        script.Run.between_steps(run, 9, [])
    assert saves == [310]


def test_a_summary_has_the_deviation_of_a_sample_and_a_score():
    run = SimpleNamespace(live=[0, 2], last_return={0: 10.0, 1: 99.0, 2: 20.0}, scores=[5.0, 25.0])
    assert script.Run.summary(run) == "return 15 +- 7 over 2 seeds, normalised score 50.0"


# ---- names and options ----


def folder(args, source=None, module=script):
    return module.run_folder(args, None, source)


@pytest.mark.parametrize("module", [script, sac_scratch, offline_pretrain_sac])
def test_every_option_that_changes_what_is_learned_is_in_the_name(module):
    plain = folder(module.Args(), module=module)
    names = [field.name for field in fields(module.Args)]
    learned = names[names.index("batch_size") :]
    assert not {"offline_steps", "online_steps", "gamma", "critic_subset"} & set(names) - set(learned)
    others = {"float": 0.123, "int": 77, "bool": True, "str": "policy"}
    for name in names:
        default = getattr(module.Args(), name)
        value = others["float" if default is None else type(default).__name__]
        changed = module.Args()
        setattr(changed, name, not default if isinstance(default, bool) else value)
        if name in learned:
            assert name.replace("_", "-") in folder(changed, module=module).name
        elif name not in ("env", "runs_dir"):
            assert folder(changed, module=module) == plain, name


@pytest.mark.parametrize(
    "value, expected",
    [
        (25.0, "25"),
        (25.5, "25.5"),
        (24.999999999999996, "24.999999999999996"),
        (1e-5, "1e-05"),
        (1e20, "1e+20"),
    ],
)
def test_a_number_in_a_name_has_all_its_digits_and_no_idle_zero(value, expected):
    name = folder(script.Args(q_filter_value=value, gamma=1.0, epsilon=1.0)).name
    assert name == f"online_finetune_sac-gamma-1-q-filter-value-{expected}-epsilon-1"


def test_names_are_short_and_two_settings_never_share_one():
    long = script.Args(
        tau=0.1, actor_lr=0.1, critic_lr=0.1, alpha_lr=0.1, warmup_steps=7, replay_capacity=9, gamma=0.5
    )
    longer = script.Args(**vars(long) | {"bc_alpha": 0.123})
    assert len(folder(long).name) <= 100 and folder(long) != folder(longer)
    source = {"script": "a", "run": "a-b", "gradient_step": 1, "shared_seed": None}
    others = [source, source | {"run": "a-c"}, source | {"gradient_step": 2}, source | {"shared_seed": 2}]
    assert len({folder(script.Args(), one) for one in others}) == 4
    assert folder(script.Args(env="module:Name/Thing-v0")).parent.name == "module_Name_Thing-v0"


@pytest.mark.parametrize(
    "options, first",
    [({}, 0), ({"warmup_steps": 30}, 30), ({"offline_ratio": 0.5}, 256), ({"offline_ratio": 0.0}, 256)],
)
def test_the_first_update_waits_for_a_batch(options, first):
    assert script.first_online_update(script.Args(**options), 100) == first
    assert script.first_online_update(script.Args(), 0) == 256


# ---- the regime ----


DATA = {"mean_return": 400.0, "best_tenth_return": 1234.5}


@pytest.mark.parametrize(
    "policy, scores, data, said",
    [
        (995.0, [-20.0, 3180.0], DATA, "return 995 is superior to the data's 400 (best tenth 1,234)"),
        (561.0, [-20.0, 3180.0], DATA, "superior to"),  # the margin is 0.05 of 3,200: 160
        (559.0, [-20.0, 3180.0], DATA, "comparable with"),
        (241.0, [-20.0, 3180.0], DATA, "comparable with"),
        (239.0, [-20.0, 3180.0], DATA, "inferior to"),
        (421.0, None, DATA, "superior to"),  # without reference scores 0.05 of 400: 20
        (419.0, None, DATA, "comparable with"),
        (-421.0, None, DATA | {"mean_return": -400.0}, "inferior to"),
        (995.0, None, {"name": "of an older file"}, None),
        (995.0, None, None, None),
        (math.nan, None, DATA, None),
    ],
)
def test_the_regime_is_said_at_the_switch(policy, scores, data, said, capsys):
    run = SimpleNamespace(env_step=0, scores=scores, live=[0, 2], last_return={0: policy - 1, 2: policy + 1})
    for source in (None, {"return": policy}):
        run.config = {"dataset": data, "checkpoint": source}
        script.say_regime(run)
        out = capsys.readouterr().out
        assert out.startswith("regime: ") and said in out if said else out == ""
    run.env_step = 1  # resumed later
    script.say_regime(run)
    assert capsys.readouterr().out == ""


def test_a_datasets_mean_and_its_best_tenth_are_kept(tmp_path):
    path = write_hdf5(tmp_path / "x.hdf5", [(n, True) for n in range(1, 21)])  # a reward of 1 a step
    description = read(path).description
    assert (description["mean_return"], description["best_tenth_return"]) == (10.5, 19.5)


# ---- evaluation ----


def test_an_evaluation_by_hand(tmp_path):
    """Line-v0 pays 1 a step and ends after 10 of them, or beyond 2: with action 1, after 4 or 5 steps."""
    args = script.Args(env="odd_envs:Line-v0", eval_episodes=3, gamma=0.5)
    shape = {"obs_dim": 2, "action_dim": 1, "hidden_dim": 4, "num_critics": 2, "layer_norm": False}
    algorithm = script.SAC(args, **shape)
    state = algorithm.init(0)
    for value, length in ((0.0, [10]), (100.0, [4, 5])):
        for name in ("actor", "critic"):
            state[name] = {key: torch.zeros_like(p) for key, p in state[name].items()}
        state["actor"]["2.bias"][:] = value
        checkpoint = {"state": state, "shape": shape, "seed": 1, "gradient_step": 5, "env_step": 0}
        torch.save(checkpoint, tmp_path / "checkpoint.pt")
        rows = script.evaluate(tmp_path / "checkpoint.pt", args)
        assert rows.shape == (3, 4) and set(rows[:, 1]) <= set(length)
        np.testing.assert_allclose(rows[:, 0], rows[:, 1])
        np.testing.assert_allclose(
            rows[:, 3], rows[:, 2] - (2 - 0.5 ** (rows[:, 1] - 1))
        )  # 1 + 1/2 + 1/4 + ...
        saved = torch.load(tmp_path / "checkpoint.pt")
        assert saved["returns"] == rows[:, 0].tolist()
        assert torch.equal(saved["state"]["actor"]["2.bias"], state["actor"]["2.bias"])


def test_the_first_q_is_of_the_first_observation(tmp_path):
    """Line-v0 counts steps in its second number, which is Q: 0 at the start, 10 at the end."""
    args = script.Args(env="odd_envs:Line-v0", eval_episodes=2)
    shape = {"obs_dim": 2, "action_dim": 1, "hidden_dim": 4, "num_critics": 2, "layer_norm": False}
    state = tree_map(torch.zeros_like, script.SAC(args, **shape).init(0))
    for layer in range(3):
        state["critic"][f"{layer}.weight"][:, 0, int(layer == 0)] = 1
    checkpoint = {"state": state, "shape": shape, "seed": 1, "gradient_step": 5, "env_step": 0}
    torch.save(checkpoint, tmp_path / "checkpoint.pt")
    assert script.evaluate(tmp_path / "checkpoint.pt", args)[:, 1:3].tolist() == [[10, 0]] * 2


def test_evaluations_see_new_starts_and_repeat_by_seed_and_step(tmp_path):
    args = script.Args(eval_episodes=2)
    shape = HOPPER | {"hidden_dim": 4, "num_critics": 2, "layer_norm": True}
    state, found = script.SAC(args, **shape).init(0), []
    before = torch.get_rng_state()
    for seed, gradient_step, env_step in ((1, 0, 0), (1, 0, 0), (2, 0, 0), (1, 5, 0), (1, 0, 5)):
        moment = {"seed": seed, "gradient_step": gradient_step, "env_step": env_step}
        torch.save({"state": state, "shape": shape, **moment}, tmp_path / "c.pt")
        found.append(script.evaluate(tmp_path / "c.pt", args)[:, 0])
    assert torch.equal(before, torch.get_rng_state())
    np.testing.assert_array_equal(found[0], found[1])
    assert len({tuple(returns) for returns in found}) == 4


# ---- the training environments ----


def new_collector(env_id, seeds=2, steps=25, first_step=0):
    args = script.Args(env=env_id, num_seeds=seeds)
    env = script.make_env(env_id)
    shape = {"obs_dim": env.observation_space.shape[0], "action_dim": 1, "hidden_dim": 4, "num_critics": 2}
    algorithm = script.SAC(args, layer_norm=False, **shape)
    state = script.stack([algorithm.init(i) for i in range(seeds)])
    replay = script.Replay(args, shape, None, steps, "cpu")
    return script.Collector(algorithm, state, replay, args, first_step)


def collector_of(env_id, seeds=2, steps=25, action=0.0):
    collector = new_collector(env_id, seeds, steps)
    ended = [collector.step(np.full((seeds, 1), action, np.float32)) for _ in range(steps)]
    return ended, collector.replay


@pytest.mark.parametrize("env_id", ["odd_envs:Line-v0", "odd_envs:SharedArray-v0", "odd_envs:Goal-v0"])
def test_the_true_last_observation_and_the_kind_of_end_are_stored(env_id):
    ended, replay = collector_of(env_id)
    assert replay.ring_ends[:, 9::10].tolist() == [[2, 2]] * 2 and (replay.ring_ends > 0).sum() == 4
    obs, next_obs = replay.rings[..., : replay.columns[0]], replay.rings[..., -1 - replay.columns[0] : -1]
    follows = (next_obs[:, :-1] == obs[:, 1:]).all(2)
    inside = torch.from_numpy(replay.ring_ends[:, :-1] == 0)
    assert follows[inside].all() and not follows[~inside].any()
    assert [step for step, episodes in enumerate(ended, 1) if episodes] == [10, 20]
    assert [ended[19][i]["train/length"] for i in (0, 1)] == [10, 10]
    _, replay = collector_of("odd_envs:Line-v0", steps=6, action=1.0)
    assert (replay.ring_ends == 1).sum() == 2 and (replay.ring_ends == 2).sum() == 0


def test_returns_and_lengths_begin_anew_with_each_episode():
    ended, _ = collector_of("odd_envs:Line-v0")  # 1 a step
    assert [ended[step][i] for step in (9, 19) for i in (0, 1)] == [
        {"train/return": 10, "train/length": 10}
    ] * 4


def test_a_resumed_run_collects_other_episodes():
    starts = [new_collector("odd_envs:Line-v0", first_step=step).envs.obs[:, 0] for step in (0, 0, 7)]
    assert (starts[0] == starts[1]).all() and len({*starts[0], *starts[2]}) == 4


def test_environments_in_processes_of_their_own_give_the_same_rows(monkeypatch):
    """And the end of a process is an error, not a wait."""
    ended, replay = collector_of("odd_envs:Line-v0")
    monkeypatch.setattr(script, "num_cores", lambda: 8)
    collector = new_collector("odd_envs:Line-v0")
    assert len(collector.envs.processes) == 2 and not collector.envs.local
    assert [collector.step(np.zeros((2, 1), np.float32)) for _ in range(25)] == ended
    assert torch.equal(collector.replay.rings, replay.rings)
    np.testing.assert_array_equal(collector.replay.ring_ends, replay.ring_ends)
    collector.envs.processes[1].kill()
    with pytest.raises(RuntimeError, match="process of an environment ended"):
        collector.step(np.zeros((2, 1), np.float32))


def test_a_step_waits_once_for_the_actions_that_were_queued():
    """As on CUDA, with an event that only notes who asks."""
    collector, asked = new_collector("odd_envs:Line-v0"), []
    collector.acted = SimpleNamespace(
        record=lambda: asked.append("record"), synchronize=lambda: asked.append("wait")
    )
    for _ in range(3):
        collector.act()
        queued = collector.host_action.clone()
        collector.step()
        slot, obs_dim = collector.replay.added - 1, collector.replay.columns[0]
        assert torch.equal(collector.replay.rings[:, slot, obs_dim : obs_dim + 1], queued)
        assert queued.abs().sum() > 0
    assert asked == ["record", "wait"] * 3


def test_stored_actions_are_in_unit_bounds():
    _, replay = collector_of("odd_envs:Lopsided-v0", steps=3, action=1.0)
    assert (replay.rings[..., 2] == 1).all()


def test_odd_environments_are_registered():
    assert {"Line-v0", "Goal-v0"} <= set(gym.registry) and odd_envs.Line().reset(seed=0)[0].shape == (2,)


def test_offline_updates_are_cut_where_something_is_due(monkeypatch):
    """Calls of ten, but never across a log, an evaluation or the end."""
    calls = []
    monkeypatch.setattr(
        offline_pretrain_sac, "update_loop", lambda *_: lambda first, count: calls.append((first, count))
    )

    class Run:
        args = offline_pretrain_sac.Args(offline_steps=37, eval_every=25, log_every=12)
        step = gradient_step = 0
        between_steps = log_evaluation = lambda *_: None

    run = Run()
    offline_pretrain_sac.train_offline(None, None, None, run)
    assert calls == [(1, 10), (11, 2), (13, 8), (21, 4), (25, 1), (26, 5), (31, 6), (37, 1)]
    assert run.gradient_step == run.step == 37
