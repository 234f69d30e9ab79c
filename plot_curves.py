"""Overlay the learning curves of all runs in a folder, and print the table that goes with them.

Reads    <runs>/<env>/<script>[-<tag>]/seed<k>/{config.json, eval.csv}, and metrics.csv with --metric.
Writes   <out>.png and <out>.svg, one panel an environment; without --metric also the table, as <out>.csv (one
         row a run) and <out>.md (the same, and one row a seed). Equal runs give equal bytes.
Run      python plot_curves.py runs/
         python plot_curves.py runs/ --x total --label 'online_finetune_sac*' --out figures/finetune
         python plot_curves.py runs/ --x total --metric loss/critic

The score of an evaluation is the mean over its episodes, per seed: undiscounted return, or percent with
--y score. A line is the mean over the seeds that have an evaluation at that step, the band its 95% percentile
bootstrap interval (seeds are resampled; of two or three, its ends are the lowest and the highest); one seed
alone has no band. A circle and a dashed line mark a pretrained score, a dotted line the last score of a run
without an online phase.

Each quantity of the table is taken per seed, then over seeds: the mean, unless said otherwise.
    offline     score of the policy that the online phase starts from, at env_step 0 (`start` says whether it
                was pretrained or untrained); of a run without an online phase, its last score
    final       score of the last evaluation, never of the best one, also of a seed that stopped early;
                final_low and final_high are the ends of the bootstrap interval of the mean; offline_std and
                final_std the standard deviations over seeds (n - 1), for tables that give mean and deviation
    iqm         interquartile mean of the final scores (see `iqm`), with its own interval
    last_five   mean score of the last five evaluations of the same phase (of all where there are fewer)
    delta       final - offline
    drop        deepest fall below the offline score, max(0, max_t(offline - score_t)). It is a maximum over
                noisy evaluations: a small drop is seen even where the policy never got worse
    recovery    length in env steps of the excursion that holds the deepest evaluation: from the last
                evaluation before it at or above the offline score, to the first one after it that is at or
                above again and whose mean with the next two (as far as there are any) is so too: one lucky
                evaluation is no recovery. 0 where no score is below. Over seeds the median, in which "not
                recovered" counts as longest; `recovered` counts the seeds that came back or never fell
    auc         trapezoid area under the online scores divided by their length in env steps: a mean score
"""

import csv
import json
import math
import re
import sys
import textwrap
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Literal, NoReturn

import matplotlib
import numpy as np
import tyro
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch
from matplotlib.ticker import FuncFormatter

# Okabe & Ito's colour-blind-safe palette, https://jfly.uni-koeln.de/color/, its pale yellow left out
COLORS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
LINE_STYLES = ("-", "-.", (0, (5, 1)), (0, (3, 1, 1, 1, 1, 1)))  # the next one once the colours are used up
PHASES = ("offline", "online")
UNITS = {"offline": "gradient updates", "online": "env steps"}
Y_LABELS = {"return": "evaluation return", "score": "normalised score (%)"}
BOOTSTRAP_SAMPLES = 2000
TERMINAL_COLUMNS = (
    "seeds",
    "offline",
    "final",
    "final_low",
    "final_high",
    "iqm",
    "delta",
    "drop",
    "recovery",
    "auc",
)


@dataclass
class Args:
    """Overlay the learning curves of all runs found (mean over seeds, 95% bootstrap interval) and tabulate
    offline and final score, drop and recovery. `--env` and `--label` take an exact name, a part of one or a
    quoted glob ('*qf25'), and may be repeated."""

    runs: tyro.conf.Positional[tuple[Path, ...]] = (Path("runs"),)  # folders to search for runs
    x: Literal["online", "total"] = "online"  # online env steps, or offline gradient updates + env steps
    y: Literal["return", "score"] = "return"  # undiscounted return, or normalised score in percent
    metric: str = ""  # plot this name from metrics.csv instead, without a table
    env: tyro.conf.UseAppendAction[tuple[str, ...]] = ()  # only these environments
    label: tyro.conf.UseAppendAction[tuple[str, ...]] = ()  # only these runs, by the names of their folders
    out: str = ""  # folder or file prefix; empty: curves.* in the first folder of runs


@dataclass
class Seed:
    """One seed of a run. `series[phase]` is (steps (T,), values (T,)); steps as in UNITS."""

    folder: Path
    env: str
    run: str
    number: int
    config: dict
    series: dict
    offset: int  # gradient step of the policy that the online phase starts from; 0: untrained

    @property
    def finished(self):
        return self.config.get("status") == "finished"

    @property
    def phase(self):
        """The phase that the results are about: the last one that has values."""
        return "online" if "online" in self.series else "offline"

    @property
    def progress(self):
        """How far it got, such as '12k of 50k'."""
        planned = self.config.get(f"{self.phase}_steps")
        reached = short(self.series[self.phase][0][-1])
        return f"{reached} of {short(planned)}" if planned else reached

    @property
    def status(self):
        status = self.config.get("status", "config.json unreadable")
        return "running or killed" if status == "running" else status


@dataclass
class Curve:
    """One run (script and tag) with its seeds, and how it is drawn."""

    env: str
    run: str
    seeds: list
    label: str
    color: str
    style: object

    def has(self, phase):
        return any(phase in seed.series for seed in self.seeds)

    @property
    def offset(self):
        return float(np.mean([seed.offset for seed in self.seeds]))

    @property
    def incomplete(self):
        """What is missing, for the legend and the table; '' when all seeds have finished."""
        unfinished = [seed for seed in self.seeds if not seed.finished]
        if not unfinished:
            return ""
        least = min(unfinished, key=lambda seed: (seed.phase == "online", seed.series[seed.phase][0][-1]))
        some = f"{len(unfinished)} of {len(self.seeds)} seeds " if len(unfinished) < len(self.seeds) else ""
        return f"{some}incomplete, {least.progress}" + (" offline" if least.phase == "offline" else "")


def fail(message: str) -> NoReturn:
    """Bad input: one line on stderr, exit status 2."""
    print(f"error: {message}", file=sys.stderr)
    raise SystemExit(2)


def short(number):
    """12000 -> '12k', for steps and ticks."""
    for size, letter in ((1e6, "M"), (1e3, "k")):
        if abs(number) >= size:
            return f"{number / size:.4g}{letter}"
    return f"{number:.4g}"


def read_config(path):
    """A missing or half-written config.json counts as empty: such a run is shown, as incomplete."""
    try:
        config = json.loads(path.read_text())
    except (OSError, ValueError):
        return {}
    return config if isinstance(config, dict) else {}


def read_rows(path, key, value):
    """Valid rows of a CSV as [(phase, gradient_step, env_step, row[key], float(row[value]))]."""
    try:
        text = path.read_text(errors="replace")
    except OSError:
        return []
    whole_lines = text[: text.rfind("\n") + 1]  # a killed run may leave the last line unfinished
    rows = []
    for row in csv.DictReader(whole_lines.splitlines()):
        try:
            parsed = (
                row["phase"],
                int(row["gradient_step"]),
                int(row["env_step"]),
                row[key],
                float(row[value]),
            )
        except (KeyError, TypeError, ValueError):
            continue
        if parsed[0] in PHASES and math.isfinite(parsed[-1]):
            rows.append(parsed)
    return rows


def to_series(rows):
    """Mean over the rows (episodes) of each step, as {phase: (steps (T,), values (T,))}.

    A row written again after a resume replaces the first one. A last evaluation with fewer episodes than
    the one before was cut short, and is left out.
    """
    values = {}
    for phase, gradient_step, env_step, key, value in rows:
        step = env_step if phase == "online" else gradient_step
        values.setdefault(phase, {}).setdefault(step, {})[key] = value
    series = {}
    for phase, by_step in values.items():
        steps = sorted(by_step)
        if len(steps) > 1 and len(by_step[steps[-1]]) < len(by_step[steps[-2]]):
            steps.pop()
        series[phase] = np.array(steps), np.array([np.mean(list(by_step[step].values())) for step in steps])
    return series


