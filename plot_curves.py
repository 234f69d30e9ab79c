"""Overlay the learning curves of all runs in a folder, and print the table that goes with them.

Reads    <runs>/<env>/<run>/seed<k>/{config.json, eval.csv}, and metrics.csv with --metric
Writes   <out>.png and <out>.svg, one panel per environment; without --metric also the table as <out>.csv
Run      python plot_curves.py runs/ --rename 'SAC finetuned, Q-filter 25=with the Q-filter'

A score is the mean over an evaluation's episodes: undiscounted return, or percent with --y score. A line is
the mean over the seeds that have the step, the band its 95% percentile bootstrap interval (of two or three
seeds lowest to highest); dotted is the last score of a run without an online phase.

The quantities of the table are taken per seed, and averaged over seeds; nan where one does not apply.
    offline     score of the policy that starts the online phase; without an online phase the last score
    final       last score, never the best one, also of a seed that stopped early; final_low, final_high: its
                interval; iqm: instead of the mean the 25% trimmed one, interquartile (Agarwal et al. 2021)
    last_five   mean of the last five scores of the phase; delta: final - offline
    drop        max(0, max_t(offline - score_t)): even without a real fall small ones are seen, from noise
    recovery    length in env steps of the excursion that holds the deepest evaluation: from the last one
                before it at or above the offline score, to the first one after it that is at or above again
                and whose mean with the next two is so too: one lucky evaluation is no recovery. 0: never
                below, inf: not recovered. The median over seeds; `recovered` counts those that are not inf
    auc         trapezoid area under the online scores divided by their length in env steps: a mean score
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
from pathlib import Path
from typing import Literal, NoReturn

os.environ["MPLBACKEND"] = "agg"  # only files are drawn; a notebook's or a mistyped backend stops the import

import matplotlib
import numpy as np
import tyro
from matplotlib.figure import Figure
from matplotlib.patches import Patch
from scipy.stats import bootstrap, trim_mean

# Okabe & Ito's colour-blind-safe palette, https://jfly.uni-koeln.de/color/, its pale yellow left out
COLORS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
LINE_STYLES = ("-", "-.", (0, (5, 1)), (0, (3, 1, 1, 1, 1, 1)))  # the next one once the colours are used up
QUANTITIES = ("offline", "final", "final_low", "final_high", "iqm", "last_five", "delta", "drop")
QUANTITIES += ("recovery", "recovered", "auc")
PRINTED = ("offline", "final", "final_low", "final_high", "drop", "recovery", "recovered", "auc")
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
WORDS = TREATMENTS | {"anneal": "{}", "dataset": "{} data", "num_critics": "{} critics"}
OFF = (None, 0, "none", "inf", math.inf)
NOT_NAMED = ("device", "compile", "runs_dir", "overwrite", "resume", "checkpoint", "keep_replay", "dual_lr")
NOT_NAMED += ("seed", "num_seeds", "eval_every", "eval_episodes", "checkpoint_every", "log_every", "track")


@dataclass
class Args:
    """Overlay the learning curves of all runs found and tabulate their scores. `--env` and `--label` take a
    name, a part of one or a quoted glob ('*filter 25'); these and `--rename` may be repeated."""

    runs: tyro.conf.Positional[tuple[Path, ...]] = (Path("runs"),)  # folders to search for runs
    x: Literal["online", "total"] = "online"  # online env steps, or offline gradient updates + env steps
    y: Literal["return", "score"] = "return"  # undiscounted return, or normalised score in percent
    metric: str = ""  # plot this name from metrics.csv instead, without a table
    env: tyro.conf.UseAppendAction[tuple[str, ...]] = ()  # only these environments
    label: tyro.conf.UseAppendAction[tuple[str, ...]] = ()  # only these runs, by label or name of the folder
    rename: tyro.conf.UseAppendAction[tuple[str, ...]] = ()  # OLD=NEW label; OLD is a label or a run's folder
    out: str = ""  # path without suffix; empty: curves in the first folder of runs


class Curve:
    """The seeds of one run. `series[i][phase]` is {gradient update (offline) or env step (online): value}."""

    def __init__(self, env, run, seeds):
        configs, self.series = zip(*seeds, strict=True)
        self.env, self.run, self.config, self.num_seeds = env, run, configs[0], len(seeds)
        self.online = any("online" in series for series in self.series)
        finished = all(config["status"] == "finished" for config in configs)
        self.status = "finished" if finished else "unfinished"
        checkpoint = self.config["checkpoint"]
        self.offset = checkpoint.get("gradient_step") or self.config["args"].get("offline_steps") or 0
        paths = {config["checkpoint"].get("path") for config in configs}
        starts = max(len(paths), checkpoint.get("starts", self.config.get("num_seeds", 1)))
        self.start = checkpoint.get("run", run), checkpoint.get("path"), starts  # equal if they start alike
        self.options = read_options(self.config)
        if checkpoint and starts == 1 < len(seeds):
            self.options["one_start"] = "yes"
        self.method = method_words(self.config)
        self.row = summarise(self)


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
    """{phase: {step: mean over its episodes}} of one seed, or over its rows called `args.metric`.
    Half a line and half an evaluation at the end, left by a killed run, do not count."""
    file, column, low, high = "eval.csv", "return", 0, 100
    if args.metric:
        file, column = "metrics.csv", "value"
    elif args.y == "score" and config["format"] == 1:
        column = "normalized_score"
    elif args.y == "score":
        low, high = config.get("scores") or (math.nan, math.nan)
    text = (folder / file).read_text(errors="replace") if (folder / file).is_file() else ""
    values, series = {"offline": {}, "online": {}}, {}
    for row in csv.DictReader(text[: text.rfind("\n") + 1].splitlines()):
        if row.get("name", "") == args.metric and row.get(column):
            step = int(row["env_step"] if row["phase"] == "online" else row["gradient_step"])
            value = 100 * (float(row[column]) - low) / (high - low)
            if math.isfinite(value):
                values[row["phase"]].setdefault(step, {})[row.get("episode")] = value
    for phase, episodes in values.items():
        steps = sorted(episodes)
        if len(steps) > 1 and len(episodes[steps[-1]]) < len(episodes[steps[-2]]):
            steps.pop()
        if steps:
            series[phase] = {step: np.mean(list(episodes[step].values())) for step in steps}
    return series


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
        series = read_series(folder, config, args) if config else {}
        if not series:
            print(f"skipped {folder}: it has no {args.metric or args.y}, or no whole config.json")
            continue
        seeds = runs.setdefault((config["env"], folder.parent.name, config["format"]), {})
        if folder.name in seeds:
            fail(f"runs: {folder} lies in two of the folders; give one of them, or rename one")
        seeds[folder.name] = config, series
    if not runs:
        fail(f"runs: no <env>/<run>/seed<k> folder in there has a {args.metric or args.y} to draw")
    return [Curve(env, run, list(runs[env, run, house].values())) for env, run, house in sorted(runs)]


def method_words(config):
    """What a run is: 'SAC finetuned', 'TD3-C online', 'CQL pretrained'."""
    script, args = config["script"], config["args"]
    method = METHODS.get(script, "SAC" if "sac" in script else script.upper())
    if script == "td3_c" and args.get("alpha") not in OFF:
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
        curve.label = new_labels.get(curve.label, new_labels.get(curve.run, curve.label))
    if len({(curve.env, curve.label) for curve in curves}) < len(curves):
        fail("--rename: two runs would have one label")
    curves.sort(key=lambda curve: (curve.env, curve.label))
    labels = list(dict.fromkeys(curve.label for curve in curves))
    for curve in curves:
        turn, color = divmod(labels.index(curve.label), len(COLORS))
        curve.color, curve.style = COLORS[color], LINE_STYLES[turn % len(LINE_STYLES)]
    return curves


def bootstrap_interval(values):
    """95% percentile bootstrap interval (low, high) of the mean of values (n,); NaN for fewer than two."""
    if len(values) < 2:
        return np.nan, np.nan
    return bootstrap((values,), np.mean, method="percentile", n_resamples=2000, rng=0).confidence_interval


def recovery_steps(steps, scores):
    """Length in env steps of the deepest excursion below scores[0], as defined at the top."""
    deepest = int(np.argmin(scores))
    if scores[deepest] >= scores[0]:
        return 0.0
    start = np.flatnonzero(scores[:deepest] >= scores[0])[-1]
    later = range(deepest + 1, len(scores))
    ends = [i for i in later if scores[i] >= scores[0] and scores[i : i + 3].mean() >= scores[0]]
    return steps[ends[0]] - steps[start] if ends else math.inf


def summarise_seed(series):
    """The table's quantities that apply to one seed, as defined at the top."""
    phase = "online" if "online" in series else "offline"
    steps, scores = np.array(list(series[phase].items())).T
    row = {"final": scores[-1], "last_five": scores[-5:].mean()}
    if phase == "offline":
        return row | {"offline": scores[-1]}
    if len(steps) > 1:
        row["auc"] = np.trapezoid(scores, steps) / (steps[-1] - steps[0])
    if steps[0] == 0:
        row |= {"offline": scores[0], "delta": scores[-1] - scores[0], "drop": scores[0] - scores.min()}
        row["recovery"] = recovery_steps(steps, scores)
    return row


