"""Offline SAC's update rate against seeds, batch size and dataset size; load time and peak memory against the latter.

    OMP_NUM_THREADS=1 python benchmarks/growth.py --axes seeds batch data --out results/speed
    python benchmarks/growth.py --axes seeds batch data --device cuda --out runs/speed
    python benchmarks/growth.py --axes --out results/speed                  draws the CSVs that are there

Every setting is a process of its own, which builds offline_pretrain_sac.py's update_loop and waits; then all settings
of an axis take turns, and the median over turns is printed. Datasets are random numbers in Hopper's shape, episodes of
500 steps, written as sac_scratch.py --save-dataset does (Minari) and like D4RL's files (gzip, float32). The peak is of
the process when the data lie in the table; what it has at the smallest dataset is Python and PyTorch.
"""

import csv
import io
import multiprocessing
import os
import re
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import tyro

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
OBS_DIM, ACTION_DIM, EPISODE = 11, 3, 500
SIZES = [OBS_DIM, ACTION_DIM, 1, OBS_DIM, 1, 1]


@dataclass
class Args:
    axes: tuple[Literal["seeds", "batch", "data"], ...] = ("seeds", "batch", "data")  # what to measure
    seeds: tuple[int, ...] = (1, 2, 5, 10, 20, 50)  # numbers of seeds, at batch size 256
    batch: tuple[int, ...] = (64, 256, 1024, 4096)  # batch sizes, one seed
    data: tuple[int, ...] = (10_000, 100_000, 500_000, 2_000_000)  # transitions, one seed, batch size 256
    device: str = "cpu"  # cpu or cuda
    seconds: float = 1.0  # of a turn, about
    turns: int = 7  # turns of every setting
    out: str | None = None  # folder to write growth_<axis>.csv, growth.png and growth.svg to


def serve(pipe, device: str, seconds: float, options: dict) -> None:
    """The process of one setting: loads, builds, then measures an update rate whenever it is asked."""
    import torch

    import offline_pretrain_sac as sac

    sys.stdout = io.StringIO()  # "compiling the update ..."
    torch.set_float32_matmul_precision("high")
    args, bound, start = sac.Args(**options), np.ones(ACTION_DIM, np.float32), time.perf_counter()
    rows = sac.load_dataset(args, OBS_DIM, -bound, bound).rows if args.dataset else make_rows(50_000)
    load = time.perf_counter() - start
    agent = sac.Agent([*range(args.num_seeds)], OBS_DIM, ACTION_DIM, args.hidden_dim, 2, args.layer_norm).to(device)
    table = sac.ReplayTable(rows, args.num_seeds, agent.shape, 0, "append", device)
    peak = re.search(r"VmHWM:\s+(\d+)", Path("/proc/self/status").read_text())[1]  # getrusage's contains the parent's
    hardware = f"CPU, {torch.get_num_threads()} threads" if device == "cpu" else torch.cuda.get_device_name()
    pipe.send((load, int(peak) * 1024 / 1e6, hardware))

    if not pipe.recv():
        return
    repeat = 10 if device == "cuda" else 1  # as train_offline
    loop = sac.update_loop(agent, table, args, total=10**9, repeat=repeat)

    def rate(calls: int) -> float:
        start = time.perf_counter()
        for _ in range(calls):
            loop()
        if device == "cuda":
            torch.cuda.synchronize()
        return calls * repeat / (time.perf_counter() - start)

    calls = 1
    while (found := rate(calls)) > 4 * calls * repeat / seconds:  # less than a quarter of a turn
        calls *= 2
    pipe.send(None)
    while pipe.recv():
        pipe.send(rate(max(1, round(seconds * found / repeat))))


class Setting:
    """A process that measures one setting; `load`, `peak` and `hardware` are known when it is made."""

    def __init__(self, args: Args, **options):
        context = multiprocessing.get_context("spawn")
        self.pipe, theirs = context.Pipe()
        arguments = theirs, args.device, args.seconds, {"num_seeds": 1, "device": args.device, **options}
        self.process = context.Process(target=serve, args=arguments, daemon=True)
        self.process.start()
        self.load, self.peak, self.hardware = self.pipe.recv()

    def ask(self, more: bool = True) -> float | None:
        self.pipe.send(more)
        return self.pipe.recv() if more else self.process.join()


def rates(settings: list[Setting], turns: int) -> list[float]:
    """Median updates a second of every setting (of all its seeds at once), over turns."""
    for setting in settings:  # one after the other: compilation takes all cores
        setting.ask()
    print("measuring ...", flush=True)
    found = np.median([[setting.ask() for setting in settings] for _ in range(turns)], 0)
    for setting in settings:
        setting.ask(False)
    return found.tolist()


def make_rows(count: int) -> np.ndarray:
    rows = np.random.default_rng(0).normal(size=(count, sum(SIZES))).clip(-1, 1).astype(np.float32)
    rows[:, -2:] = 0
    rows[EPISODE - 1 :: EPISODE, -1] = 1
    return rows


def write_files(folder: str, rows: np.ndarray) -> dict[str, Path]:
    import h5py

    import sac_scratch as sac

    os.environ["MINARI_DATASETS_PATH"] = folder
    sac.write_minari(f"random/rows{len(rows)}-v0", rows.copy(), SIZES, "Hopper-v4")
    names = "observations", "actions", "rewards", "next_observations", "terminals", "timeouts"
    path = Path(folder) / f"rows{len(rows)}.hdf5"
    with h5py.File(path, "w") as file:
        for name, column in zip(names, np.split(rows, np.cumsum(SIZES)[:-1], 1), strict=True):
            column = column[:, 0] if column.shape[1] == 1 else column
            column = column.astype(bool) if name in names[-2:] else column
            file.create_dataset(name, data=column, compression="gzip")
    return {"Minari": Path(folder) / f"random/rows{len(rows)}-v0", "D4RL": path}


