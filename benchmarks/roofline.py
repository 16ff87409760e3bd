"""Count the bytes and the arithmetic of a compiled XLA program's kernels, and predict their time on a GPU.

The input is `compiled.as_text()`. A kernel reads its operands once and writes its results once: perfect reuse inside a
kernel, and none between kernels. Its time is the larger of bytes / bandwidth and FLOP / peak. So the sum is a lower
bound for these kernels, without launches. XLA autotunes on a GPU only, and may then choose other fusions.
"""

import collections
import math
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

BYTES = {"f64": 8, "s64": 8, "u64": 8, "f32": 4, "s32": 4, "u32": 4, "bf16": 2, "f16": 2, "s16": 2, "u16": 2}
BYTES |= dict.fromkeys(("pred", "s8", "u8", "f8e4m3fn", "f8e5m2"), 1)


@dataclass(frozen=True)
class Gpu:
    """Data-sheet figures of a GPU: dense products with float32 sums, and memory.

    Attributes:
      tflops: TFLOP/s of bfloat16 and float16.
      tflops_tf32: TFLOP/s of TensorFloat-32, in which JAX computes float32 products by default.
      bandwidth: TB/s.
    """

    tflops: float
    tflops_tf32: float
    bandwidth: float

    def seconds(self, kernel: "Kernel", dtype: str) -> float:
        """Return the predicted seconds of all calls of a kernel."""
        peak = self.tflops_tf32 if dtype == "float32" else self.tflops
        return kernel.calls * max(kernel.bytes / self.bandwidth, kernel.flop / peak) / 1e12


GPUS = {
    "A100": Gpu(312, 156, 2.039),  # NVIDIA A100 data sheet, 80 GB SXM
    "H100": Gpu(989.4, 494.7, 3.35),  # NVIDIA H100 data sheet, SXM; the sheet's 1,979 is with sparsity
    "H200": Gpu(989.4, 494.7, 4.8),  # NVIDIA H200 data sheet, SXM
    "RTX4090": Gpu(165.2, 82.6, 1.008),  # NVIDIA Ada architecture white paper, appendix A
}


def named(device_kind: str) -> str:
    """Return the GPU that JAX calls `device_kind`, or the H200 for an unknown device."""
    squeezed = device_kind.replace(" ", "")
    return next((name for name in GPUS if name in squeezed), "H200")


# --- the program's text ----------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Instruction:
    """One line of a computation; `type` is its result's."""

    name: str
    type: str
    op: str
    operands: tuple[str, ...]
    line: str

    def attribute(self, pattern: str) -> str | None:
        """Return the first group of a pattern in the line."""
        match = re.search(pattern, self.line)
        return match and match[1]


@dataclass(frozen=True)
class Kernel:
    """A kernel of the program: one of KINDS, its bytes and FLOPs per call, and where it comes from."""

    kind: str
    bytes: int
    flop: int
    calls: int
    name: str
    type: str
    source: str


KINDS = ("products", "convolutions", "fused attention", "elementwise", "reductions", "copies", "collectives", "other")
_LINE = re.compile(r"\s+(?:ROOT )?%?([\w.\-]+) = (\(.*?\)|\S+) ([\w\-]+)\((.*)")
_FREE = {"parameter", "constant", "tuple", "get-tuple-element", "bitcast", "after-all", "partition-id", "replica-id"}
_MOVES = _FREE | {"copy", "transpose", "slice", "dynamic-slice", "dynamic-update-slice", "concatenate", "pad"}
_MOVES |= {"broadcast", "reshape", "reverse", "gather", "fusion"}
_COLLECTIVE = re.compile("(all-gather|all-reduce|all-to-all|collective-permute|reduce-scatter|collective-broadcast)")


def dimensions(type: str) -> list[int]:
    """Return the sides of a type's first array."""
    return [int(side) for side in re.search(r"\w+\[([\d,]*)\]", type)[1].split(",") if side]


def size(type: str) -> int:
    """Return the bytes of a type, all arrays of a tuple together."""
    return sum(
        math.prod(int(side) for side in sides.split(",") if side) * BYTES.get(kind, 0)
        for kind, sides in re.findall(r"(\w+)\[([\d,]*)\]", type)
    )


