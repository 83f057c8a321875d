"""The permutohedral lattice: Gaussian filtering of pixels with features of a few dimensions.

A Gaussian of standard deviation 1 in the d features is approximated in three linear steps (Adams,
Baek, Davis 2010): every pixel gives to the d + 1 vertices of its simplex by its barycentric
weights (splat), the vertices are blurred along each of the d + 1 axes, new = old + (left + right)
/ 2, and every pixel takes from its vertices (slice); alpha = 1 / (1 + 2^-d) keeps the scale.

The lattice is that of Kraehenbuehl and Koltun's code (2011), which pydensecrf wraps: the same
features in float32 fall into the same simplices. Where that code has a hash table, vertices are
found here by sorting, so that the same pixels always make the same lattice, on any device.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import accumulate, combinations

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

_CHUNK = 1 << 15  # pixels whose arithmetic stays in a CPU's cache
_MOST = 1 << 62  # lattice points that one int64 can tell apart
_FARTHEST = 1 << 20  # quotient, beyond which float32 would lose the simplex
_MOST_PIXELS = 1 << 27  # whose entries an int32 can count


@dataclass(frozen=True)
class Lattice:
    """P pixels, V vertices, d features; vertex V is none: where a neighbour is missing.

    Attributes:
        slice_vertex: int32 [P, d + 1], the vertices of each pixel.
        slice_weight: float32 [P, d + 1], what each pixel takes from them.
        splat_pixel: int32 [P * (d + 1)], the pixels of each vertex, vertex after vertex.
        splat_weight: float32 [P * (d + 1)], what each vertex takes from them.
        splat_offset: int32 [V + 2], where the pixels of each vertex begin; V has none.
        neighbours: int32 [d + 1, V + 1, 3], along each axis each vertex itself and its two.
    """

    slice_vertex: Tensor
    slice_weight: Tensor
    splat_pixel: Tensor
    splat_weight: Tensor
    splat_offset: Tensor
    neighbours: Tensor

    @property
    def alpha(self) -> float:
        """The factor that keeps the scale."""
        return 1 / (1 + 0.5 ** (len(self.neighbours) - 1))

    def weighted(self, factor: Tensor) -> "Lattice":
        """A lattice that takes each pixel's values times its factor [P], before and after."""
        pixel_factor = factor.index_select(0, self.splat_pixel)
        return Lattice(
            self.slice_vertex, self.slice_weight * factor[:, None],
            self.splat_pixel, self.splat_weight * pixel_factor,
            self.splat_offset, self.neighbours,
        )  # fmt: skip

    def filter(self, values: Tensor) -> Tensor:
        """Splat, blur and slice float32 [P, n] -> [P, n], without alpha."""
        of_vertices, halves, of_pixels = self._tables
        vertices = _bags(self.splat_pixel, values, self.splat_weight, self.splat_offset)
        for axis in self.neighbours:
            vertices = _bags(axis.reshape(-1), vertices, halves, of_vertices)
        index, weight = self.slice_vertex.reshape(-1), self.slice_weight.reshape(-1)
        return _bags(index, vertices, weight, of_pixels)

    @cached_property
    def _tables(self) -> tuple[Tensor, Tensor, Tensor]:
        """Where the bags of `neighbours` begin, their weights, and where those of pixels begin."""
        vertices, like = self.neighbours.shape[1], self.slice_weight
        halves = like.new_tensor([1.0, 0.5, 0.5]).repeat(vertices)
        return (
            _starts(vertices, 3, like),
            halves,
            _starts(len(self.slice_vertex), self.slice_vertex.shape[1], like),
        )


def _bags(index: Tensor, values: Tensor, weight: Tensor, offset: Tensor) -> Tensor:
    """Weighted sums of rows: PyTorch's only such operation that is compiled for its row length."""
    return F.embedding_bag(
        index, values, offset, mode="sum", per_sample_weights=weight, include_last_offset=True
    )


def _starts(rows: int, columns: int, like: Tensor) -> Tensor:
    """Where the rows of a table begin, and its end."""
    end = rows * columns + 1
    return torch.arange(0, end, columns, dtype=torch.int32, device=like.device)