def load_seed(folder, args):
    config = read_config(folder / "config.json")
    evaluations = read_rows(folder / "eval.csv", "episode", "return")
    rows = evaluations
    if args.metric:
        rows = [row for row in read_rows(folder / "metrics.csv", "name", "value") if row[3] == args.metric]
    elif args.y == "score":
        rows = read_rows(folder / "eval.csv", "episode", "normalized_score")
    starts = [(env_step, gradient) for phase, gradient, env_step, *_ in evaluations if phase == "online"]
    offset = min(starts)[1] if starts else 0
    env = config.get("env") or folder.parent.parent.name
    number = int(folder.name.removeprefix("seed"))
    return Seed(folder, env, folder.parent.name, number, config, to_series(rows), offset)


def find_seeds(args):
    """All seeds in the given folders; an (env, run, seed) may be there once."""
    found = {}
    for root in args.runs:
        if not root.is_dir():
            fail(f"runs: {root} is not a folder; give the folder the training scripts wrote, such as runs/")
        folders = [path.resolve() for path in (root, *root.rglob("seed*")) if path.is_dir()]
        folders = [path for path in folders if re.fullmatch(r"seed\d+", path.name)]
        if not folders:
            fail(f"runs: {root} holds no run; looked for <env>/<script>/seed<k> folders in it")
        for folder in folders:
            seed = load_seed(folder, args)
            other = found.setdefault((seed.env, seed.run, seed.number), seed).folder
            if other != folder:
                fail(f"runs: {other} and {folder} are the same run and seed; give one of them, or rename one")
    return [found[key] for key in sorted(found)]


def select(names, patterns, option):
    """The names that match any of the patterns: exactly, else as a glob or a part of the name."""
    chosen = set()
    for pattern in patterns or ("*",):
        exact = {name for name in names if name == pattern}
        matches = exact or {name for name in names if fnmatchcase(name, pattern) or pattern in name}
        if not matches:
            fail(f"{option} {pattern}: matches no run; choose among {', '.join(sorted(names))}")
        chosen |= matches
    return chosen


def choose_seeds(seeds, args):
    """Apply the filters and leave out the seeds that have nothing to plot; returns (seeds, notes)."""
    envs = select({seed.env for seed in seeds}, args.env, "--env")
    seeds = [seed for seed in seeds if seed.env in envs]
    runs = select({seed.run for seed in seeds}, args.label, "--label")
    seeds = [seed for seed in seeds if seed.run in runs]
    plotted = [seed for seed in seeds if seed.series]
    if not plotted and args.metric:
        rows = [row for seed in seeds for row in read_rows(seed.folder / "metrics.csv", "name", "value")]
        names = ", ".join(sorted({name for *_, name, _ in rows})) or "(no metrics.csv has any)"
        fail(f"--metric {args.metric}: no run has it; choose among {names}")
    if not plotted and args.y == "score":
        fail("--y score: no run has normalised scores; use --y return")
    if not plotted:
        fail(f"runs: the eval.csv of all {len(seeds)} seeds are missing or empty; wait for an evaluation")
    groups = {}
    for seed in seeds:
        if not seed.series:
            what = f"no {args.metric or args.y} in its files, left out ({seed.status})"
        elif not seed.finished:
            what = f"{seed.status}, at {seed.progress} {UNITS[seed.phase]}"
        else:
            continue
        groups.setdefault((seed.env, seed.run, what), []).append(str(seed.number))
    notes = [f"{env}/{run} seed {', '.join(numbers)}: {what}" for (env, run, what), numbers in groups.items()]
    return plotted, notes


