"""Set-up of LIBERO without questions, and the texts of its errors; no simulator needed."""

import os

import pytest

from evaluation import libero_setup
from evaluation.libero_setup import choose, choose_renderer, find_task, import_libero, list_tasks


def only(*libraries):
    return lambda name: f"lib{name}.so" if name in libraries else None


def test_unknown_suite_names_the_nearest():
    with pytest.raises(ValueError) as error:
        list_tasks("libero_gaol")
    assert str(error.value) == (
        "Unknown suite `libero_gaol`. Choose one of: `libero_spatial`, `libero_object`, `libero_goal`, `libero_10`, "
        "`libero_90`. Did you mean `libero_goal`?"
    )


def test_no_guess_where_nothing_is_near():
    with pytest.raises(ValueError) as error:
        choose("camera", "zzz", ["agentview", "wrist"])
    assert str(error.value) == "Unknown camera `zzz`. Choose one of: `agentview`, `wrist`."


def test_renderer_prefers_egl():
    assert choose_renderer(None, only("EGL", "OSMesa")) == "egl"
    assert choose_renderer("", only("OSMesa")) == "osmesa"
    assert choose_renderer(" EGL ", only("EGL")) == "egl"


def test_missing_renderer_names_the_packages():
    with pytest.raises(ImportError) as error:
        choose_renderer(None, only())
    text = str(error.value)
    assert "neither libEGL nor libOSMesa" in text
    assert all(name in text for name in ("libegl1 libgl1-mesa-dri", "libosmesa6", "MUJOCO_GL"))


def test_requested_renderer_that_is_missing():
    with pytest.raises(ImportError, match="MUJOCO_GL=osmesa needs the library libOSMesa.*libosmesa6"):
        choose_renderer("osmesa", only("EGL"))


def test_renderer_that_needs_a_screen():
    with pytest.raises(ValueError, match="Unknown headless renderer in MUJOCO_GL `glfw`. Choose one of: `egl`"):
        choose_renderer("glfw", only("EGL"))


def test_missing_libero(monkeypatch):
    monkeypatch.setattr(libero_setup, "_package_folder", lambda package: None)
    with pytest.raises(ImportError, match=r"LIBERO is not installed. .* `pip install 'worldvla\[libero\]'`"):
        import_libero.__wrapped__()


@pytest.fixture
def unconfigured(monkeypatch, tmp_path):
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.setenv("LIBERO_CONFIG_PATH", "to be restored")
    monkeypatch.delenv("LIBERO_CONFIG_PATH")
    (tmp_path / "home").mkdir()
    return tmp_path


def test_plain_libero_gets_a_private_configuration(unconfigured):
    yaml = pytest.importorskip("yaml")
    libero_setup._write_configuration(unconfigured / "it's here", None)
    folder = os.environ["LIBERO_CONFIG_PATH"]
    with open(os.path.join(folder, "config.yaml"), encoding="utf-8") as file:
        paths = yaml.safe_load(file)
    assert set(paths) == {"benchmark_root", "bddl_files", "init_states", "datasets", "assets"}
    assert paths["bddl_files"] == str(unconfigured / "it's here" / "bddl_files")
    assert not list((unconfigured / "home").iterdir())


def test_a_configured_home_is_left_alone(unconfigured):
    (unconfigured / "home/.libero").mkdir()
    (unconfigured / "home/.libero/config.yaml").write_text("assets: mine\n")
    libero_setup._write_configuration(unconfigured, None)
    assert "LIBERO_CONFIG_PATH" not in os.environ


def test_a_folder_that_the_user_chose_is_used(unconfigured, monkeypatch):
    monkeypatch.setenv("LIBERO_CONFIG_PATH", str(unconfigured / "mine"))
    libero_setup._write_configuration(unconfigured, unconfigured / "meshes")
    written = (unconfigured / "mine/config.yaml").read_text()
    assert "meshes" in written
    libero_setup._write_configuration(unconfigured / "other", None)
    assert (unconfigured / "mine/config.yaml").read_text() == written


@pytest.mark.libero
@pytest.mark.parametrize("task_id", [-1, 10, True, "0", 1.0])
def test_unknown_task_lists_the_tasks(task_id):
    with pytest.raises(ValueError) as error:
        find_task("libero_object", task_id)
    text = str(error.value)
    assert text.startswith(f"Unknown task `{task_id}` of suite `libero_object`. Choose 0 to 9:")
    assert "3: pick up the bbq sauce and place it in the basket" in text
