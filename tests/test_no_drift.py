"""Same name, same text: the rule that replaces a shared module. Standard library only.

    python tests/test_no_drift.py                        report what drifted, exit 1 if anything did
    python tests/test_no_drift.py --take sac_scratch.py  copy that script's blocks into the others

A block is a function, class or constant at the top level, or a field of `Args` (called `Args.gamma`) with
type, default and comment. Blocks with one name have one text in all scripts, and stand in one order. The docstring,
the imports, `main` and the hooks below are free.
"""

import ast
import sys
from itertools import combinations, pairwise
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
SCRIPTS = ["sac_scratch.py", "offline_pretrain_sac.py", "online_finetune_sac.py", "td3_bc.py", "td3_c.py"]
SCRIPTS += ["cql_sac.py", "iql.py", "awac.py", "o3f_select.py", "awr.py", "bear.py"]
RULE_LINE = "# ---- plumbing: the same text in every script"
MAX_FILE, MAX_ALGORITHM, MAX_FUNCTION, MAX_NESTING = 1542, 429, 60, 3
HOOKS = {  # blocks that are the algorithm, with the reason
    "SAC": "a bonus and a start from a checkpoint in finetuning, no acting in pretraining",
    "TD3": "the constraint, a start from a checkpoint and acting online",
    "ALGORITHM": "names the class",
    "FAMILY": "and which checkpoints it reads",
    "PRETRAINED_BY": "and whose newest run is the default",
    "check_args": "contradictions of a script's own options",
    "main": "what a script starts from, and its phases",
}
DEFAULTS = {  # fields of Args whose default differs, with the reason
    "offline_steps": "the papers'; 0 leaves the phase out where there are two",
    "online_steps": "the same",
    "policy_delay": "TD3 has one, O3F only offline",
    "num_critics": "O3F takes five",
    "critic_subset": "and two of them for targets",
    "updates_per_step": "and makes 20 updates per step",
    "num_candidates": "and picks the best of 100",
    "epsilon": "TD3-C's bound; off elsewhere",
    "clip_dqda": "TD3-C clips, TD3+BC does not",
    "alpha": "TD3+BC's weight; off in td3_c.py",
    "warmup_steps": "0 after pretraining, 5,000 where there is no policy yet",
    "critic_lr": "scratch takes CleanRL's, which is stronger there",
    "alpha_lr": "the same",
    "layer_norm": "the same; offline it keeps Q from exploding",
    "dataset": "the checkpoint's, the bundled one, or none: in the comment",
}
LEVELS = (ast.For, ast.While, ast.If, ast.With, ast.Try)


def lines_of(source: str, node: ast.stmt) -> str:
    """The statement's lines with its decorators and the comment behind it."""
    first = min([node.lineno, *(decorator.lineno for decorator in getattr(node, "decorator_list", []))])
    return "\n".join(source.split("\n")[first - 1 : node.end_lineno])


def blocks(path: Path) -> dict[str, str]:
    """Name -> text, in the order of the file."""
    source, found = path.read_text(), {}
    for node in ast.parse(source).body:
        if isinstance(node, ast.FunctionDef | ast.ClassDef):
            found[node.name] = lines_of(source, node)
        elif isinstance(node, ast.Assign):
            for name in ast.walk(node):
                if isinstance(name, ast.Name) and isinstance(name.ctx, ast.Store):
                    found[name.id] = lines_of(source, node)
        if isinstance(node, ast.ClassDef) and node.name == "Args":
            del found["Args"]
            fields = [field for field in node.body if isinstance(field, ast.AnnAssign)]
            found |= {f"Args.{field.target.id}": lines_of(source, field) for field in fields}
    return found


def without_default(text: str) -> str:
    """A field's name alone: where the default differs, bounds and comment may, too."""
    return text.partition(":")[0]


def drift(scripts: dict[str, dict[str, str]], hooks=HOOKS, defaults=DEFAULTS) -> list[str]:
    problems = []
    for (one, a), (two, b) in combinations(scripts.items(), 2):
        common = [name for name in a if name in b]
        for name in common:
            texts = [a[name], b[name]]
            if name.removeprefix("Args.") in defaults:
                texts = [without_default(text) for text in texts]
            if name not in hooks and texts[0] != texts[1]:
                problems.append(f"{name} differs between {one} and {two}")
        order = [name for name in b if name in a]
        problems += [
            f"{x} stands before {y} in {one}, not in {two}"
            for x, y in pairwise(common)
            if order.index(x) > order.index(y)
        ]
    return problems


def stale(scripts: dict[str, dict[str, str]]) -> list[str]:
    """Exceptions that are none any more."""
    names = [*HOOKS, *(f"Args.{field}" for field in DEFAULTS)]
    return [name for name in names if len({text[name] for text in scripts.values() if name in text}) < 2]