def shorten(runs):
    """Labels without the tag parts that all tagged runs share: ({run: label}, shared parts).

    `runs` is {run: config}. Of the groups of runs that decide, the first with two members does: a pretraining's tag has
    none of what its finetunings have in common, and that of a run from scratch has no dataset and no source.
    """
    words = {option.replace("_", "-") for config in runs.values() for option in config.get("args", ())}
    words |= {config["dataset"]["name"] for config in runs.values() if config.get("dataset")}
    known = "|".join([*map(re.escape, sorted(words, key=len, reverse=True)), "[^-]"])
    # a part: an option and its value (perhaps 1e-4 or -4), a dataset, or from-<script>
    part = re.compile(rf"(?:no-|from-)?(?:{known})[^-]*(?:-\d[^-]*)*")
    tags = {run: part.findall(run.partition("-")[2]) for run in runs}
    for facts in (["dataset", "online_steps", "checkpoint"], ["dataset", "online_steps"], ["dataset"], []):
        deciding = [run for run, config in runs.items() if tags[run] and all(config.get(fact) for fact in facts)]
        if len(deciding) > 1:
            break
    first = dict.fromkeys(tags[deciding[0]]) if len(deciding) > 1 else []
    shared = [part for part in first if all(part in tags[run] for run in deciding)]
    labels = {}
    for run, tag in tags.items():
        own = [part for part in tag if part not in shared or (run not in deciding and part.startswith("offline"))]
        labels[run] = "-".join([run.partition("-")[0], *own])
    if len(set(labels.values())) < len(labels):
        return {run: run for run in runs}, ""
    return labels, ", ".join(shared)


def make_panels(seeds):
    """[(title, curves)], one an environment; a run has the same colour in every panel."""
    runs = sorted({seed.run for seed in seeds})
    panels = []
    for env in sorted({seed.env for seed in seeds}):
        groups = {run: [seed for seed in seeds if (seed.env, seed.run) == (env, run)] for run in runs}
        groups = {run: group for run, group in groups.items() if group}
        labels, shared = shorten({run: group[0].config for run, group in groups.items()})
        curves = []
        for run, group in groups.items():
            turn, color = divmod(runs.index(run), len(COLORS))
            style = LINE_STYLES[turn % len(LINE_STYLES)]
            curves.append(Curve(env, run, group, labels[run], COLORS[color], style))
        panels.append((f"{env} ({shared})" if shared else env, curves))
    return panels


def align(seeds, phase):
    """Steps (T,) that any seed has in this phase, and values (n, T), NaN where a seed has none."""
    series = [seed.series.get(phase, ([], [])) for seed in seeds]
    steps = np.unique(np.concatenate([own_steps for own_steps, _ in series]))
    values = np.full((len(series), len(steps)), np.nan)
    for row, (own_steps, own_values) in zip(values, series, strict=True):
        row[np.searchsorted(steps, own_steps)] = own_values
    return steps, values


def iqm(values, axis=-1):
    """Interquartile mean, the mean of the middle half (Agarwal et al. 2021).

    The i-th of n sorted values weighs as much as [i/n, (i+1)/n] has in common with [1/4, 3/4]: where 4
    divides n this is the 25% trimmed mean, and three values weigh 1/6, 2/3, 1/6.
    """
    edges = np.clip(np.linspace(0, 1, np.shape(values)[axis] + 1), 0.25, 0.75)
    return np.average(np.sort(values, axis=axis), axis=axis, weights=np.diff(edges))


def bootstrap_interval(values, statistic=np.mean):
    """95% percentile bootstrap interval (low, high) of a statistic of values (n,); NaN for fewer than two."""
    values = values[~np.isnan(values)]
    n = len(values)
    if n < 2:
        return np.nan, np.nan
    resampled = values[np.random.default_rng(0).integers(n, size=(BOOTSTRAP_SAMPLES, n))]
    return tuple(np.percentile(statistic(resampled, axis=-1), [2.5, 97.5]))


