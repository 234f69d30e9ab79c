"""Datasets: D4RL files, Minari folders, where --dataset looks, and what it refuses.

The blocks under test stand word for word in every script, so they are tested once, in sac_scratch.py.
"""

import json
import shutil

import h5py
import minari
import numpy as np
import pytest
from minari.data_collector import EpisodeBuffer

import sac_scratch as sac

FIELDS = ("obs", "action", "reward", "next_obs", "terminated", "truncated")
PENDULUM = [3, 1, 1, 3, 1, 1]  # widths of a row's columns: obs 3, action 1 in [-2, 2]


@pytest.fixture(autouse=True)
def places(tmp_path, monkeypatch):
    """An empty working directory, Minari cache and datasets/ folder."""
    for name in ("here", "cache", "bundled"):
        (tmp_path / name).mkdir()
    monkeypatch.chdir(tmp_path / "here")
    monkeypatch.setenv("MINARI_DATASETS_PATH", str(tmp_path / "cache"))
    monkeypatch.setattr(sac, "BUNDLED", tmp_path / "bundled")
    monkeypatch.setattr(minari, "download_dataset", lambda name: pytest.fail(f"asked the network for {name}"))


def write_d4rl(path="file.hdf5", **arrays):
    with h5py.File(path, "w") as file:
        for name, values in arrays.items():
            file[name] = values
    return str(path)


def counting(n, **arrays):
    """`n` D4RL steps with obs 0, 1, 2, ..., reward 2^i, action i / 10; no next_observations, no timeouts."""
    base = {"observations": np.arange(n, dtype=np.float32)[:, None], "rewards": 2.0 ** np.arange(n)}
    base |= {"actions": np.arange(n, dtype=np.float32)[:, None] / 10, "terminals": np.zeros(n, bool)}
    return base | {name: np.array(values) for name, values in arrays.items()}


def load(name, env="Probe-v0", obs_dim=1, low=-1.0, high=1.0):
    """(dataset, its columns by name) of --dataset; one action dimension."""
    low, high = np.array([low], np.float32), np.array([high], np.float32)
    dataset = sac.load_dataset(sac.Args(env=env, dataset=name), obs_dim, low, high)
    columns = np.split(dataset.rows, np.cumsum([obs_dim, 1, 1, obs_dim, 1]), 1)
    return dataset, dict(zip(FIELDS, columns, strict=True))


def flat(columns, name):
    return columns[name].ravel().tolist()


