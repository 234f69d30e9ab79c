"""What evaluation takes from training: 10 episodes of each seed every 5,000 updates, in between and beside them.

    OMP_NUM_THREADS=1 python benchmarks/evaluation.py --checkpoint runs/Hopper-v4/<run>/seed1/checkpoint.pt
    python benchmarks/evaluation.py --num-seeds 10 --device cuda

The checkpoint's policy is evaluated over and over, every seed with the same one, while copies of its agent go on
training offline on the bundled data; without a checkpoint, an untrained agent of sac_scratch.py, whose episodes are
short. The same number of updates is made without an evaluation, with one in between (training waits for it) and with
one beside, as the scripts do it; what is left when the updates are over counts. The three take turns; differences of
their medians are what an evaluation costs. The last column stretches that to episodes of full length.
"""

import copy
import csv
import importlib
import os
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import torch
import tyro

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
EVERY = 5_000  # updates between evaluations


@dataclass
class Args:
    checkpoint: str | None = None  # a seed's checkpoint.pt, best of a policy that stays up
    env: str = "Hopper-v4"  # Gymnasium id with a bundled dataset
    num_seeds: int = 1  # seeds trained together
    device: str = "cpu"  # cpu or cuda
    compile: Literal["on", "off"] = "on"  # compile the update
    eval_episodes: int = 10  # episodes of each seed
    updates: int = 1_000  # updates of a turn
    turns: int = 5  # turns of each kind; medians are printed
    out: str | None = None  # also write the table to this CSV


def main(args: Args) -> None:
    saved = torch.load(args.checkpoint, map_location="cpu", weights_only=True) if args.checkpoint else {}
    script = importlib.import_module(saved.get("script", "sac_scratch"))
    torch.manual_seed(0)
    torch.set_float32_matmul_precision("high")
    same = {name: getattr(args, name) for name in ("env", "num_seeds", "device", "compile", "eval_episodes")}
    with tempfile.TemporaryDirectory() as folder:
        options = script.Args(**same, runs_dir=folder)
        if script.__name__ == "cql_sac":
            options.cql_alpha = 5.0
        obs_dim, low, high = script.check_args(options)
        dataset = script.load_dataset(options, obs_dim, low, high)
        run, shape = script.Run(options, dataset, None), {"hidden_dim": 256, "num_critics": 2, "layer_norm": True}
        agent = script.Agent(run.seeds, **saved.get("shape", shape | {"obs_dim": obs_dim, "action_dim": len(low)}))
        for name, tensor in agent.state_dict().items():
            if saved:
                (tensor.unflatten(0, (args.num_seeds, -1)) if tensor.dim() else tensor).copy_(saved["agent"][name])
        agent, policy = agent.to(args.device), copy.deepcopy(agent).to(args.device)
        with run.recording():
            evaluator, lengths = run.evaluator, []
            table = script.ReplayTable(dataset.rows, args.num_seeds, agent.shape, 0, "append", args.device)
            repeat = 10 if args.device == "cuda" else 1  # as train_offline
            loop = script.update_loop(agent, table, options, total=10**9, repeat=repeat)

            def turn(kind: str) -> float:
                start = time.perf_counter()
                if kind != "none":
                    evaluator.start(policy, {})
                    results = evaluator.results
                if kind == "in between":
                    evaluator.finish()
                for _ in range(args.updates // repeat):
                    loop()
                    evaluator.finish(wait=False)
                evaluator.finish()
                if args.device == "cuda":
                    torch.cuda.synchronize()
                if kind != "none":
                    lengths.append(np.mean([result.result().lengths for result in results]))
                return time.perf_counter() - start

            kinds = ["none", "in between", "beside"]
            turns = [{kind: turn(kind) for kind in kinds} for _ in range(args.turns)]
    hardware = torch.cuda.get_device_name() if args.device == "cuda" else f"CPU, {torch.get_num_threads()} threads"
    hardware += f"; {len(os.sched_getaffinity(0))} CPU cores"
    seconds = {kind: float(np.median([times[kind] for times in turns])) for kind in kinds}
    training, length = EVERY * seconds["none"] / args.updates, float(np.mean(lengths))
    limit = script.make_env(args.env).spec.max_episode_steps
    names = [
        "script",
        "seeds",
        "evaluation",
        "mean episode",
        f"s for {EVERY:,} updates",
        "s it takes",
        "share of the time",
    ]
    rows = [[*names, f"share with episodes of {limit}", "hardware"]]
    for kind in kinds[1:]:
        cost = max(0.0, seconds[kind] - seconds["none"])
        full = cost * limit / length
        row = [script.__name__, args.num_seeds, kind, f"{length:.0f}", f"{training:.1f}", f"{cost:.2f}"]
        rows.append([*row, f"{cost / (training + cost):.1%}", f"{full / (training + full):.1%}", hardware])
    for row in rows:
        print("  ".join(f"{cell!s:>{max(12, len(name))}}" for cell, name in zip(row, rows[0], strict=True)))
    if args.out:
        with open(args.out, "w", newline="") as file:
            csv.writer(file, lineterminator="\n").writerows(rows)


if __name__ == "__main__":
    main(tyro.cli(Args))
