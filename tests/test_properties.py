"""Properties, by hypothesis: random inputs against oracles in plain Python, a row or an episode at a time.

Blocks that stand word for word in every script are tested once, in sac_scratch.py; names of runs in each script,
whose options differ.
"""

import contextlib
import functools
import importlib
import io
import json
import math
import os
import random
import re
import tempfile
import typing
import warnings
from dataclasses import fields
from pathlib import Path
from types import NoneType
from unittest import mock

import h5py
import minari
import numpy as np
import pytest
import torch
from gymnasium.spaces import Box
from hypothesis import HealthCheck, Phase, assume, given, settings
from hypothesis import strategies as st
from minari.data_collector import EpisodeBuffer

import cql_sac
import plot_curves
import sac_scratch as sac

ints, choice = st.integers, st.sampled_from
NUMBERS = ints(0, 2**32 - 1)  # of a random generator, for values that need no shrinking


def examples(count):
    return settings(deadline=None, derandomize=True, max_examples=count, suppress_health_check=[HealthCheck.too_slow])


def refused(function):
    """The one line on stderr with which the function ends, by exit status 2; None if it does not."""
    try:
        with contextlib.redirect_stderr(io.StringIO()) as error:
            function()
    except SystemExit as exit:
        line = error.getvalue()
        assert exit.code == 2 and line.startswith("error: ") and line.count("\n") == 1 and line.endswith("\n"), line
        return line
    return None


def scratch():
    """A new folder, in memory where that can be."""
    return tempfile.TemporaryDirectory(dir="/dev/shm" if Path("/dev/shm").is_dir() else None)


# ---- ReplayTable ----


def transition(number, end=None):
    """A row of obs (2), action, reward, next_obs (2) and ends that tells its number in every column."""
    terminated, truncated = (number % 2, number % 3 == 0) if end is None else (end == "t", end == "c")
    return [number, number + 0.25, number / 8, 3 * number, number + 1, number + 1.25, terminated, truncated]


def add(table, rows):
    """One row a seed."""
    rows = np.array(rows, np.float64)
    table.add(rows[:, :2], rows[:, 2:3], rows[:, 3], rows[:, 4:6], rows[:, 6], rows[:, 7])


def drawn(table, size):
    """Rows (S, B) as tuples, by their numbers, after checking that the batch has the same ones."""
    numbers = table.draw(size)
    assert numbers.shape == (table.seeds, size)
    rows, batch = table.rows[numbers], table.batch(numbers)
    columns = [column if column.dim() == 3 else column[..., None] for column in batch[:6]]
    assert [c.shape[2] for c in columns] == [2, 1, 1, 2, 1, 1] and torch.equal(torch.cat(columns, 2), rows)
    return [[tuple(row) for row in own] for own in rows.tolist()]


@examples(120)
@given(data=st.data(), replay=choice(["append", "online", "ratio"]), seeds=ints(1, 3), capacity=ints(1, 12))
def test_a_table_draws_what_lists_hold(data, replay, seeds, capacity):
    """Offline row i has number -1 - i, the t-th transition of seed s 1000 (s + 1) + t."""
    offline = [tuple(transition(-1 - i)) for i in range(data.draw(ints(1 if replay == "ratio" else 0, 20)))]
    rows = np.array(offline, np.float32) if offline else None
    table = sac.ReplayTable(rows, seeds, {"obs_dim": 2, "action_dim": 1}, capacity, replay, "cpu")
    rings, added = [[] for _ in range(seeds)], 0
    torch.manual_seed(data.draw(NUMBERS))
    for count in data.draw(st.lists(ints(0, 15), min_size=1, max_size=4)):
        for _ in range(count):
            new = [transition(1000 * (s + 1) + added) for s in range(seeds)]
            add(table, new)
            rings, added = [[*ring, tuple(row)][-capacity:] for ring, row in zip(rings, new, strict=True)], added + 1
        size = data.draw(ints(1, 20) | choice([2 ** (4 + (len(offline) + capacity).bit_length())]))  # often: 16 a row
        share = data.draw(choice([0.25, 0.5, 0.75]) | ints(0, 64).map(lambda n: n / 64) | st.floats(0, 1, width=32))
        assume(share * 64 % 1 == 0 or abs(share * size % 1 - 0.5) > 1e-3)  # no tie that float32 might break
        table.offline_share.fill_(share)

        held = len(rings[0])
        for ring, own in zip(rings, table.rings.tolist(), strict=True):
            slots = [t % capacity for t in range(added - held, added)]  # oldest first, as a resumed run reads them
            assert [tuple(own[slot]) for slot in slots] == ring
        logged = round(share * size) if replay == "ratio" else size if replay == "append" else 0
        if (logged < size and not held) or (replay == "append" and not offline + rings[0]):
            continue  # a batch of nothing, which no script asks for
        for ring, own in zip(rings, drawn(table, size), strict=True):
            parts = [(own[:logged], offline + ring if replay == "append" else offline), (own[logged:], ring)]
            for got, valid in parts:
                assert set(got) <= set(valid)
                if len(got) >= 16 * len(valid):  # each is missed with probability (1 - 1/n)^(16 n) < 1.2e-7
                    assert set(got) == set(valid)
        if replay == "append":
            assert table.online_share() == pytest.approx(held / (len(offline) + held))
        else:  # a batch has the nearest number of rows
            assert abs(table.online_share() - (1 - logged / size)) <= 0.5 / size + 1e-6


