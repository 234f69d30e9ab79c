"""CPU time of an update in this version of a script, as a ratio to its first version's, over alternating turns.

The first version's file comes from the history, under the same name:

    mkdir first && git show 369fc29:td3_bc.py > first/td3_bc.py
    OMP_NUM_THREADS=1 python benchmarks/houses.py first/td3_bc.py
    OMP_NUM_THREADS=1 python benchmarks/houses.py first/td3_bc.py --compile on --num-seeds 3

Batch 256, networks of 2x256, LayerNorm in the critics (TD3: its own networks), 200,000 rows of Hopper's sizes. Above 1,
this version is faster. CPU time hardly sees what else the machine does, but caches and clocks do: the quartiles tell.
"""

import importlib.util
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import torch
import tyro

ROOT = Path(__file__).resolve().parents[1]


@dataclass
class Args:
    first: tyro.conf.Positional[Path]  # a script of the first version
    compile: Literal["on", "off"] = "off"  # torch.compile
    num_seeds: int = 1  # seeds together
    updates: int = 50  # updates per turn, a multiple of ten
    turns: int = 9  # turns of each version


def load(name: str, path: Path):
    spec = importlib.util.spec_from_file_location(name, path)
    module = sys.modules[name] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def first(script, args: Args, rows: np.ndarray):
    """A function that makes args.updates updates."""
    options = script.Args(num_seeds=args.num_seeds, compile=args.compile)
    if hasattr(options, "cql_alpha"):
        options.cql_alpha = 5.0  # main sets it there
    num_critics = getattr(options, "num_critics", 2)  # the finetuning has its checkpoint's
    agent = script.Agent(list(range(args.num_seeds)), 11, 3, 256, num_critics, True)
    if hasattr(script, "set_scales"):
        script.set_scales(agent, rows[:, 11:14], rows[:, 14], options.gamma)
    rows = np.column_stack([rows, np.zeros(len(rows), np.float32)])
    table = script.ReplayTable(rows, args.num_seeds, agent.shape, 0, "append", "cpu")
    loop = script.update_loop(agent, table, options, 10**9, 1)
    return lambda: [loop() for _ in range(args.updates)]


def second(script, args: Args, rows: np.ndarray):
    """The same of this version."""
    options = script.Args(num_seeds=args.num_seeds, compile=args.compile)
    shape = {
        "obs_dim": 11,
        "action_dim": 3,
        "hidden_dim": 256,
        "num_critics": getattr(options, "num_critics", 2),
    }
    shape |= {"network": "layernorm"} if hasattr(options, "network") else {"layer_norm": True}
    algorithm = script.ALGORITHM(options, **shape)
    states = [algorithm.init(seed) for seed in range(args.num_seeds)]
    if script.FAMILY == "lapo":
        states = [state | algorithm.from_data(rows) for state in states]
    state = script.stack(states)
    dataset = script.Dataset(rows, np.zeros(len(rows), np.uint8), {})
    replay = script.Replay(options, shape, dataset, 0, "cpu")
    loop = script.update_loop(algorithm, state, replay, options, 10**9)
    return lambda: [loop(1, 10) for _ in range(args.updates // 10)]


def cpu_time(function) -> float:
    start = time.process_time()
    function()
    return time.process_time() - start


def main(args: Args) -> None:
    rng = np.random.default_rng(0)
    rows = rng.standard_normal((200_000, 27)).astype(np.float32).clip(-1, 1)
    rows[:, -1] = rows[:, -1] == 1
    scripts = load("first", args.first), load("second", ROOT / args.first.name)
    functions = [build(script, args, rows) for build, script in zip((first, second), scripts, strict=True)]
    warm = [cpu_time(function) for function in functions]  # compiles, too
    times = np.array([[cpu_time(function) for function in functions] for _ in range(args.turns)])
    low, median, high = np.quantile(times[:, 0] / times[:, 1], (0.25, 0.5, 0.75))
    each = " and ".join(f"{1e3 * value:.2f}" for value in np.median(times, 0) / args.updates)
    print(
        f"{args.first.name}, compile {args.compile}, {args.num_seeds} seeds, {torch.get_num_threads()} threads: ratio {median:.3f}"
    )
    print(
        f"quartiles {low:.3f} to {high:.3f}; {each} ms per update, first turn {warm[0]:.1f} and {warm[1]:.1f} s"
    )


if __name__ == "__main__":
    main(tyro.cli(Args))
