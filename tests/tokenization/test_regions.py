import builtins
import sys

import numpy as np
import pytest
from PIL import Image, ImageDraw

from tokenization.region_boxes import fit_boxes, make_regions
from tokenization.region_faces import drop_overlapping, overlap
from tokenization.regions import (
    FaceRegions,
    Region,
    SaliencyRegions,
    SegmentationRegions,
    make_region_provider,
)

NAMES = ("background", "robot", "gripper", "cup_1", "rack_1", "rack_1_lid")


def has_saliency():
    try:
        import cv2
    except ImportError:
        return False
    return hasattr(cv2, "saliency")


def without_margin(**options):
    return SegmentationRegions(margin=0.0, minimum_size=1, minimum_pixels=1, **options)


def masks_with(*rectangles, size=(40, 60)):
    """One mask of zeros with rectangles (value, top, left, bottom, right)."""
    masks = np.zeros((1, *size), np.uint8)
    for value, top, left, bottom, right in rectangles:
        masks[0, top:bottom, left:right] = value
    return masks, np.zeros((1, *size, 3), np.uint8)


@pytest.mark.parametrize(
    ("box", "margin", "minimum", "expected"),
    [
        ((10, 20, 20, 40), 0.0, 1, (10, 20, 20, 40)),
        ((10, 20, 20, 40), 0.1, 1, (9, 18, 21, 42)),  # a tenth of 10 rows, of 20 columns
        ((10, 20, 11, 21), 0.5, 1, (9, 19, 12, 22)),  # half a pixel is a pixel
        ((10, 20, 14, 40), 0.0, 8, (8, 20, 16, 40)),  # grown about the centre
        ((0, 56, 2, 60), 0.0, 8, (0, 52, 8, 60)),  # grown, and moved inside
        ((0, 0, 40, 60), 0.5, 8, (0, 0, 40, 60)),  # cut
        ((5, 5, 6, 6), 0.0, 100, (0, 0, 40, 60)),  # a picture smaller than the minimum is taken whole
    ],
)
def test_boxes_get_a_margin_and_a_minimum_size_inside_the_picture(box, margin, minimum, expected):
    assert fit_boxes(np.array([box]), 40, 60, margin, minimum).tolist() == [list(expected)]


def test_no_boxes_stay_no_boxes():
    assert fit_boxes(np.array([]), 40, 60, 0.1, 8).shape == (0, 4)
    assert make_regions(np.zeros((0, 4), np.int32), "face", 1.0) == []


def test_the_gripper_and_the_objects_of_interest_have_regions():
    masks, pictures = masks_with((2, 3, 4, 8, 14), (3, 20, 30, 26, 34), (4, 0, 0, 2, 2))
    found = without_margin().find(pictures, masks, NAMES, interest=("cup_1",))
    assert found == [[Region(3, 4, 8, 14, "gripper"), Region(20, 30, 26, 34, "cup_1")]]


def test_each_picture_has_its_own_regions():
    one, pictures = masks_with((3, 20, 30, 26, 34))
    other, _ = masks_with((2, 39, 59, 40, 60))
    masks, pictures = np.concatenate([one, other, one * 0]), np.repeat(pictures, 3, axis=0)
    found = without_margin().find(pictures, masks, NAMES, interest=("cup_1",))
    assert found == [[Region(20, 30, 26, 34, "cup_1")], [Region(39, 59, 40, 60, "gripper")], []]


def test_one_region_an_instance_even_in_two_pieces():
    masks, pictures = masks_with((3, 2, 2, 4, 4), (3, 10, 20, 12, 30))
    assert without_margin().find(pictures, masks, NAMES, ("cup_1",)) == [[Region(2, 2, 12, 30, "cup_1")]]


def test_a_part_of_interest_means_its_instance():
    provider = without_margin()
    assert provider.instances(NAMES, ("rack_1_top_region", "cup_1")) == ["gripper", "rack_1", "cup_1"]
    assert provider.instances(NAMES, ("rack_1_lid_handle",)) == ["gripper", "rack_1_lid"]  # the nearest owner
    assert provider.instances(NAMES, ("main_table_stove_region", "cup_10")) == ["gripper"]  # no instance of these
    assert provider.instances(NAMES, ("cup_1", "cup_1_rim", "gripper")) == ["gripper", "cup_1"]  # each once


def test_barely_visible_instances_have_no_region():
    masks, pictures = masks_with((3, 20, 30, 23, 34))  # 12 pixels
    options = {"margin": 0.0, "minimum_size": 1}
    assert SegmentationRegions(minimum_pixels=12, **options).find(pictures, masks, NAMES, ("cup_1",))[0]
    assert not SegmentationRegions(minimum_pixels=13, **options).find(pictures, masks, NAMES, ("cup_1",))[0]