def build(features: Sequence[Tensor], image: Tensor | None = None) -> Lattice:
    """The lattice of pixels.

    Args:
        features: d tensors float32 [P], each already divided by its standard deviation.
        image: int64 [P], from 0, of which image each pixel is: images share no vertices; one
            image where None.

    Raises:
        ValueError: too many pixels, or their features spread over more lattice points than float32
            and int64 can tell apart.
    """
    d, pixels = len(features), len(features[0])
    if pixels > _MOST_PIXELS:
        raise ValueError(f"expected at most {_MOST_PIXELS} pixels, received {pixels}")
    quotient, rank, weight = _simplices(features)
    low = quotient[:d].amin(1) - 2  # room for a neighbour on either side
    high = quotient[:d].amax(1) + 1
    if max(-low.min().item(), high.max().item()) > _FARTHEST:
        raise ValueError(
            f"expected features within {_FARTHEST} lattice cells, received more; give larger "
            "standard deviations"
        )
    width = (high - low + 2).tolist()
    strides = list(accumulate(width, lambda a, b: a * b, initial=1))
    span = strides[d] * (1 if image is None else int(image[-1]) + 1)
    if span * (d + 1) >= _MOST:
        raise ValueError(
            f"expected features within 2^62 lattice points, received {span * (d + 1):.0e}; "
            "give larger standard deviations"
        )
    place = torch.full((pixels,), -sum(map(int.__mul__, low.tolist(), strides)), device=low.device)
    for one, stride in zip(quotient[:d], strides, strict=False):
        place.add_(one, alpha=stride)
    if image is not None:
        place.add_(image, alpha=strides[d])
    order, simplex, sizes, place, rank = _distinct(place, rank, span)
    # Vertex r of a simplex: coordinate i is (d + 1)(quotient - [rank > d - r]) + r.
    steps = torch.tensor(strides[:d], device=place.device)[:, None]
    vertex = torch.stack([place - ((rank[:d] > d - r) * steps).sum(0) for r in range(d + 1)], 1) * (
        d + 1
    ) + torch.arange(d + 1, device=place.device)
    ordered, order_of_vertices = vertex.reshape(-1).sort(stable=True)
    keys, number, members = _runs(ordered)
    vertices = torch.empty_like(number, dtype=torch.int32)
    vertices[order_of_vertices] = number.int()
    slice_vertex = vertices.reshape(-1, d + 1).index_select(0, simplex)
    return Lattice(
        slice_vertex, weight,
        *_transposed(order, sizes, order_of_vertices, members, weight),
        _neighbours(keys, strides[:d]),
    )  # fmt: skip


def concatenate(lattices: Sequence[Lattice]) -> Lattice:
    """One lattice of the pixels of several, one after the other."""
    if len(lattices) == 1:
        return lattices[0]
    pixels = [0, *accumulate(len(one.slice_vertex) for one in lattices)]
    vertices = [0, *accumulate(one.neighbours.shape[1] - 1 for one in lattices)]
    entries = [0, *accumulate(len(one.splat_pixel) for one in lattices)]
    last = vertices[-1]

    def moved(neighbours: Tensor, by: int) -> Tensor:
        none = neighbours == neighbours.shape[1] - 1
        return torch.where(none, last, neighbours + by)[:, :-1]

    nobody = lattices[0].neighbours.new_full((len(lattices[0].neighbours), 1, 3), last)
    return Lattice(
        torch.cat([one.slice_vertex + v for one, v in zip(lattices, vertices, strict=False)]),
        torch.cat([one.slice_weight for one in lattices]),
        torch.cat([one.splat_pixel + p for one, p in zip(lattices, pixels, strict=False)]),
        torch.cat([one.splat_weight for one in lattices]),
        torch.cat([
            *(one.splat_offset[:-2] + e for one, e in zip(lattices, entries, strict=False)),
            lattices[0].splat_offset.new_tensor([entries[-1]] * 2),
        ]),
        torch.cat([
            *(moved(one.neighbours, v) for one, v in zip(lattices, vertices, strict=False)), nobody
        ], 1),
    )  # fmt: skip


def _simplices(features: Sequence[Tensor]) -> tuple[Tensor, Tensor, Tensor]:
    """Quotient int32 [d + 1, P], rank int8 [d + 1, P] and weights float32 [P, d + 1] of pixels."""
    d, pixels, device = len(features), len(features[0]), features[0].device
    quotient = torch.empty(d + 1, pixels, dtype=torch.int32, device=device)
    rank = torch.empty(d + 1, pixels, dtype=torch.int8, device=device)
    weight = torch.empty(pixels, d + 1, device=device)
    step = _CHUNK if device.type == "cpu" else pixels
    for start in range(0, pixels, step):
        part = slice(start, start + step)
        _simplex([f[part] for f in features], quotient[:, part], rank[:, part], weight[part])
    return quotient, rank, weight


