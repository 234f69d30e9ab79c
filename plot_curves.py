"""Overlay the learning curves of all runs in a folder, and print the table that goes with them.

Reads    <runs>/<env>/<run>/seed<k>/{config.json, eval.csv}, and metrics.csv with --metric
Writes   <out>.png, <out>.svg; without --metric also the tables: <out>.csv, <out>-pairs.csv (run against run)
Run      python plot_curves.py runs/ --rename 'SAC finetuned, Q-filter 25=with the Q-filter'

A return here is the mean over an evaluation's episodes, undiscounted; with --y score it is the normalised
score in percent. A line is the mean over the seeds that have the step, the band its 95% percentile bootstrap
interval (for two or three seeds from lowest to highest). Minutes are wall-clock minutes of the run's own
process; seeds that train together share them.

Quantities are taken per seed and averaged over seeds; nan: does not apply; _low and _high: 95% interval.
    start       return of the policy that starts the online phase; without an online phase the last return
    final       last return, never the best one, also of a seed that stopped early; iqm: interquartile mean
    last_five   mean of the last five returns of the phase; delta: final - start
    drop        max(0, max_t(start - return_t)): noise alone makes it positive
    recovery    env steps that the deepest fall lasts: from the last evaluation at or above start before the
                lowest one, to the first after it that is at or above start both by itself and in its mean
                with the next two, so that one lucky evaluation does not count. 0: never below start, inf: not
                recovered. The median over seeds; `recovered` counts the seeds that are not inf
    auc         trapezoid area under the online returns divided by their length in env steps: a mean return
    reach_steps, reach_minutes: online, until the mean over all seeds first is at or above --reach; inf: never
Two online runs of one environment, with three seeds or more each, are compared up to the last step that both
have (until). The one with the higher last_five is the first:
    p_higher    P(X > Y) + P(X = Y) / 2 by last_five: probability of improvement (Agarwal et al. 2021)
    final_difference, ...: first minus second, seed by seed, if both start from the same checkpoints; its
                interval is Student's t, because a bootstrap of few seeds is too narrow
"""

import csv
import json
import math
import os
import re
import sys
import textwrap
from dataclasses import dataclass
from fnmatch import fnmatchcase
from functools import partial
from itertools import combinations, cycle, product
from pathlib import Path
from typing import Literal, NoReturn

os.environ["MPLBACKEND"] = "agg"  # only files are drawn; a notebook's or a mistyped backend stops the import

import matplotlib
import numpy as np
import tyro
from matplotlib.figure import Figure
from matplotlib.patches import Patch
from scipy.stats import bootstrap, trim_mean
from scipy.stats import t as student

# Okabe & Ito's colour-blind-safe palette, https://jfly.uni-koeln.de/color/, yellow replaced by dark ones
COLORS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")
COLORS += ("#332288", "#8B4513", "#7A0019", "#000000")
LINE_STYLES = ("-", "-.", (0, (5, 1)), (0, (3, 1, 1, 1, 1, 1)))  # the next one once the colours are used up
QUANTITIES = ("start", "final", "final_low", "final_high", "iqm", "iqm_low", "iqm_high", "last_five")
QUANTITIES += ("last_five_low", "last_five_high", "delta", "drop", "recovery", "recovered", "auc")
QUANTITIES += ("reach_steps", "reach_minutes")
PRINTED = ("seeds", "start", "final", "last_five", "drop", "recovery", "recovered", "auc")
PRINTED_PAIRS = ("p_higher", "last_five_difference", "final_difference", "auc_difference")
DECIMALS = {"reach_minutes": 1, "p_higher": 2}  # the others are printed as whole numbers
interquartile_mean = partial(trim_mean, proportiontocut=0.25)
X_LABELS = {"online": "online env steps", "offline": "offline gradient updates"}
X_LABELS |= {"total": "offline gradient updates + online env steps"}
X_LABELS |= {"minutes": "wall-clock minutes of the run itself, without a pretraining run before it"}
METHODS = {"td3_bc": "TD3+BC", "td3_c": "TD3-C", "cql_sac": "CQL", "o3f_select": "O3F (LAPO)"}
TREATMENTS = {  # options named wherever they are on; the others where they set runs of one method apart
    "online_only": "online rows only",
    "offline_ratio": "offline ratio {}",
    "num_candidates": "best of {}",
    "q_filter_percentile": "Q-filter {}",
    "q_filter_value": "Q-filter at {}",
    "epsilon": "epsilon {}",
    "bc_alpha": "bc alpha {}",
    "one_start": "from one start",
}
WORDS = TREATMENTS | {"anneal": "{}", "calibrated": "calibrated", "dataset": "{} data"}
WORDS |= {"num_critics": "{} critics"}
OFF = (None, 0, "none", "inf", math.inf)
NOT_NAMED = ("device", "compile", "runs_dir", "overwrite", "resume", "checkpoint", "keep_replay", "dual_lr")
NOT_NAMED += ("seed", "num_seeds", "eval_every", "eval_episodes", "checkpoint_every", "log_every", "track")


