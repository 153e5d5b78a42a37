"""The GRU of `packed_gru` with its element-wise half in machine code, for float32 on a CPU.

Between two matrix products torch makes about ten passes over the rows of a step; the functions here
make one. Each is written once, as the arithmetic of 16 columns (`_forward`, `_backward`), and
compiled by llvmlite for the processor at hand when a process first needs it, which takes about
0.05 s; nothing is kept on disk.

`kernels_for` decides where they are used; elsewhere `packed_gru` computes the same with torch.
"""

from __future__ import annotations

import contextlib
import contextvars
import ctypes
import functools
import itertools
import struct
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional

from toolagent.models.packing import add_to_parents

_LANES = 16  # columns at a time; LLVM divides them among what registers the processor has
_VECTOR = f"<{_LANES} x float>"
_INTEGERS = f"<{_LANES} x i32>"


class Kernels(NamedTuple):
    """The compiled functions.

    Their arguments are the addresses of contiguous tensors in the order of `_FORWARD` and
    `_BACKWARD`; those of (N,) int32 `tokens` and `places`; the first packed step, how many steps,
    and D.
    """

    forward: Callable[..., None]
    backward: Callable[..., None]
    engine: Any  # the code lives as long as this does


_allowed = contextvars.ContextVar("kernels are allowed", default=True)


@contextlib.contextmanager
def without_kernels() -> Iterator[None]:
    """Within it torch computes everything: the reference in tests and measurements."""
    token = _allowed.set(False)
    try:
        yield
    finally:
        _allowed.reset(token)


def kernels_for(*tensors: Tensor) -> Kernels | None:
    """The kernels, where they can compute with such tensors; None where torch has to.

    That is: other types and devices, a graph that is being exported, and without llvmlite.
    """
    if torch.compiler.is_exporting() or torch.compiler.is_compiling() or not _allowed.get():
        return None
    if any(tensor.dtype != torch.float32 or tensor.device.type != "cpu" for tensor in tensors):
        return None
    return _compiled()


# Arithmetic -----------------------------------------------------------------------------------


class _Value:
    """16 numbers of type float, while code is written."""

    def __init__(self, code: _Code, name: str):
        self.code, self.name = code, name

    def _with(self, operation: str, other: _Value | float) -> _Value:
        # `contract`: a product and a sum may become one operation, which rounds once.
        other = self.code.value(other)
        return self.code.set(f"{operation} contract {_VECTOR} {self.name}, {other.name}")

    def __add__(self, other: _Value | float) -> _Value:
        return self._with("fadd", other)

    def __sub__(self, other: _Value | float) -> _Value:
        return self._with("fsub", other)

    def __mul__(self, other: _Value | float) -> _Value:
        return self._with("fmul", other)

    def __truediv__(self, other: _Value | float) -> _Value:
        return self._with("fdiv", other)


