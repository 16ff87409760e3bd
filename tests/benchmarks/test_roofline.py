"""roofline.py: bytes, FLOPs and time of a program's kernels, against numbers computed by hand."""

import pytest
import roofline

PROGRAM = """HloModule jit_step, is_scheduled=true

FileNames
1 "/site-packages/flax/nnx/linear.py"
2 "/home/drender/drender/models/unet.py"

FunctionNames
1 "Linear.__call__"
2 "UNet.__call__"

FileLocations
1 {file_name_id=2 function_name_id=2 line=70 end_line=70 column=3 end_column=9}
2 {file_name_id=1 function_name_id=1 line=5 end_line=5 column=3 end_column=9}

StackFrames
1 {file_location_id=1 parent_frame_id=1}
2 {file_location_id=2 parent_frame_id=2}

%product (a: bf16[8,16], b: bf16[16,4]) -> bf16[8,4] {
  %a = bf16[8,16]{1,0} parameter(0)
  %b = bf16[16,4]{1,0} parameter(1)
  ROOT %dot.1 = bf16[8,4]{1,0} dot(%a, %b), lhs_contracting_dims={1}, rhs_contracting_dims={0}
}

%sums (c: bf16[8,4]) -> f32[4] {
  %c = bf16[8,4]{1,0} parameter(0)
  %convert.1 = f32[8,4]{1,0} convert(%c)
  %zero = f32[] constant(0)
  ROOT %reduce.1 = f32[4]{0} reduce(%convert.1, %zero), dimensions={0}, to_apply=%add
}

%gate (d: bf16[8,4], e: f32[4]) -> bf16[8,2] {
  %d = bf16[8,4]{1,0} parameter(0)
  %e = f32[4]{0} parameter(1)
  %half = bf16[8,2]{1,0} slice(%d), slice={[0:8], [0:2]}
  %scale = f32[2]{0} slice(%e), slice={[0:2]}
  %rows = f32[8,2]{1,0} broadcast(%scale), dimensions={1}
  %low = bf16[8,2]{1,0} convert(%rows)
  ROOT %multiply.1 = bf16[8,2]{1,0} multiply(%half, %low)
}

%turned (g: bf16[3,3,2,6]) -> bf16[6,3,3,2] {
  %g = bf16[3,3,2,6]{3,2,1,0} parameter(0)
  ROOT %transpose.1 = bf16[6,3,3,2]{3,2,1,0} transpose(%g), dimensions={3,0,1,2}
}

%put (h: f32[5,100], i: f32[1,100], j: s32[]) -> f32[5,100] {
  %h = f32[5,100]{1,0} parameter(0)
  %i = f32[1,100]{1,0} parameter(1)
  %j = s32[] parameter(2)
  %k = s32[] constant(0)
  ROOT %update = f32[5,100]{1,0} dynamic-update-slice(%h, %i, %j, %k)
}

%body (state: (f32[5,100], f32[1,100], s32[])) -> (f32[5,100], f32[1,100], s32[]) {
  %state = (f32[5,100]{1,0}, f32[1,100]{1,0}, s32[]) parameter(0)
  %all = f32[5,100]{1,0} get-tuple-element(%state), index=0
  %row = f32[1,100]{1,0} get-tuple-element(%state), index=1
  %n = s32[] get-tuple-element(%state), index=2
  %put_fusion = f32[5,100]{1,0} fusion(%all, %row, %n), kind=kLoop, calls=%put
  ROOT %next = (f32[5,100]{1,0}, f32[1,100]{1,0}, s32[]) tuple(%put_fusion, %row, %n)
}

%condition (state.1: (f32[5,100], f32[1,100], s32[])) -> pred[] {
  %state.1 = (f32[5,100]{1,0}, f32[1,100]{1,0}, s32[]) parameter(0)
  ROOT %less = pred[] constant(true)
}

ENTRY %main (x: bf16[8,16], w: bf16[16,4], image: bf16[1,5,5,2], taps: bf16[3,3,2,6], q: bf16[2,64,3,8], q.t: s32[]) -> f32[5,100] {
  %x = bf16[8,16]{1,0} parameter(0)
  %w = bf16[16,4]{1,0} parameter(1)
  %image = bf16[1,5,5,2]{3,2,1,0} parameter(2)
  %taps = bf16[3,3,2,6]{3,2,1,0} parameter(3)
  %q = bf16[2,64,3,8]{3,2,1,0} parameter(4)
  %gemm = bf16[8,4]{1,0} fusion(%x, %w), kind=kCustom, calls=%product, metadata={op_name="jit(step)/dot" stack_frame_id=2}
  %norm = f32[4]{0} fusion(%gemm), kind=kInput, calls=%sums
  %gated = bf16[8,2]{1,0} fusion(%gemm, %norm), kind=kLoop, calls=%gate
  %filter = bf16[6,3,3,2]{3,2,1,0} fusion(%taps), kind=kLoop, calls=%turned
  %conv = (bf16[1,5,5,6]{3,2,1,0}, u8[4096]{0}) custom-call(%image, %filter), window={size=3x3 pad=1_1x1_1}, dim_labels=b01f_o01i->b01f, custom_call_target="__cudnn$convForward"
  %result = bf16[1,5,5,6]{3,2,1,0} get-tuple-element(%conv), index=0
  %dkernel = (bf16[6,3,3,2]{3,2,1,0}, u8[16]{0}) custom-call(%image, %result), dim_labels=b01f_o01i->b01f, custom_call_target="__cudnn$convBackwardFilter"
  %fmha = (bf16[2,3,64,8]{3,1,2,0}, u8[0]{0}) custom-call(%q, %q, %q), custom_call_target="__cudnn$fmhaSoftmax", backend_config={"cudnn_fmha_backend_config": {"intermediate_tensor_shape": {"element_type": "BF16", "dimensions": ["2", "3", "64", "64"]}}}
  %zeros = f32[5,100]{1,0} broadcast(), dimensions={}
  %line = f32[1,100]{1,0} broadcast(), dimensions={}
  %first = s32[] constant(0)
  %initial = (f32[5,100]{1,0}, f32[1,100]{1,0}, s32[]) tuple(%zeros, %line, %first)
  %loop = (f32[5,100]{1,0}, f32[1,100]{1,0}, s32[]) while(%initial), condition=%condition, body=%body, backend_config={"known_trip_count":{"n":"5"}}
  %gather = (bf16[4]{0}, bf16[8]{0}) all-gather-start(%w), dimensions={0}
  %gathered = bf16[8]{0} all-gather-done(%gather)
  ROOT %end = f32[5,100]{1,0} get-tuple-element(%loop), index=0
}
"""  # noqa: E501 (as XLA prints it)


