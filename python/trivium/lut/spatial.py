"""LUT layers over 2-D grids: sliding windows and projections."""

from typing import Any

import numpy as np

from .._core import InvalidArgument
from . import connectivity
from .connectivity import Sampling
from .layers import LUTLayerBasic


class Conv2DLUTLayer(LUTLayerBasic):
    """Detectors with square views of a 2-D input, detectors_shape of them for each window.

    With lut_receptive_field_shape the detectors form a grid again, whose windows each feed a block of
    output_kernel_shape outputs; without, all detectors reach all outputs (shape output_kernel_shape).
    """

    def __init__(
        self,
        input_shape: tuple[int, int],
        n_anchors_per_detector: int,
        detectors_shape: int | tuple[int, int],
        output_kernel_shape: int | tuple[int, int],
        *,
        receptive_field_shape: int | tuple[int, int] | None = None,
        receptive_field_stride: int | tuple[int, int] = 1,
        lut_receptive_field_shape: int | tuple[int, int] | None = None,
        lut_receptive_field_stride: int | tuple[int, int] = 1,
        random_seed: int | None = None,
        **options: Any,
    ) -> None:
        if not options.get("concatenation_product", True):
            raise InvalidArgument("Conv2DLUTLayer has no product mode; use LUTLayer")
        pair = connectivity.as_pair
        shape, block = pair(input_shape, "input_shape"), pair(output_kernel_shape, "output_kernel_shape")
        view = (
            shape if receptive_field_shape is None else pair(receptive_field_shape, "receptive_field_shape")
        )
        windows = connectivity.sliding_windows(
            shape,
            view,
            pair(receptive_field_stride, "receptive_field_stride"),
            pair(detectors_shape, "detectors_shape"),
        )
        self.detectors_grid = windows.grid
        anchors = connectivity.sample_anchors(
            connectivity.generator(random_seed, 0), windows.members, n_anchors_per_detector
        )
        output_shape, targets = block, None
        if lut_receptive_field_shape is not None:
            out = connectivity.sliding_windows(
                windows.grid,
                pair(lut_receptive_field_shape, "lut_receptive_field_shape"),
                pair(lut_receptive_field_stride, "lut_receptive_field_stride"),
                block,
            )
            output_shape, targets = out.grid, connectivity.invert(out.members, len(windows.members))
        super().__init__(shape, output_shape, anchors, targets, random_seed=random_seed, **options)


class ProjectionLUTLayer(LUTLayerBasic):
    """Groups of detectors that see a rectangle of the input and project to one of the output.

    A group's centre is placed by `sampling`; it sees inputs within (receptive - 1) / 2 of it and reaches outputs
    within projection / 2 of the scaled centre, each with projection_prob, drawn once for the group. Positions of
    the masks (True) are left out.
    """

    def __init__(
        self,
        input_shape: tuple[int, int],
        output_shape: tuple[int, int],
        n_anchors_per_detector: int,
        n_detector_groups: int,
        n_detectors_in_group: int,
        receptive_shape: int | tuple[int, int],
        projection_shape: int | tuple[int, int],
        *,
        projection_prob: float = 1.0,
        detectors_sampling_policy: Sampling | None = None,
        input_sparsity_mask: np.ndarray | None = None,
        output_sparsity_mask: np.ndarray | None = None,
        random_seed: int | None = None,
        **options: Any,
    ) -> None:
        pair = connectivity.as_pair
        shape, out = pair(input_shape, "input_shape"), pair(output_shape, "output_shape")
        receptive, projection = (
            pair(receptive_shape, "receptive_shape"),
            pair(projection_shape, "projection_shape"),
        )
        if not 0 < projection_prob <= 1:
            raise InvalidArgument(f"projection_prob is {projection_prob}, expected more than 0 and at most 1")
        for name, mask, grid in (
            ("input", input_sparsity_mask, shape),
            ("output", output_sparsity_mask, out),
        ):
            _check_mask(f"{name}_sparsity_mask", mask, grid)
        for name, count in (
            ("n_detector_groups", n_detector_groups),
            ("n_detectors_in_group", n_detectors_in_group),
        ):
            connectivity.integer(count, name)
        if n_detector_groups < 1 or n_detectors_in_group < 1:
            raise InvalidArgument(
                f"n_detector_groups is {n_detector_groups} and n_detectors_in_group {n_detectors_in_group}, expected at least 1"
            )
        rng = connectivity.generator(random_seed, 0)
        scale = np.array(out) / np.array(shape)
        views: list[np.ndarray] = []
        lists: list[np.ndarray] = []
        for centre in (detectors_sampling_policy or Sampling()).centres(rng, n_detector_groups, shape):
            half = ((receptive[0] - 1) / 2, (receptive[1] - 1) / 2)
            view = connectivity.rectangle(centre, half, shape, input_sparsity_mask)
            half = (projection[0] / 2, projection[1] / 2)
            reached = connectivity.rectangle(centre * scale, half, out, output_sparsity_mask)
            if projection_prob < 1:
                reached = reached[rng.random(len(reached)) < projection_prob]
            views += [view] * n_detectors_in_group
            lists += [reached] * n_detectors_in_group
        anchors = connectivity.sample_anchors(rng, views, n_anchors_per_detector)
        super().__init__(shape, out, anchors, connectivity.join(lists), random_seed=random_seed, **options)


def _check_mask(name: str, mask: Any, grid: tuple[int, int]) -> None:
    if mask is None:
        return
    if not isinstance(mask, np.ndarray):
        raise InvalidArgument(f"{name} is a {type(mask).__name__}, expected an array of bool {grid}")
    if mask.shape != grid or mask.dtype != bool:
        raise InvalidArgument(f"{name} is {mask.dtype} {mask.shape}, expected bool {grid}")
