"""Folders of checkpoints: complete or absent, whenever the process dies."""

import errno
import json
import os
import shutil
import stat
import subprocess
import sys

import pytest

from train import checkpoints
from train.checkpoints import (
    MANIFEST,
    UNFINISHED,
    drop_old_checkpoints,
    list_checkpoints,
    publish_checkpoint,
    sole_writer,
    what_is_missing,
)


class Killed(BaseException):
    """Stands for the end of the process: nothing catches it."""


def write(output, step, content="weights"):
    written = output / UNFINISHED / f"checkpoint-{step}"
    (written / "parts").mkdir(parents=True)
    (written / "parts/model").write_text(content)
    (written / "state").write_text("{}")
    publish_checkpoint(written, output / f"checkpoint-{step}", step)


def steps(output):
    return [step for step, _ in list_checkpoints(output)]


def test_manifest_lists_every_file(tmp_path):
    write(tmp_path, 3)
    manifest = json.loads((tmp_path / "checkpoint-3" / MANIFEST).read_text())
    assert manifest == {"step": 3, "files": {"parts/model": 7, "state": 2}}
    assert what_is_missing(tmp_path / "checkpoint-3") is None


@pytest.mark.parametrize(
    ("damage", "reason"),
    [
        (lambda folder: (folder / MANIFEST).unlink(), "no complete.json, so writing it did not end"),
        (lambda folder: (folder / "state").unlink(), "`state` is missing"),
        (lambda folder: (folder / "parts/model").write_text("wei"), "`parts/model` has 3 bytes instead of 7"),
    ],
)
def test_incomplete_checkpoints_are_passed_over_and_named(tmp_path, caplog, damage, reason):
    for step in (3, 10):
        write(tmp_path, step)
    (tmp_path / "checkpoint-best").mkdir()
    damage(tmp_path / "checkpoint-10")
    assert steps(tmp_path) == [3]
    assert f"Checkpoint `{tmp_path}/checkpoint-10` is passed over: {reason}." in caplog.text


@pytest.mark.parametrize("operation", range(4))
def test_replacing_a_checkpoint_always_leaves_one(tmp_path, monkeypatch, operation):
    """Killed before any of the renames, or before the old one is deleted, there is the old one or the new one."""
    write(tmp_path, 3, "old")
    done = []

    def until_killed(function):
        def wrapped(*arguments, **options):
            if len(done) == operation:
                raise Killed
            done.append(function)
            return function(*arguments, **options)

        return wrapped

    with monkeypatch.context() as patch:
        patch.setattr("pathlib.Path.rename", until_killed(checkpoints.Path.rename))
        patch.setattr(shutil, "rmtree", until_killed(shutil.rmtree))
        if operation < 3:  # two renames and a deletion
            with pytest.raises(Killed):
                write(tmp_path, 3, "new")
        else:
            write(tmp_path, 3, "new")
    with sole_writer(tmp_path):
        pass
    assert [path.name for path in tmp_path.iterdir()] == ["checkpoint-3"]
    assert what_is_missing(tmp_path / "checkpoint-3") is None
    expected = "old" if operation < 2 else "new"
    assert (tmp_path / "checkpoint-3/parts/model").read_text() == expected


def test_newest_and_best_stay(tmp_path):
    for step in (1, 2, 3, 10):
        write(tmp_path, step)
    (tmp_path / "checkpoint-11").mkdir()  # not complete: neither counted nor deleted
    drop_old_checkpoints(tmp_path, None, None)
    assert steps(tmp_path) == [1, 2, 3, 10]
    drop_old_checkpoints(tmp_path, 3, None)
    assert steps(tmp_path) == [2, 3, 10]
    drop_old_checkpoints(tmp_path, 1, str(tmp_path / "checkpoint-2"))
    assert steps(tmp_path) == [2, 10]
    assert (tmp_path / "checkpoint-11").is_dir()


def test_a_second_run_in_the_folder_is_refused(tmp_path):
    hold = "import fcntl, os, sys; fcntl.flock(os.open(sys.argv[1], os.O_RDONLY), fcntl.LOCK_EX); print(); input()"
    other = subprocess.Popen(
        [sys.executable, "-c", hold, str(tmp_path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    other.stdout.readline()
    with pytest.raises(RuntimeError, match="Another process is training into .*choose another `--output_dir`"):
        with sole_writer(tmp_path):
            pytest.fail("two at once")
    other.kill()
    other.wait()
    with sole_writer(tmp_path):  # a killed process holds nothing
        write(tmp_path, 1)
    assert steps(tmp_path) == [1]


def test_network_file_systems_without_locks_and_without_flushing_of_names(tmp_path, monkeypatch, caplog):
    def no_lock(*_):
        raise OSError(errno.ENOLCK, "No locks available")

    def files_only(descriptor):
        if stat.S_ISDIR(os.fstat(descriptor).st_mode):
            raise OSError(errno.EINVAL, "Invalid argument")

    monkeypatch.setattr(checkpoints.fcntl, "flock", no_lock)
    monkeypatch.setattr(os, "fsync", files_only)
    with sole_writer(tmp_path):
        write(tmp_path, 1)
    assert steps(tmp_path) == [1]
    assert "cannot be locked ([Errno 37] No locks available): nobody else may train into it now." in caplog.text


def test_a_file_that_the_disk_does_not_take_is_an_error(tmp_path, monkeypatch):
    def fail(_):
        raise OSError(errno.EINVAL, "Invalid argument")

    monkeypatch.setattr(os, "fsync", fail)
    with pytest.raises(OSError, match="Invalid argument"):
        write(tmp_path, 1)
    assert steps(tmp_path) == []