# ---- Monte-Carlo returns ----

REWARD = ints(-1000, 1000).map(lambda n: n / 8)
ENDS = choice("......tcb")  # none, terminated, truncated by the clock, both
GAMMA = choice([0.0, 0.3, 0.9, 0.99, 1.0]) | st.floats(0, 1)


def returns_by_definition(rewards, ends, gamma):
    """sum_j gamma^(j - i) r_j to the end of i's episode; -inf where the clock cut off over 0.01 of the weight."""
    returns = []
    for i in range(len(rewards)):
        end = next((j for j in range(i, len(rewards)) if ends[j] != "."), len(rewards) - 1)
        missing = 0 if ends[end] in "tb" else gamma ** (end + 1 - i)
        assume(abs(missing - 0.01) > 1e-9)
        total = sum(gamma ** (j - i) * rewards[j] for j in range(i, end + 1))
        returns.append(total if missing <= 0.01 else -math.inf)
    return returns


def close(values):
    """To float32's rounding."""
    return pytest.approx(values, rel=2e-7, abs=1e-9)


@examples(200)
@given(steps=st.lists(st.tuples(REWARD, ENDS), max_size=40), gamma=GAMMA)
def test_returns_to_go(steps, gamma):
    rewards, ends = [reward for reward, _ in steps], [end for _, end in steps]
    terminated, truncated = (np.array([end in kinds for end in ends], bool) for kinds in ("tb", "cb"))
    returns = cql_sac.returns_to_go(np.array(rewards, np.float32), terminated, truncated, gamma)
    assert returns.tolist() == close(returns_by_definition(rewards, ends, gamma))


@examples(80)
@given(data=st.data(), seeds=ints(1, 3), capacity=ints(1, 12), gamma=GAMMA)
def test_a_return_table_knows_the_returns_of_ended_episodes(data, seeds, capacity, gamma):
    """Of offline rows at once, of online ones when their episode ends, as long as the ring holds them."""
    offline = data.draw(st.lists(st.tuples(REWARD, ENDS), max_size=10))
    online = data.draw(st.lists(st.tuples(*[st.tuples(REWARD, ENDS)] * seeds), max_size=30))

    def row(number, reward, end):
        return [*transition(number)[:3], reward, number, number, end in "tb", end in "cb"]

    rows = np.array([row(-1 - i, *step) for i, step in enumerate(offline)], np.float32) if offline else None
    shape = {"obs_dim": 2, "action_dim": 1}
    table = cql_sac.ReturnTable(rows, seeds, shape, capacity, "append", "cpu", gamma=gamma)
    known, started = {}, [0] * seeds  # returns by a row's number; the running episodes' first steps
    if offline:
        known |= enumerate(returns_by_definition(*zip(*offline, strict=True), gamma))
        known = {-1 - i: value for i, value in known.items()}
    for t, step in enumerate(online):
        add(table, [row(1000 * (s + 1) + t, *own) for s, own in enumerate(step)])
        for s in range(seeds):
            known[1000 * (s + 1) + t] = -math.inf
            if step[s][1] != ".":
                episode = zip(*(earlier[s] for earlier in online[started[s] : t + 1]), strict=True)
                values = returns_by_definition(*episode, gamma)
                known |= {1000 * (s + 1) + started[s] + i: value for i, value in enumerate(values)}
                started[s] = t + 1
            steps = range(max(0, t + 1 - capacity), t + 1)
            got = [table.ring_returns[s, u % capacity].item() for u in steps]
            assert got == close([known[1000 * (s + 1) + u] for u in steps])
    assume(known)
    batch = table.sample(50)
    for numbers, got in zip(batch.obs[..., 0].tolist(), batch.mc_return.tolist(), strict=True):
        assert got == close([known[number] for number in numbers])