def recovery_steps(steps, scores):
    """Length in env steps of the deepest excursion below scores[0]; 0: none, inf: not recovered (see top)."""
    deepest = int(np.argmin(scores))
    if scores[deepest] >= scores[0]:
        return 0.0
    start = np.flatnonzero(scores[:deepest] >= scores[0])[-1]
    for i in range(deepest + 1, len(scores)):
        if scores[i] >= scores[0] and scores[i : i + 3].mean() >= scores[0]:
            return float(steps[i] - steps[start])
    return math.inf


def summarise_seed(seed):
    """The table's quantities for one seed, as defined at the top; NaN where one does not apply."""
    steps, scores = seed.series[seed.phase]
    row = dict.fromkeys(("offline", "final", "last_five", "delta", "drop", "recovery", "auc"), np.nan)
    row |= {"final": scores[-1], "last_five": scores[-5:].mean()}
    if seed.phase == "offline":
        return row | {"offline": scores[-1]}
    if len(steps) > 1:
        row["auc"] = np.trapezoid(scores, steps) / (steps[-1] - steps[0])
    if steps[0] == 0:
        row |= {"offline": scores[0], "delta": scores[-1] - scores[0], "drop": scores[0] - scores.min()}
        row["recovery"] = recovery_steps(steps, scores)
    return row


def summarise(curve):
    """The table's row of a run, {column: value}, and the rows of its seeds."""
    rows = [summarise_seed(seed) for seed in curve.seeds]
    columns = {key: np.array([row[key] for row in rows]) for key in rows[0]}
    known = {key: column[~np.isnan(column)] for key, column in columns.items()}
    row = {"env": curve.env, "run": curve.run, "seeds": len(rows), "status": curve.incomplete or "finished"}
    row["start"] = "pretrained" if curve.offset else "untrained"
    if not curve.has("online"):
        row["start"] = "no online phase"
    row |= {key: column.mean() if len(column) else np.nan for key, column in known.items()}
    row["recovery"] = np.median(known["recovery"]) if len(known["recovery"]) else np.nan
    row["recovered"] = int(np.isfinite(known["recovery"]).sum()) if len(known["recovery"]) else np.nan
    row["final_low"], row["final_high"] = bootstrap_interval(columns["final"])
    for key in ("offline", "final"):
        row[f"{key}_std"] = known[key].std(ddof=1) if len(known[key]) > 1 else np.nan
    row["iqm"] = iqm(columns["final"])
    row["iqm_low"], row["iqm_high"] = bootstrap_interval(columns["final"], iqm)
    names = [{"run": s.run, "seed": s.number, "status": s.status, "progress": s.progress} for s in curve.seeds]
    return row, [name | own for name, own in zip(names, rows, strict=True)]


def text(value):
    """A table's cell."""
    if not isinstance(value, float):
        return str(value)
    if not math.isfinite(value):
        return "-" if math.isnan(value) else "not recovered"
    return f"{value:.0f}" if abs(value) >= 100 or value == 0 else f"{value:.1f}"


def print_table(title, labels, rows):
    """The narrow table: a run's short label and the columns most looked at."""
    lines = [("run", *TERMINAL_COLUMNS)]
    for label, row in zip(labels, rows, strict=True):
        star = "" if row["status"] == "finished" else " *"
        cells = {key: text(row[key]) for key in TERMINAL_COLUMNS}
        if row["recovered"] < row["seeds"]:
            cells["recovery"] += f" ({row['recovered']} of {row['seeds']})"
        lines.append((label + star, *cells.values()))
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    print(f"\n{title}")
    for name, *cells in lines:
        padded = [cell.rjust(width) for cell, width in zip(cells, widths[1:], strict=True)]
        print("  ".join([name.ljust(widths[0]), *padded]))