def summarise(curve):
    """The table's row of a run, {column: value}."""
    start = "pretrained" if curve.offset else "untrained"
    row = {"env": curve.env, "run": curve.run, "label": "", "seeds": curve.num_seeds}
    row |= {"status": curve.status, "start": start if curve.online else "no online phase"}
    row |= dict.fromkeys(QUANTITIES, math.nan)
    seeds = [summarise_seed(series) for series in curve.series]
    for key in {key for seed in seeds for key in seed}:
        values = np.array([seed[key] for seed in seeds if key in seed])
        row[key] = round(np.median(values) if key == "recovery" else values.mean(), 4)
        if key == "final":
            row["final_low"], row["final_high"] = np.round(bootstrap_interval(values), 4)
            row["iqm"] = round(trim_mean(values, 0.25), 4)
        if key == "recovery":
            row["recovered"] = np.isfinite(values).sum()
    return row


def draw_curve(ax, curve, total, faint):
    """Mean and band of the phases on the x axis, or a dotted line at the last score."""
    name = f"{curve.label}, {curve.num_seeds} seed" + "s" * (curve.num_seeds > 1)
    name += ", unfinished" * (curve.status == "unfinished")
    look = {"color": curve.color, "lw": 1.2 if faint else 1.8}
    if not total and not curve.online:
        ax.axhline(curve.row["final"], **look, ls=":", label=f"{name}: last score")
        return
    for phase in ("offline", "online") if total else ("online",):
        seeds = [series[phase] for series in curve.series if phase in series]
        steps = sorted({step for values in seeds for step in values})
        values = [np.array([seed[step] for seed in seeds if step in seed]) for step in steps]
        if steps:
            x = np.array(steps) + curve.offset * (total and phase == "online")
            low, high = np.transpose([bootstrap_interval(scores) for scores in values])
            marker = "." if len(x) == 1 else None
            ax.plot(x, list(map(np.mean, values)), **look, ls=curve.style, marker=marker, label=name)
            ax.fill_between(x, low, high, color=curve.color, alpha=0.06 if faint else 0.16, lw=0, zorder=1)