# ---- datasets ----

LOW, HIGH = np.array([-1.0, -3.0]), np.array([1.0, 5.0])  # of the actions' first and second dimension


class Episode(typing.NamedTuple):
    obs: np.ndarray  # (T + 1, O)
    action: np.ndarray  # (T, A) in [LOW, HIGH]
    reward: np.ndarray  # (T,)
    end: str  # "t" terminated, "c" truncated by the clock, "b" both, "." cut by the end of the data


@st.composite
def episodes(draw, ends, shape=None, obs="f8", action="f8", reward="f8"):
    """One to six episodes of one to five steps; only the last may be cut."""
    rng, (obs_dim, action_dim) = np.random.default_rng(draw(NUMBERS)), shape or (draw(ints(1, 3)), draw(ints(1, 2)))
    kinds = draw(st.lists(choice(ends), max_size=5) | choice(ends).map(lambda end: [end] * 4))  # often all alike
    found = []
    for kind in [*kinds, draw(choice(ends + "."))]:
        n = draw(ints(1, 5))
        actions = (LOW + (HIGH - LOW) * rng.integers(0, 65, (n, 2)) / 64)[:, :action_dim]
        observations, rewards = rng.normal(size=(n + 1, obs_dim)), 8 * rng.normal(size=n)
        found.append(Episode(observations.astype(obs), actions.astype(action), rewards.astype(reward), kind))
    return found


@np.errstate(over="ignore")
def read_by_hand(found, given_next):
    """(rows, returns, dropped) an episode at a time."""
    rows, returns, dropped = [], [], 0
    for e in found:
        steps = len(e.reward)
        if not given_next and e.end in "c.":  # its last next observation is in no file
            steps, dropped = steps - 1, dropped + 1
        for i in range(steps):
            last, middle, half = i == steps - 1, (HIGH + LOW) / 2, (HIGH - LOW) / 2
            next_obs = e.obs[i + 1] if given_next or i + 1 < len(e.reward) else e.obs[i]  # nothing follows a terminal
            action = [(a - m) / h for a, m, h in zip(e.action[i], middle, half, strict=False)]
            ends = last and e.end in "tb", last and (e.end == "c" or (e.end == "." and not given_next))
            rows.append([*e.obs[i], *action, e.reward[i], *next_obs, *ends])
        returns += [sum(float(np.float32(reward)) for reward in e.reward[:steps])] if steps else []
    return np.array(rows, np.float64), returns, dropped


def d4rl_arrays(found, given_next, timeouts=True, flag="?"):
    """What a file of these episodes holds."""

    def ends(kinds):
        return np.concatenate([[0] * (len(e.reward) - 1) + [e.end in kinds] for e in found]).astype(flag)

    obs, actions, rewards, _ = zip(*found, strict=True)
    arrays = {"observations": np.concatenate([own[:-1] for own in obs]), "actions": np.concatenate(actions)}
    arrays |= {"rewards": np.concatenate(rewards), "terminals": ends("tb")}
    arrays |= {"next_observations": np.concatenate([own[1:] for own in obs])} if given_next else {}
    return arrays | ({"timeouts": ends("cb")} if timeouts else {})


def load(name, found):
    """--dataset of an environment that has the episodes' shapes."""
    low, high = (bound[: found[0].action.shape[1]].astype(np.float32) for bound in (LOW, HIGH))
    return sac.load_dataset(sac.Args(env="Probe-v0", dataset=name), found[0].obs.shape[1], low, high)


def load_d4rl(arrays, found, path="file.hdf5"):
    with h5py.File(path, "w") as file:
        for name, values in arrays.items():
            file[name] = values
    return load(path, found)


