"""Properties, by hypothesis: random inputs against oracles in plain Python, a row or an episode at a time.

Blocks that stand word for word in every script are tested once, in sac_scratch.py; names of runs in each script,
whose options differ. What is a fault today is a strict xfail: mending it makes the test fail until the mark goes.
"""

import contextlib
import importlib
import io
import json
import math
import os
import random
import re
import tempfile
import typing
from dataclasses import fields, replace
from pathlib import Path
from types import NoneType
from unittest import mock

import h5py
import minari
import numpy as np
import pytest
import torch
from gymnasium.spaces import Box
from hypothesis import HealthCheck, assume, given, settings
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


@examples(150)
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
        share = data.draw(ints(0, 64).map(lambda n: n / 64) | st.floats(0, 1, width=32))
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
        else:
            assert abs(table.online_share() - (1 - logged / size)) <= 0.5 / size + 1e-6  # of a batch: to the nearest row


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


class Episode(typing.NamedTuple):
    obs: np.ndarray  # (T + 1, O)
    action: np.ndarray  # (T, A) in [-1, 1]
    reward: np.ndarray  # (T,)
    end: str  # "t" terminated, "c" truncated by the clock, "b" both, "." cut by the end of the file


@st.composite
def episodes(draw, ends, last="."):
    """One to six episodes of one to five steps; only the last may be cut, by one of `last`."""
    rng, shape = np.random.default_rng(draw(NUMBERS)), (draw(ints(1, 3)), draw(ints(1, 2)))
    whole = draw(ints(0, 3)) == 0  # one kind of end only
    kinds = draw(st.lists(choice(draw(choice(ends)) if whole else ends), max_size=5))
    kinds += draw(choice(ends + last))
    found = []
    for kind in kinds:
        n = draw(ints(1, 5))
        action = rng.integers(-8, 9, (n, shape[1])) / 8
        found.append(Episode(rng.normal(size=(n + 1, shape[0])), action, rng.normal(size=n), kind))
    return found


def flags(episodes, kinds):
    """(rows,) 1 at the last step of the episodes of these kinds."""
    return np.concatenate([np.arange(len(e.reward)) == (len(e.reward) - 1 if e.end in kinds else -1) for e in episodes])


def join(episodes, field, part=slice(None)):
    return np.concatenate([getattr(e, field)[part] for e in episodes])


def write_d4rl(path, arrays):
    with h5py.File(path, "w") as file:
        for name, values in arrays.items():
            file[name] = values


def load(name, obs_dim, low, high):
    low, high = (np.array(bound, np.float32) for bound in (low, high))
    return sac.load_dataset(sac.Args(env="Probe-v0", dataset=str(name)), obs_dim, low, high)


@pytest.fixture(scope="module", autouse=True)
def folder():
    """A folder of its own, that is the Minari cache too; files there are overwritten again and again."""
    with tempfile.TemporaryDirectory() as name, mock.patch.dict(os.environ, MINARI_DATASETS_PATH=name):
        yield Path(name)


@st.composite
def d4rl_files(draw):
    """(arrays, rows, returns, dropped): what is in the file, and what should be read, an episode at a time."""
    timeouts, given_next = draw(st.booleans()), draw(st.booleans())
    found = draw(episodes("tcb" if timeouts else "t"))
    kinds = {name: draw(choice(options.split())) for name, options in {
        "obs": "f4 f8", "action": "f4 f8 i1 i8", "reward": "f4 f8 i8", "flag": "? u1 i8 f4"}.items()}  # fmt: skip
    found = [e._replace(obs=e.obs.astype(kinds["obs"]), action=e.action.astype(kinds["action"])) for e in found]
    found = [e._replace(reward=(8 * e.reward).astype(kinds["reward"])) for e in found]
    arrays = {"observations": join(found, "obs", slice(-1)), "actions": join(found, "action")}
    arrays |= {"rewards": join(found, "reward"), "terminals": flags(found, "tb").astype(kinds["flag"])}
    if timeouts:
        arrays["timeouts"] = flags(found, "cb").astype(kinds["flag"])
    if given_next:
        arrays["next_observations"] = join(found, "obs", slice(1, None))
    return arrays, *read_by_hand(found, given_next)


def read_by_hand(found, given_next):
    rows, returns, dropped = [], [], 0
    for e in found:
        steps, total = len(e.reward), 0.0
        if not given_next and e.end in "c.":  # its last observation is in no file
            steps, dropped = steps - 1, dropped + 1
        for i in range(steps):
            last = i == steps - 1
            next_obs = e.obs[i + 1] if given_next or i + 1 < len(e.reward) else e.obs[i]  # no value after a terminal
            terminated = last and e.end in "tb"
            truncated = last and (e.end == "c" or (e.end == "." and not given_next))
            rows.append([*e.obs[i], *e.action[i], e.reward[i], *next_obs, terminated, truncated])
            total += float(np.float32(e.reward[i]))
        returns += [total] if steps else []
    return np.array(rows, np.float64), returns, dropped
