"""Seconds that a save for --resume and the checkpoints of an evaluation take: ten SAC seeds, a million rows each.

    python benchmarks/checkpoint_cost.py --out results/speed/checkpoint_cost.csv

Only the rows since the last save are written, so a save costs the same at any fill of the replay. Between two saves
lie --checkpoint-every minutes, and here 60,000 steps, a thousand a second.
"""

import csv
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import tyro

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
import sac_scratch as sac  # noqa: E402

ROWS = 60_000  # new ones a seed at each save


@dataclass
class Args:
    num_seeds: int = 10  # seeds trained together
    capacity: int = 1_000_000  # online transitions kept a seed
    device: str = "cpu"  # cpu or cuda
    saves: int = 5  # saves of each kind; the median is printed
    out: str | None = None  # also write the table to this CSV


def main(args: Args) -> None:
    torch.manual_seed(0)
    seconds: dict[str, list[float]] = {"save for --resume": [], "checkpoint.pt of every seed": []}
    with tempfile.TemporaryDirectory(dir=".") as folder:
        options = sac.Args(num_seeds=args.num_seeds, replay_capacity=args.capacity, device=args.device, runs_dir=folder)
        run = sac.Run(options, None, None)
        agent = sac.Agent(run.seeds, 11, 3, options.hidden_dim, 2, True).to(run.device)
        table = sac.ReplayTable(None, args.num_seeds, agent.shape, args.capacity, "online", run.device)
        loop = sac.update_loop(agent, table, options, total=1, repeat=1)
        table.rings.normal_()
        with run.recording():
            run.phase, run.last = "online", np.zeros(args.num_seeds)
            for save in range(1, args.saves + 1):
                run.env_step = table.added = save * ROWS
                start = time.perf_counter()
                run.kept_at = 0
                run.keep(agent, agent, table, [loop])
                seconds["save for --resume"].append(time.perf_counter() - start)
                start = time.perf_counter()
                for path, checkpoint in run.checkpoints(agent):
                    sac.save_checkpoint(path, checkpoint)
                seconds["checkpoint.pt of every seed"].append(time.perf_counter() - start)
            megabytes = [
                sum(p.stat().st_size for p in Path(folder).rglob(name)) / 1e6 for name in ("resume.pt", "checkpoint.pt")
            ]
            megabytes[0] += ROWS * table.rings[:, 0].numel() * 4 / 1e6
    hardware = torch.cuda.get_device_name() if run.device == "cuda" else "CPU"
    table = [["what", "seeds", "seconds", "MB", "share of a minute", "hardware"]]
    for (name, found), size in zip(seconds.items(), megabytes, strict=True):
        median = float(np.median(found))
        table.append([name, args.num_seeds, f"{median:.2f}", f"{size:.0f}", f"{median / 60:.2%}", hardware])
    for row in table:
        print("  ".join(f"{cell!s:<30}" if i == 0 else f"{cell!s:>10}" for i, cell in enumerate(row)))
    if args.out:
        with open(args.out, "w", newline="") as file:
            csv.writer(file, lineterminator="\n").writerows(table)


if __name__ == "__main__":
    main(tyro.cli(Args))