@dataclass
class Args:
    """Overlay the learning curves of all runs found and tabulate their returns. `--env` and `--label` take a
    name, a part of one or a quoted glob ('*filter 25'); these and `--rename` may be repeated."""

    runs: tyro.conf.Positional[tuple[Path, ...]] = (Path("runs"),)  # folders to search for runs
    x: Literal["online", "total", "minutes"] = "online"  # env steps, those after offline updates, or minutes
    y: Literal["return", "score"] = "return"  # undiscounted return, or normalised score in percent
    metric: str = ""  # plot this quantity of metrics.csv instead, without a table
    until: float = math.inf  # leave out later online env steps, to compare runs of different lengths
    reach: float | None = None  # tabulate steps and minutes until the mean over seeds is at or above this
    split: bool = False  # a panel per run, in colour, with the others of its environment in grey
    env: tyro.conf.UseAppendAction[tuple[str, ...]] = ()  # only these environments
    label: tyro.conf.UseAppendAction[tuple[str, ...]] = ()  # only these runs, by label or name of the folder
    rename: tyro.conf.UseAppendAction[tuple[str, ...]] = ()  # OLD=NEW label; OLD is a label or a run's folder
    out: str = ""  # path without suffix; empty: curves in the first folder of runs


class Curve:
    """The seeds of one run. `series[i][phase]` is {gradient update (offline) or env step (online): value},
    `minutes[i][phase]` has the same steps, and `seeds[name]` is the series of a seed."""

    def __init__(self, env, run, seeds, reach):
        configs, self.series, self.minutes = zip(*seeds.values(), strict=True)
        self.seeds = {name: seeds[name][1] for name in sorted(seeds)}
        self.env, self.run, self.config, self.num_seeds = env, run, configs[0], len(seeds)
        self.online = any("online" in series for series in self.series)
        self.status = "finished" if {config["status"] for config in configs} == {"finished"} else "unfinished"
        checkpoint = self.config["checkpoint"]
        self.offset = checkpoint.get("gradient_step") or self.config["args"].get("offline_steps") or 0
        paths = {config["checkpoint"].get("path") for config in configs}
        starts = max(len(paths), checkpoint.get("starts", self.config.get("num_seeds", 1)))
        self.start = checkpoint.get("run", run), checkpoint.get("path"), starts  # equal if they start alike
        self.options = read_options(self.config)
        if checkpoint and starts == 1 < len(seeds):
            self.options["one_start"] = "yes"
        self.method = method_words(self.config)
        self.row = summarise(self, reach)


def fail(message: str) -> NoReturn:
    """Bad input: one line on stderr, exit status 2."""
    print(f"error: {message}", file=sys.stderr)
    raise SystemExit(2)


def short(value, _=None):
    """12000 -> '12k', for options and ticks."""
    if not isinstance(value, int | float):
        return str(value)
    for size, letter in ((1e6, "M"), (1e3, "k")):
        if abs(value) >= size:
            return f"{value / size:.4g}{letter}"
    return f"{value:.4g}"


def read_config(path):
    """The config.json of a run; None if it is missing, cut or something else's."""
    try:
        config = json.loads(path.read_text())
        dicts = {name: dict(config.get(name) or {}) for name in ("args", "checkpoint", "dataset", "shape")}
        return {"format": 1} | config | dicts if {"script", "env", "status"} <= {*config} else None
    except (OSError, ValueError, TypeError, AttributeError):
        return None