def _simplex(features: list[Tensor], quotient: Tensor, rank: Tensor, weight: Tensor) -> None:
    """Fill in for some pixels. Operations stay apart: fused ones would round into other simplices.

    The nearest lattice point of remainder 0 is (d + 1) * quotient; rank orders what is left over.
    """
    d = len(features)
    elevated = torch.empty(d + 1, len(features[0]), device=weight.device)
    total = torch.zeros_like(elevated[0])
    deviation = float(np.float32(np.sqrt(2 / 3) * (d + 1)))
    for j in range(d, 0, -1):
        scaled = features[j - 1] * float(np.float32(deviation / np.sqrt(j * (j + 1))))
        torch.sub(total, scaled * j, out=elevated[j])
        total += scaled
    elevated[0] = total
    down = float(np.float32(1 / (d + 1)))
    nearest = (elevated * down).round_()  # half to even
    elevated -= nearest * (d + 1)
    ranks = torch.arange(d + 1, dtype=torch.int8, device=weight.device)[:, None].repeat(
        1, elevated.shape[1]
    )
    for i, j in combinations(range(d + 1), 2):
        less = (elevated[i] < elevated[j]).view(torch.int8)
        ranks[i] += less
        ranks[j] -= less
    ranks += nearest.sum(0).to(torch.int8)
    shift = (ranks < 0).view(torch.int8) - (ranks > d).view(torch.int8)
    rank.copy_(ranks.add_(shift, alpha=d + 1))
    quotient.copy_(nearest.add_(shift))
    rows = list(elevated.mul_(down).sub_(shift).unbind())
    for i, j in _sorting_network(d + 1):
        rows[i], rows[j] = torch.maximum(rows[i], rows[j]), torch.minimum(rows[i], rows[j])
    torch.sub(rows[d] + 1, rows[0], out=weight[:, 0])
    for k in range(1, d + 1):
        torch.sub(rows[d - k], rows[d + 1 - k], out=weight[:, k])


def _sorting_network(n: int) -> list[tuple[int, int]]:
    """Comparisons that sort n values: neighbours, n times, from even and odd places in turn."""
    return [(i, i + 1) for turn in range(n) for i in range(turn % 2, n - 1, 2)]


def _distinct(
    place: Tensor, rank: Tensor, span: int
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """The distinct simplices of pixels.

    Returns:
        The pixels [P] ordered by simplex, the simplex [P] of each pixel, how many pixels each of
        the S has, and its place [S] and rank [d + 1, S].
    """
    d = len(rank) - 1
    key = place
    if span * (d + 1) ** d >= _MOST:
        key = torch.unique(place, return_inverse=True)[1]
    code = torch.zeros_like(place, dtype=torch.int32)
    for i in range(d):
        code.add_(rank[i], alpha=(d + 1) ** i)
    ordered, order = (key * (d + 1) ** d).add_(code).sort(stable=True)
    _, number, sizes = _runs(ordered)
    simplex = torch.empty_like(number, dtype=torch.int32)
    simplex[order] = number.int()
    first = order[sizes.cumsum(0) - sizes]
    return order.int(), simplex, sizes, place[first], rank[:, first]


def _runs(ordered: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Distinct values, which of them each is, and how many there are of each."""
    values, number, counts = torch.unique_consecutive(
        ordered, return_inverse=True, return_counts=True
    )
    return values, number, counts


def _transposed(
    order: Tensor, sizes: Tensor, order_of_vertices: Tensor, members: Tensor, weight: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """The pixels of each vertex, their weights, and where those of each vertex begin.

    The pixels of a simplex lie together in `order`, so that the list of a vertex is made of one
    piece for each simplex that it is a corner of.
    """
    corners = weight.shape[1]
    owner = order_of_vertices.int() // corners
    corner = order_of_vertices - owner * corners
    pieces = sizes[owner]
    begin = pieces.cumsum(0) - pieces
    start = (sizes.cumsum(0) - sizes)[owner]
    total, shift = len(order) * corners, corners.bit_length()
    first = (start << shift) + corner  # of a piece, in weights [P, 2^shift]; then every row of it
    last = first + ((pieces - 1) << shift)
    place = torch.full((total,), 1 << shift, dtype=torch.int32, device=order.device)
    place[begin] = torch.cat([first[:1], first[1:] - last[:-1]]).int()
    place = place.cumsum(0, dtype=torch.int32)
    pixel = order.index_select(0, place >> shift)
    padded = F.pad(weight, (0, (1 << shift) - corners)).index_select(0, order)
    weights = padded.reshape(-1).index_select(0, place)
    ends = torch.cat([begin, begin.new_tensor([total])])[members.cumsum(0)]
    offset = torch.cat([ends.new_zeros(1), ends, ends[-1:]]).int()
    return pixel, weights, offset


def _neighbours(keys: Tensor, strides: list[int]) -> Tensor:
    """int32 [d + 1, V + 1, 3] of the sorted keys of vertices.

    A step along axis j adds d to coordinate j and takes 1 from all others, which moves the packed
    key by an amount that depends on the remainder alone.
    """
    d, count = len(strides), len(keys)
    itself = torch.arange(count + 1, dtype=torch.int32, device=keys.device)
    found = itself.new_full((d + 1, count + 1, 3), count)
    found[:, :, 0] = itself
    wraps = keys % (d + 1) == 0
    for j, along in enumerate([*strides, 0]):
        step = along * (d + 1)
        wanted = keys + torch.where(wraps, step - sum(strides) * (d + 1) + d, step - 1)
        near = torch.searchsorted(keys, wanted, out_int32=True).clamp_(max=count - 1)
        there = keys[near] == wanted
        found[j, :count, 1] = torch.where(there, near, count)
        found[j, near[there], 2] = itself[:count][there]
    return found
