"""What a graph may call: ATen operators that only compute, and arithmetic on sizes. Everything else is refused by name.

Invariant: an operator is looked up only after its name was found in the list below, and used only if every argument of
its schema is a tensor, a number, a text or an option, and the one thing that it writes to is its first argument.
"""

from __future__ import annotations

import math
import operator
from collections.abc import Callable
from typing import Any

import torch

from safepoint.adapters.torch.graph import recurrent
from safepoint.errors import CorruptionError, MismatchError, UntrustedError

# Names of ATen operators without overload, and without the underscore of their in-place form. Derived from torch 2.13:
# what torch, torch.Tensor, torch.nn.functional, torch.fft, torch.linalg and torch.special document, and what these
# become in exported graphs; then frozen. Left out: files (from_file, save), other memory under a tensor (set_,
# resize_), vendors' and quantized kernels, sparse and nested layouts, backward passes, questions about a tensor's
# identity, whatever nobody needs, and kernels behind public operators that trust their arguments: called with others,
# they read memory that is not theirs (`_fft_r2c`, `_stack`, `_pdist_forward`, ...). Tracing gives the public ones.
_COMPUTING = """
__and__ __lshift__ __or__ __rshift__ __xor__ _adaptive_avg_pool2d _adaptive_avg_pool3d _addmm_activation
_assert_async _assert_scalar _cdist_forward _conj _conj_physical _convolution _embedding_bag _euclidean_dist
_functional_assert_async _functional_assert_scalar _functional_sym_constrain_range
_functional_sym_constrain_range_for_size _fused_rms_norm _int_mm _linalg_check_errors _linalg_det _linalg_eigh
_linalg_slogdet _linalg_solve_ex _linalg_svd _local_scalar_dense _log_softmax _native_multi_head_attention
_pad_circular _pad_enum _prelu_kernel _reshape_copy _scaled_dot_product_attention_math
_scaled_dot_product_flash_attention_for_cpu _softmax _thnn_fused_gru_cell _thnn_fused_lstm_cell _to_copy
_transformer_encoder_layer_fwd _trilinear _unique2 _unsafe_index _unsafe_index_put _unsafe_view
_upsample_bicubic2d_aa _upsample_bilinear2d_aa _upsample_nearest_exact1d _upsample_nearest_exact2d
_upsample_nearest_exact3d _weight_norm abs absolute acos acosh adaptive_avg_pool1d adaptive_avg_pool2d
adaptive_avg_pool3d adaptive_max_pool1d adaptive_max_pool2d adaptive_max_pool3d add addbmm addcdiv addcmul addmm
addmv addr adjoint affine_grid_generator alias alias_copy all alpha_dropout amax amin aminmax angle any arange
arccos arccosh arcsin arcsinh arctan arctan2 arctanh argmax argmin argsort argwhere as_strided as_strided_copy asin
asinh atan atan2 atanh atleast_1d atleast_2d atleast_3d avg_pool1d avg_pool2d avg_pool3d baddbmm bartlett_window
batch_norm bernoulli bilinear binary_cross_entropy binary_cross_entropy_with_logits bincount binomial bitwise_and
bitwise_left_shift bitwise_not bitwise_or bitwise_right_shift bitwise_xor blackman_window block_diag bmm
broadcast_tensors broadcast_to bucketize cartesian_prod cat cauchy cdist ceil celu chalf channel_shuffle cholesky
cholesky_inverse cholesky_solve chunk clamp clamp_max clamp_min clip clone col2im column_stack combinations complex
concat concatenate conj conj_physical constant_pad_nd contiguous conv1d conv2d conv3d conv_tbc conv_transpose1d
conv_transpose2d conv_transpose3d convolution copy copysign corrcoef cos cosh cosine_embedding_loss
cosine_similarity count_nonzero cov cross cross_entropy_loss ctc_loss cummax cummin cumprod cumsum
cumulative_trapezoid deg2rad det detach detach_copy diag diag_embed diagflat diagonal diagonal_copy diagonal_scatter
diff digamma dist div divide dot dropout dsplit dstack einsum elu embedding embedding_bag empty empty_like
empty_strided eq erf erfc erfinv exp exp2 expand expand_as expand_copy expm1 exponential eye feature_alpha_dropout
feature_dropout fft_fft fft_fft2 fft_fftfreq fft_fftn fft_fftshift fft_hfft fft_hfft2 fft_hfftn fft_ifft fft_ifft2
fft_ifftn fft_ifftshift fft_ihfft fft_ihfft2 fft_ihfftn fft_irfft fft_irfft2 fft_irfftn fft_rfft fft_rfft2
fft_rfftfreq fft_rfftn fill fill_diagonal fix flatten flip fliplr flipud float_power floor floor_divide fmax fmin
fmod frac fractional_max_pool2d fractional_max_pool3d frexp frobenius_norm full full_like gather gcd ge gelu
geometric ger glu gradient greater greater_equal grid_sampler grid_sampler_2d grid_sampler_3d group_norm gru
gru_cell gt hamming_window hann_window hardshrink hardsigmoid hardswish hardtanh heaviside hinge_embedding_loss
histc histogram histogramdd hsplit hstack huber_loss hypot i0 igamma igammac im2col imag index index_add index_copy
index_fill index_put index_reduce index_select inner instance_norm inverse isclose isfinite isin isinf isnan
isneginf isposinf isreal istft item kaiser_window kl_div kron kthvalue l1_loss layer_norm lcm ldexp le leaky_relu
lerp less less_equal lgamma lift_fresh lift_fresh_copy linalg_cholesky linalg_cholesky_ex linalg_cond linalg_cross
linalg_det linalg_diagonal linalg_eig linalg_eigh linalg_eigvals linalg_eigvalsh linalg_householder_product
linalg_inv linalg_inv_ex linalg_ldl_factor linalg_ldl_factor_ex linalg_ldl_solve linalg_lstsq linalg_lu
linalg_lu_factor linalg_lu_factor_ex linalg_lu_solve linalg_matmul linalg_matrix_exp linalg_matrix_norm
linalg_matrix_power linalg_matrix_rank linalg_multi_dot linalg_norm linalg_pinv linalg_qr linalg_slogdet
linalg_solve linalg_solve_ex linalg_solve_triangular linalg_svd linalg_svdvals linalg_tensorinv linalg_tensorsolve
linalg_vander linalg_vecdot linalg_vector_norm linear linspace log log10 log1p log2 log_normal log_sigmoid
log_sigmoid_forward log_softmax logaddexp logaddexp2 logcumsumexp logdet logical_and logical_not logical_or
logical_xor logit logspace logsumexp lstm lstm_cell lt mH mT margin_ranking_loss masked_fill masked_scatter
masked_select matmul matrix_H matrix_exp matrix_power max max_pool1d max_pool1d_with_indices max_pool2d
max_pool2d_with_indices max_pool3d max_pool3d_with_indices max_unpool2d max_unpool3d maximum mean median meshgrid
min minimum mish mm mode moveaxis movedim mse_loss msort mul multi_margin_loss multilabel_margin_loss multinomial
multiply mv mvlgamma nan_to_num nanmean nanmedian nanquantile nansum narrow narrow_copy native_batch_norm
native_channel_shuffle native_dropout native_group_norm native_layer_norm ne neg negative new_empty
new_empty_strided new_full new_ones new_zeros nextafter nll_loss nll_loss2d nll_loss2d_forward nll_loss_forward
nll_loss_nd nonzero nonzero_static norm norm_except_dim normal not_equal nuclear_norm numpy_T one_hot ones ones_like
outer pad pad_sequence pairwise_distance pdist permute permute_copy pinverse pixel_shuffle pixel_unshuffle poisson
poisson_nll_loss polar polygamma positive pow prelu prod quantile rad2deg rand rand_like randint randint_like randn
randn_like random randperm ravel real reciprocal reflection_pad1d reflection_pad2d reflection_pad3d relu relu6
remainder renorm repeat repeat_interleave replication_pad1d replication_pad2d replication_pad3d reshape reshape_as
resize_as_sparse resolve_conj resolve_neg rms_norm rnn_relu rnn_relu_cell rnn_tanh rnn_tanh_cell roll rot90 round
row_stack rrelu rsqrt rsub scalar_tensor scaled_dot_product_attention scatter scatter_add scatter_reduce
searchsorted select select_copy select_scatter selu sgn sigmoid sign signbit silu sin sinc sinh slice slice_copy
slice_inverse slice_scatter slogdet smooth_l1_loss soft_margin_loss softmax softplus softshrink sort
special_bessel_j0 special_bessel_j1 special_bessel_y0 special_bessel_y1 special_chebyshev_polynomial_t
special_chebyshev_polynomial_u special_chebyshev_polynomial_v special_chebyshev_polynomial_w special_digamma
special_entr special_erf special_erfc special_erfcx special_erfinv special_exp2 special_expit special_expm1
special_gammainc special_gammaincc special_hermite_polynomial_h special_hermite_polynomial_he special_i0 special_i0e
special_i1 special_i1e special_laguerre_polynomial_l special_legendre_polynomial_p special_log1p special_log_ndtr
special_log_softmax special_logit special_logsumexp special_modified_bessel_i0 special_modified_bessel_i1
special_modified_bessel_k0 special_modified_bessel_k1 special_multigammaln special_ndtr special_ndtri
special_polygamma special_psi special_round special_scaled_modified_bessel_k0 special_scaled_modified_bessel_k1
special_shifted_chebyshev_polynomial_t special_shifted_chebyshev_polynomial_u special_shifted_chebyshev_polynomial_v
special_shifted_chebyshev_polynomial_w special_sinc special_softmax special_spherical_bessel_j0 special_xlog1py
special_xlogy special_zeta split split_copy split_with_sizes split_with_sizes_copy sqrt square squeeze squeeze_copy
stack std std_mean stft sub subtract sum swapaxes swapdims sym_constrain_range sym_constrain_range_for_size
sym_numel sym_size sym_storage_offset sym_stride t t_copy take take_along_dim tan tanh tensor_split tensordot
threshold tile to to_dense topk trace transpose transpose_copy trapezoid trapz tril tril_indices triplet_margin_loss
triu triu_indices true_divide trunc type_as unbind unbind_copy unflatten unfold unfold_copy uniform
unique_consecutive unique_dim unique_dim_consecutive unsafe_chunk unsafe_split unsafe_split_with_sizes unsqueeze
unsqueeze_copy upsample_bicubic2d upsample_bilinear2d upsample_linear1d upsample_nearest1d upsample_nearest2d
upsample_nearest3d upsample_trilinear3d vander var var_mean vdot view view_as view_as_complex view_as_complex_copy
view_as_real view_as_real_copy view_copy vsplit vstack where xlogy zero zeros zeros_like
"""
ALLOWED = frozenset(_COMPUTING.split())