class _Code:
    """Lines of LLVM's language for one block of columns.

    Args:
        prefix: of the names of values: they are unique in a function.
        address: of a row by name, a pointer to float.
        column: the first of the block.
        mask: of the columns that exist; None: all do.
    """

    def __init__(self, prefix: str, width: str, column: str, mask: str | None):
        self.prefix, self.width, self.column, self.mask = prefix, width, column, mask
        self.lines: list[str] = []

    def set(self, expression: str) -> _Value:
        name = f"%{self.prefix}{len(self.lines)}"
        self.lines.append(f"{name} = {expression}")
        return _Value(self, name)

    def value(self, number: _Value | float) -> _Value:
        if isinstance(number, _Value):
            return number
        # A constant is written as a double that a float can hold.
        (rounded,) = struct.unpack("f", struct.pack("f", number))
        (bits,) = struct.unpack("Q", struct.pack("d", rounded))
        return _Value(self, f"<{', '.join([f'float 0x{bits:016X}'] * _LANES)}>")

    def _pointer(self, row: str, part: int) -> str:
        offset = self.column
        if part:
            first = self.set(f"mul i64 {self.width}, {part}").name
            offset = self.set(f"add i64 {first}, {self.column}").name
        return self.set(f"getelementptr float, ptr %{row}_row, i64 {offset}").name

    def load(self, row: str, part: int = 0) -> _Value:
        """Vector `part` of a row."""
        pointer = self._pointer(row, part)
        if self.mask is None:
            return self.set(f"load {_VECTOR}, ptr {pointer}, align 4")
        return self.set(
            f"call {_VECTOR} @llvm.masked.load.v{_LANES}f32.p0("
            f"ptr {pointer}, i32 4, <{_LANES} x i1> {self.mask}, {_VECTOR} zeroinitializer)"
        )

    def store(self, value: _Value, row: str, part: int = 0) -> None:
        """Into vector `part` of a row."""
        pointer = self._pointer(row, part)
        if self.mask is None:
            self.lines.append(f"store {_VECTOR} {value.name}, ptr {pointer}, align 4")
        else:
            self.lines.append(
                f"call void @llvm.masked.store.v{_LANES}f32.p0("
                f"{_VECTOR} {value.name}, ptr {pointer}, i32 4, <{_LANES} x i1> {self.mask})"
            )

    def add_to(self, value: _Value, row: str, part: int = 0) -> None:
        """To vector `part` of a row."""
        self.store(self.load(row, part) + value, row, part)

    def clamp(self, value: _Value, limit: float) -> _Value:
        """Within -limit .. limit; what is not a number stays so."""
        for comparison, number in (("ogt", limit), ("olt", -limit)):
            bound = self.value(number).name
            beyond = self.set(f"fcmp {comparison} {_VECTOR} {value.name}, {bound}").name
            value = self.set(
                f"select <{_LANES} x i1> {beyond}, {_VECTOR} {bound}, {_VECTOR} {value.name}"
            )
        return value

    def exp(self, value: _Value) -> _Value:
        """2^n e^rest, e^rest by its Taylor polynomial: to 2e-7 of the result, -87 <= value <= 87.

        The number 1.5 2^23 is so large that adding it rounds to an integer, which then stands in
        its last bits.
        """
        shifted = value * 1.4426950408889634 + 12582912.0
        n = shifted - 12582912.0
        rest = value - n * 0.693145751953125  # ln 2 in two parts, the first exact in few bits
        rest = rest - n * 1.42860677e-06
        result = self.value(1.0 / 5040.0)
        for divisor in (720.0, 120.0, 24.0, 6.0, 2.0, 1.0, 1.0):
            result = result * rest + 1.0 / divisor
        bits = self.set(f"bitcast {_VECTOR} {shifted.name} to {_INTEGERS}").name
        shift = f"<{', '.join(['i32 23'] * _LANES)}>"
        one = f"<{', '.join([f'i32 {127 << 23}'] * _LANES)}>"
        bits = self.set(f"shl {_INTEGERS} {bits}, {shift}").name
        bits = self.set(f"add {_INTEGERS} {bits}, {one}").name
        return result * self.set(f"bitcast {_INTEGERS} {bits} to {_VECTOR}")

    def sigmoid(self, value: _Value) -> _Value:
        """1 / (1 + e^-value)."""
        return self.value(1.0) / (self.exp(self.clamp(value * -1.0, 87.0)) + 1.0)


# What a function takes: name -> which row belongs to row i of a step, and how many vectors of D
# columns it has. "packed": row `first` + i, of all packed steps; "step": row i; "token", "place":
# the row that `tokens` or `places` names for the packed step; "one": the same for all.
_FORWARD = {
    "table": ("token", 3),  # W_ih x + b_ih of each token x, and b_hh of the gates
    "extra": ("place", 3),  # what else is read
    "bias": ("one", 1),  # b_hh of the candidate
    "recurrent": ("packed", 3),  # W_hh h; becomes r, z and W_hn h + b_hn
    "before": ("step", 1),
    "new": ("packed", 1),  # written
    "after": ("packed", 1),  # written
}
_BACKWARD = {
    "recurrent": ("packed", 3),  # as `_FORWARD` leaves it
    "new": ("packed", 1),
    "d_after": ("packed", 1),  # by the outputs
    "before": ("step", 1),
    "carry": ("step", 1),  # d_after by the later steps; becomes their gradient past the products
    "d_recurrent": ("step", 3),  # written: of W_hh h
    "d_table": ("token", 3),  # added to
    "d_extra": ("place", 3),  # written
    "d_bias": ("one", 1),  # added to
}