def measure(args: Args, axis: str) -> list[list]:
    rounded = lambda rate: f"{rate:.{0 if rate >= 10 else 1}f}"  # noqa: E731
    if axis in ("seeds", "batch"):
        option = {"seeds": "num_seeds", "batch": "batch_size"}[axis]
        cases = [(value, compile) for value in getattr(args, axis) for compile in ("on", "off")]
        settings = [Setting(args, compile=compile, **{option: value}) for value, compile in cases]
        table = [["seeds" if axis == "seeds" else "batch size", "update", "updates/s a seed", "", "hardware"]]
        table[0][3] = "updates/s of all seeds" if axis == "seeds" else "transitions/s"
        for (value, compile), rate in zip(cases, rates(settings, args.turns), strict=True):
            row = [value, "compiled" if compile == "on" else "eager", rounded(rate), rounded(rate * value)]
            table.append([*row, settings[0].hardware])
        return table
    table, settings = [["transitions", "file", "MB on disk", "seconds to load", "peak MB", "updates/s", "hardware"]], []
    with tempfile.TemporaryDirectory() as folder:
        rows = make_rows(max(args.data))
        files = {count: write_files(folder, rows[:count]) for count in args.data}
        print("loading ...", flush=True)
        for count in args.data:
            for kind, path in files[count].items():
                size = sum(p.stat().st_size for p in [path, *path.rglob("*")] if p.is_file()) / 1e6
                setting = Setting(args, dataset=str(path))
                if kind == "D4RL":  # the table is the same; one of them measures the updates
                    settings.append(setting)
                else:
                    setting.ask(False)
                row = [count, kind, f"{size:.0f}", f"{setting.load:.2f}", f"{setting.peak:.0f}", ""]
                table.append([*row, setting.hardware])
        for row, rate in zip(table[2::2], rates(settings, args.turns), strict=True):
            row[5] = rounded(rate)
    return table


def draw(folder: Path) -> None:
    """Draws the CSVs of a folder."""
    import matplotlib.pyplot as plt

    plt.rcParams |= {"font.size": 9, "axes.spines.top": False, "axes.spines.right": False, "svg.hashsalt": "growth"}
    figure, panels = plt.subplots(1, 3, figsize=(10, 3.3), layout="constrained")
    lines = {  # panel: (file, titles, (column of x, column that tells lines apart, {column of y: style}))
        0: ("seeds", "Seeds", "seeds trained together", "updates/s, all seeds", {"updates/s of all seeds": "-"}),
        1: ("batch", "Batch size, one seed", "transitions in a batch", "updates/s", {"updates/s a seed": "-"}),
        2: ("data", "Dataset size", "transitions", "", {"seconds to load": "-", "peak MB": "--"}),
    }
    hardware = set()
    for i, (axis, title, x_label, y_label, columns) in lines.items():
        if not (path := folder / f"growth_{axis}.csv").exists():
            continue
        with open(path, newline="") as file:
            rows = list(csv.DictReader(file))
        x_name, kind_name = list(rows[0])[:2]
        hardware |= {row["hardware"] for row in rows}
        for color, kind in zip(("C0", "C1"), dict.fromkeys(row[kind_name] for row in rows), strict=False):
            for column, style in columns.items():
                points = [(int(row[x_name]), float(row[column])) for row in rows if row[kind_name] == kind]
                scale = 1e3 if column == "peak MB" else 1
                label = kind if len(columns) == 1 else f"{kind}, {'GB at the peak' if scale > 1 else column}"
                x, y = zip(*points, strict=True)
                panels[i].plot(x, np.array(y) / scale, style, color=color, marker="o", markersize=3.5, label=label)
        panels[i].set(title=title, xlabel=x_label, ylabel=y_label, xscale="log", yscale="linear" if i == 0 else "log")
        panels[i].set_ylim(0 if i == 0 else None)
        panels[i].set_xticks(x, [f"{n / 1e6:g}M" if n >= 1e6 else f"{n // 1000}k" if n >= 10_000 else n for n in x])
        panels[i].minorticks_off()
        panels[i].yaxis.set_major_formatter("{x:g}")
        panels[i].grid(alpha=0.3)
        panels[i].legend(frameon=False, fontsize=8)
    where = re.sub(r"\b1 threads", "1 thread", "; ".join(sorted(hardware)))
    figure.supxlabel(f"SAC offline, 2 critics of 2x256 with LayerNorm; {where}", fontsize=8)
    figure.savefig(folder / "growth.png", dpi=160)
    figure.savefig(folder / "growth.svg", metadata={"Date": None})


def main(args: Args) -> None:
    for axis in args.axes:
        table = measure(args, axis)
        for row in table:
            print("  ".join(f"{cell!s:>22}" for cell in row))
        if args.out:
            Path(args.out).mkdir(parents=True, exist_ok=True)
            with open(Path(args.out) / f"growth_{axis}.csv", "w", newline="") as file:
                csv.writer(file, lineterminator="\n").writerows(table)
    if args.out:
        draw(Path(args.out))


if __name__ == "__main__":
    main(tyro.cli(Args))