_TYPES = frozenset(
    {"Tensor", "number", "int", "float", "bool", "complex", "Device", "str", "Generator"}  # torch._C.Type as text
)
_WRAPPED = ("Optional[", "List[")
_ATEN = "aten."
_INT64 = 1 << 63


def _bounded(function: Callable[..., Any]) -> Callable[..., Any]:
    """Arithmetic on sizes: numbers only, and never one beyond 64 bits, so that no product grows without end."""

    def call(*values: Any) -> Any:
        if any(not isinstance(v, bool | int | float | torch.SymInt | torch.SymFloat | torch.SymBool) for v in values):
            raise CorruptionError(f"the graph does arithmetic ({function.__name__}) on what is no number")
        result = function(*values)
        if isinstance(result, int) and not -_INT64 <= result < _INT64:
            raise CorruptionError(f"a number in the graph ({function.__name__}) is beyond 64 bits")
        return result

    return call


def _getitem(values: Any, index: Any) -> Any:
    if not isinstance(values, list | tuple) or not isinstance(index, int) or not -len(values) <= index < len(values):
        raise CorruptionError("the graph takes an item of what has none")
    return values[index]


_NUMBERS: dict[str, Callable[..., Any]] = {
    **{f"operator.{name}": getattr(operator, name) for name in ("add", "sub", "mul", "floordiv", "mod", "truediv")},
    **{
        f"operator.{name}": getattr(operator, name)
        for name in ("neg", "eq", "ne", "lt", "le", "gt", "ge", "or_", "and_")
    },
    **{f"math.{name}": getattr(math, name) for name in ("ceil", "floor", "trunc")},
    **{f"torch.{n}": getattr(torch, n) for n in ("sym_float", "sym_int", "sym_not", "sym_max", "sym_min")},
}
FUNCTIONS: dict[str, Callable[..., Any]] = {
    **{name: _bounded(function) for name, function in _NUMBERS.items()},
    "operator.getitem": _getitem,
}