def markdown_table(rows):
    lines = [
        list(rows[0]),
        ["---"] * len(rows[0]),
        *([text(value) for value in row.values()] for row in rows),
    ]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def write_csv(path, rows):
    def cell(value):
        if not isinstance(value, float):
            return value
        return round(float(value), 4) if math.isfinite(value) else text(value).strip("-")

    with open(path, "w", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(rows[0])
        writer.writerows([cell(value) for value in row.values()] for row in rows)


def draw_phase(ax, curve, phase, total, mark_pretrained):
    """Mean, band and, online, the pretrained score; returns what to note about the seeds."""
    steps, values = align(curve.seeds, phase)
    x = steps + (curve.offset if total and phase == "online" else 0)
    mean = np.nanmean(values, axis=0)
    low, high = np.transpose([bootstrap_interval(column) for column in values.T])
    ax.plot(x, mean, color=curve.color, ls=curve.style, lw=1.6, marker="." if len(x) == 1 else None)
    ax.fill_between(x, low, high, color=curve.color, alpha=0.16, lw=0)
    if phase == "online" and curve.offset and steps[0] == 0 and mark_pretrained:
        ax.plot(x[[0, -1]], mean[[0, 0]], color=curve.color, ls="--", lw=0.9, alpha=0.8)
        ax.plot(x[0], mean[0], "o", color=curve.color, mfc="white", ms=6, clip_on=False, zorder=4)
    notes = []
    present = np.sum(~np.isnan(values), axis=0)
    if present.min() < len(values):
        counts = f"{present.min()} to {present.max()} of {len(values)}"
        notes.append(f"{curve.env}/{curve.run}: {phase}, a mean over the {counts} seeds that have the step")
    if total and phase == "online" and len({seed.offset for seed in curve.seeds}) > 1:
        notes.append(f"{curve.env}/{curve.run}: its seeds start at different totals, drawn at their mean")
    return notes


def finish_axes(ax, title, x_label, y_label, handles):
    """Labels, ticks such as 10k, and the legend below the axes, where it covers nothing."""
    columns = 2 if len(handles) > 3 and max(len(handle.get_label()) for handle in handles) <= 42 else 1
    place = {"loc": "upper center", "bbox_to_anchor": (0.5, -0.16), "ncols": columns}
    ax.legend(handles=handles, **place, fontsize=8, handlelength=3, frameon=False)
    ax.set(title=textwrap.fill(title, 60), xlabel=x_label, ylabel=y_label)
    for axis in (ax.xaxis, ax.yaxis):
        axis.set_major_formatter(FuncFormatter(lambda value, _: short(value)))
    ax.margins(x=0.02)
    ax.grid(color="0.9", lw=0.6)
    ax.spines[["top", "right"]].set_visible(False)


def draw_panel(ax, title, curves, args):
    """One environment; returns notes. Without any online phase the x axis counts gradient updates."""
    online = [curve for curve in curves if curve.has("online")]
    total = args.x == "total" or not online
    notes, handles = [], []
    for curve in curves:
        label = f"{curve.label}, {len(curve.seeds)} seed{'s' if len(curve.seeds) > 1 else ''}"
        label += f" ({curve.incomplete})" if curve.incomplete else ""
        handles.append(Line2D([], [], color=curve.color, ls=curve.style, lw=1.8, label=label))
        for phase in PHASES if total else ("online",):
            notes += draw_phase(ax, curve, phase, total, not args.metric) if curve.has(phase) else []
        if not total and curve not in online:
            final = np.mean([seed.series["offline"][1][-1] for seed in curve.seeds])
            ax.axhline(final, color=curve.color, ls=":", lw=1.6)
            handles[-1].set(ls=":", label=f"{label}: end of its offline phase")
    grey = {"color": "0.45", "lw": 0.9}
    starts = {curve.offset for curve in online} - {0.0}
    if any(len(curve.seeds) > 1 for curve in curves):
        few = max(len(curve.seeds) for curve in curves) <= 3  # then the bootstrap's ends are the extreme seeds
        band = "from the lowest to the highest seed" if few else "95% bootstrap interval over seeds"
        handles.append(Patch(color="0.45", alpha=0.3, lw=0, label=band))
    if starts and not args.metric:
        handles.append(Line2D([], [], **grey, ls="--", marker="o", mfc="white", label="pretrained score"))
    if starts and total and any(curve.has("offline") for curve in curves):
        handles.append(Line2D([], [], **grey, ls=":", label="online phase starts"))
        for start in starts:
            ax.axvline(start, **grey, ls=":", zorder=0)
    x_label = "gradient updates offline + env steps online" if online else "gradient updates, offline"
    finish_axes(ax, title, x_label if total else "online env steps", args.metric or Y_LABELS[args.y], handles)
    return notes


def make_figure(panels, args):
    """One panel an environment; returns (figure, notes)."""
    columns = min(3, math.ceil(math.sqrt(len(panels))))
    rows = math.ceil(len(panels) / columns)
    height = 4.2 + 0.17 * max(len(curves) + 3 for _, curves in panels)
    figure = Figure(figsize=(6.4 * columns, height * rows), layout="constrained")
    axes = figure.subplots(rows, columns, squeeze=False).ravel()
    notes = [note for ax, panel in zip(axes, panels, strict=False) for note in draw_panel(ax, *panel, args)]
    for ax in axes[len(panels) :]:
        ax.remove()
    return figure, notes


def output_prefix(args):
    """The path that the suffixes are added to."""
    name = "-".join(["curves", *re.findall(r"\w+", args.metric)])
    if not args.out:
        return args.runs[0] / name
    if args.out.endswith("/") or Path(args.out).is_dir():
        return Path(args.out) / name
    return Path(re.sub(r"\.(png|svg|md|csv)$", "", args.out))


def write(prefix, figure, tables, notes, args):
    """Write the figure and, where there is one, the table; returns the paths."""
    png, svg, md, table = (Path(f"{prefix}.{kind}") for kind in ("png", "svg", "md", "csv"))
    prefix.parent.mkdir(parents=True, exist_ok=True)
    with matplotlib.rc_context({"svg.hashsalt": "curves"}):
        figure.savefig(png, dpi=160)
        figure.savefig(svg, metadata={"Date": None})
    if not tables:
        return [png, svg]
    document = f"# Learning curves\n\n![curves]({png.name})\n\nScores: {Y_LABELS[args.y]}. "
    document += "The columns are defined at the top of `plot_curves.py`.\n"
    for title, rows, seed_rows in tables:
        document += f"\n## {title}\n\n{markdown_table(rows)}\n\nPer seed:\n\n{markdown_table(seed_rows)}\n"
    md.write_text(document + "".join(f"\n- {note}" for note in notes) + "\n" * bool(notes))
    write_csv(table, [row | {"y": args.y} for _, rows, _ in tables for row in rows])
    return [png, svg, md, table]


def main(args):
    seeds, notes = choose_seeds(find_seeds(args), args)
    panels = make_panels(seeds)
    figure, drawing_notes = make_figure(panels, args)
    notes += drawing_notes
    tables = []
    for title, curves in panels if not args.metric else ():
        rows, seed_rows = zip(*map(summarise, curves), strict=True)
        tables.append((title, rows, [row for own in seed_rows for row in own]))
    prefix = output_prefix(args)
    try:
        paths = write(prefix, figure, tables, notes, args)
    except OSError as error:
        fail(f"--out {prefix}: {error.strerror or error}; name a folder or prefix that can be written")
    for (title, rows, _), (_, curves) in zip(tables, panels, strict=False):
        print_table(title, [curve.label for curve in curves], rows)
    print()
    for line in [f"note: {note}" for note in notes] + [f"wrote {path}" for path in paths]:
        print(line)


if __name__ == "__main__":
    main(tyro.cli(Args))
