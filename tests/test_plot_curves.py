"""plot_curves.py on small hand-made runs: numbers, labels, the picture, what is skipped, errors."""

import csv
import json
import math
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import plot_curves
from plot_curves import Args

RESULTS = Path(plot_curves.__file__).parent / "results"
PRETRAINED = {"script": "offline_pretrain_sac", "run": "pretraining", "gradient_step": 50_000}


def write_seed(runs, run, number, rows, script="online_finetune_sac", env="Hopper-v4", args=(), **config):
    """Seed k takes k minutes a row; `rows` are (phase, gradient_step, env_step, mean of two episodes)."""
    folder = runs / env / run / f"seed{number}"
    folder.mkdir(parents=True)
    steps = {phase + "_steps": 4000 for phase in {row[0] for row in rows}}
    finetunes = script == "online_finetune_sac"
    base = {"format": 2, "script": script, "env": env, "num_seeds": 3, "args": steps | dict(args)}
    base |= {"scores": [0, 200], "shape": {"num_critics": 2}, "dataset": None, "status": "finished"}
    base["checkpoint"] = PRETRAINED | {"path": "pretraining/seed1", "starts": 3} if finetunes else None
    (folder / "config.json").write_text(json.dumps(base | config))
    lines = ["phase,gradient_step,env_step,episode,return,length,seconds"]
    for turn, (phase, gradient_step, env_step, score) in enumerate(rows):
        moment, seconds = f"{phase},{gradient_step},{env_step}", 60 * number * turn
        lines += [f"{moment},{i},{score + 20 * i - 10},9,{seconds}" for i in (0, 1)]
    (folder / "eval.csv").write_text("\n".join(lines) + "\n")
    return folder


def online(*scores, start=50_000, every=1000):
    return [("online", start + every * i, every * i, score) for i, score in enumerate(scores)]


def offline(*scores, every=10_000):
    return [("offline", every * i, 0, score) for i, score in enumerate(scores)]


def curves_of(*runs, **options):
    args = Args(runs=runs, **options)
    return plot_curves.choose_curves(plot_curves.find_curves(args), args)


def labels_of(*runs, **options):
    return [curve.label for curve in curves_of(*runs, **options)]


def draw(*runs, **options):
    """The axes by environment, and the texts of the legend."""
    curves = curves_of(*runs, **options)
    figure = plot_curves.make_figure(curves, Args(runs=runs, **options))
    legend = [text.get_text() for text in figure.legends[0].get_texts()]
    return dict(zip(dict.fromkeys(curve.env for curve in curves), figure.axes, strict=True)), legend


def lines_of(ax, style="-"):
    return [(list(x), list(y)) for x, y in (li.get_data() for li in ax.lines if li.get_linestyle() == style)]


def table(path):
    with open(path, newline="") as file:
        return list(csv.DictReader(file))


def plot(*runs, **options):
    """Rows of curves.csv by label."""
    plot_curves.main(Args(runs=runs, **options))
    return {row["label"]: row for row in table(runs[0] / "curves.csv")}


def numbers(row, *keys):
    return [float(row[key]) for key in keys]


def test_every_quantity_of_one_seed(tmp_path, capsys):
    write_seed(tmp_path, "run", 1, online(100, 40, 60, 120, 130, 150), num_seeds=1)
    row = plot(tmp_path)["SAC finetuned"]
    words = {"env": "Hopper-v4", "run": "run", "seeds": "1", "status": "finished", "began": "pretrained"}
    assert words.items() <= row.items()
    expected = {"start": 100, "final": 150, "last_five": 100, "delta": 50, "drop": 60, "recovery": 3000}
    expected |= {"auc": (70 + 50 + 90 + 125 + 140) / 5, "recovered": 1, "iqm": 150}
    assert {key: float(row[key]) for key in expected} == expected
    assert "60      3000          1   95  finished  Hopper-v4  SAC finetuned\n" in capsys.readouterr().out


def test_quantities_over_seeds(tmp_path):
    for seed, final in enumerate((200, 300, 400, 1000), start=1):
        write_seed(tmp_path, "run", seed, online(100, 50 * seed, final), num_seeds=4)
    (row,) = plot(tmp_path).values()
    expected = {"final": 475, "iqm": 350, "delta": 375, "drop": 50 / 4}
    assert {key: float(row[key]) for key in expected} == expected
    assert 200 < float(row["final_low"]) < 475 < float(row["final_high"]) < 1000
    assert numbers(row, "iqm_low")[0] < min(350, float(row["final_low"])) and float(row["iqm_high"]) > 350
    low, mean, high = numbers(row, "last_five_low", "last_five", "last_five_high")
    assert 350 / 3 < low < mean < high < 1300 / 3 and mean == pytest.approx(700 / 3, abs=1e-4)