def name_of(target: Any) -> str | None:
    """How a document names the target of a node that PyTorch traced, or None if it may not stand there."""
    if isinstance(target, torch._ops.OpOverload):
        if (whole := recurrent.operator_of(str(target))) is not None:
            return whole
        return str(target) if str(target).startswith(_ATEN) and _base(str(target).split(".")[1]) in ALLOWED else None
    place = f"{getattr(target, '__module__', '')}.{getattr(target, '__name__', '')}".lstrip("_")
    return place if place in FUNCTIONS else None


def resolve(name: str, where: str) -> Callable[..., Any]:
    """What a target in a document calls.

    Raises:
        UntrustedError: nothing that a graph may call; nothing was looked up.
        MismatchError: this version of torch has no such operator.
    """
    if name in FUNCTIONS:
        return FUNCTIONS[name]
    parts = name.split(".")
    if len(parts) != 3 or parts[0] != "aten" or _base(parts[1]) not in ALLOWED or parts[2].startswith("prim"):
        raise UntrustedError(
            f"the graph in {where} calls {name[:100]!r}",
            expected="ATen operators that only compute",
            hint="nothing was run: load it in a process that has its class, or do not use the file",
        )
    packet = getattr(torch.ops.aten, parts[1], None)
    if packet is None or parts[2] not in packet.overloads():
        raise MismatchError(
            f"the graph in {where} needs the operator {name}, which torch {torch.__version__} does not have",
            hint="use the version of torch that saved it, or a newer one",
        )
    found = getattr(packet, parts[2])
    if not computes(found):
        raise UntrustedError(
            f"the graph in {where} calls {name}, which does more than compute its result",
            expected="ATen operators that only compute",
        )
    return found  # type: ignore[no-any-return]


def computes(overload: Any) -> bool:
    """Whether an operator's schema has plain types only, and it writes at most to its first argument, in place."""
    schema = overload._schema
    if not all(_plain(str(part.type)) for part in (*schema.arguments, *schema.returns)):
        return False
    written = [i for i, part in enumerate(schema.arguments) if part.alias_info is not None and part.alias_info.is_write]
    name = schema.name.removeprefix("aten::")
    return not written or (written == [0] and name.endswith("_") and not name.startswith("__"))


def _plain(kind: str) -> bool:
    while kind.startswith(_WRAPPED):
        kind = kind[kind.index("[") + 1 : -1]
    return kind in _TYPES


def _base(name: str) -> str:
    return name if name.startswith("__") or not name.endswith("_") else name[:-1]