def _forward(c: _Code) -> None:
    def given(part: int) -> _Value:
        return c.load("table", part) + c.load("extra", part)

    reset = c.sigmoid(given(0) + c.load("recurrent", 0))
    update = c.sigmoid(given(1) + c.load("recurrent", 1))
    recurrent = c.load("recurrent", 2) + c.load("bias")
    new = c.sigmoid((given(2) + reset * recurrent) * 2.0) * 2.0 - 1.0  # tanh
    for part, value in enumerate((reset, update, recurrent)):
        c.store(value, "recurrent", part)
    c.store(new, "new")
    c.store(new + update * (c.load("before") - new), "after")


def _backward(c: _Code) -> None:
    reset, update, recurrent = (c.load("recurrent", part) for part in range(3))
    new = c.load("new")
    d_after = c.load("d_after") + c.load("carry")
    kept = d_after * update
    d_new = (d_after - kept) * (c.value(1.0) - new * new)
    d_update = d_after * (c.load("before") - new) * (update * (c.value(1.0) - update))
    d_reset = d_new * recurrent * (reset * (c.value(1.0) - reset))
    d_candidate = d_new * reset
    c.store(kept, "carry")
    for part, value in enumerate((d_reset, d_update, d_candidate)):
        c.store(value, "d_recurrent", part)
    for part, value in enumerate((d_reset, d_update, d_new)):
        c.add_to(value, "d_table", part)
        c.store(value, "d_extra", part)
    c.add_to(d_candidate, "d_bias")


# Compiling ------------------------------------------------------------------------------------


def _function(name: str, rows: dict[str, tuple[str, int]], body: Callable[[_Code], None]) -> str:
    """A function in LLVM's language: for each row, blocks of 16 columns, then what is left."""
    parameters = ", ".join(
        [f"ptr noalias %{row}" for row in rows]
        + ["ptr noalias %tokens", "ptr noalias %places", "i64 %first", "i64 %count", "i64 %width"]
    )
    addresses = []
    for row, (kind, vectors) in rows.items():
        index = {
            "step": "%row",
            "packed": "%packed",
            "token": "%token",
            "place": "%place",
            "one": "0",
        }[kind]
        addresses += [
            f"%{row}_width = mul i64 %width, {vectors}",
            f"%{row}_first = mul i64 {index}, %{row}_width",
            f"%{row}_row = getelementptr float, ptr %{row}, i64 %{row}_first",
        ]
    whole = _Code("a", "%width", "%column", None)
    body(whole)
    part = _Code("b", "%width", "%column", "%mask")
    body(part)
    lanes = ", ".join(f"i32 {lane}" for lane in range(_LANES))
    newline = "\n  "
    return f"""
define void @{name}({parameters}) {{
entry:
  br label %rows
rows:
  %row = phi i64 [0, %entry], [%next_row, %end_row]
  %more_rows = icmp slt i64 %row, %count
  br i1 %more_rows, label %start_row, label %done
start_row:
  %packed = add i64 %first, %row
  %token_at = getelementptr i32, ptr %tokens, i64 %packed
  %token_32 = load i32, ptr %token_at
  %token = sext i32 %token_32 to i64
  %place_at = getelementptr i32, ptr %places, i64 %packed
  %place_32 = load i32, ptr %place_at
  %place = sext i32 %place_32 to i64
  {newline.join(addresses)}
  br label %columns
columns:
  %column = phi i64 [0, %start_row], [%next_column, %whole]
  %next_column = add i64 %column, {_LANES}
  %is_whole = icmp sle i64 %next_column, %width
  br i1 %is_whole, label %whole, label %left
whole:
  {newline.join(whole.lines)}
  br label %columns
left:
  %is_left = icmp slt i64 %column, %width
  br i1 %is_left, label %part, label %end_row
part:
  %left_64 = sub i64 %width, %column
  %left_32 = trunc i64 %left_64 to i32
  %left_one = insertelement {_INTEGERS} poison, i32 %left_32, i64 0
  %left_all = shufflevector {_INTEGERS} %left_one, {_INTEGERS} poison, {_INTEGERS} zeroinitializer
  %mask = icmp slt {_INTEGERS} <{lanes}>, %left_all
  {newline.join(part.lines)}
  br label %end_row
end_row:
  %next_row = add i64 %row, 1
  br label %rows
done:
  ret void
}}
"""


