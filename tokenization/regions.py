"""Regions of pictures that deserve attention, and who finds them. Does not travel to the Hub.

    provider = make_region_provider("segmentation")
    regions = provider.find(pictures, masks, names, interest)  # one list of `Region` a picture

Another provider is another class with `name` and `find`: see `RegionProvider`, and put it into `REGION_PROVIDERS`.
"""

from dataclasses import fields, is_dataclass
from typing import Any

from .choices_worldvla import require_choice
from .region_boxes import Region, RegionProvider, fit_boxes
from .region_faces import FaceRegions
from .region_saliency import SaliencyRegions
from .region_segmentation import SegmentationRegions
from .region_table import RegionTable, load_regions, precompute_regions, save_regions

__all__ = [
    "REGION_PROVIDERS",
    "FaceRegions",
    "Region",
    "RegionProvider",
    "RegionTable",
    "SaliencyRegions",
    "SegmentationRegions",
    "fit_boxes",
    "load_regions",
    "make_region_provider",
    "precompute_regions",
    "save_regions",
]

REGION_PROVIDERS: dict[str, Any] = {
    provider.name: provider for provider in (FaceRegions, SaliencyRegions, SegmentationRegions)
}


def make_region_provider(name: str, **options: Any) -> RegionProvider:
    """Make a region provider by name.

    Args:
        name (`str`): one of `REGION_PROVIDERS`.
        **options: the provider's own options, such as `margin`.

    Returns:
        `RegionProvider`.

    Raises:
        ValueError: if the provider or one of its options is unknown; names the nearest one.
    """
    require_choice("region provider", name, REGION_PROVIDERS)
    provider = REGION_PROVIDERS[name]
    known = [option.name for option in fields(provider)] if is_dataclass(provider) else list(options)
    for option in options:
        require_choice(f"option of the region provider `{name}`", option, known)
    return provider(**options)
