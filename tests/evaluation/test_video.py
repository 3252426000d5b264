import weakref

import av
import numpy as np
import pytest

from evaluation.video import (
    CAPTION_HEIGHT,
    draw_curve,
    enlarge,
    label,
    side_by_side,
    wrap,
    write_episode_video,
    write_video,
)

BACKGROUND = 24


def make_frames(count=5, height=33, width=47):
    """Left half of one colour, right half of another; the left one brightens with time."""
    frames = np.zeros((count, height, width, 3), np.uint8)
    for step in range(count):
        frames[step, :, : width // 2] = (40 + 40 * step, 60, 120)
        frames[step, :, width // 2 :] = (30, 160, 60)
    return frames


def read_video(path):
    with av.open(str(path)) as container:
        stream = container.streams.video[0]
        facts = {
            "codec": stream.codec_context.name,
            "pix_fmt": stream.codec_context.pix_fmt,
            "size": (stream.codec_context.height, stream.codec_context.width),
            "rate": stream.average_rate,
        }
        return facts, np.stack([frame.to_ndarray(format="rgb24") for frame in container.decode(stream)])


def test_what_is_written_can_be_read_back(tmp_path):
    frames = make_frames()
    path = write_video(tmp_path / "new" / "video.mp4", frames)
    facts, found = read_video(path)
    assert path == tmp_path / "new" / "video.mp4"
    assert facts == {"codec": "h264", "pix_fmt": "yuv420p", "size": (34, 48), "rate": 20}
    assert found.shape == (5, 34, 48, 3)
    # Away from the edge between the halves (chroma is shared by 2 x 2 pixels) colours stay within a few levels.
    for part in (slice(0, 18), slice(28, 47)):
        error = np.abs(found[:, :33, part].astype(int) - frames[:, :, part].astype(int))
        assert error.max() <= 20 and error.mean() <= 3
    # The row and the column that were added repeat their neighbours.
    assert np.abs(found[:, 33].astype(int) - found[:, 32]).mean() <= 3
    assert np.abs(found[:, :, 47].astype(int) - found[:, :, 46]).mean() <= 3
    assert [entry.name for entry in path.parent.iterdir()] == ["video.mp4"]


def test_even_sizes_are_kept_and_the_rate_is_chosen(tmp_path):
    facts, found = read_video(write_video(tmp_path / "video.mp4", make_frames(2, 32, 48), frames_per_second=10))
    assert facts["size"] == (32, 48) and facts["rate"] == 10
    assert len(found) == 2


def test_no_frames_are_refused_and_leave_nothing(tmp_path):
    with pytest.raises(ValueError, match=r"No frames to write to `.*video\.mp4`\. A video needs at least one\."):
        write_video(tmp_path / "video.mp4", [])
    assert list(tmp_path.iterdir()) == []


def test_ragged_frames_are_refused_and_leave_nothing(tmp_path):
    # The encoder looks ahead; after so many frames a part of the file is written.
    frames = [*make_frames(5)] * 20 + [make_frames(1, 32, 47)[0]]
    with pytest.raises(ValueError, match=r"Frame 100 has shape \(32, 47, 3\), the first has \(33, 47, 3\)\."):
        write_video(tmp_path / "video.mp4", frames)
    assert list(tmp_path.iterdir()) == []


def test_an_older_video_outlives_a_failure_and_gives_way_to_a_success(tmp_path):
    path = write_video(tmp_path / "video.mp4", make_frames(2))
    before = path.read_bytes()
    with pytest.raises(ValueError, match="Frame 1 has shape"):
        write_video(path, [make_frames(1)[0], make_frames(1, 32, 47)[0]])
    assert path.read_bytes() == before
    write_video(path, make_frames(3))
    assert len(read_video(path)[1]) == 3
    assert list(tmp_path.iterdir()) == [path]


def test_label_puts_text_above_and_leaves_the_frame():
    frame = make_frames(1)[0]
    labelled, other = label(frame, "real"), label(frame, "dream")
    assert labelled.shape == (33 + CAPTION_HEIGHT, 47, 3) and labelled.dtype == np.uint8
    np.testing.assert_array_equal(labelled[CAPTION_HEIGHT:], frame)
    assert labelled[:CAPTION_HEIGHT].max() > 200
    assert (labelled[:CAPTION_HEIGHT] != other[:CAPTION_HEIGHT]).any()
    assert (label(frame, "")[:CAPTION_HEIGHT] == BACKGROUND).all()


def test_enlarge_repeats_pixels():
    frame = np.arange(12, dtype=np.uint8).reshape(2, 2, 3)
    large = enlarge(frame, 4)
    assert large.shape == (4, 4, 3)
    assert large[..., 0].tolist() == [[0, 0, 3, 3], [0, 0, 3, 3], [6, 6, 9, 9], [6, 6, 9, 9]]
    np.testing.assert_array_equal(enlarge(frame, 2), frame)
    np.testing.assert_array_equal(enlarge(frame, 1), frame)


def test_side_by_side_in_the_order_of_the_names():
    left, right = np.full((3, 8, 6, 3), 10, np.uint8), np.full((3, 8, 6, 3), 90, np.uint8)
    right[2] = 200
    frames = side_by_side({"a": left, "b": right}, height=16)
    assert [frame.shape for frame in frames] == [(16 + CAPTION_HEIGHT, 24, 3)] * 3
    assert (frames[2][CAPTION_HEIGHT:, :12] == 10).all()
    assert [int(frame[-1, -1, 0]) for frame in frames] == [90, 90, 200]


def test_side_by_side_wants_equal_lengths():
    with pytest.raises(ValueError, match="shorter"):
        side_by_side({"a": np.zeros((3, 8, 6, 3), np.uint8), "b": np.zeros((2, 8, 6, 3), np.uint8)})


LONG = (
    "pick up the black bowl in the top drawer of the wooden cabinet and place it on the plate, then close the drawer"
)


@pytest.mark.parametrize("width", [60, 128, 384, 500])
def test_no_word_is_lost_and_no_line_is_cut(width):
    lines = wrap(LONG, width).split("\n")
    assert " ".join(lines).split() == LONG.split()
    # On a strip with room to spare, what is drawn ends before the frame would.
    wide = label(np.zeros((1, 1000, 3), np.uint8), "\n".join(lines))
    assert wide.shape[0] == 1 + CAPTION_HEIGHT * len(lines)
    assert (wide[:-1, width:] == BACKGROUND).all()
    assert all((row != BACKGROUND).any() for row in np.split(wide[:-1], len(lines)))


def test_words_longer_than_a_line_are_broken():
    lines = wrap("a " + "W" * 30, 60).split("\n")
    assert lines[0] == "a" and len(lines) > 3 and "".join(lines[1:]) == "W" * 30
    assert wrap("", 60) == "" and len(wrap("WW", 1).split("\n")) == 2


@pytest.mark.parametrize("size", [(37, 51), (128, 128), (400, 301)])
def test_an_episode_of_any_size_shows_all_of_its_steps_and_its_end(tmp_path, size):
    frames = make_frames(4, *size)
    path = write_episode_video(tmp_path / "episode.mp4", frames, LONG, "step limit")
    facts, found = read_video(path)
    large = enlarge(frames[0], 384)
    lines = len(wrap(LONG, large.shape[1]).split("\n")) + 1
    height = large.shape[0] + lines * CAPTION_HEIGHT
    assert facts["size"] == (height + height % 2, large.shape[1] + large.shape[1] % 2)
    assert (facts["codec"], facts["pix_fmt"]) == ("h264", "yuv420p")
    assert len(found) == 4 + 20
    shown = [int(frame[lines * CAPTION_HEIGHT + 20, 20, 0]) for frame in found]
    assert shown[:4] == pytest.approx([40, 80, 120, 160], abs=12) and shown[4:] == pytest.approx([160] * 20, abs=12)
    # The caption of the last step is longer by the outcome.
    caption = slice((lines - 1) * CAPTION_HEIGHT, lines * CAPTION_HEIGHT)
    assert (found[3][caption] > 128).sum() > 1.3 * (found[2][caption] > 128).sum()


def test_browsers_may_play_before_the_whole_file_is_there(tmp_path):
    content = write_video(tmp_path / "video.mp4", make_frames(3)).read_bytes()
    assert 0 < content.index(b"moov") < content.index(b"mdat")


def test_frames_are_taken_one_by_one(tmp_path):
    seen, most = [], 0

    def frames():
        nonlocal most
        for _ in range(100):
            frame = make_frames(1, 32, 32)[0].copy()
            seen.append(weakref.ref(frame))
            yield frame
            del frame
            most = max(most, sum(reference() is not None for reference in seen))

    assert len(read_video(write_video(tmp_path / "video.mp4", frames()))[1]) == 100
    assert most <= 3


def test_an_episode_without_frames_is_refused(tmp_path):
    with pytest.raises(ValueError, match=r"No frames to write to"):
        write_episode_video(tmp_path / "episode.mp4", [], "lift", "success")


def test_a_curve_grows_to_the_right():
    values = np.array([10.0, 30.0, 20.0, 25.0])

    def ink(shown):
        picture = draw_curve(values, shown, width=200, title="PSNR, dB")[CAPTION_HEIGHT + 1 :].astype(int)
        drawn = np.abs(picture - BACKGROUND).max(axis=2) > 60
        return np.flatnonzero(drawn.any(axis=0)), np.flatnonzero(drawn.any(axis=1))

    assert len(ink(0)[0]) == 0
    ends = [ink(shown)[0].max() for shown in (1, 2, 3, 4)]
    assert ends == sorted(ends) and ends[0] < 12 and 60 < ends[1] < 80 and ends[3] > 190
    assert draw_curve(np.array([5.0]), 1, 50, "x").shape == (56, 50, 3)  # one value, no range