@functools.cache
def _compiled() -> Kernels | None:
    try:
        import llvmlite.binding as llvm
    except (ImportError, OSError):  # not there, or its library can't be loaded
        return None
    kinds = (("forward", _FORWARD, _forward), ("backward", _BACKWARD, _backward))
    llvm.initialize_native_target()
    llvm.initialize_native_asmprinter()
    machine = llvm.Target.from_default_triple().create_target_machine(
        cpu=llvm.get_host_cpu_name(),
        features=llvm.get_host_cpu_features().flatten(),
        opt=3,
        jit=True,
    )
    module = llvm.parse_assembly("".join(_function(*kind) for kind in kinds))
    engine = llvm.create_mcjit_compiler(module, machine)
    engine.finalize_object()
    compiled: list[Any] = []
    for name, rows, _ in kinds:
        arguments = [ctypes.c_void_p] * (len(rows) + 2) + [ctypes.c_int64] * 3
        prototype = ctypes.CFUNCTYPE(None, *arguments)
        compiled.append(prototype(engine.get_function_address(name)))
    forward, backward = compiled
    return Kernels(forward, backward, engine)


def _kernels() -> Kernels:
    kernels = _compiled()
    assert kernels is not None, "see `kernels_for`"
    return kernels


# The GRU --------------------------------------------------------------------------------------


