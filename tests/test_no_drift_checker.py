"""The checker of test_no_drift.py against small scripts made up here: every rule passes one and fails one.

The names in them are toys, so that what test_no_drift.py declares for the real scripts plays no part.
"""

import shutil
import subprocess
import sys

import pytest

import test_no_drift as checker

SCRIPT = f'''"""A script."""

from dataclasses import dataclass

import numpy as np

# Haarnoja et al. 2018, table 1
LOG_STD_MIN, LOG_STD_MAX = -5.0, 2.0
SQUARES = {{n: n * n for n in range(3)}}


@dataclass
class Args:
    # experiment
    seed: int = 1  # first seed
    # optimisation
    toy_rate: float = 0.005  # rate of the moving average
    # one that may differ,
    # in two lines
    toy_gain: float = 0.99
    toy_size: int = 3
    """How large it is."""


def toy_loss(q, target_q):
    return ((q - target_q) ** 2).mean()


{checker.PLUMBING_RULE}


def decay(args: Args) -> float:
    # the reason
    return args.toy_gain * args.toy_rate * args.toy_size
    # a last word


def main(args: Args) -> None:
    """Run."""
    # Environments
    rng = np.random.default_rng(args.seed)

    # Rehearsal
    for _ in range(3):
        # an inner remark
        print(rng.random() + toy_loss(LOG_STD_MIN, decay(args)))

    # Report
    print("done")


if __name__ == "__main__":
    main(Args())
'''
OTHER_HEAD = '"""Another script.\n\nIts docstring is its own."""\n\nimport math  # noqa: F401\n'
OTHER = OTHER_HEAD + SCRIPT.split("\n", 1)[1].replace("\ndef decay", "\ndef own():\n    pass\n\n\ndef decay")


def changed(text: str, old: str, new: str) -> str:
    assert text.count(old) == 1
    return text.replace(old, new)


def moved(text: str, start: str, end: str, before: str) -> str:
    """The text from start up to end, moved in front of before."""
    cut = text[text.index(start) : text.index(end)]
    return changed(text.replace(cut, ""), before, cut + before)


@pytest.fixture
def write(tmp_path):
    def write_and_load(**sources: str) -> list[checker.Script]:
        for name, source in sources.items():
            (tmp_path / f"{name}.py").write_text(source)
        return checker.load(tmp_path)

    return write_and_load


def test_every_rule_accepts_no_script_one_script_and_two_that_agree(tmp_path, write):
    for scripts in (checker.load(tmp_path), write(a=SCRIPT), write(b=OTHER)):
        assert [problem for rule in checker.RULES for problem in rule(scripts)] == []


def test_blocks(write):
    (script,) = write(a=SCRIPT)
    assert list(script.blocks) == (
        ["LOG_STD_MIN", "LOG_STD_MAX", "SQUARES"]
        + ["Args", "Args.seed", "Args.toy_rate", "Args.toy_gain", "Args.toy_size", "toy_loss", "decay"]
        + ["main: (before its first title)", "main: Environments", "main: Rehearsal", "main: Report"]
        + ['if __name__ == "__main__":']
    )
    rate, gain, size = (script.blocks[f"Args.toy_{name}"] for name in ("rate", "gain", "size"))
    assert (rate.group, gain.group, size.group) == ("# optimisation",) * 3
    assert rate.compared() == "# optimisation\n    toy_rate: float = 0.005  # rate of the moving average"
    assert gain.head == "    # one that may differ,\n    # in two lines\n    toy_gain: float"
    assert size.default + size.tail == ' = 3\n    """How large it is."""'