def test_weights_go_by_name_pattern():
    masks, pictures = masks_with((2, 3, 4, 8, 14), (3, 20, 30, 26, 34), (4, 0, 0, 2, 2))
    provider = without_margin(weights={"cup_*": 2.5, "*": 0.5, "gripper": 9.0})
    found = provider.find(pictures, masks, NAMES, ("cup_1", "rack_1"))[0]
    assert {region.name: region.weight for region in found} == {"gripper": 0.5, "cup_1": 2.5, "rack_1": 0.5}
    without_gripper = without_margin(weights={"gripper": 0}).find(pictures, masks, NAMES, ("cup_1",))[0]
    assert [(region.name, region.weight) for region in without_gripper] == [("cup_1", 1.0)]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"masks": None}, r"need the masks that were recorded with the pictures, and their names; none came\."),
        ({"names": ()}, r"need the masks that were recorded with the pictures, and their names; none came\."),
        ({"masks": np.zeros((1, 40, 40), np.uint8)}, r"shape of the pictures, \(1, 40, 60\), got \(1, 40, 40\)\."),
        ({"names": NAMES[:2]}, r"A mask holds the value 2, but only 2 names were recorded\."),
        ({"pictures": np.zeros((40, 60, 3), np.uint8)}, r"shape \(B, H, W, 3\), got uint8 of shape \(40, 60, 3\)\."),
        ({"pictures": np.zeros((1, 40, 60, 3))}, r"uint8 pictures .*, got float64 of shape \(1, 40, 60, 3\)\."),
    ],
)
def test_masks_that_do_not_fit_are_refused(change, message):
    masks, pictures = masks_with((2, 3, 4, 8, 14))
    with pytest.raises(ValueError, match=message):
        SegmentationRegions().find(**{"pictures": pictures, "masks": masks, "names": NAMES} | change)


@pytest.fixture(scope="module")
def portrait():
    """A photograph (public domain) that ships with matplotlib, scaled down, and where its face is."""
    pytest.importorskip("cv2", reason="OpenCV is not installed: pip install 'worldvla[regions]'")
    cbook = pytest.importorskip(
        "matplotlib.cbook", reason="matplotlib, whose sample photograph this needs, is missing"
    )
    with Image.open(cbook.get_sample_data("grace_hopper.jpg")) as image:
        return np.asarray(image.convert("RGB").resize((160, 188)))


def centre(region):
    return (region.top + region.bottom) / 2, (region.left + region.right) / 2


def test_a_face_is_found_where_it_is(portrait):
    upside_down, noise = portrait[::-1], np.random.default_rng(0).integers(0, 256, portrait.shape, dtype=np.uint8)
    found = FaceRegions(weight=2.0).find(np.stack([portrait, portrait[:, ::-1], upside_down, noise]))
    assert [len(regions) for regions in found] == [1, 1, 0, 0]
    face, mirrored = found[0][0], found[1][0]
    assert (face.name, face.weight) == ("face", 2.0)
    assert centre(face) == pytest.approx((70, 82), abs=8)
    assert 50 <= face.bottom - face.top <= 100
    assert centre(mirrored) == pytest.approx((70, 160 - 82), abs=8)


def test_small_faces_only_when_asked_for(portrait):
    small = np.asarray(Image.fromarray(portrait).resize((80, 94)))[None]  # a face of about 35 pixels
    assert len(FaceRegions().find(small)[0]) == 1
    assert FaceRegions(smallest_face=60).find(small) == [[]]


