"""The bundled datasets are what their cards say, and load in plain Minari; medium-replay is the default."""

from pathlib import Path

import minari
import numpy as np
import pytest

import offline_pretrain_sac as script

FOLDER = Path(script.__file__).parent / "datasets" / "hopper"
CARDS = {  # fingerprint, transitions, episodes, mean and largest return, size in MB
    "medium-replay": ("f0423afebfa04209", 200_000, 1257, 436, 2696, 13),
    "medium": ("a5637bb831a00dda", 100_000, 248, 743, 1432, 6),
}


@pytest.mark.parametrize("name", CARDS)
def test_the_bundled_datasets_are_as_their_cards_say(minari_cache, name):
    fingerprint, steps, episodes, mean, largest, size = CARDS[name]
    args = script.Args(dataset=None if name == "medium-replay" else f"hopper/{name}-v0")  # the default of Hopper
    dataset = script.load_dataset(args, *script.check_args(args))
    assert (dataset.name, dataset.source, dataset.recorded_in) == (name, f"hopper/{name}-v0", "Hopper-v4")
    assert dataset.rows.shape == (steps, 11 + 3 + 1 + 11 + 2) and dataset.dropped == 0
    assert dataset.fingerprint == fingerprint and len(dataset.returns) == episodes
    assert (round(dataset.returns.mean()), round(dataset.returns.max())) == (mean, largest)
    obs, next_obs, ended = dataset.rows[:, :11], dataset.rows[:, 15:26], dataset.rows[:, 26:].any(1)
    follows = (next_obs[:-1] == obs[1:]).all(1)
    assert follows[~ended[:-1]].all() and not follows[ended[:-1]].any()
    assert np.abs(dataset.rows[:, 11:14]).max() <= 1

    plain = minari.MinariDataset(FOLDER / f"{name}-v0" / "data")
    assert (plain.total_steps, plain.total_episodes) == (steps, episodes)
    assert plain.recover_environment().spec.id == "Hopper-v4"
    assert plain.storage.metadata["ref_max_score"] == 3234.3
    assert sum(file.stat().st_size for file in (FOLDER / f"{name}-v0").rglob("*")) < size * 1e6