@contextlib.contextmanager
def elsewhere():
    """An empty working directory, which is the Minari cache too."""
    here = os.getcwd()
    with scratch() as name, mock.patch.dict(os.environ, MINARI_DATASETS_PATH=name):
        os.chdir(name)
        try:
            yield
        finally:
            os.chdir(here)


@pytest.fixture(autouse=True, scope="module")
def place():
    with elsewhere():
        yield


def same_rows(dataset, rows, returns):
    assert dataset.rows.dtype == np.float32 and dataset.rows.shape == rows.shape
    np.testing.assert_allclose(dataset.rows, rows, rtol=1e-6, atol=1e-6)
    assert (dataset.rows[:, -2:] == rows[:, -2:]).all()
    np.testing.assert_allclose(dataset.returns, returns, rtol=1e-9, atol=1e-9)


KINDS = {"obs": choice(["f4", "f8"]), "action": choice(["f4", "f8", "i1", "i8"]), "reward": choice(["f4", "f8", "i8"])}
FLAG = choice(["?", "u1", "i8", "f4"])


@examples(150)
@given(data=st.data(), given_next=st.booleans(), timeouts=st.booleans(), flag=FLAG, kinds=st.fixed_dictionaries(KINDS))
def test_a_d4rl_file_is_read_as_its_episodes_are(data, given_next, timeouts, flag, kinds):
    found = data.draw(episodes("tcb" if timeouts else "t", **kinds))
    arrays, (rows, returns, dropped) = d4rl_arrays(found, given_next, timeouts, flag), read_by_hand(found, given_next)
    if not len(rows):
        assert "empty" in refused(lambda: load_d4rl(arrays, found))
        return
    dataset = load_d4rl(arrays, found)
    same_rows(dataset, rows, returns)
    assert dataset.dropped == dropped


BAD = {"obs": [np.nan, np.inf, -np.inf, 1e39], "reward": [np.nan, np.inf, 1e39], "action": [np.nan, -np.inf, -5, 5.01]}


@st.composite
def poisoned(draw, ends):
    """Episodes with one value that no row may have: not finite in float32, or out of the action's bounds."""
    found, field = draw(episodes(ends)), draw(choice(list(BAD)))
    place, number = draw(choice(BAD[field])), draw(ints(0, len(found) - 1))
    values = getattr(found[number], field).copy()
    values.flat[draw(ints(0, values.size - 1))] = place
    return [e._replace(**{field: values}) if i == number else e for i, e in enumerate(found)]


@examples(100)
@given(found=poisoned("tcb"), given_next=st.booleans())
def test_a_d4rl_file_with_a_bad_value_is_refused(found, given_next):
    """Unless nothing of it is read: the last transition of an episode without next observations."""
    rows, returns, _ = read_by_hand(found, given_next)
    assume(len(rows))
    action = rows[:, found[0].obs.shape[1] :][:, : found[0].action.shape[1]]
    error = refused(lambda: load_d4rl(d4rl_arrays(found, given_next), found))
    if (np.abs(rows) < 1e38).all() and (np.abs(action) <= 1).all():
        assert error is None
    else:
        assert "not finite" in error and "bounds" in error


REQUIRED = "observations", "actions", "rewards", "terminals"
DAMAGE = {
    "longer": lambda a: np.concatenate([a, a[-1:]]),
    "shorter": lambda a: a[:-1],
    "nested": lambda a: a[..., None],
    "flat": lambda a: a[:, 0] if a.ndim > 1 else None,
    "wider": lambda a: np.concatenate([a, a[:, :1]], 1) if a.ndim > 1 else None,
    "narrower": lambda a: a[:, 1:] if a.ndim > 1 else None,
    "a number": lambda a: a.flat[0],
    "words": lambda a: np.full(a.shape, b"?"),
    "missing": lambda _: None,
}


@examples(6)
@given(found=episodes("tcb"), given_next=st.booleans())
def test_a_d4rl_file_with_a_wrong_shape_is_refused(found, given_next):
    """Each array with each damage."""
    assume(len(read_by_hand(found, given_next)[0]))
    arrays = d4rl_arrays(found, given_next)
    for name, values in arrays.items():
        for damage, function in DAMAGE.items():
            changed = function(values)
            if changed is not None or damage == "missing" and name in REQUIRED:
                there = {k: v for k, v in (arrays | {name: changed}).items() if v is not None}
                assert refused(lambda there=there: load_d4rl(there, found)), (damage, name)


