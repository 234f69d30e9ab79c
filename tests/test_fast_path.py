"""Whole offline phases, compiled and eager, from the same state and the same draws: the numbers must agree.

Scripts of the first house. TD3+BC goes through the compiler that users have; it takes half a minute of C++.
For the others the traced graph is run without code generation; TEST_INDUCTOR=1 compiles them too. On CUDA,
where there is one, all go through the compiler and CUDA graphs.
"""

import os
import shutil
from functools import partial
from pathlib import Path

import pytest
import torch
import torch._inductor.config as inductor

SMALL = "--dataset hopper/tiny-v0 --num-seeds 2 --hidden-dim 16 --batch-size 32 --offline-steps 50"
SMALL += " --eval-every 50 --eval-episodes 1"
OPTIONS = {
    "td3_bc": "--q-filter-percentile 25",
    "cql_sac": "--cql-actions 2 --cql-threshold 5",
    "iql": "",
    "awac": "",
    "o3f_select": "",
}


def result(folder: str) -> tuple[dict[str, torch.Tensor], dict[str, float]]:
    """Parameters of both seeds and the metrics of the last 50 updates."""
    tensors, metrics = {}, {}
    for seed in ("seed1", "seed2"):
        (path,) = Path(folder).glob(f"*/*/{seed}")
        agent = torch.load(path / "checkpoint.pt")["agent"]
        tensors |= {f"{seed} {name}": tensor for name, tensor in agent.items()}
        rows = [line.split(",") for line in (path / "metrics.csv").read_text().splitlines()]
        metrics |= {f"{seed} {name}": float(value) for _, step, _, name, value in rows[1:] if step == "50"}
    return tensors, metrics


CUDA = pytest.param("cuda", marks=pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device"))


@pytest.mark.parametrize("device", ["cpu", CUDA])
@pytest.mark.parametrize("script", OPTIONS)
def test_fifty_compiled_updates_give_the_eager_numbers(call, monkeypatch, script, device):
    rtol = {"cpu": 1e-3, "cuda": 1e-2}[device]  # CUDA: TF32
    tolerances = {"rtol": rtol, "atol": rtol / 10}
    if device == "cpu" and (script == "td3_bc" or os.environ.get("TEST_INDUCTOR")):
        if not shutil.which(os.environ.get("CXX", "g++")):
            pytest.skip("no C++ compiler")
    elif device == "cpu":
        monkeypatch.setattr(torch, "compile", partial(torch.compile, backend="aot_eager"))
    torch._dynamo.reset()
    for compile in ("off", "on"):
        with inductor.patch(fallback_random=True):  # else compiled code has a random stream of its own
            out, _ = call(
                script,
                f"{SMALL} {OPTIONS[script]} --device {device} --compile {compile} --runs-dir {compile}",
            )
        assert ("compiling" in out) == (compile == "on") and "eagerly" not in out
    (eager, losses), (compiled, compiled_losses) = result("off"), result("on")
    moved = 0
    for name, value in eager.items():
        torch.testing.assert_close(compiled[name], value, **tolerances, msg=lambda m, n=name: f"{n}: {m}")
        moved += not torch.equal(value, torch.zeros_like(value))
    assert moved > 20 and len([name for name in losses if "loss/" in name]) >= 4
    for name in losses:  # the evaluation's episodes amplify the last digits
        if not name.split()[1].startswith("eval/"):
            assert compiled_losses[name] == pytest.approx(
                losses[name], rel=tolerances["rtol"], abs=tolerances["atol"]
            )
