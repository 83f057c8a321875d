"""Mean-field inference of the dense CRF in Triton; see `crf_torch` for what is filtered and why.

    splat:  vertex[v] = sum over its pixels p of  weight[v, p] * map[p]     in two steps
    blur:   vertex[v] = vertex[v] + (vertex[left] + vertex[right]) / 2      once an axis
    slice:  logit[p]  = start[p] + sum over both lattices' vertices v of  weight[p, v] * vertex[v],
            then softmax against the last class, and the next maps Q_k - Q_K

A vertex may have a handful of pixels or half of the image. Its list is cut into short pieces that
are summed first, and the sums of a vertex's pieces after that: balanced, and without atomic
additions, so that the same images always give the same bits. Images of any sizes are one launch:
their pixels and vertices lie one after the other.
"""

from dataclasses import dataclass

import torch
import triton
import triton.language as tl
from torch import Tensor

from wsssfast.kernels.backend import interpreted
from wsssfast.kernels.permutohedral import Lattice

LAUNCH = {  # block sizes of each kernel, and of the interpreter's few large programs
    "splat": ({"PIECES": 32, "ENTRIES": 32}, {"PIECES": 128, "ENTRIES": 8}),
    "join": ({"VERTICES": 64, "COLUMNS": 16}, {"VERTICES": 128, "COLUMNS": 4}),
    "blur": ({"VERTICES": 64, "COLUMNS": 16}, {"VERTICES": 128, "COLUMNS": 4}),
    "slice": ({"PIXELS": 512}, {"PIXELS": 128}),
}
OPTIONS = {"num_warps": 4, "num_stages": 1}


def settings(kernel: str) -> dict[str, int]:
    """Keyword arguments of a launch."""
    return {**LAUNCH[kernel][interpreted()], **OPTIONS}


@triton.jit
def crf_splat_kernel(
    map_ptr,  # float32 [P, columns]
    pixel_ptr,  # int32 [entries]
    weight_ptr,  # float32 [entries]
    begin_ptr,  # int32 [pieces + 1]
    out_ptr,  # float32 [pieces, columns]
    pieces,
    columns,
    PIECES: tl.constexpr,  # pieces of a program
    ENTRIES: tl.constexpr,  # the most of a piece
):
    """Sums of the pieces of vertices' pixel lists."""
    piece = tl.program_id(0).to(tl.int64) * PIECES + tl.arange(0, PIECES)
    valid = piece < pieces
    begin = tl.load(begin_ptr + piece, mask=valid, other=0)
    end = tl.load(begin_ptr + piece + 1, mask=valid, other=0)
    entry = begin[:, None] + tl.arange(0, ENTRIES)[None, :]
    there = entry < end[:, None]
    pixel = tl.load(pixel_ptr + entry, mask=there, other=0).to(tl.int64)
    weight = tl.load(weight_ptr + entry, mask=there, other=0.0)
    for column in range(columns):
        value = tl.load(map_ptr + pixel * columns + column, mask=there, other=0.0)
        tl.store(out_ptr + piece * columns + column, tl.sum(value * weight, 1), mask=valid)


@triton.jit
def crf_join_kernel(
    piece_ptr,  # float32 [pieces, columns]
    begin_ptr,  # int32 [vertices + 1]
    out_ptr,  # float32 [vertices, columns]
    vertices,
    columns,
    VERTICES: tl.constexpr,  # vertices of a program
    COLUMNS: tl.constexpr,  # columns of a program
):
    """Sums of the pieces of each vertex, in their order."""
    vertex = tl.program_id(0).to(tl.int64) * VERTICES + tl.arange(0, VERTICES)
    column = tl.program_id(1) * COLUMNS + tl.arange(0, COLUMNS)
    valid, known = vertex < vertices, column < columns
    begin = tl.load(begin_ptr + vertex, mask=valid, other=0)
    end = tl.load(begin_ptr + vertex + 1, mask=valid, other=0)
    total = tl.zeros((VERTICES, COLUMNS), tl.float32)
    for step in range(tl.max(end - begin, 0)):
        there = (begin + step < end)[:, None] & known[None, :]
        place = (begin + step).to(tl.int64)[:, None] * columns + column[None, :]
        total += tl.load(piece_ptr + place, mask=there, other=0.0)
    place = vertex[:, None] * columns + column[None, :]
    tl.store(out_ptr + place, total, mask=valid[:, None] & known[None, :])