ONE = [Episode(np.ones((4, 1)), np.zeros((3, 1)), np.ones(3), "t")]


def test_nested_timeouts_are_refused():
    assert refused(lambda: load_d4rl(d4rl_arrays(ONE, True) | {"timeouts": np.zeros((3, 1))}, ONE))


@pytest.mark.parametrize("name", ["terminals", "timeouts"])
@pytest.mark.parametrize("values", [[0.0, np.nan, 1.0], [b"False", b"False", b"True"]])
def test_ends_that_are_not_true_or_false_are_refused(name, values):
    assert refused(lambda: load_d4rl(d4rl_arrays(ONE, True) | {name: np.array(values)}, ONE))


def write_buffers(found, name="probe/tiny-v0"):
    buffers = []
    for e in found:
        steps = np.arange(len(e.reward)) == len(e.reward) - 1
        ends = {"terminations": steps & (e.end in "tb"), "truncations": steps & (e.end in "cb")}
        buffers.append(EpisodeBuffer(observations=e.obs, actions=e.action, rewards=e.reward, **ends))
    obs, action = (Box(-9, 9, (own.shape[1],)) for own in found[0][:2])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Minari misses an author, a link and more
        minari.create_dataset_from_buffers(name, buffers, observation_space=obs, action_space=action)
    return name


@examples(25)
@given(found=episodes("tcb"))
def test_d4rl_and_minari_hold_the_same_transitions(found):
    """Minari has no file that cuts an episode: its last step is then truncated."""
    whole = [e._replace(end="c" if e.end == "." else e.end) for e in found]
    rows, returns, _ = read_by_hand(whole, given_next=True)
    with elsewhere():
        minari_rows = load(write_buffers(found), found)
        d4rl_rows = load_d4rl(d4rl_arrays(whole, given_next=True), found)
    same_rows(minari_rows, rows, returns)
    same_rows(d4rl_rows, rows, returns)
    assert minari_rows.fingerprint == d4rl_rows.fingerprint and minari_rows.dropped == d4rl_rows.dropped == 0


@examples(20)
@given(found=poisoned("tc"))
def test_a_minari_dataset_with_a_bad_value_is_refused(found):
    with elsewhere():
        error = refused(lambda: load(write_buffers(found), found))
    assert "not finite" in error and "bounds" in error


@examples(25)
@given(found=episodes("tcb", shape=(3, 1), obs="f4"))
def test_what_write_minari_writes_is_read_back(found):
    """Bit by bit: Pendulum's actions are in [-2, 2]. An end that is both is terminated; the last step ends."""
    rows, returns, _ = read_by_hand(found, given_next=True)
    rows = rows.astype(np.float32)
    with elsewhere(), contextlib.redirect_stdout(io.StringIO()):
        sac.write_minari("pendulum/tiny-v0", rows.copy(), [3, 1, 1, 3, 1, 1], "Pendulum-v1")
        args = sac.Args(env="Pendulum-v1", dataset="pendulum/tiny-v0")
        dataset = sac.load_dataset(args, 3, np.array([-2.0], np.float32), np.array([2.0], np.float32))
    rows[-1, -1] = 1 - rows[-1, -2]
    assert dataset.rows.tolist() == rows.tolist() and dataset.recorded_in == "Pendulum-v1"
    np.testing.assert_allclose(dataset.returns, returns, rtol=1e-9, atol=1e-9)


# ---- names of runs ----

SCRIPTS = ["sac_scratch", "offline_pretrain_sac", "online_finetune_sac", "td3_bc", "td3_c"]
SCRIPTS += ["cql_sac", "iql", "awac", "o3f_select"]
NOT_IN_THE_NAME = {  # they change nothing that is learned, or stand elsewhere
    *("env", "seed", "num_seeds", "device", "compile", "runs_dir", "overwrite", "dataset", "save_dataset"),
    *("checkpoint", "eval_every", "eval_episodes", "resume", "checkpoint_every"),
}
WHOLE = 0, 1, 2, 5, 10, 20, 100, 500, 1000, 2000, 5000, 10_000, 100_000, 999_000, 1_000_000, 10**9, 10**12
REAL = 0.0, 1e-12, 1e-5, 0.0001, 0.001, 0.1, 0.25, 0.5, 0.7, 0.99, 1.0, 2.0, 2.5, 5.0, 10.0, 50.0, 100.0, 1000.0, 1e6
REAL += tuple(-n for n in REAL[1:])