def first_party_imports(path: Path) -> list[str]:
    names = []
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names += [alias.name for alias in node.names]
        if isinstance(node, ast.ImportFrom):
            names.append(node.module or ".")
    return [name for name in names if name.startswith(".") or (ROOT / f"{name.split('.')[0]}.py").exists()]


def depth(node: ast.AST, level: int = 0) -> int:
    """The deepest nesting of loops, conditions and the like; an elif adds nothing, an inner function starts anew."""
    deepest = level
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.FunctionDef):
            continue
        is_elif = isinstance(node, ast.If) and isinstance(child, ast.If) and child in node.orelse
        deepest = max(deepest, depth(child, level + (isinstance(child, LEVELS) and not is_elif)))
    return deepest


def too_large(path: Path) -> list[str]:
    lines = path.read_text().split("\n")
    rules = [i for i, line in enumerate(lines) if line.startswith(RULE_LINE)]
    problems = [] if len(rules) == 1 else [f"{len(rules)} rule lines"]
    if len(lines) - 1 > MAX_FILE or rules[0] > MAX_ALGORITHM:
        problems.append(f"{len(lines) - 1} lines, {rules[0]} of them above the rule line")
    for node in ast.walk(ast.parse("\n".join(lines))):
        if isinstance(node, ast.FunctionDef):
            length = node.end_lineno - node.lineno + 1
            if length > MAX_FUNCTION or depth(node) > MAX_NESTING:
                problems.append(f"{node.name}: {length} lines, {depth(node)} levels")
    return problems


def unread_fields(path: Path) -> list[str]:
    source = path.read_text()
    read = {node.attr for node in ast.walk(ast.parse(source)) if isinstance(node, ast.Attribute)}
    read |= {node.value for node in ast.walk(ast.parse(source)) if isinstance(node, ast.Constant)}
    return [name for name in blocks(path) if name.startswith("Args.") and name[5:] not in read]


def load(names: list[str]) -> dict[str, dict[str, str]]:
    return {name: blocks(ROOT / name) for name in names}


def test_one_name_has_one_text():
    assert drift(load(SCRIPTS)) == [] and stale(load(SCRIPTS)) == []


@pytest.mark.parametrize("name", SCRIPTS)
def test_a_script_stands_alone_fits_its_limits_and_reads_its_options(name):
    path = ROOT / name
    assert first_party_imports(path) == [] and too_large(path) == [] and unread_fields(path) == []


@pytest.mark.parametrize(
    "old, new, expected",
    [
        ("def fail(message", "def fail(text", "fail differs between a.py and b.py"),
        ("tau: Share = 0.005", "tau: Share = 0.006", "Args.tau differs between a.py and b.py"),
        ("EPISODE_LIMIT = 100_000", "EPISODE_LIMIT = 10", "EPISODE_LIMIT differs between a.py and b.py"),
        (
            "actor_lr: Positive = 3e-4",
            "actor_lr: Finite = 3e-4",
            "Args.actor_lr differs between a.py and b.py",
        ),
    ],
)
def test_a_planted_drift_is_found(tmp_path, old, new, expected):
    source = (ROOT / "sac_scratch.py").read_text()
    assert old in source
    (tmp_path / "a.py").write_text(source)
    (tmp_path / "b.py").write_text(source.replace(old, new))
    scripts = {name: blocks(tmp_path / name) for name in ("a.py", "b.py")}
    assert drift(scripts) == [expected]
    assert {"SAC", "main", "Args.warmup_steps"} <= set(stale(scripts))  # all the same in these two


def test_planted_faults_of_one_script_are_found(tmp_path):
    script = tmp_path / "script.py"
    heads = ["def f(x):", "for a in x:", "if a:", "while a:", "if a:", "pass"]
    nested = "".join(f"{4 * level * ' '}{head}\n" for level, head in enumerate(heads))
    script.write_text(
        f"import sac_scratch\n{RULE_LINE}\n{nested}\nclass Args:\n    lost: int = 1  # never read\n"
    )
    assert first_party_imports(script) == ["sac_scratch"]
    assert too_large(script) == ["f: 6 lines, 4 levels"] and unread_fields(script) == ["Args.lost"]


def take(name: str) -> None:
    """Copies the script's blocks into the others; a default that may differ stays."""
    source = blocks(ROOT / name)
    for other in SCRIPTS:
        text = (ROOT / other).read_text()
        for block, mine in blocks(ROOT / other).items():
            if block in source and block not in HOOKS and block.removeprefix("Args.") not in DEFAULTS:
                text = text.replace(mine, source[block])
        (ROOT / other).write_text(text)


if __name__ == "__main__":
    if sys.argv[1:2] == ["--take"]:
        take(sys.argv[2])
    problems = drift(load(SCRIPTS)) + [f"{name} no longer differs" for name in stale(load(SCRIPTS))]
    print("\n".join(problems) or "no drift")
    sys.exit(1 if problems else 0)