def test_until_cuts_the_online_phase(tmp_path):
    write_seed(tmp_path, "run", 1, online(100, 40, 60, 120, 130, 150), num_seeds=1)
    row = plot(tmp_path, until=2000)["SAC finetuned"]
    assert numbers(row, "start", "final", "auc", "drop") == [100, 60, 60, 60]
    assert lines_of(draw(tmp_path, until=2000)[0]["Hopper-v4"])[0][0] == [0, 1000, 2000]
    assert math.isnan(plot_curves.summarise_seed({"online": {1000: 40.0}}, until=500)["final"])


def test_reach_and_minutes_are_of_the_mean_over_seeds(tmp_path, capsys):
    write_seed(tmp_path, "run", 1, online(100, 200, 300))
    write_seed(tmp_path, "run", 2, online(100, 300, 500))  # means 100, 250, 400 after 0, 1.5 and 3 minutes
    write_seed(tmp_path, "b", 1, offline(10, 700), script="offline_pretrain_sac")
    for target, expected in ((100, [0, 0]), (250, [1000, 1.5]), (251, [2000, 3]), (401, [math.inf] * 2)):
        rows = plot(tmp_path, reach=target)
        assert numbers(rows["SAC finetuned"], "reach_steps", "reach_minutes") == pytest.approx(expected)
        assert {rows["SAC pretrained"][key] for key in ("reach_steps", "reach_minutes")} == {"nan"}
    assert "inf            inf  finished" in capsys.readouterr().out
    assert plot(tmp_path)["SAC finetuned"]["reach_steps"] == "nan"
    assert "reach_steps" not in capsys.readouterr().out
    ax = draw(tmp_path, x="minutes")[0]["Hopper-v4"]
    assert lines_of(ax) == [([0, 1.5, 3], [100, 250, 400]), ([0, 1], [10, 700])]
    assert ax.get_xlabel() == "wall-clock minutes of the run itself, without a pretraining run before it"


def test_a_step_that_not_all_seeds_have_reaches_nothing(tmp_path):
    write_seed(tmp_path, "run", 1, online(100, 200))
    write_seed(tmp_path, "run", 2, online(100, 200, 900), status="running")
    row = plot(tmp_path, reach=500)["SAC finetuned"]
    assert numbers(row, "reach_steps", "reach_minutes") == [math.inf, math.inf]


def test_seeds_are_paired_by_name_wherever_they_lie(tmp_path):
    """Seeds 1 and 2 of the second run lie in the folder that is read last: the gain is 10 in each."""
    for seed in (1, 2, 3):
        write_seed(tmp_path / "a", "run a", seed, online(100, 100 * seed))
        write_seed(tmp_path / ("a" if seed == 3 else "b"), "run b", seed, online(100, 100 * seed + 10))
    plot(tmp_path / "a", tmp_path / "b")
    (row,) = table(tmp_path / "a" / "curves-pairs.csv")
    assert numbers(row, "final_difference", "final_difference_low", "final_difference_high") == [10, 10, 10]


def test_probability_of_improvement_and_its_interval_resamples_both_samples():
    probability = plot_curves.probability_of_improvement
    assert probability(np.array([1, 2, 3]), np.array([2, 2, 0])) == pytest.approx(6 / 9)  # a tie is a half
    apart, equal = np.array([0.0, 2.0]), np.array([1.0, 1.0])
    for x, y in ((apart, equal), (equal, apart)):  # a quarter of the resamples has the lower one only
        assert (probability(x, y), *plot_curves.bootstrap_interval(probability, x, y)) == (0.5, 0, 1)