@functools.cache
def learned(module):
    return [field.name for field in fields(module.Args) if field.name not in NOT_IN_THE_NAME]


@functools.cache
def values(module, name):
    """What the command line takes for an option: (values that look alike, strategy of any)."""
    hint, (low, high) = typing.get_type_hints(module.Args)[name], module.LIMITS.get(name, (1e-12, 1e12))
    kinds, high = typing.get_args(hint), min(high, 1e12)
    optional = NoneType in kinds
    kind = kinds[0] if optional else hint
    if kind is int:
        known, more = [n for n in WHOLE if low <= n <= high], ints(math.ceil(low), int(high))
    elif kind is float:
        known, more = [n for n in REAL if low <= n <= high], st.floats(low, high).map(lambda n: n + 0.0)  # no -0.0
    else:
        known, more = [False, True] if kind is bool else [*typing.get_args(kind)], st.nothing()
    known += [None] if optional else []
    return known, choice(known) | more


@functools.cache
def options(module):
    """(name, value) of any option."""
    pairs = [values(module, name)[1].map(lambda value, name=name: (name, value)) for name in learned(module)]
    return st.one_of(pairs)


def dataset_of(name):
    return name and sac.Dataset(name, f"{name}.hdf5", None, None, None, 0, None, "")


DATASETS = choice([None, "medium-replay", "medium-replay-0f3a", "mixed-00ff", "random"])
SOURCES = choice([None, "offline_pretrain_sac-medium-replay", "iql-random", "iql-random-online5k", "td3_bc-random"])


@pytest.mark.parametrize("script", SCRIPTS)
@examples(6)
@given(data=st.data())
def test_each_option_is_in_the_name(script, data):
    """Each value of each option, but its default, makes a name of its own; what is not learned from makes none."""
    module = importlib.import_module(script)
    names = {module.run_name(module.Args(), None, None): None}
    for name in learned(module):
        known, any_value = values(module, name)
        for value in {*known, *data.draw(st.lists(any_value, max_size=3))} - {getattr(module.Args, name)}:
            own = module.run_name(module.Args(**{name: value}), None, None)
            assert names.setdefault(own, (name, value)) == (name, value)
    others = {"env": "Ant-v4", "seed": 7, "num_seeds": 3, "device": "cpu", "compile": "off", "runs_dir": "there"}
    others |= {"overwrite": True, "dataset": "x.hdf5", "eval_every": 9, "eval_episodes": 8, "checkpoint_every": 7}
    others |= {"checkpoint": "x.pt", "save_dataset": "a/b-v0", "resume": "there"}
    assert set(others) == NOT_IN_THE_NAME
    here = {name: value for name, value in others.items() if hasattr(module.Args, name)}
    assert list(names)[0] == script == module.run_name(module.Args(**here), None, None)


@pytest.mark.parametrize("script", SCRIPTS)
@examples(40)
@given(data=st.data(), dataset=DATASETS, source=SOURCES)
def test_a_runs_name_tells_its_options(script, data, dataset, source):
    """Of settings that are a few changes apart, names are equal just where the options are."""
    module = importlib.import_module(script)
    base, found = dict(data.draw(st.lists(options(module), max_size=3))), {}
    for changes in data.draw(st.lists(st.lists(options(module), max_size=2), min_size=2, max_size=6)):
        args = module.Args(**base | dict(changes))
        name = module.run_name(args, dataset_of(dataset), source and {"run": source})
        assert re.fullmatch(rf"{script}(-[\w.-]+)?", name, re.ASCII)  # a path component without spaces
        setting = tuple(getattr(args, option) for option in learned(module))
        assert found.setdefault(name, setting) == setting
    assert len(set(found.values())) == len(found)


@examples(60)
@given(st.lists(st.tuples(DATASETS, SOURCES), min_size=2, max_size=4))
def test_a_runs_name_tells_its_data_and_where_it_started(pairs):
    found = {}
    for dataset, source in pairs:
        name = sac.run_name(sac.Args(), dataset_of(dataset), source and {"run": source})
        assert found.setdefault(name, (dataset, source)) == (dataset, source)


