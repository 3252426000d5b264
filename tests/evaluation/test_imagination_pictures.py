"""Films and strips show what they say."""

import av
import numpy as np
import pytest
from PIL import Image

from evaluation.imagination_pictures import draw_film, draw_strip, list_columns, write_gif, write_imagination


def made_up(value, count=3):
    return np.full((count, 32, 32, 3), value, np.uint8)


CURVES = {"dB": np.array([20.0, 10.0]), "nats": np.array([0.1, 0.3])}
CAPTIONS = ["given frame", "step 1", "step 2"]


def test_columns_and_their_difference():
    columns = list_columns(made_up(100), made_up(130), made_up(128))
    assert {name: int(frames[0, 0, 0, 0]) for name, frames in columns.items()} == {
        **{"real": 130, "reconstructed": 128, "imagined": 100},
        "difference x 3": 90,
    }
    assert list_columns(made_up(0), made_up(200), made_up(0))["difference x 3"].min() == 255  # not wrapped round
    assert list(list_columns(made_up(100))) == ["imagined"]


def test_a_film_has_columns_and_curves_that_grow():
    columns = list_columns(made_up(100), made_up(130), made_up(128))
    frames = list(draw_film(columns, CURVES, "lift the cup", CAPTIONS))
    assert [frame.shape for frame in frames] == [(3 * 18 + 256 + 2 * 56, 4 * 256, 3)] * 3
    assert [int(frames[1][200, 128 + 256 * place, 0]) for place in range(4)] == [130, 128, 100, 90]
    for curve in (slice(-92, -60), slice(-36, None)):
        inked = [(frame[curve].max(axis=2) > 130).sum() for frame in frames]
        assert inked[0] == 0 < inked[1] < inked[2]


def test_frames_of_a_film_have_one_size_however_long_the_captions():
    frames = list(draw_film(list_columns(made_up(1)), {}, "go", ["short", "a caption " * 12, "short"]))
    assert len({frame.shape for frame in frames}) == 1


def test_a_strip_shows_first_and_last_moment_and_eight_in_all():
    frames = np.arange(20, dtype=np.uint8)[:, None, None, None].repeat(64, 1).repeat(64, 2).repeat(3, 3) * 10
    strip = draw_strip({"imagined": frames}, {"nats": np.linspace(0, 1, 19)}, "go", [""] * 20)
    assert strip.shape == (3 * 18 + 128 + 56, 8 * 128, 3)
    values = strip[3 * 18 + 64, 64::128, 0].tolist()
    assert values[0] == 0 and values[-1] == 190 and values == sorted(values)
    assert draw_strip({"imagined": frames[:2]}, {}, "go", ["", ""]).shape[1] == 2 * 128


@pytest.mark.parametrize("kind", ["mp4", "gif", "png"])
def test_the_name_decides_the_kind(tmp_path, kind):
    path = tmp_path / "new" / f"imagined.{kind}"
    write_imagination(path, list_columns(made_up(100)), CURVES, "lift the cup", CAPTIONS)
    assert [entry.name for entry in path.parent.iterdir()] == [path.name]
    if kind == "mp4":
        with av.open(str(path)) as container:
            assert len(list(container.decode(video=0))) == 3
        return
    with Image.open(path) as picture:
        assert picture.format == kind.upper() and getattr(picture, "n_frames", 1) == (3 if kind == "gif" else 1)
        if kind == "gif":
            assert picture.info["duration"] == 50 and picture.info["loop"] == 0


def test_a_film_needs_frames(tmp_path):
    with pytest.raises(ValueError, match=r"No frames to write to .*a\.gif"):
        write_gif(tmp_path / "a.gif", [])
