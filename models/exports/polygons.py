"""Masks as polygons that COCO's rasterizer turns back into exactly the same pixels."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage


def outline(mask: NDArray[np.bool_]) -> list[list[int]]:
    """Outline a mask along its pixels' edges.

    COCO's polygons have no holes. A part with holes is therefore cut through one of them, and its pieces again, until
    none has a hole; the pieces share the cut as an edge and do not overlap. "Hole" is meant strictly, as background
    that cannot leave in steps to the four sides, so that no outline touches itself: all polygons are simple, with right
    angles only. Corners are whole numbers, and such edges never cross a pixel's center, by which
    pycocotools decides.

    Args:
        mask: (H, W).

    Returns:
        Polygons x0, y0, x1, y1, … in pixels, clockwise, (0, 0) the corner of the top left pixel; none for an
        empty mask.
    """
    polygons = []
    waiting = [(mask, 0, 0)]
    while waiting:
        piece, left, top = waiting.pop()
        parts, _ = ndimage.label(piece)
        for number, (rows, columns) in enumerate(ndimage.find_objects(parts), start=1):
            part, x, y = parts[rows, columns] == number, left + columns.start, top + rows.start
            cut = _column_through_hole(part)
            if cut is None:
                polygons.append(_walk(part, x, y))
            else:
                waiting += [(part[:, cut:], x + cut, y), (part[:, :cut], x, y)]
    return polygons


def _column_through_hole(part: NDArray[np.bool_]) -> int | None:
    """Return a column at which a cut opens a hole of a connected part; None if it has none."""
    outside, count = ndimage.label(~np.pad(part, 1))
    if count == 1:
        return None
    # The first label is what surrounds the part: it has the top left corner. Its padding is one column.
    columns = [each[1] for each in ndimage.find_objects(outside)[1:]]
    middles: list[int] = [(each.start + each.stop) // 2 - 1 for each in columns]
    # The most central hole: halves of similar size keep the number of cuts that a pixel takes part in small.
    return min(middles, key=lambda middle: abs(2 * middle - part.shape[1]))


def _walk(part: NDArray[np.bool_], left: int, top: int) -> list[int]:
    """Return the one outline of a connected part without holes.

    A corner is where an odd number of the four pixels around belongs to the part. Each is joined to one other corner in
    its row and to one in its column: sorted, they come in pairs.
    """
    inside = np.pad(part, 1).astype(np.uint8)
    around = inside[1:, 1:] + inside[1:, :-1] + inside[:-1, 1:] + inside[:-1, :-1]
    y, x = np.nonzero(around % 2)
    by_column = np.lexsort((y, x))
    partner = np.empty_like(by_column)
    partner[by_column[0::2]], partner[by_column[1::2]] = by_column[1::2], by_column[0::2]
    in_column, xs, ys = partner.tolist(), (x + left).tolist(), (y + top).tolist()
    corner, polygon = 0, []
    for _ in range(len(xs) // 2):
        beside = corner ^ 1  # nonzero() goes row by row, so pairs in a row are 0 and 1, 2 and 3, …
        polygon += [xs[corner], ys[corner], xs[beside], ys[beside]]
        corner = in_column[beside]
    return polygon