def test_pairs_are_compared_seed_by_seed_where_they_start_alike(tmp_path, capsys):
    for seed, gain in ((1, 10), (2, 20), (10, 60)):
        write_seed(tmp_path, "a", seed, online(100, 100 * seed, 1))  # what only one has does not count
        write_seed(tmp_path, "b", seed, online(100, 100 * seed + gain))
        write_seed(tmp_path, "start", seed, online(100, 90), checkpoint=PRETRAINED | {"path": "other"})
        write_seed(tmp_path, "seeds", seed + 1, online(100, 80))
        write_seed(tmp_path, f"{seed} has one seed", 1, online(100, 70))
    plot(tmp_path)
    out = " ".join(capsys.readouterr().out.split())
    assert (
        " 15 (-18 to 48) 30 (-36 to 96) 15 (-18 to 48) 1000 Hopper" in out
    )  # 30 +- 4.303 * 26.458 / sqrt(3)
    rows = {row["first"][-1] + row["second"][15:]: row for row in table(tmp_path / "curves-pairs.csv")}
    assert {*rows} == {"ba", "bstart", "bseeds", "astart", "aseeds", "tseeds"}  # none with one seed
    half = [15, -17.862, 47.862]
    for key, expected in (("final", [30, -35.724, 95.724]), ("last_five", half), ("auc", half)):
        columns = [f"{key}_difference{end}" for end in ("", "_low", "_high")]
        assert numbers(rows["ba"], *columns) == pytest.approx(expected, abs=1e-3)
        assert np.isnan(numbers(rows["bstart"], *columns) + numbers(rows["bseeds"], *columns)).all()
    assert float(rows["ba"]["p_higher"]) == pytest.approx(6 / 9, abs=1e-4)


@pytest.mark.parametrize(
    "scores, expected",
    [
        ((100, 50, 100), 2),
        ((100, 50, 60, 70), math.inf),
        ((100, 90, 110, 120, 30, 40, 110, 120, 130), 3),  # from the last score above, not the first dip
        ((100, 30, 101, 40, 40, 110, 110, 110), 5),  # one lucky evaluation is no recovery
        ((100, 30, 40, 105), 3),  # at the end there is nothing that could confirm it
    ],
)
def test_recovery(scores, expected):
    assert plot_curves.recovery_steps(np.arange(len(scores)), np.array(scores, dtype=float)) == expected


def test_recovery_is_the_median_of_seeds_that_may_lie_in_several_folders(tmp_path):
    for seed, last in enumerate((110, 60, 70, 110), start=1):
        write_seed(tmp_path / "one", "run", seed, online(100, 50, last))
    write_seed(tmp_path / "two", "run", 5, online(100, 110, 110))
    row = plot(tmp_path / "one", tmp_path / "two", tmp_path / "two/Hopper-v4/run")["SAC finetuned"]
    assert (row["recovery"], row["recovered"]) == ("2000.0", "3")
    row = plot(tmp_path / "one/Hopper-v4/run")["SAC finetuned"]
    assert (row["recovery"], row["recovered"]) == ("inf", "2")


def test_scratch_and_offline_runs_have_fewer_quantities(tmp_path):
    write_seed(tmp_path, "a", 1, online(5, 50, start=0), script="sac_scratch")
    write_seed(tmp_path, "b", 1, offline(5, 300, 250), script="iql")
    rows = plot(tmp_path)
    scratch, iql = rows["SAC from scratch"], rows["IQL pretrained"]
    assert (scratch["began"], float(scratch["start"])) == ("untrained", 5)
    assert (iql["began"], float(iql["start"]), float(iql["final"])) == ("no online phase", 250, 250)
    assert {iql[key] for key in ("delta", "drop", "recovery", "auc", "recovered")} == {"nan"}


@pytest.mark.parametrize(
    "seeds, band", [(3, "lowest to highest seed"), (4, "95% bootstrap interval over seeds")]
)
def test_the_legend_says_what_the_band_is(tmp_path, seeds, band):
    for seed in range(1, seeds + 1):
        write_seed(tmp_path, "run", seed, online(100, 50 * seed), num_seeds=seeds)
    axes, legend = draw(tmp_path)
    assert band in legend
    (path,) = axes["Hopper-v4"].collections[0].get_paths()
    low, high = path.vertices[path.vertices[:, 0] == 1000, 1].min(), path.vertices[:, 1].max()
    assert (low == 50 and high == 50 * seeds) == (seeds == 3)


def test_bootstrap_interval_is_about_four_standard_errors_wide():
    values = np.array([1.0, 2.0, 4.0, 8.0, 16.0])
    low, high = plot_curves.bootstrap_interval(np.mean, values)
    assert high - low == pytest.approx(3.92 * np.std(values) / np.sqrt(5), rel=0.15)
    assert np.isnan(plot_curves.bootstrap_interval(np.mean, values[:1])).all()
    assert plot_curves.bootstrap_interval(np.mean, values[:3]) == (1, 4)  # the lowest and the highest


