"""Who may import whom: the layers of the package, its siblings that do not know each other, and its outside borders."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[1] / "lep"
# Each may import those in the layers below its own, and nothing beside it in its own layer.
LAYERS = (
    {"__main__", "benchmark_app", "report_app"},
    {"run", "study_page", "paper", "saved_view"},
    {"sweep", "search", "plan_app"},
    {"terminal", "loggers", "tables"},
    {"stages", "study"},
    {"calibrator"},
    {"callbacks"},
    {"calibration", "budget"},
    {"benchmark", "propagation", "training", "tokenizers", "initialization", "export"},
    {"chat", "checkpoints", "report"},
    {"embeddings"},
    {"vocabulary", "assets"},
    {"corpus"},
    {"results", "artifacts", "charts", "config", "cost", "memory", "shards"},
    {"durable", "processes"},
)
BORDERS = {
    "hydra": {"run", "benchmark_app", "plan_app", "config", "sweep"},
    "pytorch_lightning": {"training", "calibrator", "callbacks", "stages", "loggers", "run"},
    "peft": {"calibration"},
    "vllm": {"calibration"},
    "lingua": {"calibration"},
    "optuna": {"search"},
    "wandb_workspaces": {"saved_view"},
    "wandb": {"loggers"},
    "matplotlib": set(),
}


def imports() -> dict[str, set[str]]:
    """module of lep -> names it imports, `lep.x` as "lep.x" and others by their first word."""
    found: dict[str, set[str]] = {}
    for path in PACKAGE.rglob("*.py"):
        parts = path.relative_to(PACKAGE).with_suffix("").parts
        if parts == ("__init__",):
            continue
        names = found.setdefault(parts[0], set())
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            modules = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            if isinstance(node, ast.ImportFrom) and node.module:
                modules = [f"lep.{alias.name}" for alias in node.names] if node.module == "lep" else [node.module]
            names.update(
                ".".join(module.split(".")[:2]) if module.startswith("lep") else module.split(".")[0]
                for module in modules
            )
    return found


def test_every_module_has_a_layer():
    assert set(imports()) == set().union(*LAYERS)


def test_modules_import_downwards_only():
    level = {name: depth for depth, layer in enumerate(LAYERS) for name in layer}
    wrong = [
        f"{module} imports {name}"
        for module, names in imports().items()
        for name in (found.removeprefix("lep.") for found in names if found.startswith("lep."))
        if name != module and level[name] <= level[module]
    ]
    assert wrong == []


@pytest.mark.parametrize("outside", BORDERS)
def test_libraries_stay_behind_their_border(outside: str):
    users = {module for module, names in imports().items() if outside in names}
    assert users <= BORDERS[outside]


def test_the_report_needs_no_torch():
    code = "import sys, lep.report; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