def read_series(folder, config, args):
    """{phase: {step: mean over its episodes}} of one seed, or over its rows called `args.metric`, and the
    same of its minutes. Half a line and half an evaluation at the end, left by a killed run, do not count."""
    file, column, low, high = "eval.csv", "return", 0, 100
    if args.metric:
        file, column = "metrics.csv", "value"
    elif args.y == "score" and config["format"] == 1:
        column = "normalized_score"
    elif args.y == "score":
        low, high = config.get("scores") or (math.nan, math.nan)
    text = (folder / file).read_text(errors="replace") if (folder / file).is_file() else ""
    values, series, minutes = {"offline": {}, "online": {}}, {}, {}
    for row in csv.DictReader(text[: text.rfind("\n") + 1].splitlines()):
        if row.get("name", "") == args.metric and row.get(column):
            step = int(row["env_step"] if row["phase"] == "online" else row["gradient_step"])
            value = 100 * (float(row[column]) - low) / (high - low)
            if math.isfinite(value):
                pair = value, float(row.get("seconds") or math.nan) / 60
                values[row["phase"]].setdefault(step, {})[row.get("episode")] = pair
    for phase, episodes in values.items():
        steps = sorted(episodes)
        if len(steps) > 1 and len(episodes[steps[-1]]) < len(episodes[steps[-2]]):
            steps.pop()
        if phase == "online":
            steps = [step for step in steps if step <= args.until]
        if steps:
            means = np.array([np.mean(list(episodes[step].values()), axis=0) for step in steps])  # (T, 2)
            series[phase] = dict(zip(steps, means[:, 0], strict=True))
            minutes[phase] = dict(zip(steps, means[:, 1], strict=True))
    return series, minutes


def find_curves(args):
    """All runs in the given folders. The seeds of a run may lie in several of the folders."""
    folders, runs = set(), {}
    for root in args.runs:
        if not root.is_dir():
            fail(f"runs: {root} is not a folder; give the folder the training scripts wrote, such as runs/")
        paths = [path.resolve() for path in (root, *root.rglob("seed*"))]
        folders.update(path for path in paths if re.fullmatch(r"seed\d+", path.name))
    for folder in sorted(folders):
        config = read_config(folder / "config.json")
        series, minutes = read_series(folder, config, args) if config else ({}, {})
        if not series:
            print(f"skipped {folder}: it has no {args.metric or args.y}, or no complete config.json")
            continue
        seeds = runs.setdefault((config["env"], folder.parent.name, config["format"]), {})
        if folder.name in seeds:
            fail(f"runs: {folder} lies in two of the folders; give one of them, or rename one")
        seeds[folder.name] = config, series, minutes
    if not runs:
        fail(f"runs: no <env>/<run>/seed<k> folder there has a {args.metric or args.y} to draw")
    return [Curve(env, run, runs[env, run, house], args.reach) for env, run, house in sorted(runs)]


def method_words(config):
    """What a run is: 'SAC finetuned', 'TD3-C online', 'CQL pretrained'."""
    script, args = config["script"], config["args"]
    method = METHODS.get(script, "SAC" if "sac" in script else script.upper())
    if script == "td3_bc" and args.get("alpha") == 0:
        method = "cloning"
    elif script == "td3_c" and args.get("alpha") not in OFF:
        method = "TD3+BC"
    elif script == "td3_c" and args.get("epsilon") in OFF:
        method = "TD3"
    if not args.get("online_steps"):
        return f"{method} pretrained"
    if config["checkpoint"]:
        return "SAC finetuned" if script == "online_finetune_sac" else f"{method} online"
    if args.get("offline_steps"):
        return method
    return f"{method} from scratch" + " with data" * bool(config["dataset"])


def read_options(config):
    """{option: text, '' if off} of what may set a run apart. The first house has --replay for some ratios."""
    checkpoint = config["checkpoint"]
    options = dict.fromkeys(TREATMENTS) | (config["shape"] or checkpoint.get("shape", {})) | config["args"]
    options |= {"format": config["format"], "dataset": config["dataset"].get("name")}
    options |= {f"pretraining_{k}": v for k, v in checkpoint.items() if k in ("script", "gradient_step")}
    options["online_only"] = options.pop("replay", None) == "online" or options.get("offline_ratio") == 0
    if not options.get("online_steps"):
        options["num_candidates"] = None
    if config["script"] == "td3_c" and options.get("alpha") not in OFF:
        options["epsilon"] = options["clip_dqda"] = None  # off in the arm TD3+BC
    for name in [name for name in options if name.endswith("_end")]:
        end, start = options.pop(name), name.removesuffix("_end")
        if end is not None:
            options[start] = f"{short(options[start])} to {short(end)}"
    return {name: "" if v in OFF else short(v) for name, v in options.items() if name not in NOT_NAMED}


def set_labels(curves):
    """The method, the treatments that are on, and options with another value than in most such runs."""
    for curve in curves:
        alike = [other.options for other in curves if (other.env, other.method) == (curve.env, curve.method)]
        words = [curve.method]
        for name, value in curve.options.items():
            values = [options[name] for options in alike if name in options]
            if value and (name in TREATMENTS or " to " in value or 2 * values.count(value) <= len(values)):
                words.append(WORDS.get(name, name.replace("_", " ") + " {}").format(value))
        curve.label = ", ".join(words)
    labels = [(curve.env, curve.label) for curve in curves]
    for curve, label in zip(curves, labels, strict=True):
        if labels.count(label) > 1:
            curve.label += f", {curve.run}"


def select(curves, patterns, option, fields):
    """The curves of which a name is or matches a pattern, else those with a name that it is part of."""
    names = {curve: [getattr(curve, field) for field in fields] for curve in curves}
    chosen = set()
    for pattern in patterns:
        whole = {curve for curve in curves if any(fnmatchcase(name, pattern) for name in names[curve])}
        part = {curve for curve in curves if any(pattern in name for name in names[curve])}
        if not whole | part:
            choices = sorted({first for first, *_ in names.values()})
            fail(f"{option} {pattern}: matches no run; choose among: {', '.join(choices)}")
        chosen |= whole or part
    return [curve for curve in curves if curve in chosen or not patterns]


def choose_curves(curves, args):
    """The curves to draw, with labels and colours."""
    set_labels(curves)
    curves = select(curves, args.env, "--env", ["env"])
    curves = select(curves, args.label, "--label", ["label", "run"])
    new_labels = dict(pair.partition("=")[::2] for pair in args.rename)
    for old, new in new_labels.items():
        if not new or not any(old in (curve.label, curve.run) for curve in curves):
            fail(f"--rename {old}={new}: write OLD=NEW, OLD one of: {', '.join(c.label for c in curves)}")
    for curve in curves:
        curve.label = curve.row["label"] = new_labels.get(curve.label, new_labels.get(curve.run, curve.label))
    if len({(curve.env, curve.label) for curve in curves}) < len(curves):
        fail("--rename: two runs would have the same label")
    curves.sort(key=lambda curve: (curve.env, curve.label))
    pretrained = {curve.label for curve in curves if not curve.online}
    labels = list(dict.fromkeys(curve.label for curve in curves))
    if len(pretrained) == 1 < len(labels):
        labels.remove(*pretrained)  # it gets dark grey: the others start from it
    looks = dict(zip(labels, cycle(product(LINE_STYLES, COLORS)), strict=False))
    for curve in curves:
        curve.style, curve.color = looks.get(curve.label, ("-", "0.35"))
        curve.title = f"{curve.label}, {curve.num_seeds} seed" + "s" * (curve.num_seeds > 1)
        curve.title += ", unfinished" * (curve.status == "unfinished")
        online = any(other.online for other in curves if other.env == curve.env)
        curve.x_axis = args.x if online or args.x == "minutes" else "offline"
    return curves


def probability_of_improvement(x, y, axis=-1):
    """P(X > Y) + P(X = Y) / 2 of x (..., n) and y (..., m), over all n m pairs."""
    return ((1 + np.sign(x[..., :, None] - y[..., None, :])) / 2).mean((-2, -1))


def bootstrap_interval(statistic, *samples):
    """95% percentile bootstrap interval (low, high) of statistic(*samples), each resampled by itself."""
    if min(map(len, samples)) < 2:
        return np.nan, np.nan
    return bootstrap(samples, statistic, method="percentile", n_resamples=2000, rng=0).confidence_interval