class FusedGRU(torch.autograd.Function):
    """`PackedGRU` with the kernels: the same arguments, the same results."""

    @staticmethod
    def forward(
        ctx: Any,
        table: Tensor,
        recurrent_weight: Tensor,
        recurrent_bias: Tensor,
        hidden: Tensor,
        tokens: Tensor,
        sizes: list[int],
        extra: Tensor | None = None,
        extra_steps: Tensor | None = None,
        parents: list[Tensor] | None = None,
    ) -> Tensor:
        """See `PackedGRU.forward`."""
        kernel = _kernels().forward
        total, width = len(tokens), hidden.shape[1]
        tokens, hidden = tokens.int().contiguous(), hidden.contiguous()
        table = (table + functional.pad(recurrent_bias[: 2 * width], (0, width))).contiguous()
        bias = recurrent_bias[2 * width :].contiguous()
        ctx.has_extra = extra is not None
        extra, places, num_extra = _extra_rows(extra, extra_steps, table, total)
        recurrent = hidden.new_empty(total, 3 * width)  # W_hh h, which becomes r, z and g_n
        new, after = hidden.new_empty(total, width), hidden.new_empty(total, width)
        weight, before, start = recurrent_weight.t(), hidden, 0
        given = _addresses(table, extra, bias, recurrent)
        written = _addresses(new, after, tokens, places)
        for step, size in enumerate(sizes):
            if parents and step:
                before = before.index_select(0, parents[step - 1])
            rows = slice(start, start + size)
            torch.mm(before[:size], weight, out=recurrent[rows])
            kernel(*given, before.data_ptr(), *written, start, size, width)
            before, start = after[rows], start + size
        ctx.sizes, ctx.parents = sizes, parents
        ctx.vocabulary, ctx.num_extra = len(table), num_extra
        ctx.save_for_backward(recurrent_weight, hidden, tokens, places, recurrent, new, after)
        return after

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        """See `PackedGRU.backward`."""
        kernel = _kernels().backward
        weight, hidden, tokens, places, recurrent, new, after = ctx.saved_tensors
        d_after, width = gradients[0].contiguous(), hidden.shape[1]
        starts = [0, *itertools.accumulate(ctx.sizes[:-1])]
        d_weight = torch.zeros_like(weight)
        carry = hidden.new_zeros(ctx.sizes[-1] if ctx.parents else ctx.sizes[0], width)
        d_table = hidden.new_zeros(ctx.vocabulary, 3 * width)
        d_extra = hidden.new_empty(ctx.num_extra + 1, 3 * width)  # the last row is of no step
        d_bias = hidden.new_zeros(width)
        given = _addresses(recurrent, new, d_after)
        written = _addresses(d_table, d_extra, d_bias, tokens, places)
        # One step at a time, in the same memory: it is then still in the cache.
        of_step = hidden.new_empty(max(ctx.sizes), 3 * width)
        for step in reversed(range(len(starts))):
            start, size = starts[step], ctx.sizes[step]
            before = after[starts[step - 1] : start] if step else hidden
            if ctx.parents and step:
                before = before.index_select(0, ctx.parents[step - 1])
            before, d_recurrent = before[:size], of_step[:size]
            kernel(*given, *_addresses(before, carry, d_recurrent), *written, start, size, width)
            carry[:size].addmm_(d_recurrent, weight)
            d_weight.addmm_(d_recurrent.t(), before)
            if ctx.parents and step:
                carry = add_to_parents(carry, ctx.parents[step - 1], ctx.sizes[step - 1])
        # Every step reads one token: the biases of r and z are those of the input.
        d_bias = torch.cat([d_table[:, : 2 * width].sum(0), d_bias])
        d_extra = d_extra[:-1] if ctx.has_extra else None
        return d_table, d_weight, d_bias, carry, None, None, d_extra, None, None


def fused_step(
    kernels: Kernels, inputs: Tensor, recurrent: Tensor, bias: Tensor, hidden: Tensor
) -> Tensor:
    """One step (see `packed_gru.gru_step`).

    Args:
        kernels: of `kernels_for`.
        inputs: (B, 3D), W_ih x + b_ih, and b_hh of the gates.
        recurrent: (B, 3D), W_hh h; overwritten.
        bias: (D,), b_hh of the candidate.
        hidden: (B, D).

    Returns:
        (B, D).
    """
    rows, width = hidden.shape
    inputs, hidden = inputs.contiguous(), hidden.contiguous()
    nothing, each = inputs.new_zeros(3 * width), torch.arange(rows, dtype=torch.int32)
    new, after = torch.empty_like(hidden), torch.empty_like(hidden)
    given = _addresses(inputs, nothing, bias, recurrent, hidden)
    places = torch.zeros_like(each)
    kernels.forward(*given, *_addresses(new, after, each, places), 0, rows, width)
    return after


def _addresses(*tensors: Tensor) -> list[int]:
    return [tensor.data_ptr() for tensor in tensors]


def _extra_rows(
    extra: Tensor | None, steps: Tensor | None, table: Tensor, total: int
) -> tuple[Tensor, Tensor, int]:
    """What steps read besides their tokens, as rows to be looked up.

    Returns:
        Rows of 3D columns; the (N,) int32 row of each step; how many rows are given. A step that
        reads nothing has a row of zeros behind those.
    """
    nothing = table.new_zeros(1, table.shape[1])
    if extra is None:
        return nothing, torch.zeros(total, dtype=torch.int32), 0
    if steps is None:
        return extra.contiguous(), torch.arange(total, dtype=torch.int32), total
    places = torch.full((total,), len(steps), dtype=torch.int32)
    places[steps] = torch.arange(len(steps), dtype=torch.int32)
    return torch.cat([extra, nothing]), places, len(steps)
