"""Which operation is a step of which kind: modules, functions and methods of a tensor."""

import operator
from typing import Any

import torch
from torch import nn
from torch.nn import functional

from .parts import put
from .steps import Activation, Average, Elementwise, Maximum, Route

# Gates let through a share of what they are multiplied with.
GATES = (
    nn.Sigmoid, nn.Hardsigmoid, functional.sigmoid, functional.hardsigmoid, torch.sigmoid, "sigmoid",
)  # fmt: skip
DIVISORS = (torch.rsqrt, torch.reciprocal, "rsqrt", "reciprocal")
ELEMENTWISE = (
    *GATES, *DIVISORS, nn.Softplus, nn.LogSigmoid, functional.softplus, functional.logsigmoid,
    torch.exp, torch.log, torch.cos, "exp", "log", "cos",
)  # fmt: skip
# Activations have f(0) = 0.
ACTIVATIONS = (
    nn.LeakyReLU, nn.PReLU, nn.ELU, nn.CELU, nn.SELU, nn.GELU, nn.SiLU, nn.Mish, nn.Hardswish, nn.Tanh, nn.Softsign,
    nn.Tanhshrink, nn.Hardshrink, nn.Softshrink,
    functional.leaky_relu, functional.elu, functional.celu, functional.selu, functional.gelu, functional.silu,
    functional.mish, functional.hardswish, functional.tanh, torch.tanh, torch.selu, "tanh",
    functional.softsign, functional.prelu, torch.prelu,
    torch.square, torch.sqrt, torch.abs, torch.erf, torch.sin, operator.abs, "square", "sqrt", "abs", "erf", "sin",
)  # fmt: skip
POWERS = (operator.pow, torch.pow, "pow")
MAXIMA = (
    nn.MaxPool2d, nn.AdaptiveMaxPool2d, functional.max_pool2d, torch.max_pool2d, functional.adaptive_max_pool2d,
    torch.amax, "amax",
)  # fmt: skip
# Linear, without weights of their own.
AVERAGES = (
    nn.AvgPool2d, nn.AdaptiveAvgPool2d, functional.avg_pool2d, functional.adaptive_avg_pool2d, torch.mean, "mean",
    nn.AvgPool1d, nn.AdaptiveAvgPool1d, functional.avg_pool1d, functional.adaptive_avg_pool1d, torch.sum, "sum",
    nn.Upsample, nn.UpsamplingBilinear2d, functional.interpolate, nn.Fold, functional.fold,
)  # fmt: skip
ROUTES = (
    nn.Dropout, nn.Dropout1d, nn.Dropout2d, nn.AlphaDropout, nn.Identity, nn.Flatten, nn.Unflatten, nn.ZeroPad2d,
    nn.ConstantPad2d, nn.ReflectionPad2d, nn.ReplicationPad2d, nn.CircularPad2d,
    nn.PixelShuffle, nn.PixelUnshuffle, nn.ChannelShuffle, nn.UpsamplingNearest2d, nn.Unfold,
    functional.dropout, functional.dropout1d, functional.dropout2d, functional.pad, functional.unfold,
    functional.pixel_shuffle, functional.pixel_unshuffle, functional.channel_shuffle,
    torch.flatten, torch.unflatten, torch.reshape, torch.squeeze, torch.unsqueeze, torch.transpose, torch.permute,
    torch.swapaxes, torch.movedim, torch.roll, torch.narrow, torch.select, torch.index_select, torch.gather, torch.t,
    torch.cat, torch.concat, torch.clone, torch.broadcast_to, torch.tile, torch.repeat_interleave, torch.rot90,
    torch.masked_fill, torch.where, put,
    operator.getitem, "flatten", "unflatten", "view", "view_as", "reshape", "reshape_as",
    "squeeze", "unsqueeze", "transpose", "permute", "swapaxes", "movedim", "contiguous", "clone", "t", "type_as",
    "expand", "expand_as", "repeat", "repeat_interleave", "tile", "flip", torch.flip, "roll", "narrow", "select",
    "index_select", "gather", "masked_fill", "where", "unfold", "to", "float", "double", "rot90",
    torch.chunk, torch.split, torch.tensor_split, torch.unbind, torch.stack, "chunk", "split", "tensor_split", "unbind",
)  # fmt: skip
KINDS: dict[Any, Any] = {operation: kind for kind, operations in
         ((Elementwise, ELEMENTWISE), (Activation, ACTIVATIONS), (Maximum, MAXIMA), (Average, AVERAGES),
          (Route, ROUTES))
         for operation in operations}  # fmt: skip
SUMS = (operator.add, torch.add, "add")
DIFFERENCES = (operator.sub, torch.sub, "sub")
PRODUCTS = (operator.mul, torch.mul, torch.multiply, "mul", "multiply")
NEGATIVES = (operator.neg, torch.neg, torch.negative, "neg", "negative")
QUOTIENTS = (operator.truediv, torch.div, torch.divide, torch.true_divide, "div", "divide", "true_divide")
# Of two tensors each, linear in either.
MATRIX_PRODUCTS = (torch.matmul, operator.matmul, torch.bmm, torch.mm, torch.einsum, "matmul", "bmm", "mm")
SOFTMAXES = (functional.softmax, torch.softmax, "softmax")
CONVOLUTIONS, LINEAR = (functional.conv2d, torch.conv2d), (functional.linear,)
# Other convolutions, in which weight and bias come second and third.
OTHER_CONVOLUTIONS = (
    functional.conv1d, functional.conv3d, functional.conv_transpose1d, functional.conv_transpose2d,
    functional.conv_transpose3d, torch.conv1d, torch.conv3d, torch.conv_transpose1d, torch.conv_transpose2d,
    torch.conv_transpose3d,
)  # fmt: skip
BATCH_NORMS = (functional.batch_norm, torch.batch_norm)
PADS = (nn.ZeroPad2d, nn.ConstantPad2d, nn.ReflectionPad2d, nn.ReplicationPad2d, nn.CircularPad2d)
# What takes no more than shape and kind from its tensor.
BLANKS = (torch.zeros_like, torch.ones_like, torch.full_like, "new_zeros", "new_ones", "new_full")
SIZES = (getattr, "size", "dim", "numel")
# Attributes that are the tensor itself with its axes in another order, and no size.
TRANSPOSED = ("T", "mT", "H", "mH")
# Operators that work in place, and the same out of place.
OPERATORS = {getattr(operator, f"i{name}"): getattr(operator, name) for name in (
    "add", "sub", "mul", "truediv", "floordiv", "mod", "pow", "matmul", "and_", "or_", "xor",
) if hasattr(operator, f"i{name}")}  # fmt: skip
