"""The rules of the code as tests: layers, one module per heavy dependency, light imports, sizes."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[1] / "speechft_ray"
FILES = sorted(PACKAGE.rglob("*.py"))

LAYERS = {
    "core": 0,
    "speech": 1,
    "merging": 1,
    "storage": 1,
    "finetuning": 2,
    "superb": 2,
    "pretraining": 2,
    "sweep": 2,
    "search": 3,
    "cost": 3,
    "cluster": 3,
    "tracking": 3,
    "stages": 4,
    "report": 4,
    "commands": 5,
    "cli": 6,
    "api": 6,
    "__main__": 7,
}
DOORS = {
    "ray": {"cluster"},
    "mlflow": {
        "tracking/_mlflow_client.py",
        "tracking/_mlflow_runs.py",
        "tracking/_logged_models.py",
        "tracking/_hidden_states.py",
    },
    "wandb": {"tracking/wandb.py"},
    "tensorboardX": {"tracking/_event_files.py"},
    "optuna": {
        "search/optuna_proposer.py",
        "search/optuna_samplers.py",
        "search/optuna_view.py",
        "search/optuna_importance.py",
    },
    "s3prl": {"speech/encoders/_s3prl.py"},
    "torchaudio": {"speech/encoders/_torchaudio.py"},
    "requests": {"speech/checkpoints/download.py"},
    "obstore": {"storage/bucket.py"},
    "torch": {
        "speech",
        "merging",
        "finetuning",
        "superb",
        "pretraining",
        "stages",
        "cost",
        "commands/merge.py",
        "tracking/_hidden_states.py",  # runs where a registered model is loaded
    },
}
LARGEST_MODULE_LINES, NINE_IN_TEN_LINES, LARGEST_FUNCTION_LINES = 400, 300, 80


def package_of(path: Path) -> str:
    first = path.relative_to(PACKAGE).parts[0]
    return first.removesuffix(".py")


def imports(path: Path) -> list[tuple[str, int]]:
    """Every imported module of a file, wherever in it the import stands, with its line."""
    names = []
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names += [(alias.name, node.lineno) for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}:{node.lineno} imports relatively"
            names.append((node.module or "", node.lineno))
            names += [
                (f"{node.module}.{alias.name}", node.lineno)
                for alias in node.names
                if node.module == "speechft_ray"
            ]
    return names


def violations_of_layers(files: list[Path]) -> list[str]:
    wrong = []
    for path in files:
        here = package_of(path)
        for name, line in imports(path):
            parts = name.split(".")
            if parts[0] != "speechft_ray" or len(parts) == 1 or here == "__init__":
                continue
            there = parts[1]
            if there not in LAYERS:
                continue
            same_package = there == here
            if not same_package and LAYERS[there] >= LAYERS[here]:
                wrong.append(
                    f"{path.relative_to(PACKAGE)}:{line} ({here}, layer {LAYERS[here]}) "
                    f"imports {there}"
                )
            if here == "sweep" and there not in ("core", "sweep"):
                wrong.append(
                    f"{path.relative_to(PACKAGE)}:{line}: "
                    f"sweep imports core only, but imports {there}"
                )
    return wrong


def test_every_package_has_a_layer() -> None:
    assert {package_of(path) for path in FILES} - {"__init__"} <= set(LAYERS)


def test_no_module_is_loose_at_the_top() -> None:
    assert {path.name for path in PACKAGE.glob("*.py")} == {"__init__.py", "__main__.py"}


def test_imports_point_downwards() -> None:
    assert violations_of_layers(FILES) == []


def module_of(path: Path) -> str:
    name = path.relative_to(PACKAGE.parent).with_suffix("").as_posix().replace("/", ".")
    return name.removesuffix(".__init__")


def import_graph(files: list[Path]) -> dict[str, set[str]]:
    """Returns the modules of the package that each module imports, wherever the import stands."""
    modules = {module_of(path) for path in files}
    graph: dict[str, set[str]] = {}
    for path in files:
        here = module_of(path)
        graph[here] = {name for name, _ in imports(path) if name in modules} - {here}
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.ImportFrom):
                members = {f"{node.module}.{alias.name}" for alias in node.names}
                graph[here] |= (members & modules) - {here}
    return graph


def modules_in_circles(graph: dict[str, set[str]]) -> list[str]:
    """Returns the modules from which a chain of imports leads back to them."""
    circular = []
    for start in graph:
        reached: set[str] = set()
        waiting = list(graph[start])
        while waiting:
            module = waiting.pop()
            if module not in reached:
                reached.add(module)
                waiting += graph[module]
        if start in reached:
            circular.append(start)
    return circular


def test_imports_have_no_circles() -> None:
    assert modules_in_circles(import_graph(FILES)) == []


def test_a_circle_would_be_seen() -> None:
    assert modules_in_circles({"a": {"b"}, "b": {"c"}, "c": {"a"}, "d": {"a"}}) == ["a", "b", "c"]


def test_an_import_upwards_would_be_seen(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    intruder = tmp_path / "sweep" / "intruder.py"
    intruder.parent.mkdir()
    intruder.write_text(
        "from speechft_ray.finetuning.run import finetune\n"
        "from speechft_ray.cluster import connect\n"
    )
    monkeypatch.setattr(sys.modules[__name__], "PACKAGE", tmp_path)
    assert len(violations_of_layers([intruder])) == 4


@pytest.mark.parametrize("dependency", sorted(DOORS))
def test_heavy_dependencies_are_imported_in_one_place(dependency: str) -> None:
    wrong = []
    for path in FILES:
        place = path.relative_to(PACKAGE).as_posix()
        allowed = any(place == door or place.startswith(f"{door}/") for door in DOORS[dependency])
        wrong += [
            f"{place}:{line}"
            for name, line in imports(path)
            if name.split(".")[0] == dependency and not allowed
        ]
    assert wrong == []


def test_core_is_light() -> None:
    allowed = sys.stdlib_module_names | {"pydantic", "speechft_ray"}
    wrong = [
        f"{p.name}:{line} {name}"
        for p in FILES
        if package_of(p) == "core"
        for name, line in imports(p)
        if name.split(".")[0] not in allowed
    ]
    assert wrong == []


HEAVY = "torch ray mlflow optuna s3prl fairseq transformers torchaudio"


@pytest.mark.parametrize(
    ("module", "heavy"),
    [
        ("speechft_ray", HEAVY),
        ("speechft_ray.cli", HEAVY),
        ("speechft_ray.sweep.scheduler", HEAVY),
        ("speechft_ray.sweep.plan", HEAVY),
        ("speechft_ray.commands.sweep", "matplotlib scipy.signal scipy.stats"),
    ],
)
def test_importing_loads_nothing_heavy(module: str, heavy: str) -> None:
    code = (
        f"import sys, {module}; print(' '.join(sorted(set('{heavy}'.split()) & set(sys.modules))))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == ""


def test_file_sizes() -> None:
    lines = {
        path.relative_to(PACKAGE).as_posix(): len(path.read_text(encoding="utf-8").splitlines())
        for path in FILES
    }
    assert {name: count for name, count in lines.items() if count > LARGEST_MODULE_LINES} == {}
    long = sum(count > NINE_IN_TEN_LINES for count in lines.values())
    assert long <= len(lines) // 10


def test_function_sizes() -> None:
    wrong = []
    for path in FILES:
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                length = (node.end_lineno or node.lineno) - node.lineno + 1
                if length > LARGEST_FUNCTION_LINES:
                    wrong.append(
                        f"{path.relative_to(PACKAGE)}:{node.lineno} {node.name} has {length} lines"
                    )
    assert wrong == []


def test_nothing_unpickles_or_evaluates() -> None:
    """No pickle is trusted and no string becomes code, anywhere in the package."""
    wrong = []
    for path in FILES:
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Call):
                text = ast.unparse(node.func)
                if text in (
                    "eval",
                    "exec",
                    "pickle.load",
                    "pickle.loads",
                    "joblib.load",
                    "yaml.unsafe_load",
                ):
                    wrong.append(f"{path.relative_to(PACKAGE)}:{node.lineno} {text}")
                if text == "torch.load" and "weights_only=True" not in ast.unparse(node):
                    wrong.append(
                        f"{path.relative_to(PACKAGE)}:{node.lineno} "
                        "torch.load without weights_only=True"
                    )
    assert wrong == []
