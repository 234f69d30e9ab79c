"""The bundled datasets are what their cards say, and load in plain Minari; medium-replay is the default."""

from pathlib import Path

import minari
import numpy as np
import pytest

import offline_pretrain_sac as script

FOLDER = Path(script.__file__).parent / "datasets" / "hopper"
CARDS = {  # transitions, episodes, mean and largest return, size in MB
    "medium-replay": (200_000, 1257, 436, 2696, 13),
    "medium": (100_000, 248, 743, 1432, 6),
}


@pytest.mark.parametrize("name", CARDS)
def test_the_bundled_datasets_are_as_their_cards_say(minari_cache, name, capsys):
    steps, episodes, mean, largest, size = CARDS[name]
    by_default = name == "medium-replay"
    args = script.Args(dataset=None if by_default else f"hopper/{name}-v0")
    dataset = script.load_dataset(args, script.make_env("Hopper-v4"))
    facts = dataset.description
    assert (facts["name"], facts["source"], facts["recorded_in"]) == (name, f"hopper/{name}-v0", "Hopper-v4")
    assert dataset.rows.shape == (steps, 11 + 3 + 1 + 11 + 1) and (dataset.ends > 0).sum() == episodes
    summary = f"{steps:,} transitions, {episodes:,} episodes, return {mean} on average, {largest} at best"
    assert summary in capsys.readouterr().out
    obs, next_obs, ended = dataset.rows[:, :11], dataset.rows[:, 15:26], dataset.ends > 0
    follows = (next_obs[:-1] == obs[1:]).all(1)
    assert follows[~ended[:-1]].all() and not follows[ended[:-1]].any()
    assert np.abs(dataset.rows[:, 11:14]).max() <= 1

    plain = minari.MinariDataset(FOLDER / f"{name}-v0" / "data")
    assert (plain.total_steps, plain.total_episodes) == (steps, episodes)
    assert plain.recover_environment().spec.id == "Hopper-v4"
    assert plain.storage.metadata["ref_max_score"] == 3234.3
    assert sum(file.stat().st_size for file in (FOLDER / f"{name}-v0").rglob("*")) < size * 1e6
