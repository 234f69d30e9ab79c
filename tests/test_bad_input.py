"""Bad input ends with one line or tyro's box, exit status 2, no traceback and nothing written."""

import pickle
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).resolve().parents[1]
FINETUNE, PRETRAIN, SCRATCH = "online_finetune_sac", "offline_pretrain_sac", "sac_scratch"
SMALL = (
    "--dataset hopper/tiny-v0 --offline-steps 1 --eval-episodes 1 --hidden-dim 8 --batch-size 8 --compile off"
)


class Evil:
    """Unpickling this would write a file."""

    def __reduce__(self):
        return Path.touch, (Path("evil"),)


@pytest.fixture(scope="module")
def files(minari_cache, tmp_path_factory):
    """Broken checkpoints beside a good one of Hopper-v4."""
    folder = tmp_path_factory.mktemp("files")
    command = [sys.executable, ROOT / f"{PRETRAIN}.py", *SMALL.split(), "--runs-dir", folder / "good"]
    subprocess.run(command, check=True, capture_output=True)
    good = next((folder / "good").glob("*/*/seed1/checkpoint.pt"))
    saved = torch.load(good)
    (folder / "cut.pt").write_bytes(good.read_bytes()[:2000])
    (folder / "text.pt").write_text("hello")
    (folder / "evil.pt").write_bytes(pickle.dumps(Evil()))
    torch.save({"format": 2, "state": Evil()}, folder / "evil2.pt")
    torch.save({"algorithm": "sac", "agent": {}}, folder / "first_house.pt")
    torch.save(saved | {"family": "td3"}, folder / "td3.pt")
    torch.save(saved | {"env": "HalfCheetah-v4"}, folder / "cheetah.pt")
    torch.save(saved | {"shape": saved["shape"] | {"obs_dim": 12}}, folder / "obs.pt")
    torch.save(saved | {"args": saved["args"] | {"gamma": 0.9}}, folder / "gamma.pt")
    torch.save(saved | {"dataset": saved["dataset"] | {"source": "nowhere.hdf5"}}, folder / "lost.pt")
    torch.save(saved | {"dataset": None}, folder / "without.pt")
    resume = {key: value for key, value in saved.items() if key != "gradient_step"}
    config = good.with_name("config.json").read_text()
    for name in ("run", "cut"):
        (folder / name / "seed1").mkdir(parents=True)
        torch.save(
            resume | {"progress": {}, "finished": name == "run"}, folder / name / "seed1" / "resume.pt"
        )
    (folder / "run" / "seed1" / "config.json").write_text(config)
    (folder / "cut" / "seed1" / "config.json").write_text(config.replace("finished", "interrupted"))
    shutil.copytree(good.parent, folder / "cut" / "seed2")  # a finished seed beside it does not count
    shutil.copytree(good.parents[1], folder / "done")
    return folder