@settings(examples(20), phases=[Phase.generate])
@given(data=st.data(), script=choice(SCRIPTS))
def test_a_name_fits_whatever_the_options_are(data, script):
    """And still tells each option: one that is changed gives another name."""
    module = importlib.import_module(script)
    args = {name: data.draw(values(module, name)[1]) for name in learned(module)}
    names = {module.run_name(module.Args(**args), None, None): None}
    for option in args:
        other = data.draw(values(module, option)[1].filter(lambda value, option=option: value != args[option]))
        names[module.run_name(module.Args(**args | {option: other}), None, None)] = option
    assert len(names) == 1 + len(args)
    assert all(re.fullmatch(rf"{script}-[\w.-]+", name, re.ASCII) and len(name) <= 255 for name in names)


@pytest.mark.parametrize("stem", ["my data", "é#$*'\n", "x" * 245])
def test_a_name_is_valid_whatever_the_files_is(stem):
    """And tells the file and the options."""
    dataset = load_d4rl(d4rl_arrays(ONE, given_next=True), ONE, f"{stem}.hdf5")
    start = {"my data": "my_data", "x" * 245: "x" * 60}.get(stem, "_")
    assert dataset.name == f"{start}-{dataset.fingerprint[:4]}"
    assert sac.run_name(sac.Args(tau=0.1), dataset, None) == f"sac_scratch-{dataset.name}-tau0.1"


@pytest.mark.parametrize("run", ["../../elsewhere", "sac_scratch-my data", "x" * 300])
def test_a_name_is_valid_whatever_the_sources_is(run):
    names = {sac.run_name(sac.Args(), None, {"run": source}) for source in (run, run.replace(" ", "_") + "x")}
    assert len(names) == 2 and all(re.fullmatch(r"sac_scratch-from-[\w.-]{,200}", name, re.ASCII) for name in names)


PRETRAINED = "offline_pretrain_sac-medium-replay"


@pytest.mark.parametrize(
    "one, other",
    [
        ((f"{PRETRAINED}-qf25", {}), (PRETRAINED, {"q_filter_percentile": 25.0})),  # filtered before, or only now
        (("sac_scratch-medium-replay", {}), ("sac_scratch", {})),  # with the data that are used now, or without
    ],
)
def test_runs_from_two_sources_have_two_names(one, other):
    module, data = importlib.import_module("online_finetune_sac"), dataset_of("medium-replay")
    names = {module.run_name(module.Args(**options), data, {"run": source}) for source, options in (one, other)}
    assert len(names) == 2


# ---- curves ----

HEADER = "phase,gradient_step,env_step,episode,return,length,normalized_score,seconds\n"  # Run.make_folders
RUNS = "sac_scratch", "sac_scratch-qf25", "iql", "iql-medium-replay", "iql-medium-replay-from-iql-online5k", "td3_c"


@st.composite
def evaluations(draw):
    """Rows of an eval.csv: offline ones, online ones, the last perhaps written again as a resumed run does."""
    rng, count, rows = random.Random(draw(NUMBERS)), draw(ints(1, 3)), []
    start, every, scored = 1000 * draw(ints(0, 2)), draw(choice([300, 500])), draw(st.booleans())
    steps = [("offline", every * i, 0) for i in range(draw(ints(0, 3)))]
    steps += [("online", start + every * i, every * i) for i in range(draw(ints(0, 4)))]
    for where in steps + steps[-1:] * draw(st.booleans()):
        for episode in range(count):
            value = round(rng.gauss(0, 1000), 3)
            rows.append([*where, episode, value, rng.randint(1, 1000), round(value / 10, 3) if scored else "", 1.5])
    return rows


def series_by_hand(rows, column):
    """{phase: {step: mean over episodes}}, without a last step that has fewer episodes than the one before."""
    series = {}
    for phase, key in (("offline", 1), ("online", 2)):
        steps = {}
        for row in rows:
            if row[0] == phase and row[column] != "":
                steps.setdefault(row[key], {})[row[3]] = row[column]
        counts = [len(steps[step]) for step in sorted(steps)]
        if counts[1:] and counts[-1] < counts[-2]:
            del steps[max(steps)]
        if steps:
            series[phase] = {step: sum(values.values()) / len(values) for step, values in sorted(steps.items())}
    return series


def flat(seed):
    return {(phase, int(step)): value for phase, pair in seed.series.items() for step, value in zip(*pair, strict=True)}


