"""The bundled dataset is what its card says, is the default, and loads in plain Minari."""

from pathlib import Path

import minari
import numpy as np

import offline_pretrain_sac as script

FOLDER = Path(script.__file__).parent / "datasets" / "hopper" / "medium-replay-v0"


def test_the_default_dataset_of_hopper_is_the_bundled_one_and_as_its_card_says(minari_cache):
    args = script.Args()
    dataset = script.load_dataset(args, *script.check_args(args))
    assert (dataset.name, dataset.source, dataset.recorded_in) == (
        "medium-replay",
        "hopper/medium-replay-v0",
        "Hopper-v4",
    )
    assert dataset.rows.shape == (200_000, 11 + 3 + 1 + 11 + 2) and dataset.dropped == 0
    assert dataset.fingerprint == "f0423afebfa04209"
    assert (
        len(dataset.returns) == 1257 and round(dataset.returns.mean()) == 436 and round(dataset.returns.max()) == 2696
    )
    obs, next_obs, ended = dataset.rows[:, :11], dataset.rows[:, 15:26], dataset.rows[:, 26:].any(1)
    follows = (next_obs[:-1] == obs[1:]).all(1)
    assert follows[~ended[:-1]].all() and not follows[ended[:-1]].any()
    assert np.abs(dataset.rows[:, 11:14]).max() <= 1


def test_it_loads_in_plain_minari_and_is_small():
    dataset = minari.MinariDataset(FOLDER / "data")
    assert (dataset.total_steps, dataset.total_episodes) == (200_000, 1257)
    assert dataset.recover_environment().spec.id == "Hopper-v4"
    assert dataset.storage.metadata["ref_max_score"] == 3234.3
    assert sum(file.stat().st_size for file in FOLDER.rglob("*")) < 15e6