class Program:
    """A parsed program: the instructions of each computation, and their source lines."""

    def __init__(self, text: str):
        self.computations: dict[str, dict[str, Instruction]] = {}
        self.roots: dict[str, Instruction] = {}
        self.entry = ""
        current: dict[str, Instruction] = {}
        for line in text.split("\n"):
            if header := re.match(r"(ENTRY )?%?([\w.\-]+) \(.*\{$", line):
                name = header[2]
                current = self.computations[name] = {}
                self.entry = name if header[1] else self.entry
            elif match := _LINE.match(line):
                operands = tuple(re.findall(r"%([\w.\-]+)", match[4].split("), ")[0]))
                current[match[1]] = Instruction(match[1], match[2], match[3], operands, line)
                if line.lstrip().startswith("ROOT "):
                    self.roots[name] = current[match[1]]
        self.sources = _sources(text)

    def kernels(self) -> list[Kernel]:
        """Return all kernels in order; loops count as often as they run."""
        return list(self._walk(self.entry, 1))

    def _walk(self, name: str, calls: int) -> Iterator[Kernel]:
        scope = self.computations[name]
        for instruction in scope.values():
            op = instruction.op
            if op == "while":
                trips = int(instruction.attribute(r'"known_trip_count":\{"n":"(\d+)"') or 1)
                yield from self._walk(instruction.attribute(r"body=%?([\w.\-]+)"), calls * trips)
            elif op in ("call", "async-start"):
                yield from self._walk(instruction.attribute(r"(?:to_apply|calls)=%?([\w.\-]+)"), calls)
            elif op not in _FREE and not op.endswith("-done"):
                body = list(self._body(instruction))
                flop = sum(_flop(x, inner) for x, inner in body) or _flop(instruction, scope)
                yield Kernel(
                    self._kind(instruction, {x.op for x, _ in body}),
                    self._bytes(instruction, scope),
                    flop,
                    calls,
                    instruction.name,
                    instruction.type,
                    self.sources.get(instruction.attribute(r"stack_frame_id=(\d+)"), "")
                    or instruction.attribute(r'op_name="([^"]+)"')
                    or "",
                )

    def _body(self, instruction: Instruction) -> Iterator[tuple[Instruction, dict[str, Instruction]]]:
        """Yield the instructions inside a fusion, and the computation of each."""
        name = instruction.attribute(r"calls=%?([\w.\-]+)") if instruction.op == "fusion" else None
        for inner in self.computations.get(name, {}).values():
            yield inner, self.computations[name]
            yield from self._body(inner)

    def _kind(self, instruction: Instruction, ops: set[str]) -> str:
        target = (instruction.attribute(r'custom_call_target="([^"]+)"') or "").lower()
        ops = ops or {instruction.op}
        if _COLLECTIVE.match(instruction.op):
            return "collectives"
        if "fmha" in target:
            return "fused attention"
        if "convolution" in ops or "conv" in target:
            return "convolutions"
        if ops & {"dot", "scaled-dot"} or re.search("gemm|matmul", target):
            return "products"
        if target:
            return "other"
        if ops & {"reduce", "reduce-window"}:
            return "reductions"
        return "copies" if ops <= _MOVES or instruction.op.startswith("copy") else "elementwise"

    def _bytes(self, instruction: Instruction, scope: dict[str, Instruction]) -> int:
        result = instruction.type
        operands = [size(scope[x].type) for x in instruction.operands if x in scope]
        if instruction.op == "custom-call" and result.startswith("("):
            result = re.sub(r"u8\[[\d,]*\]", "", result)  # the workspace
        if instruction.op == "dynamic-slice":
            return 2 * size(result)
        if instruction.op == "dynamic-update-slice":
            return 2 * operands[1]
        if instruction.op != "fusion":
            return size(result) + sum(operands)
        name = instruction.attribute(r"calls=%?([\w.\-]+)")
        body, root = self.computations[name], self.roots[name]
        indices = {
            x.name: int(x.line.split("parameter(")[1].split(")")[0]) for x in body.values() if x.op == "parameter"
        }
        read = sum(min(operands[i], _read(parameter, body)) for parameter, i in indices.items())
        results = [body[x] for x in root.operands] if root.op == "tuple" else [root]
        return read + sum(_written(x, body) for x in results)


def _read(name: str, body: dict[str, Instruction]) -> int:
    """Return the bytes that a fusion reads of an array: only slices of it, if all of its uses are slices."""
    total = 0
    for user in body.values():
        if name not in user.operands:
            continue
        if user.op in ("slice", "dynamic-slice", "gather") and user.operands[0] == name:
            total += size(user.type)
        elif user.op == "bitcast":
            total += _read(user.name, body)
        elif user.op != "dynamic-update-slice" or user.operands[0] != name:  # which is updated in place
            return size(body[name].type)
    return total


def _written(instruction: Instruction, body: dict[str, Instruction]) -> int:
    """Return the bytes that a fusion writes of a result: an update in place, or all."""
    while instruction.op == "bitcast":
        instruction = body[instruction.operands[0]]
    update = instruction.op == "dynamic-update-slice"
    return size(body[instruction.operands[1]].type if update else instruction.type)