@st.composite
def run_folders(draw):
    """{(env, run, seed): (root, rows, how many bytes are cut off eval.csv, what config.json is)}"""
    keys = st.tuples(choice(["Hopper-v4", "Ant-v4"]), choice(RUNS), ints(1, 12))
    cut = st.just(0) | ints(1, 60) | ints(0, 2000)
    config = choice(["finished", "finished", "running", "cut", "missing"])
    return draw(st.dictionaries(keys, st.tuples(choice("ab"), evaluations(), cut, config), min_size=1, max_size=8))


@examples(120)
@given(folders=run_folders(), y=choice(["return", "score"]))
def test_curves_are_grouped_by_environment_and_name(folders, y):
    column, expected = {"return": 4, "score": 6}[y], {}
    with scratch() as name:
        for (env, run, seed), (root, rows, cut, status) in folders.items():
            folder = Path(name, root, env, run, f"seed{seed}")
            folder.mkdir(parents=True)
            (folder.parent / "seeds").mkdir(exist_ok=True)  # no seed's
            config = {"script": run.split("-")[0], "run": run, "env": env, "seed": seed, "status": status}
            text = json.dumps(config | {"dataset": {"name": "medium-replay"} if "medium" in run else None})
            if status != "missing":
                (folder / "config.json").write_text(text[:-9] if status == "cut" else text)
            (folder / "eval.csv").write_text(HEADER)
            sac.append_rows(folder / "eval.csv", rows)
            data = (folder / "eval.csv").read_bytes()
            data = data[: max(0, len(data) - cut)]
            (folder / "eval.csv").write_bytes(data)
            whole = rows[: max(0, data.count(b"\n") - 1)]
            read = plot_curves.read_rows(folder / "eval.csv", "episode", "return")
            assert read == [(*row[:3], str(row[3]), row[4]) for row in whole]
            if series := series_by_hand(whole, column):
                expected.setdefault((env, run), {})[seed] = whole, series, status
        args = plot_curves.Args(runs=tuple(Path(name, root) for root in sorted({f[0] for f in folders.values()})), y=y)
        if not expected:
            assert refused(lambda: plot_curves.choose_seeds(plot_curves.find_seeds(args), args))
            return
        panels = plot_curves.make_panels(plot_curves.choose_seeds(plot_curves.find_seeds(args), args)[0])

    curves = [curve for _, curves in panels for curve in curves]
    got = {(c.env, c.run): {seed.number: flat(seed) for seed in c.seeds} for c in curves}
    assert len(curves) == len(got) and got.keys() == expected.keys()
    for key, group in expected.items():
        assert list(got[key]) == sorted(group)
        for seed, (_, series, _) in group.items():
            wanted = {(phase, step): value for phase, values in series.items() for step, value in values.items()}
            assert got[key][seed] == pytest.approx(wanted)
    assert [(c.env, c.run) for c in curves] == sorted(expected)
    assert [len({c.env for c in own}) for _, own in panels] == [1] * len({env for env, _ in expected})
    assert len({(c.run, c.color, str(c.style)) for c in curves}) == len({c.run for c in curves})  # alike in every panel
    for _, own in panels:
        assert len({c.label for c in own}) == len({(c.color, str(c.style)) for c in own}) == len(own)
    for c in curves:
        group = expected[c.env, c.run]
        for seed in c.seeds:
            whole, _, status = group[seed.number]
            online = [row for row in whole if row[0] == "online"]
            assert seed.offset == (online[0][1] if online else 0) and seed.finished == (status == "finished")
        last = [series.get("online", series.get("offline")) for _, series, _ in group.values()]
        row, _ = plot_curves.summarise(c)
        assert row["seeds"] == len(group) and (row["status"] == "finished") == all(s.finished for s in c.seeds)
        assert row["final"] == pytest.approx(np.mean([list(values.values())[-1] for values in last]))
        for phase in ("offline", "online"):
            own = [series[phase] for _, series, _ in group.values() if phase in series]
            if own:
                steps, values = plot_curves.align(c.seeds, phase)
                mean = {step: np.mean([v[step] for v in own if step in v]) for v in own for step in v}
                assert dict(zip(steps.tolist(), np.nanmean(values, 0).tolist(), strict=True)) == pytest.approx(mean)
