"""Bad input ends with one line that names the argument, exit status 2, no traceback and nothing written."""

import pickle
from pathlib import Path

import h5py
import numpy as np
import pytest
import torch

import td3_c

FINETUNE, PRETRAIN, SCRATCH = "online_finetune_sac", "offline_pretrain_sac", "sac_scratch"
TD3_BC, TD3_C, O3F = "td3_bc", "td3_c", "o3f_select"


class Evil:
    """Unpickling this would write a file."""

    def __reduce__(self):
        return Path.touch, (Path("evil"),)


@pytest.fixture
def files(call):
    """Broken datasets and checkpoints, beside one good checkpoint of Hopper-v4."""
    call(PRETRAIN, "--dataset hopper/tiny-v0 --offline-steps 1 --eval-episodes 1 --hidden-dim 8 --runs-dir ../good")
    good = next(Path("../good").glob("*/*/seed1/checkpoint.pt"))
    folder = Path("../files")
    folder.mkdir()
    (folder / "truncated.pt").write_bytes(good.read_bytes()[:2000])
    (folder / "text.pt").write_text("hello")
    (folder / "evil.pt").write_bytes(pickle.dumps(Evil()))
    torch.save({"agent": Evil()}, folder / "evil2.pt")
    torch.save({"weights": torch.zeros(3)}, folder / "foreign.pt")
    shape = {"obs_dim": 11, "action_dim": 3, "hidden_dim": 8, "num_critics": 2, "layer_norm": True}
    td3 = {"algorithm": "td3", "shape": shape, "agent": td3_c.Agent([1], **shape).state_dict()}
    for name, change in {
        "sac": {},
        "td3": {"algorithm": "td3"},
        "lost": {**td3, "dataset": {**torch.load(good)["dataset"], "source": "nowhere"}},  # that is moved or deleted
        "cheetah": {"env": "HalfCheetah-v4"},
        "wide": {"shape": {**torch.load(good)["shape"], "hidden_dim": 16}},
        "huge": {"shape": {**torch.load(good)["shape"], "hidden_dim": 10**6}},  # terabytes
        "many": {"shape": {**torch.load(good)["shape"], "num_critics": 10**9}},
        "float": {"shape": {**torch.load(good)["shape"], "hidden_dim": 8.0}},
        "obs": {"shape": {**torch.load(good)["shape"], "obs_dim": 12}},
        "gamma": {"args": {"gamma": 0.9}},
    }.items():
        torch.save({**torch.load(good), **change}, folder / f"{name}.pt")
    (folder / "text.hdf5").write_text("hello")
    with h5py.File(folder / "empty.hdf5", "w") as file:
        for key, shape in {"observations": (0, 11), "actions": (0, 3), "rewards": 0, "terminals": 0}.items():
            file[key] = np.zeros(shape)
    with h5py.File(folder / "shapes.hdf5", "w") as file:
        for key, shape in {"observations": (5, 17), "actions": (5, 6), "rewards": 5, "terminals": 5}.items():
            file[key] = np.zeros(shape)
    good = {"observations": np.zeros((5, 11)), "actions": np.zeros((5, 3)), "rewards": np.zeros(5)}
    for name, terminals in {"lengths": 4, "walker2d-medium-v2": 5, "nan": 5, "ends": 5}.items():
        with h5py.File(folder / f"{name}.hdf5", "w") as file:
            for key, value in good.items():
                file[key] = value + (np.nan if name == "nan" and key == "rewards" else 0)
            file["terminals"] = np.full(terminals, 2 if name == "ends" else 0)
    (folder / "raw").write_bytes(b"secret" * 100)
    for name in ("link.h5", "storage.hdf5", "virtual.hdf5"):  # rewards that lie in another file
        with h5py.File(folder / name, "w") as file:
            for key in ("observations", "actions"):
                file[key] = good[key]
            file["terminals"] = np.zeros(5)
            if name == "link.h5":
                file["rewards"] = h5py.ExternalLink("keys.hdf5", "observations")
            elif name == "storage.hdf5":
                file.create_dataset("rewards", (5,), "f8", external=[(str(folder / "raw"), 0, 40)])
            else:
                layout = h5py.VirtualLayout((5,), "f8")
                layout[:] = h5py.VirtualSource("nan.hdf5", "rewards", (5,))
                file.create_virtual_dataset("rewards", layout)
    (folder / "symbolic" / "data").mkdir(parents=True)
    (folder / "symbolic" / "data" / "metadata.json").write_text("{}")
    (folder / "symbolic" / "data" / "main_data.hdf5").symlink_to(folder / "keys.hdf5")
    with h5py.File(folder / "keys.hdf5", "w") as file:
        file["observations"] = np.zeros((5, 11))
    return folder