def test_profiles_are_looked_for_on_both_sides(monkeypatch):
    pytest.importorskip("cv2", reason="OpenCV is not installed: pip install 'worldvla[regions]'")

    class Cascade:
        """Sees a bright pixel in the left half only, as a face of 6 x 4 pixels; the frontal one sees nothing."""

        def __init__(self, file_name):
            self.blind = "frontal" in file_name

        def detectMultiScale(self, grey, **options):
            rows, columns = np.nonzero(grey == 255)
            seen = [(x, y, 6, 4) for y, x in zip(rows, columns, strict=True) if x < grey.shape[1] // 2]
            return () if self.blind else np.array(seen)

    monkeypatch.setattr("tokenization.region_faces.load_cascade", lambda cv2, file_name: Cascade(file_name))
    pictures = np.zeros((2, 40, 60, 3), np.uint8)
    pictures[0, 10, 7] = pictures[1, 20, 50] = 255
    found = FaceRegions(margin=0.0, minimum_size=1).find(pictures)
    assert found == [[Region(10, 7, 14, 13, "face")], [Region(20, 45, 24, 51, "face")]]


def test_boxes_of_one_face_are_one():
    assert overlap((0, 0, 10, 10), (0, 5, 10, 15)) == pytest.approx(50 / 150)
    assert overlap((0, 0, 10, 10), (10, 10, 20, 20)) == 0
    boxes = [(0, 0, 10, 10), (0, 5, 10, 15), (0, 8, 10, 18)]
    assert drop_overlapping(boxes) == [boxes[0], boxes[2]]


def blob_picture(*blobs, size=128):
    """Coloured discs (row, column, radius) on a smooth grey ground."""
    image = Image.new("RGB", (size, size), (130, 130, 130))
    draw = ImageDraw.Draw(image)
    for row, column, radius in blobs:
        draw.ellipse((column - radius, row - radius, column + radius, row + radius), fill=(230, 40, 30))
    return np.asarray(image)


needs_saliency = pytest.mark.skipif(
    not has_saliency(), reason="OpenCV has no saliency module: pip install opencv-contrib-python"
)


@needs_saliency
@pytest.mark.parametrize("method", ["fine_grained", "spectral_residual"])
def test_a_disc_on_a_plain_ground_is_salient(method):
    pictures = np.stack([blob_picture((40, 90, 8)), blob_picture((90, 30, 8))])
    found = SaliencyRegions(method=method, maximum_number=1, weight=0.5).find(pictures)
    assert [(r.name, r.weight) for regions in found for r in regions] == [("salient", 0.5)] * 2
    assert centre(found[0][0]) == pytest.approx((40, 90), abs=6)
    assert centre(found[1][0]) == pytest.approx((90, 30), abs=6)


@needs_saliency
def test_nothing_stands_out_of_a_plain_picture():
    for method in ("fine_grained", "spectral_residual"):
        assert SaliencyRegions(method=method).find(np.full((1, 64, 64, 3), 99, np.uint8)) == [[]]


def test_salient_spots_become_boxes_the_most_salient_first():
    """The part that needs no contributed module."""
    cv2 = pytest.importorskip("cv2", reason="OpenCV is not installed: pip install 'worldvla[regions]'")
    saliency = np.zeros((50, 80), np.float32)
    saliency[30:35, 60:64] = 1
    saliency[10:20, 15:40] = 1
    saliency[40:42, 5:7] = 1  # 4 of 4000 pixels
    expected = np.array([[10, 15, 20, 40], [30, 60, 35, 64], [40, 5, 42, 7]])

    def boxes(**options):
        return SaliencyRegions(smoothing=0.0, threshold=1.0, **options).boxes_of(cv2, saliency)

    assert np.abs(boxes(minimum_area=0.0) - expected).max() <= 1  # smoothed by half a pixel at least
    assert np.abs(boxes(minimum_area=0.004) - expected[:2]).max() <= 1
    assert boxes(maximum_number=1).shape == (1, 4) and np.abs(boxes(maximum_number=1) - expected[0]).max() <= 1
    assert SaliencyRegions().boxes_of(cv2, saliency * 0).shape == (0, 4)


def test_providers_are_made_by_name():
    assert make_region_provider("faces", margin=0.5) == FaceRegions(margin=0.5)
    assert make_region_provider("segmentation").name == "segmentation"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("face",), r"Unknown region provider `face`\. Choose one of: `faces`, .* Did you mean `faces`\?"),
        (("faces", "margn"), r"Unknown option of the region provider `faces` `margn`\. .* Did you mean `margin`\?"),
    ],
)
def test_unknown_providers_and_options_are_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        make_region_provider(arguments[0], **{option: 1 for option in arguments[1:]})


def test_an_unknown_saliency_method_is_refused():
    with pytest.raises(ValueError, match=r"Unknown saliency method `fine_grain`\. .* Did you mean `fine_grained`\?"):
        make_region_provider("saliency", method="fine_grain")


@pytest.fixture
def pictures():
    return np.zeros((1, 32, 32, 3), np.uint8)


def test_missing_opencv_is_said(pictures, monkeypatch):
    real_import = builtins.__import__

    def refuse(name, *args, **kwargs):
        if name == "cv2":
            raise ImportError("No module named 'cv2'")
        return real_import(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", refuse)
    for provider in ("faces", "saliency"):
        with pytest.raises(ImportError, match=r"`pip install 'worldvla\[regions\]'`, or choose .* `segmentation`\."):
            make_region_provider(provider).find(pictures)


def test_opencv_without_its_extra_modules_is_said(pictures, monkeypatch):
    class Bare:
        __version__ = "4.9.0"

    monkeypatch.setitem(sys.modules, "cv2", Bare())
    with pytest.raises(ImportError, match=r"--no-deps 'opencv-contrib-python==4\.9\.0\.\*'`, or choose the regions"):
        SaliencyRegions().find(pictures)
    with pytest.raises(ImportError, match=r"OpenCV 4\.9\.0 comes without its face cascade .* releases before 5"):
        FaceRegions().find(pictures)
