"""Nothing in the package runs what a file or a configuration says: no call in it would."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

import kdtrans

PACKAGE = Path(kdtrans.__file__).parent
FORBIDDEN = {
    *("eval", "exec", "compile", "os.system", "os.popen", "subprocess.getoutput", "subprocess.getstatusoutput"),
    *("yaml.load", "yaml.load_all", "yaml.full_load", "yaml.unsafe_load", "yaml.full_load_all", "yaml.unsafe_load_all"),
    *("pickle.load", "pickle.loads", "pickle.Unpickler", "marshal.loads", "shelve.open", "joblib.load"),
    *("tempfile.mktemp", "runpy.run_path", "torch.hub.load", "lhotse.serialization.open_best"),
}


def name_of(function: ast.expr) -> str:
    """`a.b.c` of a called expression; what is not made of names is left out."""
    if isinstance(function, ast.Attribute):
        return f"{name_of(function.value)}.{function.attr}"
    return function.id if isinstance(function, ast.Name) else ""


def says(call: ast.Call, keyword: str) -> object:
    """A keyword's constant; None where it is not given or no constant."""
    values = {entry.arg: entry.value for entry in call.keywords}
    value = values.get(keyword)
    return value.value if isinstance(value, ast.Constant) else None


def dangers(source: str) -> list[str]:
    """What in a source would run what it is given."""
    found = []
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.ImportFrom) and node.module in ("pickle", "marshal", "os", "subprocess", "yaml"):
            found += [
                f"{node.lineno}: from {node.module} import {alias.name}"
                for alias in node.names
                if f"{node.module}.{alias.name}" in FORBIDDEN
            ]
        if not isinstance(node, ast.Call):
            continue
        name = name_of(node.func)
        if name in FORBIDDEN:
            found.append(f"{node.lineno}: {name}")
        if name == "torch.load" and says(node, "weights_only") is not True:
            found.append(f"{node.lineno}: torch.load without weights_only=True")
        for keyword in ("shell", "allow_pickle", "trust_remote_code"):
            if any(entry.arg == keyword for entry in node.keywords) and says(node, keyword) is not False:
                found.append(f"{node.lineno}: {keyword}")
    return found


def test_the_package_runs_nothing_that_it_is_given() -> None:
    sources = sorted(PACKAGE.rglob("*.py"))
    assert len(sources) > 100
    found = {path.relative_to(PACKAGE).as_posix(): dangers(path.read_text()) for path in sources}
    assert {path: lines for path, lines in found.items() if lines} == {}


@pytest.mark.parametrize(
    "source",
    [
        "eval(text)",
        "torch.load(path)",
        "torch.load(path, weights_only=False)",
        "torch.load(path, weights_only=flag)",
        "yaml.load(text, Loader=yaml.Loader)",
        "pickle.loads(data)",
        "from pickle import loads",
        "from os import system",
        "subprocess.run(line, shell=True)",
        "np.load(path, allow_pickle=True)",
        "AutoModel.from_pretrained(name, trust_remote_code=True)",
    ],
)
def test_dangers_are_found(source: str) -> None:
    assert dangers(source)


@pytest.mark.parametrize(
    "source",
    [
        "model.eval()",
        "re.compile(x)",
        "torch.load(path, weights_only=True)",
        "yaml.safe_load(x)",
        "subprocess.run([x])",
    ],
)
def test_the_harmless_is_left_alone(source: str) -> None:
    assert not dangers(source)