def mean_and_interval(values):
    """Mean of values (n,) and its 95% interval by Student's t: a bootstrap of few values is too narrow."""
    half = student.ppf(0.975, len(values) - 1) * values.std(ddof=1) / math.sqrt(len(values))
    return np.round([values.mean(), values.mean() - half, values.mean() + half], 4).tolist()


def recovery_steps(steps, scores):
    """Length in env steps of the deepest excursion below scores[0], as defined at the top."""
    deepest = int(np.argmin(scores))
    if scores[deepest] >= scores[0]:
        return 0.0
    start = np.flatnonzero(scores[:deepest] >= scores[0])[-1]
    later = range(deepest + 1, len(scores))
    ends = [i for i in later if scores[i] >= scores[0] and scores[i : i + 3].mean() >= scores[0]]
    return steps[ends[0]] - steps[start] if ends else math.inf


def summarise_seed(series, until=math.inf):
    """The table's quantities that apply to one seed, up to this online step, as defined at the top."""
    phase = "online" if "online" in series else "offline"
    limit = until if phase == "online" else math.inf
    rows = [row for row in series[phase].items() if row[0] <= limit] or [(math.nan, math.nan)]
    steps, scores = np.array(rows).T
    row = {"final": scores[-1], "last_five": scores[-5:].mean()}
    if phase == "offline":
        return row | {"start": scores[-1]}
    if len(steps) > 1:
        row["auc"] = np.trapezoid(scores, steps) / (steps[-1] - steps[0])
    if steps[0] == 0:
        row |= {"start": scores[0], "delta": scores[-1] - scores[0], "drop": scores[0] - scores.min()}
        row["recovery"] = recovery_steps(steps, scores)
    return row


def by_step(series, phase):
    """{step: values of the seeds that have it}."""
    seeds = [seed[phase] for seed in series if phase in seed]
    steps = sorted({step for values in seeds for step in values})
    return {step: np.array([seed[step] for seed in seeds if step in seed]) for step in steps}


def estimate(name, statistic, *samples):
    """{name: statistic(*samples), name_low and name_high: its interval}."""
    low, high = np.round(bootstrap_interval(statistic, *samples), 4)
    return {name: round(statistic(*samples), 4), f"{name}_low": low, f"{name}_high": high}


def summarise(curve, target):
    """The table's row of a run, {column: value}."""
    began = "pretrained" if curve.offset else "untrained"
    row = {"env": curve.env, "run": curve.run, "label": "", "seeds": curve.num_seeds}
    row |= {"status": curve.status, "began": began if curve.online else "no online phase"}
    row |= dict.fromkeys(QUANTITIES, math.nan)
    seeds = [summarise_seed(series) for series in curve.series]
    for key in {key for seed in seeds for key in seed}:
        values = np.array([seed[key] for seed in seeds if key in seed])
        row[key] = round(np.median(values) if key == "recovery" else values.mean(), 4)
        if key in ("final", "last_five"):
            row |= estimate(key, np.mean, values)
        if key == "final":
            row |= estimate("iqm", interquartile_mean, values)
        if key == "recovery":
            row["recovered"] = np.isfinite(values).sum()
    if target is not None and curve.online:
        line, minutes = (by_step(series, "online") for series in (curve.series, curve.minutes))
        whole = {step: scores for step, scores in line.items() if len(scores) == curve.num_seeds}
        reached = [step for step, scores in whole.items() if scores.mean() >= target]
        row["reach_steps"] = reached[0] if reached else math.inf
        row["reach_minutes"] = round(minutes[reached[0]].mean(), 4) if reached else math.inf
    return row