@pytest.fixture(scope="module")
def kernels():
    return roofline.Program(PROGRAM).kernels()


def test_kernels_have_the_bytes_and_flops_computed_by_hand(kernels):
    actual = {kernel.name: (kernel.kind, kernel.bytes, kernel.flop, kernel.calls) for kernel in kernels}
    assert actual == {
        "gemm": ("products", 2 * (8 * 16 + 16 * 4 + 8 * 4), 2 * 8 * 16 * 4, 1),
        "norm": ("reductions", 2 * 8 * 4 + 4 * 4, 0, 1),
        "gated": ("elementwise", 2 * 8 * 2 + 4 * 2 + 2 * 8 * 2, 0, 1),  # the halves that it reads, not the wholes
        "filter": ("copies", 2 * 2 * 3 * 3 * 2 * 6, 0, 1),
        # Without the workspace.
        "conv": ("convolutions", 2 * (50 + 108 + 150), 2 * 150 * 9 * 2, 1),
        "dkernel": ("convolutions", 2 * (50 + 150 + 108), 2 * 150 * 9 * 2, 1),
        "fmha": ("fused attention", 2 * 4 * 2 * 64 * 3 * 8, 2 * 2 * (2 * 3 * 64 * 64) * 8, 1),
        "zeros": ("copies", 4 * 500, 0, 1),
        "line": ("copies", 4 * 100, 0, 1),
        # Updated in place: one row in, one row out, and the index.
        "put_fusion": ("copies", 4 * (100 + 100 + 1), 0, 5),
        "gather": ("collectives", 2 * (16 * 4 + 4 + 8), 0, 1),
    }


def test_source_is_the_innermost_line_of_the_package(kernels):
    assert kernels[0].source == "models/unet.py:70 UNet.__call__"


def test_time_is_the_larger_of_bytes_and_arithmetic(kernels):
    gemm = kernels[0]
    assert roofline.Gpu(1e-9, 1.0, 1.0).seconds(gemm, "bfloat16") == pytest.approx(1024 / 1e3)
    assert roofline.Gpu(1.0, 1.0, 1e-9).seconds(gemm, "bfloat16") == pytest.approx(448 / 1e3)
    assert roofline.Gpu(1.0, 1e-9, 1.0).seconds(gemm, "float32") == pytest.approx(1024 / 1e3)


def test_sums_count_every_call(kernels):
    gpu = roofline.Gpu(1.0, 1.0, 1e-9)
    rows = roofline.by_kind(kernels, gpu, "bfloat16")
    number, gigabytes, tflop, ms = rows["all"]
    total = sum(kernel.bytes * kernel.calls for kernel in kernels)
    assert (number, gigabytes, ms) == (15, pytest.approx(total / 1e9), pytest.approx(total))
    assert tflop == pytest.approx((1024 + 2 * 5400 + 4 * 24576 * 8) / 1e12)
    assert sum(row[0] for kind, row in rows.items() if kind != "all") == number


def test_table_lists_the_slowest_kernel_first(kernels):
    text = roofline.table("step", kernels, roofline.GPUS["H200"], "bfloat16")
    largest = text.partition("largest")[2].splitlines()[2]
    assert largest == "| fused attention | 1 | 0.0 | 0.0 | 0.00 | (bf16[2,3,64,8], u8[0]) |  |"