CASES = [
    (SCRATCH, "--env Hopper-v99", "--env Hopper-v99"),
    (SCRATCH, "--env Nonsense", "--env Nonsense"),
    (SCRATCH, "--env CartPole-v1", "--env CartPole-v1: actions must be bounded vectors"),
    (SCRATCH, "--env FrozenLake-v1", "--env FrozenLake-v1: must have vector observations"),
    (SCRATCH, "--env Hopper-v2", "--env Hopper-v2: Gymnasium cannot make it"),
    (SCRATCH, "--seed 1000000000000000000000000000000", "--seed 1000000000000000000000000000000"),
    (SCRATCH, "--actor-lr inf", "--actor-lr inf"),
    (SCRATCH, "--runs-dir /dev/null", "--runs-dir /dev/null"),
    (SCRATCH, "--replay online --dataset hopper/tiny-v0", "--replay online uses no logged data"),
    (SCRATCH, "--num-seeds 0", "--num-seeds 0: must be above 0"),
    (SCRATCH, "--online-steps 0", "--online-steps 0"),
    (SCRATCH, "--eval-every -5", "--eval-every -5"),
    (SCRATCH, "--eval-episodes 0", "--eval-episodes 0"),
    (SCRATCH, "--batch-size 0", "--batch-size 0"),
    (SCRATCH, "--updates-per-step 0", "--updates-per-step 0"),
    (SCRATCH, "--replay-capacity 0", "--replay-capacity 0"),
    (SCRATCH, "--warmup-steps -1", "--warmup-steps -1"),
    (SCRATCH, "--seed -1", "--seed -1"),
    (SCRATCH, "--gamma 1.5", "--gamma 1.5: must be in [0, 1]"),
    (SCRATCH, "--actor-lr nan", "--actor-lr nan"),
    (SCRATCH, "--critic-lr 0", "--critic-lr 0"),
    (SCRATCH, "--tau 2", "--tau 2"),
    (SCRATCH, "--epsilon 0", "--epsilon 0"),
    (SCRATCH, "--epsilon nan", "--epsilon nan"),
    (SCRATCH, "--num-candidates -1", "--num-candidates -1"),
    (SCRATCH, "--candidate-std nan", "--candidate-std nan"),
    (SCRATCH, "--candidate-std 0.5", "--candidate-std 0.5: has no effect with --num-candidates 0"),
    (SCRATCH, "--optimism 1", "--optimism 1.0: has no effect with --num-candidates 0"),
    (SCRATCH, "--optimism inf", "--optimism inf"),
    (SCRATCH, "--q-filter-percentile 100", "--q-filter-percentile 100"),
    (SCRATCH, "--q-filter-percentile -1", "--q-filter-percentile -1"),
    (SCRATCH, "--q-filter-percentile nan", "--q-filter-percentile nan"),
    (SCRATCH, "--q-filter-weight 1.5", "--q-filter-weight 1.5"),
    (SCRATCH, "--q-filter-value nan", "--q-filter-value nan"),
    (SCRATCH, "--offline-ratio 1.5", "--offline-ratio 1.5"),
    (SCRATCH, "--offline-ratio 0.5 --replay online", "needs --replay ratio"),
    (SCRATCH, "--offline-ratio-end 0.1", "--offline-ratio-end 0.1"),
    (SCRATCH, "--save-dataset nonsense/", "--save-dataset nonsense/"),
    (SCRATCH, "--save-dataset hopper/tiny-v0", "exists"),
    (SCRATCH, "--save-dataset hopper/new-v0 --replay-capacity 10", "--replay-capacity"),
    (SCRATCH, "--dataset nowhere", "available here:"),
    (PRETRAIN, "--env Walker2d-v4", "--dataset is needed"),
    (PRETRAIN, "--dataset hopper/tiny-v0 --env Walker2d-v4", "do not fit"),
    (PRETRAIN, "--dataset nowhere.hdf5", "--dataset nowhere.hdf5"),
    (PRETRAIN, "--dataset ../files/text.hdf5", "cannot be read"),
    (PRETRAIN, "--dataset ../files/empty.hdf5", "--dataset ../files/empty.hdf5: empty"),
    (PRETRAIN, "--dataset ../files/shapes.hdf5", "do not fit"),
    (PRETRAIN, "--dataset ../files/keys.hdf5", "terminals"),
    (PRETRAIN, "--dataset ../files/lengths.hdf5", "arrays do not match"),
    (PRETRAIN, "--dataset ../files/walker2d-medium-v2.hdf5", "recorded in Walker2d"),
    (PRETRAIN, "--dataset ../files/nan.hdf5", "not finite"),
    (PRETRAIN, "--dataset ../files/ends.hdf5", "its terminals or timeouts are neither 0 nor 1"),
    (PRETRAIN, "--dataset ../files/link.h5", "rewards lies in another file"),
    (PRETRAIN, "--dataset ../files/storage.hdf5", "rewards lies in another file"),
    (PRETRAIN, "--dataset ../files/virtual.hdf5", "rewards lies in another file"),
    (PRETRAIN, "--dataset ../files/symbolic", "main_data.hdf5 is a symbolic link"),
    (PRETRAIN, "--dataset ../files", "available here:"),
    (PRETRAIN, "--dataset hopper/tiny-v0 --offline-steps 0", "--offline-steps 0"),
    (FINETUNE, "", "--checkpoint is missing"),
    (FINETUNE, "--checkpoint nowhere", "--checkpoint nowhere"),
    (FINETUNE, "--checkpoint ../files/truncated.pt", "is no checkpoint of these scripts"),
    (FINETUNE, "--checkpoint ../files/text.pt", "is no checkpoint of these scripts"),
    (FINETUNE, "--checkpoint ../files/evil.pt", "is no checkpoint of these scripts"),
    (FINETUNE, "--checkpoint ../files/evil2.pt", "is no checkpoint of these scripts"),
    (FINETUNE, "--checkpoint ../files/foreign.pt", "is no checkpoint of these scripts"),
    (FINETUNE, "--checkpoint ../files/td3.pt", "its algorithm is td3, here it is sac"),
    (FINETUNE, "--checkpoint ../files/cheetah.pt", "its env is HalfCheetah-v4, here it is Hopper-v4"),
    (FINETUNE, "--checkpoint ../files/wide.pt", "its tensors do not fit"),
    (FINETUNE, "--checkpoint ../files/huge.pt", "is no checkpoint of these scripts (ValueError)"),
    (FINETUNE, "--checkpoint ../files/many.pt", "is no checkpoint of these scripts (ValueError)"),
    (FINETUNE, "--checkpoint ../files/float.pt", "its tensors do not fit"),
    (FINETUNE, "--checkpoint ../files/obs.pt", "its obs_dim is 12, here it is 11"),
    (FINETUNE, "--checkpoint ../files/gamma.pt", "its gamma is 0.9, here it is 0.99"),
    (FINETUNE, "--checkpoint ../files/td3.pt --q-filter-percentile 100", "--q-filter-percentile 100"),
    (TD3_C, "--checkpoint ../files/sac.pt", "its algorithm is sac, here it is td3"),
    (TD3_C, "--checkpoint ../files/lost.pt", "--dataset nowhere: no D4RL .hdf5 file and no Minari dataset"),
    (TD3_C, "--checkpoint ../files/lost.pt --offline-ratio 0.5", "--dataset nowhere"),
    (TD3_C, "--checkpoint ../files/lost.pt --network relu", "--network relu: the checkpoint decides that"),
    (TD3_C, "--checkpoint ../files/lost.pt --hidden-dim 8", "--hidden-dim 8: the checkpoint decides that"),
    (TD3_C, "--checkpoint ../files/lost.pt --num-critics 3", "--num-critics 3: the checkpoint decides that"),
    (TD3_C, "--checkpoint ../files/lost.pt --scratch", "--scratch starts without one"),
    (TD3_C, "", "python td3_bc.py --env Hopper-v4 makes one"),
    (TD3_C, "--scratch --epsilon 0", "--epsilon 0"),
    (TD3_C, "--scratch --epsilon -1", "--epsilon -1"),
    (TD3_C, "--scratch --epsilon nan", "--epsilon nan"),
    (TD3_C, "--scratch --dual-init 0", "--dual-init 0"),
    (TD3_C, "--scratch --policy-delay 0", "--policy-delay 0"),
    (TD3_C, "--scratch --online-steps 0", "--online-steps 0"),
    (TD3_C, "--checkpoint ../files/lost.pt --offline-ratio 0.5 --replay online", "needs --replay ratio"),
    (TD3_BC, "--offline-steps 0 --online-steps 0", "--online-steps 0: there is nothing to do"),
    (TD3_BC, "--offline-steps 0 --online-steps 5", "--checkpoint is missing"),
    (TD3_BC, "--offline-steps 0 --online-steps 5 --checkpoint ../files/sac.pt", "its algorithm is sac"),
    (TD3_BC, "--offline-steps 0 --online-steps 5 --normalize-obs", "--normalize-obs: the checkpoint decides"),
    (TD3_BC, "--checkpoint ../files/lost.pt", "--checkpoint ../files/lost.pt: is continued online"),
    (TD3_BC, "--alpha -1.0", "--alpha -1"),
    (O3F, "--gamma 1", "--gamma 1: must be below 1"),
    (O3F, "--num-candidates 0 --candidate-std 0.5", "--candidate-std 0.5: has no effect"),
]