@triton.jit
def crf_blur_kernel(
    vertex_ptr,  # float32 [vertices, columns]
    neighbour_ptr,  # int32 [vertices, 3], along one axis
    out_ptr,  # float32 [vertices, columns]
    vertices,
    columns,
    VERTICES: tl.constexpr,
    COLUMNS: tl.constexpr,
):
    """One axis of the blur."""
    vertex = tl.program_id(0).to(tl.int64) * VERTICES + tl.arange(0, VERTICES)
    column = (tl.program_id(1) * COLUMNS + tl.arange(0, COLUMNS))[None, :]
    valid = vertex < vertices
    there = valid[:, None] & (column < columns)
    left = tl.load(neighbour_ptr + vertex * 3 + 1, mask=valid, other=0).to(tl.int64)
    right = tl.load(neighbour_ptr + vertex * 3 + 2, mask=valid, other=0).to(tl.int64)
    itself = tl.load(vertex_ptr + vertex[:, None] * columns + column, mask=there, other=0.0)
    before = tl.load(vertex_ptr + left[:, None] * columns + column, mask=there, other=0.0)
    after = tl.load(vertex_ptr + right[:, None] * columns + column, mask=there, other=0.0)
    blurred = itself + 0.5 * (before + after)
    tl.store(out_ptr + vertex[:, None] * columns + column, blurred, mask=there)


@triton.jit
def crf_slice_kernel(
    start_ptr,  # float32 [P, settings * others]
    first_ptr,  # float32 [V1, settings * others]
    first_vertex_ptr,  # int32 [P, FIRST]
    first_weight_ptr,  # float32 [P, FIRST]
    second_ptr,
    second_vertex_ptr,
    second_weight_ptr,
    out_ptr,  # float32 [P, settings * others], or [P, settings * (others + 1)] at the end
    pixels,
    others,  # K - 1
    settings,
    FIRST: tl.constexpr,  # vertices of a pixel in the first lattice, 0 for none
    SECOND: tl.constexpr,
    END: tl.constexpr,  # write marginals of all classes, not the next maps
    PIXELS: tl.constexpr,
    OTHERS: tl.constexpr,  # a power of two, at least K - 1
):
    """Messages of both lattices into some pixels, and the softmax of one setting."""
    pixel = tl.program_id(0).to(tl.int64) * PIXELS + tl.arange(0, PIXELS)
    setting = tl.program_id(1)
    column = tl.arange(0, OTHERS)
    valid, known = pixel < pixels, column < others
    there = valid[:, None] & known[None, :]
    width = settings * others
    place = setting * others + column[None, :]
    logit = tl.load(start_ptr + pixel[:, None] * width + place, mask=there, other=-float("inf"))
    for corner in tl.static_range(FIRST):
        vertex = tl.load(first_vertex_ptr + pixel * FIRST + corner, mask=valid, other=0)
        weight = tl.load(first_weight_ptr + pixel * FIRST + corner, mask=valid, other=0.0)
        value = first_ptr + vertex.to(tl.int64)[:, None] * width + place
        logit += weight[:, None] * tl.load(value, mask=there, other=0.0)
    for corner in tl.static_range(SECOND):
        vertex = tl.load(second_vertex_ptr + pixel * SECOND + corner, mask=valid, other=0)
        weight = tl.load(second_weight_ptr + pixel * SECOND + corner, mask=valid, other=0.0)
        value = second_ptr + vertex.to(tl.int64)[:, None] * width + place
        logit += weight[:, None] * tl.load(value, mask=there, other=0.0)
    largest = tl.maximum(tl.max(logit, 1), 0.0)
    power = tl.exp(logit - largest[:, None])
    last = tl.exp(-largest)
    total = tl.sum(power, 1) + last
    if END:
        row = (pixel * settings + setting) * (others + 1)
        tl.store(out_ptr + row[:, None] + column[None, :], power / total[:, None], mask=there)
        tl.store(out_ptr + row + others, last / total, mask=valid)
    else:
        following = (power - last[:, None]) / total[:, None]
        tl.store(out_ptr + pixel[:, None] * width + place, following, mask=there)


@dataclass(frozen=True)
class _Pieces:
    """Vertices' pixel lists in short pieces.

    Attributes:
        begin: int32 [pieces + 1], where each begins in the lists.
        of_vertex: int32 [V + 2], where the pieces of each vertex begin.
    """

    begin: Tensor
    of_vertex: Tensor