CASES = [
    (SCRATCH, "--env Hopper-v99", "--env Hopper-v99: cannot be used"),
    (SCRATCH, "--env CartPole-v1", "actions must be bounded vectors of real numbers"),
    (SCRATCH, "--env odd_envs:WholeActions-v0", "actions must be bounded vectors of real numbers"),
    (SCRATCH, "--env odd_envs:Stuck-v0", "lower bounds of actions must be below"),
    (SCRATCH, "--env odd_envs:Raises-v0", "no display"),
    (SCRATCH, "--env no_such_module:X-v0", "--env no_such_module:X-v0: cannot be used"),
    (SCRATCH, "--runs-dir /dev/null", "--runs-dir /dev/null"),
    (SCRATCH, "--candidate-std 0.5", "have no effect with --num-candidates 0"),
    (SCRATCH, "--optimism 1", "have no effect with --num-candidates 0"),
    (SCRATCH, "--offline-ratio-end 0.1", "needs an --offline-ratio to start from"),
    (SCRATCH, "--offline-ratio 0 --dataset hopper/tiny-v0", "--offline-ratio 0 uses no logged data"),
    (SCRATCH, "--critic-subset 3", "--critic-subset 3: there are 2 critics"),
    (SCRATCH, "--online-steps 100", "no update would be made, the first is due at step 5000"),
    (SCRATCH, "--online-steps 300 --warmup-steps 0 --batch-size 400", "the first is due at step 400"),
    (SCRATCH, "--replay-capacity 100", "the replay cannot hold as many; raise --replay-capacity"),
    (SCRATCH, "--track", "needs the package wandb"),
    (SCRATCH, "--resume nowhere", "found 0 resume.pt"),
    (SCRATCH, "--resume {files}/cut.pt", "found 0 resume.pt"),
    (SCRATCH, "--resume {files}", "found 0 resume.pt"),
    (SCRATCH, "--resume {files}/cut", "is a run of offline_pretrain_sac.py"),
    (SCRATCH, "--resume {files}/cut --seed 3", "leave out all others"),
    (PRETRAIN, "--resume {files}/run", "this run is finished"),
    (PRETRAIN, "--resume {files}/done", "found 0 resume.pt"),
    (PRETRAIN, "--resume {files}/done/seed1", "found 0 resume.pt"),
    (PRETRAIN, "--env Walker2d-v4", "--dataset is needed: none is bundled for Walker2d-v4"),
    (
        PRETRAIN,
        "--env HalfCheetah-v4 --dataset hopper/tiny-v0",
        "recorded in Hopper-v4, not in HalfCheetah-v4",
    ),
    (PRETRAIN, "--dataset {files}/text.pt", "cannot be read"),
    (PRETRAIN, "--dataset hopper-medium-v2", "mujoco/hopper/medium-v0"),
    (FINETUNE, "", "python offline_pretrain_sac.py --env Hopper-v4 makes one"),
    (FINETUNE, "--checkpoint nowhere", "nowhere/seed1/checkpoint.pt: cannot be read"),
    (
        FINETUNE,
        "--checkpoint nowhere/checkpoint.pt",
        "cannot be read as one of these scripts' files: FileNotFoundError",
    ),
    (FINETUNE, "--checkpoint {files}/done --num-seeds 2", "done/seed2/checkpoint.pt: cannot be read"),
    (FINETUNE, "--checkpoint {files}/cut.pt", "cannot be read as one of"),
    (FINETUNE, "--checkpoint {files}/text.pt", "cannot be read as one of"),
    (FINETUNE, "--checkpoint {files}/evil.pt", "cannot be read as one of"),
    (FINETUNE, "--checkpoint {files}/evil2.pt", "cannot be read as one of"),
    (FINETUNE, "--checkpoint {files}/first_house.pt", "from another version or of another kind"),
    (FINETUNE, "--checkpoint {files}/td3.pt", "its family is td3, not sac"),
    ("td3_c", "--checkpoint {files}/cheetah.pt", "its family is sac, not td3"),
    ("iql", "--offline-steps 0 --online-steps 9 --checkpoint {files}/td3.pt", "its family is td3, not iql"),
    (FINETUNE, "--checkpoint {files}/cheetah.pt", "its env is HalfCheetah-v4, not Hopper-v4"),
    (FINETUNE, "--checkpoint {files}/obs.pt", "its obs_dim is 12, not 11"),
    (FINETUNE, "--checkpoint {files}/gamma.pt", "its gamma is 0.9, not 0.99"),
    (FINETUNE, "--checkpoint {files}/run/seed1/resume.pt", "has no gradient_step"),
    (FINETUNE, "--checkpoint {files}/without.pt", "--dataset is needed, or --offline-ratio 0"),
    (FINETUNE, "--checkpoint {files}/lost.pt", "--dataset nowhere.hdf5: not a D4RL .hdf5 file"),
    (FINETUNE, "--checkpoint {files}/lost.pt --offline-ratio 0 --dataset x", "uses no logged data"),
]