def test_normalised_score_of_both_houses(tmp_path):
    write_seed(tmp_path, "second", 1, online(100, 50, 300), num_seeds=1)  # scores 0 and 200
    write_seed(tmp_path, "without", 1, online(1, 2, start=0), script="sac_scratch", scores=None)
    first = write_seed(tmp_path, "first", 1, [], script="iql", format=1, args={"online_steps": 9})
    header = "phase,gradient_step,env_step,episode,return,length,normalized_score,seconds\n"
    (first / "eval.csv").write_text(header + "online,5,0,0,777,9,12.5,1\n")
    rows = plot(tmp_path, y="score")
    finals = {label: float(row["final"]) for label, row in rows.items()}
    assert finals == {"SAC finetuned": 150, "IQL from scratch": 12.5}
    assert float(rows["SAC finetuned"]["drop"]) == 25


def test_half_a_line_half_an_evaluation_and_a_repeated_row(tmp_path):
    folder = write_seed(tmp_path, "run", 1, online(100, 200, 300), status="running")
    with open(folder / "eval.csv", "a") as file:
        again = [f"online,51000,1000,{episode},500,9,9\n" for episode in (0, 1)]  # after a resume
        file.writelines(again)
        file.write("online,53000,3000,0,9999,9,2\nonline,53000,3000,1,99")
    (curve,) = curves_of(tmp_path)  # neither a cut number nor one episode of two
    assert (curve.row["final"], curve.status) == (300, "unfinished")
    assert list(curve.series[0]["online"].values()) == [100, 500, 300]


@pytest.mark.parametrize(
    "text", [None, '{"script": "iql", "env": "Hop', "[1]", "{}", '{"script": 1, "env": 2}']
)
def test_a_folder_without_a_usable_config_is_skipped_with_a_note(tmp_path, capsys, text):
    write_seed(tmp_path, "good", 1, online(100, 200))
    config = write_seed(tmp_path, "bad", 1, online(100, 200)) / "config.json"
    config.unlink()
    if text is not None:
        config.write_text(text)
    assert [curve.run for curve in curves_of(tmp_path)] == ["good"]
    assert capsys.readouterr().out.startswith(f"skipped {config.parent}: ")


def test_unfinished_runs_are_marked_and_empty_ones_left_out(tmp_path, capsys):
    write_seed(tmp_path, "run", 1, online(100, 200, 300))
    write_seed(tmp_path, "run", 2, online(100, 100), status="failed")
    empty = write_seed(tmp_path, "run", 3, [])
    axes, legend = draw(tmp_path)
    assert capsys.readouterr().out == f"skipped {empty}: it has no return, or no complete config.json\n"
    assert "SAC finetuned, 2 seeds, unfinished" in legend
    mean = [0, 1000, 2000], [100, 150, 300]  # of the seeds that have the step
    assert mean in lines_of(axes["Hopper-v4"])


OLD_LABELS = {  # the arms of td3_c.py have their own names
    "td3/second": "TD3 online|TD3+BC online|TD3+BC pretrained|TD3-C online, epsilon 1e-05",
    "td3/runs": "TD3 from scratch|TD3 online|TD3+BC online|TD3+BC pretrained"
    "|TD3-C online, epsilon 0.001|TD3-C online, epsilon 1e-05",
    "cql/runs": "CQL online|CQL online, cql alpha 5 to 0, abrupt|CQL online, cql alpha 5 to 0, linear|CQL pretrained"
    "|SAC finetuned|SAC finetuned, Q-filter 25",
    "o3f/runs": "O3F (LAPO) online, best of 1|O3F (LAPO) online, best of 100|O3F (LAPO) online, best of 100, policy "
    "updates per step 5|O3F (LAPO) online, best of 100, subset size 5|O3F (LAPO) pretrained",
}


@pytest.mark.parametrize("folder", OLD_LABELS)
def test_labels_of_runs_in_results(folder):
    assert labels_of(RESULTS / folder) == OLD_LABELS[folder].split("|")