def compare(*pair):
    """The row of a pair of runs, {column: value}, as defined at the top."""
    until = min(max(by_step(curve.series, "online")) for curve in pair)
    seeds = {curve: [summarise_seed(series, until) for series in curve.seeds.values()] for curve in pair}
    means = {curve: np.mean([seed["last_five"] for seed in seeds[curve]]) for curve in pair}
    second, first = sorted(pair, key=means.get)
    from_checkpoint = first.config["checkpoint"] and first.start == second.start
    paired = from_checkpoint and first.seeds.keys() == second.seeds.keys()
    row = {"env": first.env, "first": first.label, "second": second.label, "until": until}
    for key in ("last_five", "final", "auc"):
        x, y = (np.array([seed.get(key, math.nan) for seed in seeds[curve]]) for curve in (first, second))
        if key == "last_five":
            row |= estimate("p_higher", probability_of_improvement, x, y)
        names = [f"{key}_difference{end}" for end in ("", "_low", "_high")]
        row |= dict(zip(names, mean_and_interval(x - y) if paired else [math.nan] * 3, strict=True))
    return row


def draw_curve(ax, curve, band, **look):
    """Mean, and band of that opacity, of the phases on the x axis, or a dotted line at the last score."""
    if curve.x_axis == "online" and not curve.online:
        ax.axhline(curve.row["final"], **look | {"ls": ":", "label": look["label"] + ": last score"})
        return
    for phase in ("online",) if curve.x_axis == "online" else ("offline", "online"):
        values = by_step(curve.series, phase)
        x = np.array([*values]) + curve.offset * (curve.x_axis == "total" and phase == "online")
        if curve.x_axis == "minutes":
            x = [minutes.mean() for minutes in by_step(curve.minutes, phase).values()]
        if values:
            marker = "." * (len(values) == 1)  # a line of one point would not be seen
            ax.plot(x, [scores.mean() for scores in values.values()], **look, marker=marker)
        if values and band:
            low, high = np.transpose([bootstrap_interval(np.mean, scores) for scores in values.values()])
            ax.fill_between(x, low, high, color=curve.color, alpha=band, lw=0, zorder=1)


def what(curves):
    """'Hopper-v4, medium-replay data', of curves of one environment."""
    datasets = {curve.options["dataset"] for curve in curves} - {""}
    return f"{curves[0].env}, {datasets.pop()} data" if len(datasets) == 1 else curves[0].env


def draw_panel(ax, curves, args, front, width):
    """One environment; with --split `front` is the run in colour. Texts have lines of `width` characters."""
    x_axis = curves[0].x_axis
    lw, band = (1.2, 0.06) if len(curves) > 4 and not front else (1.8, 0.16)
    for curve in curves:
        look = {"color": curve.color, "ls": curve.style, "lw": lw, "label": curve.title}
        behind = front not in (None, curve) and (curve.online or x_axis != "online")
        if behind:
            look |= {"ls": "-", "label": "the other runs", "color": "0.75", "lw": 0.8, "zorder": 1}
        elif curve is front:
            look |= {"ls": "-", "label": "_"}  # the panel's title names it
        draw_curve(ax, curve, 0 if behind else band, **look)
    grey = {"color": "0.4", "lw": 1.0, "zorder": 1.5}
    drawn = {(curve.run, curve.num_seeds) for curve in curves if x_axis == "online" and not curve.online}
    shown = [front] if front else reversed(curves)
    starts = {curve.start: curve for curve in shown if curve.online and curve.offset}
    for (run, _, num_starts), curve in starts.items():
        if x_axis == "total":
            ax.axvline(curve.offset, **grey, ls="-.", label="online phase starts")
        elif not args.metric and (run, num_starts) not in drawn and not np.isnan(curve.row["start"]):
            ax.axhline(curve.row["start"], **grey, ls="--", label="pretrained score")
    y_label = "normalised score (%)" if args.y == "score" else "evaluation return"
    ax.set_title(textwrap.fill(front.title if front else what(curves), width))
    ax.set_ylabel((args.metric or y_label) * ax.get_subplotspec().is_first_col())
    ax.xaxis.set_major_formatter(short)
    ax.grid(color="0.92", lw=0.6)