@pytest.mark.parametrize(
    "old, new, key",
    [
        ("(q - target_q)", "(target_q - q)", "toy_loss"),
        ("# the reason", "# a reason", "decay"),
        ("# a last word", "# the last word", "decay"),
        ("def decay(", "@staticmethod\ndef decay(", "decay"),
        ("table 1", "table 2", "LOG_STD_MIN"),
        ("-5.0, 2.0", "-5.0, 3.0", "LOG_STD_MAX"),
        ("toy_gain: float", "toy_gain: int", "Args.toy_gain"),
        ("# rate of", "# speed of", "Args.toy_rate"),
        ("How large", "How big", "Args.toy_size"),
        ("0.99", "0.98", "Args.toy_gain"),
        ("    # in two lines\n", "", "Args.toy_gain"),
        ("# experiment", "# experiments", "Args.seed"),
        ("@dataclass\n", "@dataclass(frozen=True)\n", "Args"),
        ("rng(args.seed)", "rng(args.seed + 1)", "main: Environments"),
        ("an inner remark", "a remark", "main: Rehearsal"),
        ("def main(args: Args) -> None:", "def main(args):", "main: (before its first title)"),
    ],
)
def test_text_drift(write, old, new, key):
    problems = list(checker.text_drift(write(a=SCRIPT, b=changed(OTHER, old, new))))
    about = [problem for problem in problems if problem.startswith(f"`{key}` differs between a.py:")]
    assert len(about) == 1 and " and b.py:" in about[0]
    assert any(line.startswith(("    -", "    +")) for line in about[0].split("\n"))


def test_text_drift_spares_hooks_declared_defaults_and_own_titles(write):
    other = changed(OTHER, "(q - target_q)", "(target_q - q)")
    other = changed(changed(other, "0.99", "0.98"), "# Rehearsal\n", "# Offline training\n    rng.random()\n")
    scripts = write(a=SCRIPT, b=other)
    assert len(list(checker.text_drift(scripts))) == 2
    assert list(checker.text_drift(scripts, hooks={"toy_loss": ""}, free={"toy_gain": ""})) == []


def test_a_long_difference_is_cut(write):
    scripts = write(a=SCRIPT, b=changed(OTHER, "    # the reason\n", "    x = 1\n" * 100))
    (problem,) = checker.text_drift(scripts)
    assert problem.endswith("...") and len(problem.split("\n")) == checker.DIFF_LINES + 2


@pytest.mark.parametrize(
    "start, end, before",
    [
        ("def toy_loss", checker.PLUMBING_RULE, "@dataclass"),
        ("    toy_gain", "\n\ndef toy_loss", "    # experiment"),
        ("\n    # Rehearsal", "\n    # Report", "\n\nif __name__"),
    ],
)
def test_order_drift(write, start, end, before):
    (problem,) = checker.order_drift(write(a=SCRIPT, b=moved(OTHER, start, end, before)))
    assert "a.py:" in problem and "b.py:" in problem


def test_pair_drift(write):
    other = changed(changed(OTHER, "(q - target_q)", "(target_q - q)"), "0.99", "0.98")
    scripts = write(a=SCRIPT, b=other)
    listed = {"own", "toy_loss", "Args.toy_gain"}
    assert list(checker.pair_drift(scripts, {("a.py", "b.py"): listed})) == []
    assert list(checker.pair_drift(scripts, {("a.py", "missing.py"): set()})) == []
    for key in listed:
        (problem,) = checker.pair_drift(scripts, {("a.py", "b.py"): listed - {key}})
        assert f"`{key}`" in problem and "b.py:" in problem


def test_stale_lists(write):
    declared = {"hooks": {"toy_loss": "", "own": "", "absent": ""}, "free": {"toy_gain": ""}}
    assert len(list(checker.stale_lists(write(a=SCRIPT, b=OTHER), **declared))) == 2
    other = changed(changed(OTHER, "(q - target_q)", "(target_q - q)"), "0.99", "0.98")
    assert list(checker.stale_lists(write(b=other), **declared)) == []


def test_names_twice(write):
    (problem,) = checker.names_twice(write(a=SCRIPT + "\n\ndef decay():\n    pass\n"))
    assert problem.startswith("a.py:") and "`decay`" in problem


@pytest.mark.parametrize("line", ["import b", "from b import own", "from . import x", "import lib.sub"])
def test_first_party_imports(tmp_path, write, line):
    (tmp_path / "lib").mkdir()
    (tmp_path / "lib" / "sub.py").touch()
    (problem,) = checker.first_party_imports(write(a=f"def f():\n    {line}\n", b=OTHER))
    assert problem.startswith("a.py:2: imports")


def test_a_folder_of_data_is_no_package(tmp_path, write):
    (tmp_path / "datasets").mkdir()
    assert list(checker.first_party_imports(write(a="import datasets\n"))) == []