def test_labels_name_treatments_always_and_other_options_where_they_differ(tmp_path):
    treatments = {"q_filter_percentile": 25.0, "offline_ratio": 0.0, "epsilon": math.inf, "dual_lr": 0.5}
    write_seed(tmp_path, "a", 1, online(1, 2), args=treatments | {"tau": 0.1})
    assert labels_of(tmp_path) == ["SAC finetuned, online rows only, Q-filter 25"]
    for run, tau in (("b", 0.1), ("c", 0.2)):
        args = {"offline_ratio": 0.5, "offline_ratio_end": 0.0, "bc_alpha": 0.4, "tau": tau, "dual_lr": 0.7}
        write_seed(tmp_path, run, 1, online(1, 2), args=args | {"epsilon": math.inf})
    annealed = "SAC finetuned, offline ratio 0.5 to 0, bc alpha 0.4"
    assert {*labels_of(tmp_path)} >= {annealed, f"{annealed}, tau 0.2"}


def test_labels_tell_equal_runs_apart_and_seeds_that_start_alike(tmp_path):
    for run in ("a", "b"):
        write_seed(tmp_path, run, 1, online(1, 2), args={"seed": 1})
    write_seed(tmp_path, "b", 1, online(1, 2), env="Walker2d-v4")
    assert labels_of(tmp_path) == ["SAC finetuned, a", "SAC finetuned, b", "SAC finetuned"]
    one = PRETRAINED | {"path": "seed1", "starts": 1}
    for seed in (1, 2):
        write_seed(tmp_path / "one", "run", seed, online(1, 2), checkpoint=one)
    assert draw(tmp_path / "one")[1][0] == "SAC finetuned, from one start, 2 seeds"
    for run, steps in (("c", 9000), ("d", 50_000)):
        write_seed(tmp_path / "c", run, 1, offline(1, 2), script="iql", args={"offline_steps": steps})
    assert labels_of(tmp_path / "c") == [f"IQL pretrained, offline steps {steps}k" for steps in (50, 9)]


def test_offline_runs_alone_are_drawn_over_their_updates_and_data_stand_in_the_title(tmp_path):
    write_seed(tmp_path, "a", 1, offline(10, 70), script="iql", dataset={"name": "medium-replay"})
    ax = draw(tmp_path)[0]["Hopper-v4"]
    assert lines_of(ax) == [([0, 10_000], [10, 70])]
    assert (ax.get_title(), ax.get_xlabel()) == ("Hopper-v4, medium-replay data", "offline gradient updates")
    write_seed(tmp_path, "b", 1, offline(1, 2), script="iql", dataset={"name": "expert"})
    assert draw(tmp_path)[0]["Hopper-v4"].get_title() == "Hopper-v4"
    assert labels_of(tmp_path) == ["IQL pretrained, expert data", "IQL pretrained, medium-replay data"]


def test_filters_and_rename_take_a_label_or_a_folder(tmp_path):
    for env in ("Hopper-v4", "Walker2d-v4"):
        write_seed(tmp_path, "plain", 1, online(1, 2), env=env)
        write_seed(tmp_path, "filter", 1, online(1, 2), env=env, args={"q_filter_percentile": 25.0})

    def chosen(**options):
        return {(curve.env, curve.run) for curve in curves_of(tmp_path, **options)}

    assert chosen(env=("Walker",)) == {("Walker2d-v4", "plain"), ("Walker2d-v4", "filter")}
    assert {run for _, run in chosen(label=("SAC finetuned",))} == {"plain"}  # exact, though part of another
    assert {run for _, run in chosen(label=("*filter 25",))} == {"filter"}
    assert {run for _, run in chosen(label=("finetuned",))} == {"plain", "filter"}
    assert {run for _, run in chosen(label=("plain", "filter"))} == {"plain", "filter"}
    pairs = ("SAC finetuned, Q-filter 25=filtered = better", "plain=as it is")
    assert labels_of(tmp_path, rename=pairs, env=("Hop",)) == ["as it is", "filtered = better"]