def draw_panel(ax, curves, args):
    """One environment; pretrained scores once each. Without an online phase x counts gradient updates."""
    online = any(curve.online for curve in curves)
    total = args.x == "total" or not online
    for curve in curves:
        draw_curve(ax, curve, total, faint=len(curves) > 4)
    grey = {"color": "0.4", "lw": 1.0, "zorder": 1.5}
    drawn = {(curve.run, curve.num_seeds) for curve in curves if not total and not curve.online}
    starts = {curve.start: curve for curve in reversed(curves) if curve.online and curve.offset}
    for (run, _, num_starts), curve in starts.items():
        if not args.metric and (run, num_starts) not in drawn and not np.isnan(curve.row["offline"]):
            ax.axhline(curve.row["offline"], **grey, ls="--", label="pretrained score")
        if total:
            ax.axvline(curve.offset, **grey, ls="-.", label="online phase starts")
    y_label = "normalised score (%)" if args.y == "score" else "evaluation return"
    x_label = "offline gradient updates" * total + " + " * (total and online) + "online env steps" * online
    datasets = {curve.options["dataset"] for curve in curves} - {""}
    title = f"{curves[0].env}, {datasets.pop()} data" if len(datasets) == 1 else curves[0].env
    ax.set(title=textwrap.fill(title, 46), xlabel=x_label, ylabel=args.metric or y_label)
    ax.xaxis.set_major_formatter(short)
    ax.grid(color="0.92", lw=0.6)


def make_figure(curves, args):
    """One panel per environment, and one legend below them all, where it covers nothing."""
    envs = list(dict.fromkeys(curve.env for curve in curves))
    num_columns = min(2, len(envs))
    num_rows = math.ceil(len(envs) / num_columns)
    figure = Figure(layout="constrained")
    handles = {}
    for i, env in enumerate(envs):
        ax = figure.add_subplot(num_rows, num_columns, i + 1)
        draw_panel(ax, [curve for curve in curves if curve.env == env], args)
        handles |= {handle.get_label(): handle for handle in ax.get_legend_handles_labels()[0]}
    if max(curve.num_seeds for curve in curves) > 1:
        handles["95% bootstrap interval over seeds"] = Patch(color="0.45", alpha=0.3, lw=0)
    labels = [textwrap.fill(label, 95) for label in handles]
    figure.legend(handles.values(), labels, loc="outside lower center", frameon=False, fontsize=9)
    figure.set_size_inches(7.2 if num_columns == 1 else 9.6, 4.2 * num_rows + 0.2 * len(labels))
    return figure


def main(args):
    curves = choose_curves(find_curves(args), args)
    prefix = Path(args.out or args.runs[0] / "-".join(["curves", *re.findall(r"\w+", args.metric)]))
    figure = make_figure(curves, args)
    try:
        prefix.parent.mkdir(parents=True, exist_ok=True)
        with matplotlib.rc_context({"svg.hashsalt": "curves"}):
            figure.savefig(f"{prefix}.png", dpi=150)
            figure.savefig(f"{prefix}.svg", metadata={"Date": None})
        if not args.metric:
            rows = [curve.row | {"label": curve.label} for curve in curves]
            with open(f"{prefix}.csv", "w", newline="") as file:
                writer = csv.writer(file, lineterminator="\n")
                writer.writerows([rows[0], *(row.values() for row in rows)])
    except OSError as error:
        fail(f"--out {prefix}: {error.strerror or error}; name a path that can be written")
    if not args.metric:
        print("seeds " + " ".join(f"{name:>10}" for name in PRINTED))
        for row in rows:
            cells = " ".join(f"{row[name]:10.0f}" for name in PRINTED).replace("nan", "  -")
            print(f"{row['seeds']:5} {cells}  {row['env']}: {row['label']}, {row['status']}")
    print(f"wrote {prefix}.png and .svg")


if __name__ == "__main__":
    main(tyro.cli(Args))