@pytest.mark.parametrize(("script", "arguments", "expected"), CASES, ids=[f"{s} {a}" for s, a, _ in CASES])
def test_bad_input(call, files, monkeypatch, capsys, script, arguments, expected):
    monkeypatch.syspath_prepend(ROOT / "tests")
    foreign = Path("runs/Hopper-v4/foreign/seed1")
    foreign.mkdir(parents=True)
    (foreign / "config.json").write_text("[1, 2]")
    before = sorted(str(path) for path in Path("..").rglob("*"))
    with pytest.raises(SystemExit) as ended:
        call(script, arguments.format(files=files))
    error = capsys.readouterr().err
    assert ended.value.code == 2
    assert error.startswith("error: ") and error.count("\n") == 1 and expected in error
    assert sorted(str(path) for path in Path("..").rglob("*")) == before


OUT_OF_RANGE = [
    "--num-seeds 0",
    "--seed -1",
    "--online-steps 0",
    "--eval-every 0",
    "--batch-size 0",
    "--gamma 1.5",
]
OUT_OF_RANGE += ["--tau -0.1", "--actor-lr 0", "--critic-lr nan", "--alpha-lr inf", "--warmup-steps -1"]
OUT_OF_RANGE += ["--offline-ratio 1.5", "--replay-capacity 0", "--num-candidates -1", "--candidate-std nan"]
OUT_OF_RANGE += ["--q-filter-percentile 100", "--q-filter-weight 2", "--q-filter-value inf", "--epsilon 0"]
OUT_OF_RANGE += [
    "--dual-init 0",
    "--checkpoint-every -1",
    "--device tpu",
    "--no-such-option 1",
    "--batch-size x",
]


@pytest.mark.parametrize("arguments", OUT_OF_RANGE)
def test_a_value_out_of_range_is_named_in_tyros_box(call, capsys, arguments):
    with pytest.raises(SystemExit) as ended:
        call(SCRATCH, arguments)
    error = capsys.readouterr().err
    assert ended.value.code == 2 and "Traceback" not in error and not list(Path().iterdir())
    assert arguments.split()[0].removeprefix("--") in error.replace("_", "-")


def test_tyros_box_has_no_link_to_the_pages_of_another_package(tmp_path):
    command = [sys.executable, ROOT / f"{SCRATCH}.py", "--gamma", "1.5"]
    error = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path).stderr
    assert "less than or equal to 1" in error and "http" not in error


def test_a_run_is_overwritten_only_on_request(call, capsys):
    call(PRETRAIN, SMALL)
    (folder,) = Path("runs").glob("*/*/seed1")
    written = (folder / "eval.csv").read_bytes()
    with pytest.raises(SystemExit) as ended:
        call(PRETRAIN, SMALL)
    assert ended.value.code == 2 and "--overwrite replaces it" in capsys.readouterr().err
    assert (folder / "eval.csv").read_bytes() == written
    call(PRETRAIN, f"{SMALL} --overwrite")
    assert (folder / "eval.csv").read_text().count("\n") == 1 + 2


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device here")
def test_cuda_asked_for_and_not_there(call, capsys):
    with pytest.raises(SystemExit) as ended:
        call(SCRATCH, "--device cuda")
    assert ended.value.code == 2 and "--device cuda" in capsys.readouterr().err


def test_without_affinity_and_mujoco_a_run_on_another_environment_works(tmp_path):
    """As on macOS, in an installation without MuJoCo, with blanks in the folder's name."""
    program = (
        "import os, sys; del os.sched_getaffinity; sys.modules['mujoco'] = None\n"
        "import tyro, sac_scratch as m; m.main(tyro.cli(m.Args, args=sys.argv[1:]))"
    )
    options = "--env odd_envs:Line-v0 --online-steps 20 --warmup-steps 5 --batch-size 4 --hidden-dim 4"
    command = [sys.executable, "-c", program, *options.split(), "--compile", "off", "--runs-dir", "my runs"]
    environment = {"PYTHONPATH": f"{ROOT}:{ROOT / 'tests'}", "PATH": "/usr/bin:/bin", "HOME": "/proc/none"}
    ended = subprocess.run(command, env=environment, capture_output=True, text=True, cwd=tmp_path)
    assert ended.returncode == 0, ended.stderr
    assert "next: python plot_curves.py 'my runs'" in ended.stdout