def test_a_pretrained_score_is_drawn_once_and_total_steps_put_the_online_phase_last(tmp_path):
    write_seed(tmp_path, "pretraining", 1, offline(10, 80), script="offline_pretrain_sac", num_seeds=1)
    one = PRETRAINED | {"path": "seed1", "starts": 1}
    write_seed(tmp_path, "a", 1, online(80, 120), num_seeds=1, checkpoint=one)
    args = {"q_filter_percentile": 25.0}
    write_seed(tmp_path, "b", 1, online(80, 90), num_seeds=1, checkpoint=one, args=args)
    axes, legend = draw(tmp_path)
    assert [y for _, y in lines_of(axes["Hopper-v4"], ":")] == [[80, 80]]
    assert (lines_of(axes["Hopper-v4"], "--"), "pretrained score" in legend) == ([], False)
    axes, legend = draw(tmp_path, label=("finetuned",))  # without the pretraining itself
    assert [y for _, y in lines_of(axes["Hopper-v4"], "--")] == [[80, 80]]
    assert legend.count("pretrained score") == 1
    axes, legend = draw(tmp_path, x="total")
    online_lines = [([50_000, 51_000], [80, 120]), ([50_000, 51_000], [80, 90])]
    assert lines_of(axes["Hopper-v4"]) == [*online_lines, ([0, 10_000], [10, 80])]
    assert [x for x, _ in lines_of(axes["Hopper-v4"], "-.")] == [[50_000, 50_000]]
    assert "online phase starts" in legend


def test_one_panel_per_environment_one_colour_per_label_and_a_band_with_several_seeds(tmp_path):
    for env in ("Hopper-v4", "Walker2d-v4"):
        write_seed(tmp_path, "a", 1, online(1, 2), env=env)
    write_seed(tmp_path, "b", 1, online(3, 1, start=0), script="sac_scratch")
    write_seed(tmp_path, "b", 2, online(3, 7, start=0), script="sac_scratch")
    axes, legend = draw(tmp_path)
    assert [ax.get_title() for ax in axes.values()] == ["Hopper-v4", "Walker2d-v4"]
    colors = {tuple(li.get_ydata()): li.get_color() for ax in axes.values() for li in ax.lines[:2]}
    assert legend[1:3] == ["SAC from scratch, 2 seeds", "pretrained score"]
    assert colors[1, 2] == axes["Walker2d-v4"].lines[0].get_color() == plot_curves.COLORS[0]
    assert colors[3, 4] == plot_curves.COLORS[1]
    paths = [band.get_paths() for band in axes["Hopper-v4"].collections]
    heights = [np.nanmax(path[0].vertices[:, 1]) if path else 0 for path in paths]
    assert heights[1] == 7 and not heights[0] > 0


def test_the_band_is_the_bootstrap_interval_and_not_the_range(tmp_path):
    scores = np.array([1.0, 2.0, 4.0, 8.0, 16.0])
    for seed, score in enumerate(scores, start=1):
        write_seed(tmp_path, "b", seed, online(3, score, start=0), script="sac_scratch")
    axes, _ = draw(tmp_path)
    (band,) = axes["Hopper-v4"].collections
    heights = [y for x, y in band.get_paths()[0].vertices if x == 1000]
    expected = plot_curves.bootstrap_interval(np.mean, scores)
    assert (min(heights), max(heights)) == pytest.approx(expected) and max(heights) < 16


def test_a_pretrained_run_is_grey_beside_its_finetunings_and_thirty_others_look_different(tmp_path):
    write_seed(tmp_path, "pretraining", 1, offline(1, 2), script="offline_pretrain_sac")
    for i in range(30):
        write_seed(tmp_path, f"run{i}", 1, online(1, 2), args={"tau": 1 / (i + 2)})
    *finetuned, pretrained = curves_of(tmp_path)
    assert (pretrained.label, pretrained.color) == ("SAC pretrained", "0.35")
    assert len({(c.color, c.style) for c in finetuned}) == 30 == 3 * len({c.color for c in finetuned})
    write_seed(tmp_path, "iql", 1, offline(1, 2), script="iql")
    assert "0.35" not in {curve.color for curve in curves_of(tmp_path)}


def test_split_shows_each_line_in_colour_before_the_others_in_grey(tmp_path):
    write_seed(tmp_path, "pretraining", 1, offline(10, 80), script="iql", num_seeds=1)
    scores = 120, 90, 70, 500, 60
    for i, score in enumerate(scores):
        write_seed(tmp_path, f"run{i}", 1, online(80, score), script="sac_scratch", args={"tau": i + 1})
    curves = curves_of(tmp_path)[1:]
    figure = plot_curves.make_figure(curves_of(tmp_path), Args(runs=(tmp_path,), split=True))
    assert [ax.get_title().replace("\n", " ") for ax in figure.axes] == [curve.title for curve in curves]
    for ax, curve, score in zip(figure.axes, curves, scores, strict=True):
        colors = {line.get_ydata()[1]: line.get_color() for line in ax.lines}
        assert colors == dict.fromkeys(scores, "0.75") | {score: curve.color, 80: "0.35"}
        assert ax.get_shared_y_axes().joined(ax, figure.axes[0]) and ax.get_gridspec().ncols == 3
    assert figure.get_suptitle() == "Hopper-v4"
    legend = [text.get_text() for text in figure.legends[0].get_texts()]
    assert {*legend} == {"the other runs", "IQL pretrained, 1 seed: last score"}


def test_metric_is_drawn_without_a_table(tmp_path, capsys):
    rows = offline(10, 90) + online(100, 200, start=10_000)
    folder = write_seed(tmp_path, "a", 1, rows, script="iql", args={"offline_steps": 10_000})
    lines = ["phase,gradient_step,env_step,name,value", "offline,5000,0,q,4", "online,10900,1000,q,3"]
    lines += ["online,10900,1000,other,7", "online,11900,2000,q,nan", "online,12900,3000,q,1"]
    (folder / "metrics.csv").write_text("\n".join(lines))  # the last line is unfinished
    axes, _ = draw(tmp_path, x="total", metric="q")
    assert lines_of(axes["Hopper-v4"]) == [([5000], [4]), ([11_000], [3])]
    plot_curves.main(Args(runs=(tmp_path,), metric="q"))
    assert {path.name for path in tmp_path.glob("curves*")} == {"curves-q.png", "curves-q.svg"}
    assert "auc" not in capsys.readouterr().out


def test_equal_runs_give_equal_bytes(tmp_path):
    for name in ("a", "b"):
        for seed in (1, 2, 3):
            write_seed(tmp_path / name, "run", seed, online(100, 90 + seed, 200 * seed))
        plot(tmp_path / name)
    for suffix in ("png", "svg", "csv"):
        one, other = (tmp_path / f"{name}/curves.{suffix}" for name in ("a", "b"))
        assert one.read_bytes() == other.read_bytes()


BAD = {
    "nowhere": "runs: nowhere is not a folder; give the folder",
    "void": "runs: no <env>/<run>/seed<k> folder",
    "empty": "has a return to draw",
    "runs copy": "lies in two of the folders; give one of them",
    "runs --env Ant": "--env Ant: matches no run; choose among: Hopper-v4",
    "runs --label iql": "--label iql: matches no run; choose among: SAC finetuned",
    "runs --metric foo": "has a foo to draw",
    "plain --y score": "has a score to draw",
    "runs --rename iql=IQL": "--rename iql=IQL: write OLD=NEW, OLD one of: SAC finetuned",
    "pair --rename a=x b=x": "--rename: two runs would have the same label",
    "runs --metric q --x minutes": "--metric: metrics.csv has no minutes",
    "runs --out file.txt/curves": "--out file.txt/curves: ",
}


@pytest.mark.parametrize("command", BAD)
def test_bad_input_is_one_line_and_writes_nothing(tmp_path, monkeypatch, capsys, command):
    monkeypatch.chdir(tmp_path)
    for folder, run in (("runs", "run"), ("copy", "run"), ("pair", "a"), ("pair", "b")):
        write_seed(Path(folder), run, 1, online(100, 200))
    write_seed(Path("empty"), "run", 1, [])
    write_seed(Path("plain"), "run", 1, online(100), scores=None)
    Path("void").mkdir()
    Path("file.txt").touch()
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(SystemExit) as stop:
        plot_curves.main(plot_curves.tyro.cli(Args, args=command.replace(" b=x", " --rename b=x").split()))
    captured = capsys.readouterr()
    assert (stop.value.code, captured.err.count("\n"), "wrote" in captured.out) == (2, 1, False)
    assert BAD[command] in captured.err
    assert sorted(tmp_path.rglob("*")) == before


def test_any_matplotlib_backend_and_an_own_prefix(tmp_path, monkeypatch):
    write_seed(tmp_path / "runs", "run", 1, online(100, 200))
    command = [sys.executable, plot_curves.__file__, "runs", "--label", "SAC*", "--out", "figures/v1.2"]
    monkeypatch.setenv("MPLBACKEND", "module://nowhere")
    result = subprocess.run(command, cwd=tmp_path, capture_output=True)
    assert (result.returncode, result.stderr) == (0, b"")
    assert (tmp_path / "figures/v1.2.png").read_bytes().startswith(b"\x89PNG")
