"""Which smooth functions of torch are affine along a direction; all others count as curved."""

from __future__ import annotations

from collections.abc import Sequence, Set
from typing import Any

_NAMES = """
add sub subtract rsub neg negative positive sum mean cumsum trace diff nan_to_num
clone contiguous to type type_as float double half bfloat16 cpu cuda real data
view view_as reshape reshape_as flatten unflatten ravel squeeze unsqueeze transpose t T mT H mH permute movedim moveaxis
swapaxes swapdims adjoint expand expand_as broadcast_to broadcast_tensors repeat repeat_interleave tile meshgrid
cat concat concatenate stack hstack vstack dstack column_stack row_stack block_diag
split split_with_sizes chunk tensor_split hsplit vsplit unbind unfold im2col col2im
getitem setitem select narrow index_select gather take take_along_dim masked_select masked_fill masked_scatter
scatter scatter_add index_add index_copy index_fill index_put copy select_scatter slice_scatter diagonal_scatter
diagonal diag diag_embed tril triu flip fliplr flipud roll rot90 as_strided
pad constant_pad_nd reflection_pad1d reflection_pad2d replication_pad1d replication_pad2d
avg_pool1d avg_pool2d avg_pool3d adaptive_avg_pool1d adaptive_avg_pool2d adaptive_avg_pool3d
upsample_nearest1d upsample_nearest2d upsample_nearest3d upsample_linear1d upsample_bilinear2d upsample_trilinear3d
upsample_bicubic2d pixel_shuffle pixel_unshuffle channel_shuffle native_channel_shuffle
max_unpool2d max_unpool3d where embedding dropout feature_dropout
"""
_AFFINE = frozenset(_NAMES.split())
_BINARY = "mul multiply matmul mm bmm mv dot vdot inner outer ger kron tensordot linear conv1d conv2d conv3d "
_BINARY += "conv_transpose1d conv_transpose2d conv_transpose3d"
_PRODUCTS: dict[str, Set[int]] = {  # positions of the factors
    **{name: {0, 1} for name in _BINARY.split()},
    **{name: {1, 2} for name in ("addmm", "addmv", "addbmm", "baddbmm", "addr", "addcmul")},
    "bilinear": {0, 1, 2},
    "einsum": set(range(1, 53)),
}
_FIXED: dict[str, Set[int]] = {"div": {1}, "divide": {1}, "true_divide": {1}, "lerp": {2}}
_TRAINING = 5  # torch.batch_norm(input, weight, bias, mean, variance, training, ...)


def plain_name(func: Any) -> str:
    """The name of a function of torch, the same in all its spellings."""
    name: str = func.__self__.__name__ if func.__name__ == "__get__" else func.__name__
    return name.strip("_").removeprefix("special_")


def in_place(func: Any) -> bool:
    """Whether it changes its first argument."""
    return func.__name__.endswith("_") and not func.__name__.endswith("__")


def is_affine(name: str, moving: Set[int], named: Set[str], args: Sequence[Any]) -> bool:
    """Whether the function is affine in its moving arguments, given by position and by name, together."""
    if name in _AFFINE:
        return True
    if name in _PRODUCTS:
        return named <= {"bias"} and len(moving & _PRODUCTS[name]) <= 1
    if name in _FIXED:
        return not named and not moving & _FIXED[name]
    if name == "batch_norm":
        return not named and not args[_TRAINING] and (moving <= {0, 2} or moving <= {1, 2})
    return False