def _pieces(lattice: Lattice, most: int) -> _Pieces:
    """Cut the lists into pieces of at most so many entries."""
    offset = lattice.splat_offset.long()
    counts = (offset.diff() + most - 1) // most
    of_vertex = torch.cat([offset.new_zeros(1), counts.cumsum(0)])
    owner = torch.repeat_interleave(counts)
    number = torch.arange(len(owner), device=owner.device) - of_vertex[owner]
    begin = torch.cat([offset[owner] + number * most, offset[-1:]])
    return _Pieces(begin.int(), of_vertex.int())


def mean_field(lattices: list[Lattice], unary: Tensor, iterations: int) -> Tensor:
    """Marginals [P, G, K], as `crf_torch.mean_field` gives them; arguments as there."""
    pixels, _, classes = unary.shape
    if classes == 1:
        return torch.ones_like(unary)
    others = classes - 1
    start = (unary[..., -1:] - unary[..., :-1]).reshape(pixels, -1)
    entries = settings("splat")["ENTRIES"]
    pieces = [_pieces(lattice, entries) for lattice in lattices]
    maps = torch.empty_like(start)
    with torch.cuda.device_of(unary):
        rounds = iterations if lattices else 0
        if rounds:
            _slice([], [], start, maps, others, end=False)
        for n in range(rounds):
            vertices = [
                _blur(one, _splat(one, cut, maps))
                for one, cut in zip(lattices, pieces, strict=True)
            ]
            if n < rounds - 1:
                _slice(lattices, vertices, start, maps, others, end=False)
        found = torch.empty_like(unary)
        _slice(lattices if rounds else [], vertices if rounds else [], start, found, others,
               end=True)  # fmt: skip
    return found


def _splat(lattice: Lattice, cut: _Pieces, maps: Tensor) -> Tensor:
    columns, pieces = maps.shape[1], len(cut.begin) - 1
    sums = torch.empty(pieces, columns, device=maps.device)
    chosen = settings("splat")
    crf_splat_kernel[(-(-pieces // chosen["PIECES"]),)](
        maps, lattice.splat_pixel, lattice.splat_weight, cut.begin, sums, pieces, columns, **chosen
    )
    vertices = len(cut.of_vertex) - 1
    out = torch.empty(vertices, columns, device=maps.device)
    grid, chosen = _vertex_tiles("join", columns, vertices)
    crf_join_kernel[grid](sums, cut.of_vertex, out, vertices, columns, **chosen)
    return out


def _blur(lattice: Lattice, vertices: Tensor) -> Tensor:
    count, columns = vertices.shape
    grid, chosen = _vertex_tiles("blur", columns, count)
    other = torch.empty_like(vertices)
    for axis in lattice.neighbours:
        crf_blur_kernel[grid](vertices, axis, other, count, columns, **chosen)
        vertices, other = other, vertices
    return vertices


def _vertex_tiles(
    kernel: str, columns: int, vertices: int
) -> tuple[tuple[int, int], dict[str, int]]:
    chosen = settings(kernel)
    chosen["COLUMNS"] = min(chosen["COLUMNS"], triton.next_power_of_2(columns))
    grid = (-(-vertices // chosen["VERTICES"]), -(-columns // chosen["COLUMNS"]))
    return grid, chosen


def pixels_of(values: int, columns: int) -> int:
    """Pixels of a program that holds about so many values of a number of columns."""
    return max(4, values // columns)


def _slice(
    lattices: list[Lattice], vertices: list[Tensor], start: Tensor, out: Tensor, others: int,
    *, end: bool,
) -> None:  # fmt: skip
    pixels, width = start.shape
    corners = [*(one.slice_vertex.shape[1] for one in lattices), 0, 0][:2]
    tables = [
        (values, one.slice_vertex, one.slice_weight)
        for values, one in zip(vertices, lattices, strict=True)
    ]
    nothing = (start, start, start)  # never read
    first, second = [*tables, nothing, nothing][:2]
    chosen = settings("slice")
    columns = triton.next_power_of_2(others)
    chosen["PIXELS"] = pixels_of(chosen["PIXELS"], columns)
    groups = width // others
    crf_slice_kernel[(-(-pixels // chosen["PIXELS"]), groups)](
        start, *first, *second, out, pixels, others, groups,
        FIRST=corners[0], SECOND=corners[1], END=end, OTHERS=columns, **chosen,
    )  # fmt: skip