def make_figure(curves, args):
    """A panel per environment or, with --split, per line; one legend below them, where it covers nothing."""
    groups = {curve.env: [other for other in curves if other.env == curve.env] for curve in curves}
    panels = [(env, None) for env in groups]
    if args.split:
        panels = [(curve.env, curve) for curve in curves if curve.online or curve.x_axis != "online"]
    num_columns = min(2 if len(panels) == 4 or not args.split else 3, len(panels))
    num_rows = math.ceil(len(panels) / num_columns)
    figure = Figure(layout="constrained")
    handles, axes = {}, {}
    for i, (env, front) in enumerate(panels):
        shared = {"sharex": axes.get(env), "sharey": axes.get(env)}
        axes[env] = figure.add_subplot(num_rows, num_columns, i + 1, **shared)
        draw_panel(axes[env], groups[env], args, front, width=90 // num_columns)
        named = f"{env}: " if front and len(groups) > 1 else ""
        label = named + X_LABELS[curves[0].x_axis]
        axes[env].set_xlabel(textwrap.fill(label, 90 // num_columns))
        handles |= {line.get_label(): line for line in axes[env].get_legend_handles_labels()[0]}
    most_seeds = max(curve.num_seeds for curve in curves)
    if most_seeds > 1:
        band = "95% bootstrap interval over seeds" if most_seeds > 3 else "lowest to highest seed"
        handles[band] = Patch(color="0.45", alpha=0.3, lw=0)
    if args.split and len(groups) == 1:
        figure.suptitle(what(curves))
    labels = [textwrap.fill(label, 95) for label in handles]
    figure.legend(handles.values(), labels, loc="outside lower center", frameon=False)
    figure.set_size_inches(7.2, (4.2, 3.0, 2.6)[num_columns - 1] * num_rows + 0.2 * len(labels))
    return figure


def cell(row, key):
    """'1774 (1224 to 2289)', without brackets where there is no interval; '-' where it does not apply."""
    if isinstance(row[key], str):
        return row[key]
    numbers = [row.get(key + end, math.nan) for end in ("", "_low", "_high")]
    value, low, high = (f"{number:.{DECIMALS.get(key, 0)}f}" for number in numbers)
    return (value if low == "nan" else f"{value} ({low} to {high})").replace("nan", "-")


def print_table(rows, columns):
    """Columns end at the right, the last one begins at the left."""
    lines = [columns, *([cell(row, key) for key in columns] for row in rows)]
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    for *cells, last in lines:
        aligned = [text.rjust(width) for text, width in zip(cells, widths, strict=False)]
        print("  ".join([*aligned, last]))


def main(args):
    if args.metric and (args.x == "minutes" or args.reach is not None):
        fail("--metric: metrics.csv has no minutes and makes no table; leave out --x minutes and --reach")
    curves = choose_curves(find_curves(args), args)
    prefix = Path(args.out or args.runs[0] / "-".join(["curves", *re.findall(r"\w+", args.metric)]))
    many = [curve for curve in curves if curve.online and curve.num_seeds >= 3]
    pairs = [compare(one, other) for one, other in combinations(many, 2) if one.env == other.env]
    tables = {".csv": [curve.row for curve in curves], "-pairs.csv": pairs}
    tables = {suffix: rows for suffix, rows in tables.items() if rows and not args.metric}
    try:
        prefix.parent.mkdir(parents=True, exist_ok=True)
        if tables and not pairs:
            Path(f"{prefix}-pairs.csv").unlink(missing_ok=True)  # of another choice of runs
        with matplotlib.rc_context({"svg.hashsalt": "curves", "font.size": 9, "axes.titlesize": 9}):
            figure = make_figure(curves, args)
            figure.savefig(f"{prefix}.png", dpi=150)
            figure.savefig(f"{prefix}.svg", metadata={"Date": None})
        for suffix, rows in tables.items():
            with open(f"{prefix}{suffix}", "w", newline="") as file:
                csv.writer(file, lineterminator="\n").writerows([rows[0], *(row.values() for row in rows)])
    except OSError as error:
        fail(f"--out {prefix}: {error.strerror or error}; name a path that can be written")
    if not args.metric:
        reached = ("reach_steps", "reach_minutes") * (args.reach is not None)
        print_table(tables[".csv"], (*PRINTED, *reached, "status", "env", "label"))
    if "-pairs.csv" in tables and len(pairs) <= 15:  # of six runs
        print_table(pairs, (*PRINTED_PAIRS, "until", "env", "first", "second"))
    print(f"wrote {', '.join([f'{prefix}.png', '.svg', *tables])}")


if __name__ == "__main__":
    main(tyro.cli(Args))
