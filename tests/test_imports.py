"""Who may import whom (the one-way graph of the packages): on the syntax trees and in a fresh process."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
ENVIRONMENT = {("os", "environ"), ("os", "getenv"), ("os", "environb")}
HEAVY = {"torch", "transformers", "safetensors"}


@dataclass(frozen=True)
class Import:
    """lazy: inside a function, or under TYPE_CHECKING: not executed by importing the file."""

    by: str
    target: str
    line: int
    lazy: bool

    def __str__(self) -> str:
        return f"{self.by}:{self.line} imports {self.target}"

    def of(self, *packages: str) -> bool:
        return any(self.target == name or self.target.startswith(name + ".") for name in packages)


def sources(package: str) -> list[Path]:
    return sorted((ROOT / package).rglob("*.py"))


def imports(path: Path) -> Iterator[Import]:
    tree = ast.parse(path.read_text(encoding="utf-8"), str(path))
    lazy = {
        id(inner)
        for node in ast.walk(tree)
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) or _for_types_alone(node)
        for inner in ast.walk(node)
    }
    for node in ast.walk(tree):
        for target in _targets(node, path):
            yield Import(str(path.relative_to(ROOT)), target, node.lineno, id(node) in lazy)


def _for_types_alone(node: ast.AST) -> bool:
    return isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING"


def _targets(node: ast.AST, path: Path) -> list[str]:
    if isinstance(node, ast.Import):
        return [alias.name for alias in node.names]
    if not isinstance(node, ast.ImportFrom):
        return []
    module = node.module or ""
    if node.level:
        parents = path.relative_to(ROOT).parts[: -node.level]
        module = ".".join([*parents, *([module] if module else [])])
    # `from service import worker` imports service.worker as well as service.
    return [module, *(f"{module}.{alias.name}" for alias in node.names)]


def all_imports(package: str) -> list[Import]:
    return [found for path in sources(package) for found in imports(path)]


def complaints(found: list[Import]) -> list[str]:
    return sorted({str(one) for one in found})


def test_the_walk_sees_imports() -> None:
    """Guards the tests below against passing because nothing was read."""
    assert any(one.of("fastapi") for one in all_imports("service"))
    assert any(
        one.by == "service/gateway.py" and one.of("service.broker.base") for one in all_imports("service")
    )


def test_model_never_imports_service() -> None:
    assert not complaints([one for one in all_imports("model") if one.of("service")])


def test_only_the_worker_imports_model() -> None:
    wrong = [
        one
        for one in all_imports("service")
        if one.of("model")
        and one.by != "service/worker.py"
        and not (one.by.startswith("service/cli/") and one.lazy)
    ]
    assert not complaints(wrong)


def test_service_never_imports_torch_itself() -> None:
    assert not complaints([one for one in all_imports("service") if one.of(*HEAVY)])


def test_redis_stays_inside_the_broker() -> None:
    owners = ("service/broker/", "service/embedded_redis.py")
    wrong = [one for one in all_imports("service") if one.of("redis") and not one.by.startswith(owners)]
    assert not complaints(wrong)


def test_routes_never_see_the_implementation_of_the_broker() -> None:
    allowed = ("service.broker.base", "service.broker")
    wrong = [
        one
        for path in (*sources("service/routes"), ROOT / "service/gateway.py")
        for one in imports(path)
        if one.of("redis") or (one.of("service.broker") and not one.target.startswith(allowed[0]))
        if one.target not in allowed
    ]
    assert not complaints(wrong)


def test_protocol_lies_below_everything() -> None:
    assert not complaints(
        [
            one
            for module in (ROOT / "service/protocol").glob("*.py")
            for one in imports(module)
            if one.of("service", "model") and not one.of("service.protocol")
        ]
    )


def test_broker_knows_only_protocol_and_settings() -> None:
    below = ("service.broker", "service.protocol", "service.settings", "service.redis_url")
    wrong = [
        one
        for path in sources("service/broker")
        for one in imports(path)
        if one.of("service", "model", "fastapi", "starlette")
        and not one.of(*below)
        and one.target != "service"
    ]
    assert not complaints(wrong)


def test_engine_sees_the_adapter_protocol_never_a_family() -> None:
    families = {path.stem for path in sources("model/adapters")} - {"base", "__init__"}
    names = tuple(f"model.adapters.{family}" for family in families)
    wrong = [
        one for one in all_imports("model") if one.of(*names) and not one.by.startswith("model/adapters/")
    ]
    assert not complaints(wrong)


def test_environment_is_read_in_settings_alone() -> None:
    wrong = [
        f"{path.relative_to(ROOT)}:{node.lineno}"
        for package in ("service", "model")
        for path in sources(package)
        if path != ROOT / "service/settings.py"
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name)
        if (node.value.id, node.attr) in ENVIRONMENT
    ]
    assert not wrong


def test_no_file_is_named_like_a_standard_module() -> None:
    wrong = [
        str(path.relative_to(ROOT))
        for package in ("service", "model")
        for path in sources(package)
        if path.stem in sys.stdlib_module_names
    ]
    assert not wrong


def test_gateway_process_never_imports_torch() -> None:
    program = f"import sys, service.app; print(*({HEAVY | {'model'}!r} & set(sys.modules)))"
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == []
