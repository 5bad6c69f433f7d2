"""The house: which module may import which, what the core pulls in, and that the public names are documented."""

import ast
import importlib
import inspect
import pathlib
import re
import subprocess
import sys
import tomllib
import types

import pytest

import diffusers_fn as dfn

PACKAGE = pathlib.Path(dfn.__file__).parent

# A module imports from its own floor (without cycles) and from lower ones.
FLOORS = {
    "_arrays": 0,
    "_manual_axes": 0,
    "_types": 0,
    "_random": 0,
    "_threefry": 0,
    "levels": 0,
    "noise_schedules": 0,
    "variances": 0,
    "discrete": 0,
    "processes": 0,
    "grids": 0,
    "parameterizations": 0,
    "denoisers": 1,
    "self_conditioning": 1,
    "guidance": 1,
    "losses": 1,
    "likelihood": 1,
    "solvers": 1,
    "sampling": 2,
    "inversion": 2,
    "edict": 2,
    "editing": 2,
    "latents": 2,
    "oracles": 2,
    "few_step": 2,
    "backbones": 0,  # and they import nothing of this package but each other: see below
    "text": 0,  # packages that tokenize are imported on first use
    "pretrained": 3,
    "training": 3,
    "from_config": 4,
}
# What the core may import from outside, beside the standard library.
THIRD_PARTY = {"jax", "flax", "optax", "chex", "ml_collections", "absl", "numpy"}


def modules():
    """{dotted name below the package: path}, the package's own __init__ left out."""
    paths = (path for path in sorted(PACKAGE.rglob("*.py")) if path != PACKAGE / "__init__.py")
    return {".".join(path.relative_to(PACKAGE).with_suffix("").parts): path for path in paths}


def imports(path):
    """Dotted names of everything a file imports, at the top or inside a function; relative imports resolved."""
    package = ["diffusers_fn", *path.relative_to(PACKAGE).parts[:-1]]
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = ".".join(package[: len(package) - node.level + 1]) if node.level else ""
            module = ".".join(part for part in (base, node.module) if part)
            yield from (f"{module}.{alias.name}" for alias in node.names)


def families(path):
    """The modules and subpackages of this package that a file imports from, by their first name."""
    names = (name.split(".") for name in imports(path))
    return {name[1] for name in names if name[0] == "diffusers_fn" and len(name) > 1}


def test_every_module_has_a_floor():
    assert {name.split(".")[0] for name in modules()} <= set(FLOORS)


@pytest.mark.parametrize("name", modules())
def test_a_module_imports_from_its_floor_and_below(name):
    family = name.split(".")[0]
    allowed = {other for other, floor in FLOORS.items() if floor <= FLOORS[family]}
    if family not in ("from_config", "latents", "pretrained", "backbones"):
        allowed -= {"backbones"}
    if family == "backbones":
        allowed = {"backbones"}
    assert families(modules()[name]) <= allowed


def test_no_file_imports_itself_through_others():
    """Files, not only families; imports inside functions and under TYPE_CHECKING count."""
    files = {".".join(path.relative_to(PACKAGE.parent).with_suffix("").parts): path for path in PACKAGE.rglob("*.py")}
    files = {name.removesuffix(".__init__"): path for name, path in files.items()}

    def file_of(imported):
        """The file behind a dotted name: a module's own, or that of the module that defines the name."""
        while imported and imported not in files:
            imported = imported.rpartition(".")[0]
        return imported

    graph = {name: {file_of(imported) for imported in imports(path)} - {"", name} for name, path in files.items()}
    while graph:
        free = {name for name, needs in graph.items() if not needs & set(graph)}
        assert free, f"a circle among {sorted(graph)}"
        graph = {name: needs for name, needs in graph.items() if name not in free}


@pytest.mark.parametrize("name", modules())
def test_the_core_imports_only_its_dependencies(name):
    roots = {imported.split(".")[0] for imported in imports(modules()[name])}
    outside = roots - set(sys.stdlib_module_names) - {"diffusers_fn", "__future__"}
    # Imported where they are used, inside a function: see the next test.
    extra = {"safetensors"} if name.startswith("pretrained") else {"diffrax"} if name == "solvers.adaptive" else set()
    assert outside <= THIRD_PARTY | extra
    assert "ml_collections" not in roots or name.startswith("from_config")
    if name.split(".")[0] not in ("backbones", "from_config", "pretrained"):
        assert "flax" not in roots
    if name.startswith("backbones"):  # networks see arrays, never a Level, and no optimizer
        assert not outside & {"optax", "ml_collections", "absl"}


def loaded_by(code):
    """Names of the modules that an interpreter has loaded after it ran `code`."""
    code += "; import sys; print(*sys.modules)"
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=PACKAGE.parent)
    return set(ran.stdout.split())


def test_importing_the_core_pulls_in_its_dependencies_alone():
    loaded = loaded_by("import diffusers_fn")
    assert "jax" in loaded
    # Networks, and what is made of them, wait until they are asked for.
    later = ("backbones", "latents", "pretrained", "from_config")
    assert not {name for name in loaded if name.startswith(tuple(f"diffusers_fn.{part}" for part in later))}
    ours = {name for name in loaded if name.startswith("diffusers_fn")}
    theirs = loaded_by("import jax, flax.linen, optax, chex, ml_collections, absl, numpy")
    assert loaded - ours - theirs == set()


def test_networks_and_configs_pull_in_none_of_the_experiments():
    loaded = loaded_by("from diffusers_fn import *")
    assert {"diffusers_fn.backbones.unet", "diffusers_fn.from_config.diffusion"} <= loaded
    names = {name.split(".")[0] for name in loaded}
    heavy = {"grain", "orbax", "matplotlib", "sklearn", "tensorboardX", "PIL", "tqdm", "pandas", "torch", "tensorflow"}
    assert not names & (heavy | {"experiments", "configs", "clu", "safetensors", "diffrax", "scipy"})


def test_what_comes_later_is_what_was_promised():
    assert dfn.build is dfn.from_config.diffusion.build
    assert dfn.backbones.UNet.__module__ == "diffusers_fn.backbones.unet"
    assert {"build", "backbones", "sample"} <= set(dir(dfn))
    with pytest.raises(AttributeError, match="has no attribute 'nothing'"):
        dfn.nothing  # noqa: B018


# Public names.


def public_functions(module):
    """Functions that a module defines and shows."""
    return {
        name: value
        for name, value in vars(module).items()
        if inspect.isfunction(value) and not name.startswith("_") and value.__module__.startswith(module.__name__)
    }


def test_all_names_exist_and_are_sorted():
    assert dfn.__all__ == sorted(set(dfn.__all__))
    for name in dfn.__all__:
        assert hasattr(dfn, name), name
    loaded = {name for name, value in vars(dfn).items() if not name.startswith("_")}
    submodules = {name for name in loaded if isinstance(getattr(dfn, name), types.ModuleType)}
    # Names that are shown are listed; submodules are attributes whether listed or not.
    assert loaded - submodules <= set(dfn.__all__)


def test_public_types_and_functions_are_documented():
    for name in dfn.__all__:
        value = getattr(dfn, name)
        if isinstance(value, type) or inspect.isfunction(value) or isinstance(value, types.ModuleType):
            doc = inspect.getdoc(value) or ""
            assert len(doc) > 20, name
            assert not doc.startswith(f"{name}("), f"{name} has only the docstring that Python makes up"


SHOWN = [dfn] + [getattr(dfn, name) for name in dfn.__all__ if isinstance(getattr(dfn, name), types.ModuleType)]


@pytest.mark.parametrize("module", SHOWN, ids=lambda module: module.__name__)
def test_every_public_function_has_an_example(module):
    if module is dfn:
        functions = {n: getattr(dfn, n) for n in dfn.__all__ if inspect.isfunction(getattr(dfn, n))}
    else:
        functions = public_functions(module)
    assert [name for name, function in functions.items() if ">>>" not in (inspect.getdoc(function) or "")] == []


@pytest.mark.parametrize("module", SHOWN, ids=lambda module: module.__name__)
def test_dir_shows_the_public_names_alone(module):
    assert dir(module) == sorted(module.__all__)
    assert all(hasattr(module, name) for name in module.__all__)


def definitions(path):
    """Names that a file defines at its top level, without those that begin with an underscore."""
    for node in ast.parse(path.read_text()).body:
        if isinstance(node, ast.FunctionDef | ast.ClassDef):
            names = [node.name]
        elif isinstance(node, ast.Assign):
            names = [target.id for target in node.targets if isinstance(target, ast.Name)]
        elif isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name):
            names = [node.target.id]
        else:
            names = []
        yield from (name for name in names if not name.startswith("_"))


@pytest.mark.parametrize("name", [name for name in modules() if not name.rpartition(".")[2].startswith("_")])
def test_a_module_lists_its_names(name):
    module = importlib.import_module(f"diffusers_fn.{name}")
    assert set(definitions(modules()[name])) <= set(module.__all__)
    assert all(hasattr(module, name) for name in module.__all__)


def test_the_version_is_that_of_the_project():
    project = tomllib.loads((PACKAGE.parent / "pyproject.toml").read_text())
    assert project["project"]["dynamic"] == ["version"]
    assert project["tool"]["setuptools"]["dynamic"]["version"] == {"attr": "diffusers_fn.__version__"}
    assert re.fullmatch(r"\d+\.\d+\.\d+", dfn.__version__)