@pytest.mark.parametrize("source", [SCRIPT.replace(checker.PLUMBING_RULE, ""), SCRIPT + checker.PLUMBING_RULE + "\n"])
def test_rule_line(write, source):
    assert len(list(checker.rule_line(write(a=source)))) == 1
    assert list(checker.rule_line(write(a=SCRIPT, collect_dataset=source, plot_curves=source))) == []


def function(lines: int) -> str:
    return "def long():\n" + "    pass\n" * (lines - 1)


NESTED = """def nested(x):
    for a in x:
        with a:
            if a:
                b = [c for c in a if c for d in c]
            elif b:
                pass
            else:
                pass

            def inner():
                if a:
                    pass
"""


@pytest.mark.parametrize(
    "good, bad",
    [
        ("x = 1\n" * checker.MAX_FILE, "x = 1\n" * (checker.MAX_FILE + 1)),
        (*("x = 1\n" * n + checker.PLUMBING_RULE for n in (350, 351)),),
        (function(90), function(91)),
        (NESTED, changed(NESTED, "elif b:\n", "elif b:\n                while b:\n    ")),
        (
            NESTED,
            changed(NESTED, "else:\n                pass", "else:\n                if b:\n                    b"),
        ),
    ],
)
def test_size_caps(write, good, bad):
    assert list(checker.size_caps(write(a=good))) == []
    assert len(list(checker.size_caps(write(a=bad)))) == 1


def test_dead_args(write):
    (problem,) = checker.dead_args(write(a=changed(SCRIPT, "args.toy_gain * ", "")))
    assert problem.startswith("a.py:") and "`args.toy_gain`" in problem
    written = changed(SCRIPT, "return args.toy_gain", "args.toy_gain = 1.0\n    return 1.0")
    assert len(list(checker.dead_args(write(a=written)))) == 1


def test_a_standalone_script_shares_functions_but_not_args_and_main(write):
    other = changed(changed(OTHER, "0.99", "0.98"), "rng.random()", "rng.normal()")
    scripts = write(a=SCRIPT, plot_curves=changed(other, "args.seed", "1"))
    assert [problem for rule in checker.RULES for problem in rule(scripts)] == []
    scripts = write(plot_curves=changed(other, "(q - target_q)", "(target_q - q)"))
    assert len(list(checker.text_drift(scripts))) == 1


def test_take(write):
    hooks, free = {"toy_loss": ""}, {"toy_gain": ""}
    other = changed(changed(OTHER, "(q - target_q)", "(target_q - q)"), "0.99", "0.9")
    expected = other
    for old, new in [
        ("toy_rate: float = 0.005", "toy_rate: int = 1"),
        ("    # in two lines\n", ""),
        ('    """How large it is."""', '    """Size,\n    in two lines."""'),
        ("-5.0, 2.0", "-5.0, 3.0"),
        ("    # the reason\n", "    # another\n    # reason\n"),
        ("rng.random()", "rng.normal()"),
    ]:
        other = changed(other, old, new)
    a, b = write(a=SCRIPT, b=other)
    keys = ["LOG_STD_MAX", "Args.toy_rate", "Args.toy_gain", "Args.toy_size", "decay", "main: Rehearsal"]
    assert checker.take(a, [b], hooks, free) == {"b.py": keys}
    assert b.path.read_text() == expected and a.path.read_text() == SCRIPT
    a, b = checker.load(a.path.parent)
    assert checker.take(a, [b], hooks, free) == {}
    assert list(checker.text_drift([a, b], hooks, free)) == []


def test_command_line(tmp_path, write):
    (tmp_path / "tests").mkdir()
    copy = shutil.copy(checker.__file__, tmp_path / "tests")

    def run(*arguments: str) -> tuple[int, str]:
        done = subprocess.run([sys.executable, copy, *arguments], capture_output=True, text=True)
        return done.returncode, done.stdout + done.stderr

    write(a=SCRIPT, b=changed(OTHER, "# the reason", "# a reason"))
    code, printed = run()
    assert code == 1 and "`decay` differs between a.py:" in printed
    assert run("--take", "a.py") == (0, "b.py: took decay\n2 scripts, no drift\n")
    assert run("--take", "a.py") == (0, "nothing to take\n2 scripts, no drift\n")
    code, printed = run("--take", "c.py")
    assert code == 2 and "there are a.py, b.py" in printed
    assert (tmp_path / "b.py").read_text() == OTHER