def pendulum_rows(n=8, ends=(), cut=(), reward=1.0):
    """`n` steps of one path obs i -> i + 1; `ends` terminate, `cut` truncate; actions in 64ths."""
    rows = np.zeros((n, sum(PENDULUM)), np.float32)
    rows[:, :3] = np.arange(n)[:, None] + [0, 0.25, 0.5]
    rows[:, 5:8] = rows[:, :3] + 1
    rows[:, 3], rows[:, 4] = (np.arange(n) - n // 2) / 64, reward
    rows[list(ends), 8], rows[list(cut), 9] = 1, 1
    return rows


def write_pendulum(name="pendulum/tiny-v0", seeds=None, **options):
    sac.write_minari(name, pendulum_rows(**options), PENDULUM, "Pendulum-v1", seeds, algorithm_name="probe")


def load_pendulum(name="pendulum/tiny-v0", env="Pendulum-v1"):
    return load(name, env, obs_dim=3, low=-2.0, high=2.0)


# ---- D4RL files ----


@pytest.mark.parametrize("kind", [bool, np.int64, np.uint8, np.float32])
def test_d4rl_with_next_observations_and_timeouts(kind):
    """Nothing is dropped; the episode that the file's end cuts counts too; float64 comes out as float32."""
    arrays = counting(5, terminals=[0, 1, 0, 0, 0], timeouts=[0, 0, 0, 1, 0])
    arrays |= {"next_observations": np.arange(5.0)[:, None] + 0.1, "observations": np.arange(5.0)[:, None]}
    arrays |= {name: arrays[name].astype(kind) for name in ("terminals", "timeouts")}
    dataset, columns = load(write_d4rl(**arrays))
    assert dataset.rows.dtype == np.float32 and dataset.dropped == 0
    assert flat(columns, "obs") == [0, 1, 2, 3, 4]
    assert flat(columns, "action") == pytest.approx([0, 0.1, 0.2, 0.3, 0.4])
    assert flat(columns, "reward") == [1, 2, 4, 8, 16]
    assert flat(columns, "next_obs") == pytest.approx([0.1, 1.1, 2.1, 3.1, 4.1])
    assert flat(columns, "terminated") == [0, 1, 0, 0, 0]
    assert flat(columns, "truncated") == [0, 0, 0, 1, 0]
    assert dataset.returns.tolist() == [3, 12, 16]  # 1 + 2, 4 + 8, 16


def test_d4rl_without_next_observations():
    """Steps 0-2 terminate, 3-5 run out of time, 6-8 are cut by the file's end: 5 and 8 have no next observation."""
    arrays = counting(9, terminals=[0, 0, 1, 0, 0, 0, 0, 0, 0], timeouts=[0, 0, 0, 0, 0, 1, 0, 0, 0])
    dataset, columns = load(write_d4rl(**arrays))
    assert dataset.dropped == 2
    assert flat(columns, "obs") == [0, 1, 2, 3, 4, 6, 7]
    assert flat(columns, "terminated") == [0, 0, 1, 0, 0, 0, 0]
    assert flat(columns, "truncated") == [0, 0, 0, 0, 1, 0, 1]  # what is now the last one
    next_obs = columns["next_obs"].ravel()
    assert next_obs[[0, 1, 3, 4, 5, 6]].tolist() == [1, 2, 4, 5, 7, 8]  # after the terminated 2 there is none
    assert dataset.returns.tolist() == [1 + 2 + 4, 8 + 16, 64 + 128]


def test_d4rl_without_timeouts_and_next_observations():
    dataset, columns = load(write_d4rl(**counting(4, terminals=[0, 1, 0, 1])))
    assert dataset.dropped == 0 and flat(columns, "obs") == [0, 1, 2, 3]
    assert flat(columns, "terminated") == [0, 1, 0, 1] and flat(columns, "truncated") == [0, 0, 0, 0]
    assert columns["next_obs"][[0, 2], 0].tolist() == [1, 3]


def test_d4rl_episodes_of_one_step():
    """0 terminates, 1 runs out of time, 2 terminates, 3-4 run out of time, 5 runs out of time, 6 terminates."""
    arrays = counting(7, terminals=[1, 0, 1, 0, 0, 0, 1], timeouts=[0, 1, 0, 0, 1, 1, 0])
    dataset, columns = load(write_d4rl(**arrays))
    assert dataset.dropped == 3  # 1, 4, 5
    assert flat(columns, "obs") == [0, 2, 3, 6]
    assert flat(columns, "terminated") == [1, 1, 0, 1] and flat(columns, "truncated") == [0, 0, 1, 0]
    assert columns["next_obs"][2] == 4
    assert dataset.returns.tolist() == [1, 4, 8, 64]


def test_d4rl_an_end_that_is_both_is_terminated():
    _, columns = load(write_d4rl(**counting(2, terminals=[0, 1], timeouts=[0, 1])))
    assert flat(columns, "terminated") == [0, 1] and flat(columns, "truncated") == [0, 0]


def test_d4rl_ignores_what_else_is_in_the_file():
    path = write_d4rl(**counting(2, terminals=[0, 1]))
    with h5py.File(path, "a") as file:
        file["infos/qpos"], file["metadata/algorithm"] = np.zeros((2, 7)), "SAC"
    dataset, columns = load(path)
    assert flat(columns, "obs") == [0, 1]
    assert (dataset.source, dataset.recorded_in, dataset.scores) == (path, None, None)


@pytest.mark.parametrize("file", ["walker2d_medium-v2.hdf5", "Ant.hdf5"])
def test_d4rl_files_tell_the_task_by_their_name(file, capsys):
    fails(capsys, lambda: load(write_d4rl(file, **counting(2)), "Hopper-v4"), "recorded in", "not in Hopper-v4")


@pytest.mark.parametrize("file", ["hopper_medium-v2.hdf5", "variant.hdf5", "significant-hopper.hdf5"])
def test_other_names_of_d4rl_files_are_taken(file, tmp_path, capsys):
    """ "ant" within a word is no Ant, and a name tells no version to differ from."""
    dataset, _ = load(write_d4rl(file, **counting(2)), "Hopper-v4")
    sac.Run(sac.Args(runs_dir=str(tmp_path)), dataset, None).describe(dataset)
    assert "another version" not in capsys.readouterr().out


def test_actions_are_rescaled_from_the_environments_bounds():
    """Pendulum's torque is in [-2, 2]."""
    obs_dim, low, high = sac.check_args(sac.Args(env="Pendulum-v1"))
    arrays = counting(4, actions=[[-2.0], [0.0], [1.0], [2.0]], terminals=[0, 0, 0, 1], observations=np.ones((4, 3)))
    args = sac.Args(env="Pendulum-v1", dataset=write_d4rl(**arrays))
    assert sac.load_dataset(args, obs_dim, low, high).rows[:, 3].tolist() == [-1, 0, 0.5, 1]


def test_fingerprint_is_of_the_rows_and_keeps_two_files_of_one_name_apart(tmp_path):
    arrays = counting(3, next_observations=np.ones((3, 1)))
    one, two = (load(write_d4rl(name, **arrays))[0] for name in ("one.hdf5", "two.hdf5"))
    (tmp_path / "here" / "other").mkdir()
    three = load(write_d4rl("other/one.hdf5", **arrays | {"terminals": np.array([0, 1, 0])}))[0]
    assert one.fingerprint == two.fingerprint != three.fingerprint
    assert one.name != three.name and one.name.startswith("one") and three.name.startswith("one")


# ---- Minari ----


def test_what_is_written_is_read_back():
    """Three episodes: 0-2 terminate, 3 truncates, 4-7 are cut by the end of the run and count as truncated."""
    write_pendulum(ends=[2], cut=[3])
    expected = pendulum_rows(ends=[2], cut=[3, 7])
    dataset, _ = load_pendulum()
    np.testing.assert_array_equal(dataset.rows, expected)
    assert dataset.returns.tolist() == [3, 1, 4] and dataset.dropped == 0
    assert dataset.name.startswith("tiny") and (dataset.recorded_in, dataset.scores) == ("Pendulum-v1", None)


def test_any_action_survives_the_round_trip():
    """To the last bit, where the bounds are a power of two around 0."""
    rows = np.concatenate([pendulum_rows(200)] * 5)
    rows[:, 3] = np.random.default_rng(0).uniform(-1, 1, 1000)
    sac.write_minari("pendulum/tiny-v0", rows.copy(), PENDULUM, "Pendulum-v1")
    _, columns = load_pendulum()
    np.testing.assert_array_equal(columns["action"][:, 0], rows[:, 3])


def test_what_is_written_loads_in_plain_minari():
    write_pendulum(ends=[2], cut=[3], seeds=[11, 12, 13])
    dataset = minari.load_dataset("pendulum/tiny-v0")
    assert (dataset.total_episodes, dataset.total_steps) == (3, 8)
    first, _, last = dataset.iterate_episodes()
    assert first.observations.shape == (4, 3) and first.observations.dtype == np.float32
    np.testing.assert_array_equal(first.observations[:, 0], [0, 1, 2, 3])
    np.testing.assert_array_equal(first.actions[:, 0], 2 * np.array([-4, -3, -2]) / 64)  # in Pendulum's bounds
    assert first.terminations.tolist() == [False, False, True] and not first.truncations.any()
    assert last.truncations.tolist() == [False, False, False, True] and not last.terminations.any()
    assert dataset.storage.metadata["algorithm_name"] == "probe"
    assert [e["seed"] for e in dataset.storage.get_episode_metadata(range(3))] == [11, 12, 13]
    assert dataset.recover_environment().spec.id == "Pendulum-v1"


def plain_minari(name, reward=1.0, **metadata):
    """A dataset made by Minari alone: 2 steps that terminate, 1 that is truncated, 1 that says neither."""
    ends = [{"terminations": [False, True], "truncations": [False, False]}]
    ends += [{"terminations": [False], "truncations": [True]}, {"terminations": [False], "truncations": [False]}]
    episodes = [
        EpisodeBuffer(
            observations=np.arange(3.0 * (n + 1)).reshape(n + 1, 3),
            actions=np.full((n, 1), 2.0),
            rewards=np.full(n, reward),
            **{key: np.array(value) for key, value in end.items()},
        )
        for n, end in zip((2, 1, 1), ends, strict=True)
    ]
    minari.create_dataset_from_buffers(name, episodes, env="Pendulum-v1", **metadata)


@pytest.mark.filterwarnings("ignore::UserWarning")
def test_a_dataset_made_by_minari_itself():
    plain_minari("pendulum/plain-v0", reward=0.5, ref_min_score=-10.0, ref_max_score=90.0)
    dataset, columns = load_pendulum("pendulum/plain-v0")
    assert columns["obs"].tolist() == [[0, 1, 2], [3, 4, 5], [0, 1, 2], [0, 1, 2]]
    assert columns["next_obs"].tolist() == [[3, 4, 5], [6, 7, 8], [3, 4, 5], [3, 4, 5]]
    assert flat(columns, "action") == [1] * 4 and flat(columns, "reward") == [0.5] * 4
    assert flat(columns, "terminated") == [0, 1, 0, 0]
    assert flat(columns, "truncated") == [0, 0, 1, 1]  # an episode ends where it ends
    assert dataset.returns.tolist() == [1, 0.5, 0.5] and dataset.scores == (-10, 90)


# ---- where --dataset looks ----


def test_path_before_cache_before_bundled(tmp_path, monkeypatch):
    """The same id in three places; its reward tells which one was read."""
    for reward, place in enumerate(("here", "cache", "bundled")):
        monkeypatch.setenv("MINARI_DATASETS_PATH", str(tmp_path / place))
        write_pendulum(reward=reward)
    monkeypatch.setenv("MINARI_DATASETS_PATH", str(tmp_path / "cache"))
    for reward, place in enumerate(("here", "cache", "bundled")):
        assert load_pendulum()[1]["reward"][0] == reward
        shutil.rmtree(tmp_path / place / "pendulum")
    with pytest.raises(pytest.fail.Exception, match="asked the network for pendulum/tiny-v0"):
        load_pendulum()


def test_a_d4rl_file_is_found_before_a_dataset_of_its_name(tmp_path):
    write_pendulum("file-v0")
    assert load(write_d4rl("file-v0", **counting(2)), "Probe-v0")[0].rows.shape[1] == 6


def test_the_default_is_the_environments_bundled_dataset(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(sac, "DEFAULT_DATASETS", {"Pendulum": "pendulum/tiny-v0"})
    write_pendulum(reward=7)
    shutil.move(tmp_path / "cache" / "pendulum", tmp_path / "bundled" / "pendulum")
    dataset, columns = load_pendulum(None)
    assert columns["reward"][0] == 7 and (dataset.name, dataset.source) == ("tiny", "pendulum/tiny-v0")
    fails(capsys, lambda: load(None, "Other-v0"), "--dataset", "Other-v0")


@pytest.mark.filterwarnings("ignore::UserWarning")
def test_download(monkeypatch, capsys):
    monkeypatch.setattr(minari, "download_dataset", lambda name: plain_minari(name, reward=9.0))
    assert load_pendulum("mujoco/pendulum/far-v0")[1]["reward"][0] == 9
    assert "hub" in capsys.readouterr().out  # says what it waits for


def test_a_download_that_fails_names_what_is_here(tmp_path, monkeypatch, capsys):
    write_pendulum("pendulum/bundled-v0")
    shutil.move(tmp_path / "cache" / "pendulum", tmp_path / "bundled" / "pendulum")
    write_pendulum("pendulum/cached-v0")

    def offline(name):
        raise ConnectionError("no route\nto host")

    monkeypatch.setattr(minari, "download_dataset", offline)
    words = "mujoco/pendulum/far-v0", "ConnectionError", "pendulum/bundled-v0, pendulum/cached-v0"
    fails(capsys, lambda: load_pendulum("mujoco/pendulum/far-v0"), *words)


# ---- what it refuses ----


def fails(capsys, function, *words):
    """Exit status 2 and one line on stderr that has the words."""
    capsys.readouterr()
    with pytest.raises(SystemExit) as exit:
        function()
    error = capsys.readouterr().err
    assert exit.value.code == 2 and error.startswith("error: ") and error.count("\n") == 1, error
    assert all(word in error for word in words), error


def ragged(n, **arrays):
    return counting(n, next_observations=np.ones((n, 1))) | {name: np.array(v) for name, v in arrays.items()}


BAD_ARRAYS = {
    "observation shape": (counting(3, observations=np.zeros((3, 4))), "(4,)", "(1,)"),
    "flat observations": (counting(3, observations=np.zeros(3)), "observations ()"),
    "action shape": (counting(3, actions=np.zeros((3, 2))), "(2,)", "(1,)"),
    "next observation shape": (counting(3, next_observations=np.zeros((3, 4))), "(1,)"),
    "nan observation": (counting(3, observations=[[0.0], [np.nan], [0.0]]), "not finite"),
    "infinite reward": (counting(3, rewards=[0.0, np.inf, 0.0]), "not finite"),
    "nan action": (counting(3, actions=[[0.0], [np.nan], [0.0]]), "not finite"),
    "action out of bounds": (counting(3, actions=[[0.0], [1.1], [0.0]]), "bounds"),
    "empty": (counting(0), "empty"),
    "nothing left": (counting(1), "empty"),  # one step without a next observation
    "no terminals": ({k: v for k, v in counting(3).items() if k != "terminals"}, "terminals"),
    "short rewards": (ragged(3, rewards=[1.0, 2.0]),),
    "short observations": (ragged(3, observations=np.zeros((2, 1))),),
    "short terminals": (ragged(3, terminals=[False, True]),),
    "short timeouts": (ragged(3, timeouts=[False, True]),),
    "no arrays": ({}, "observations"),
    "a number for an array": (ragged(3, rewards=1.0),),
}


@pytest.mark.parametrize("case", BAD_ARRAYS)
def test_bad_d4rl_file(case, capfd):
    arrays, *words = BAD_ARRAYS[case]
    fails(capfd, lambda: load(write_d4rl(**arrays)), "--dataset file.hdf5", *words)


def test_a_damaged_file(tmp_path, capfd):
    """Cut in half, cut to nothing, and a text file of the right name."""
    whole = (tmp_path / "here" / write_d4rl(**counting(1000))).read_bytes()
    for content in (whole[: len(whole) // 2], b"", b"observations,actions,rewards\n" * 100):
        (tmp_path / "here" / "bad.hdf5").write_bytes(content)
        fails(capfd, lambda: load("bad.hdf5"), "--dataset bad.hdf5", "cannot be read")


def test_a_damaged_minari_folder(tmp_path, capfd):
    write_pendulum()
    data = tmp_path / "cache" / "pendulum" / "tiny-v0" / "data"
    whole, metadata = (data / "main_data.hdf5").read_bytes(), json.loads((data / "metadata.json").read_text())
    (data / "main_data.hdf5").write_bytes(whole[: len(whole) // 2])
    fails(capfd, load_pendulum, "--dataset pendulum/tiny-v0", "cannot be read")
    (data / "main_data.hdf5").unlink()
    fails(capfd, load_pendulum, "--dataset pendulum/tiny-v0", "cannot be read")
    (data / "main_data.hdf5").write_bytes(whole)
    (data / "metadata.json").write_text(json.dumps(metadata | {"total_episodes": 5}))
    fails(capfd, load_pendulum, "--dataset pendulum/tiny-v0", "cannot be read")
    (data / "metadata.json").write_text(json.dumps(metadata)[:-20])
    fails(capfd, load_pendulum, "--dataset pendulum/tiny-v0", "cannot be read")
    (data / "metadata.json").write_text(json.dumps(metadata))
    load_pendulum()  # and whole again, it is read


@pytest.mark.parametrize("name", ["missing.hdf5", "folder", "/no/such/folder", "hopper", "no version/hopper"])
def test_what_is_no_dataset_names_what_is_here(name, tmp_path, capfd):
    (tmp_path / "here" / "folder").mkdir()
    write_pendulum()
    fails(capfd, lambda: load(name), f"--dataset {name}", "pendulum/tiny-v0")
    shutil.rmtree(tmp_path / "cache" / "pendulum")
    fails(capfd, lambda: load(name), f"--dataset {name}", "none")


def test_another_environments_dataset(capfd):
    write_pendulum()
    fails(capfd, lambda: load_pendulum(env="Hopper-v4"), "--dataset", "recorded in Pendulum-v1", "Hopper-v4")


def test_another_version_of_the_environment_is_taken_and_said(tmp_path, capsys):
    n, sizes = 4, [11, 3, 1, 11, 1, 1]
    sac.write_minari("hopper/five-v0", np.zeros((n, sum(sizes)), np.float32), sizes, "Hopper-v5")
    args = sac.Args(env="Hopper-v4", dataset="hopper/five-v0", runs_dir=str(tmp_path))
    dataset = sac.load_dataset(args, 11, -np.ones(3, np.float32), np.ones(3, np.float32))
    assert dataset.recorded_in == "Hopper-v5" and len(dataset.rows) == n
    assert dataset.scores == (-20.272305, 3234.3)  # D4RL's references for Hopper
    capsys.readouterr()
    sac.Run(args, dataset, None).describe(dataset)
    assert "recorded in Hopper-v5, another version than Hopper-v4" in capsys.readouterr().out
    args.env = "Hopper-v5"
    sac.Run(args, dataset, None).describe(dataset)
    assert "another version" not in capsys.readouterr().out


def test_the_summary_tells_returns_and_dropped_steps(tmp_path, capsys):
    """Returns 7, 24 and 192, as above: quartiles 15.5 and 108."""
    arrays = counting(9, terminals=[0, 0, 1, 0, 0, 0, 0, 0, 0], timeouts=[0, 0, 0, 0, 0, 1, 0, 0, 0])
    dataset, _ = load(write_d4rl(**arrays))
    sac.Run(sac.Args(env="Probe-v0", runs_dir=str(tmp_path)), dataset, None).describe(dataset)
    said = capsys.readouterr().out
    assert "7 transitions" in said and "3 episodes" in said and "2 last transitions" in said
    assert "7 / 16 / 24 / 108 / 192" in said


def test_a_new_dataset_needs_a_free_and_proper_name(capfd):
    sac.check_new_dataset("pendulum/tiny-v0")
    write_pendulum()
    fails(capfd, lambda: sac.check_new_dataset("pendulum/tiny-v0"), "--save-dataset pendulum/tiny-v0", "exists")
    for name in ("pendulum", "pendulum/tiny", "pen dulum/tiny-v0"):
        fails(capfd, lambda name=name: sac.check_new_dataset(name), f"--save-dataset {name}")