@pytest.mark.parametrize(("script", "arguments", "expected"), CASES, ids=[f"{s} {a}" for s, a, _ in CASES])
def test_bad_input(call, files, capsys, script, arguments, expected):
    before = sorted(str(p) for p in Path("..").rglob("*"))
    with pytest.raises(SystemExit) as ended:
        call(script, arguments)
    error = capsys.readouterr().err
    assert ended.value.code == 2
    assert error.startswith("error: ") and error.count("\n") == 1 and expected in error
    assert sorted(str(p) for p in Path("..").rglob("*")) == before


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device here")
def test_cuda_asked_for_and_not_there(call, capsys):
    with pytest.raises(SystemExit) as ended:
        call(SCRATCH, "--device cuda")
    assert ended.value.code == 2 and "--device cuda" in capsys.readouterr().err


def test_a_run_is_overwritten_only_on_request(call, capsys):
    command = "--dataset hopper/tiny-v0 --offline-steps 1 --eval-episodes 1 --hidden-dim 8"
    call(PRETRAIN, command)
    (folder,) = Path("runs").glob("*/*/seed1")
    written = (folder / "eval.csv").read_bytes()
    with pytest.raises(SystemExit) as ended:
        call(PRETRAIN, command)
    assert ended.value.code == 2 and "--overwrite" in capsys.readouterr().err
    assert (folder / "eval.csv").read_bytes() == written
    call(PRETRAIN, f"{command} --overwrite")
    assert (folder / "eval.csv").read_text().count("\n") == 1 + 2