def _flop(instruction: Instruction, scope: dict[str, Instruction]) -> int:
    """Return the FLOPs of a product, a convolution or fused attention; 0 for all else."""
    target = instruction.attribute(r'custom_call_target="([^"]+)"') or ""
    types = [scope[x].type for x in instruction.operands if x in scope]
    if instruction.op == "dot" or re.search("gemm|matmul", target):
        contracted = instruction.attribute(r'lhs_contracting_dim(?:s=\{|ensions":\[)([\d,"]*)').replace('"', "")
        sides = dimensions(types[0])
        return 2 * math.prod(dimensions(instruction.type)) * math.prod(sides[int(i)] for i in contracted.split(","))
    if instruction.op == "convolution" or "$conv" in target:
        # The operands of the gradients are in the place of the forward convolution's results.
        output, kernel = instruction.type, types[1]
        if "BackwardInput" in target:
            output = types[0]
        elif "BackwardFilter" in target:
            output, kernel = types[1], instruction.type
        labels = instruction.attribute(r"dim_labels=\w+_(\w+)->")
        sides = dimensions(kernel)
        return 2 * math.prod(dimensions(output)) * math.prod(sides) // sides[labels.index("o")]
    if "fmha" in target:
        logits = instruction.attribute(r'"intermediate_tensor_shape":.*?"dimensions": ?\[([^\]]*)\]')
        products = 5 if "Backward" in target else 2
        return 2 * products * math.prod(map(int, re.findall(r"\d+", logits))) * dimensions(types[0])[-1]
    return 0


def _sources(text: str) -> dict[str, str]:
    """Return "file:line function" by stack frame: the innermost one inside the package."""
    tables: dict[str, dict[str, str]] = {}
    for name in ("FileNames", "FunctionNames", "FileLocations", "StackFrames"):
        block = re.search(rf"^{name}\n((?:\d+ .*\n)*)", text, re.MULTILINE)
        tables[name] = dict(line.split(" ", 1) for line in block[1].splitlines()) if block else {}

    def place(frame: str) -> str:
        while frame in tables["StackFrames"]:
            location, parent = re.findall(r"=(\d+)", tables["StackFrames"][frame])
            file, function, line = re.findall(r"=(\d+)", tables["FileLocations"][location])[:3]
            path = tables["FileNames"][file].strip('"')
            if "/drender/" in path:
                return f"{path.rpartition('/drender/')[2]}:{line} {tables['FunctionNames'][function].strip(chr(34))}"
            frame = str(int(parent) - 1)  # parents count from 1
        return ""

    return {frame: place(frame) for frame in tables["StackFrames"]}


# --- tables ----------------------------------------------------------------------------------------------------------


def by_kind(kernels: Iterable[Kernel], gpu: Gpu, dtype: str) -> dict[str, tuple[int, float, float, float]]:
    """Return (number, GB, TFLOP, ms) of each kind that occurs, and of "all"."""
    rows: dict[str, list[float]] = collections.defaultdict(lambda: [0, 0.0, 0.0, 0.0])
    for kernel in kernels:
        numbers = kernel.calls, kernel.calls * kernel.bytes / 1e9, kernel.calls * kernel.flop / 1e12
        for kind in (kernel.kind, "all"):
            rows[kind] = [a + b for a, b in zip(rows[kind], (*numbers, gpu.seconds(kernel, dtype) * 1e3), strict=True)]
    return {kind: tuple(rows[kind]) for kind in (*KINDS, "all") if kind in rows}


def largest(kernels: Iterable[Kernel], gpu: Gpu, dtype: str, count: int = 20) -> list[Kernel]:
    """Return the kernels that take the most time, those of one source line and type together."""
    groups: dict[tuple, list[Kernel]] = collections.defaultdict(list)
    for kernel in kernels:
        groups[kernel.kind, kernel.bytes, kernel.flop, kernel.type, kernel.source].append(kernel)
    merged = [Kernel(*key[:3], sum(x.calls for x in group), group[0].name, *key[3:]) for key, group in groups.items()]
    return sorted(merged, key=lambda kernel: -gpu.seconds(kernel, dtype))[:count]


def table(title: str, kernels: list[Kernel], gpu: Gpu, dtype: str) -> str:
    """Return the kernels by kind and the largest ones, in Markdown."""
    lines = [f"**{title}**", "", "| kernels | number | GB | TFLOP | ms |", "|---|---|---|---|---|"]
    for kind, (number, gigabytes, tflop, ms) in by_kind(kernels, gpu, dtype).items():
        lines.append(f"| {kind} | {number} | {gigabytes:.1f} | {tflop:.2f} | {ms:.2f} |")
    lines += ["", "| largest | calls | MB a call | GFLOP a call | ms | result | source |", "|---" * 7 + "|"]
    for kernel in largest(kernels, gpu, dtype):
        ms = gpu.seconds(kernel, dtype) * 1e3
        shape = re.sub(r"\{[^}]*\}|/\*.*?\*/", "", kernel.type)
        lines.append(
            f"| {kernel.kind} | {kernel.calls} | {kernel.bytes / 1e6:.1f} | {kernel.flop / 1e9:.1f} | {ms:.2f} "
            f"| {shape[:60]} | {kernel.source} |"
        )
    return "\n".join(lines) + "\n"
