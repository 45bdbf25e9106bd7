"""Kernels against their specifications: outputs and every gradient, in Triton's interpreter, on ragged shapes.

Triton decides when it is imported whether it interprets, so the interpreted tests run in a process of their own:
`test_in_the_interpreter` starts it with TRITON_INTERPRET=1, and this file holds other tests there.
"""

import json
import os
import subprocess
import sys

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from sanakit.errors import SanakitError
from sanakit.kernels.glumbconv import gated_depthwise
from sanakit.kernels.glumbconv import naive as glumbconv_naive
from sanakit.kernels.linear_attention import linear_attention
from sanakit.kernels.linear_attention import naive as attention_naive

INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
TOLERANCE = {torch.float32: 5e-6, torch.float16: 2e-3, torch.bfloat16: 1.2e-2}  # relative to the norm
F32, F16, BF16 = torch.float32, torch.float16, torch.bfloat16
CORE = {
    "in_channels": 4, "out_channels": 4, "num_attention_heads": 2, "attention_head_dim": 16, "num_layers": 2,
    "num_cross_attention_heads": 2, "cross_attention_head_dim": 16, "cross_attention_dim": 32, "caption_channels": 16,
    "sample_size": 4, "patch_size": 1,
}  # fmt: skip


def close(actual, expected, dtype):
    error = (actual.cpu().double() - expected.double()).norm() / expected.double().norm().clamp_min(1e-12)
    assert actual.isfinite().all() and error < TOLERANCE[dtype], error.item()


def agrees(function, specification, inputs, grad, dtype):
    """Output and every gradient of `function` against `specification` in float64 on the CPU."""
    exact = [t.detach().cpu().double().requires_grad_() for t in inputs]
    expected = specification(*exact)
    expected.backward(grad.cpu().double())
    output = function(*inputs)
    output.backward(grad)
    assert output.dtype == dtype
    close(output, expected, dtype)
    for leaf, wanted in zip(inputs, exact, strict=True):
        assert leaf.grad.shape == leaf.shape
        close(leaf.grad, wanted.grad, dtype)


def attention_case(queries, keys, heads, dim, dtype, device="cpu", *, transposed=False):
    torch.manual_seed(queries + dim)
    if transposed:  # (B, H, N, D) in memory

        def make(n):
            return torch.randn(2, heads, n, dim, dtype=dtype, device=device).transpose(1, 2)
    else:

        def make(n):
            return torch.randn(2, n, heads * dim, dtype=dtype, device=device).unflatten(-1, (heads, dim))

    inputs = [make(n).requires_grad_() for n in (queries, keys, keys)]
    grad = torch.randn(2, heads, dim, queries, dtype=dtype, device=device).permute(0, 3, 1, 2)
    agrees(linear_attention, attention_naive.linear_attention, inputs, grad, dtype)


def glumbconv_case(half, height, width, dtype, channels_last, device="cpu", *, images=2):
    torch.manual_seed(half)
    hidden = torch.randn(images, 2 * half, height, width, dtype=dtype, device=device)
    if channels_last:
        hidden = hidden.to(memory_format=torch.channels_last)
    weight = torch.randn(2 * half, 1, 3, 3, dtype=dtype, device=device)
    bias = torch.randn(2 * half, dtype=dtype, device=device)
    grad = torch.randn(images, half, height, width, dtype=dtype, device=device)
    inputs = [t.requires_grad_() for t in (hidden, weight, bias)]
    agrees(gated_depthwise, glumbconv_naive.gated_depthwise, inputs, grad, dtype)


if INTERPRETED:
    import numpy as np
    import triton.language as tl
    from triton.runtime import interpreter

    from sanakit.kernels.glumbconv import triton as glumbconv_triton

    WIDE_TILE = {"ROWS": 16, "BLOCK_W": 16, "BLOCK_C": 1024}  # few programs to interpret
    WIDE = {"TILE": WIDE_TILE, "ROWS": 16, "BLOCK_C": 1024}

    @pytest.fixture(autouse=True, scope="module")
    def _interpreter():
        """Triton 3.8's interpreter multiplies the bit patterns of bf16, and patches its library at every inner call."""
        dot = interpreter.InterpreterBuilder.create_dot

        def widen(handle):
            if handle.dtype.scalar != tl.bfloat16:
                return handle
            return interpreter.TensorHandle((handle.data.astype(np.uint32) << 16).view(np.float32), tl.float32)

        patch = pytest.MonkeyPatch()
        patch.setattr(
            interpreter.InterpreterBuilder, "create_dot", lambda self, a, b, *rest: dot(self, widen(a), widen(b), *rest)
        )
        patched = set()

        def call(self, *args, **kwargs):
            if self.fn.__module__ not in patched:
                patched.add(self.fn.__module__)
                interpreter._patch_lang(self.fn)
            return self.rewrite()(*args, **kwargs)

        patch.setattr(interpreter.InterpretedFunction, "__call__", call)
        patch.setattr(glumbconv_triton, "TILE", {"ROWS": 4, "BLOCK_W": 16, "BLOCK_C": 16})
        patch.setattr(glumbconv_triton, "ROWS", 4)
        patch.setattr(glumbconv_triton, "BLOCK_C", 16)
        yield
        patch.undo()

    @pytest.mark.parametrize(
        ("queries", "keys", "heads", "dim", "dtype"),
        [(1, 3, 1, 32, F32), (37, 37, 3, 32, F32), (65, 9, 1, 72, F32), (40, 40, 1, 112, F32), (70, 600, 1, 32, F32),
         (600, 33, 1, 32, BF16), (70, 70, 2, 32, F16), (45, 45, 1, 112, BF16), (33, 50, 1, 72, BF16)],
    )  # fmt: skip
    def test_attention(queries, keys, heads, dim, dtype):
        attention_case(queries, keys, heads, dim, dtype)

    def test_attention_of_other_strides():
        attention_case(37, 20, 2, 32, F32, transposed=True)

    def test_attention_splits_add_up_whatever_their_number(monkeypatch):
        from sanakit.kernels.linear_attention import triton as attention_triton

        torch.manual_seed(0)
        query, key, value = torch.randn(3, 1, 900, 1, 16).unbind()
        once = linear_attention(query, key, value)
        monkeypatch.setattr(attention_triton, "PROGRAMS", 1)
        torch.testing.assert_close(linear_attention(query, key, value), once)

    def test_queries_that_are_all_negative_give_zero_and_no_gradient():
        query = -torch.rand(1, 5, 1, 16) - 0.1
        inputs = [t.requires_grad_() for t in (query, torch.randn(1, 5, 1, 16), torch.randn(1, 5, 1, 16))]
        out = linear_attention(*inputs)
        out.sum().backward()
        assert not out.any() and not any(t.grad.any() for t in inputs)

    @pytest.mark.parametrize(
        ("half", "height", "width", "dtype", "channels_last"),
        [(3, 5, 7, F32, False), (18, 1, 17, F32, True), (4, 5, 1, BF16, True), (2, 8, 8, F16, False)],
    )  # fmt: skip
    def test_glumbconv(half, height, width, dtype, channels_last):
        glumbconv_case(half, height, width, dtype, channels_last)

    @pytest.mark.slow
    @pytest.mark.parametrize("side", [16, 32])  # tokens of 512 and 1024 px
    @pytest.mark.parametrize("heads", [36, 70])  # Sana-0.6B, Sana-1.6B
    def test_sana_attention(heads, side):
        """Two heads of tensors that hold all of them: every head is a program of its own, of the same strides."""
        torch.manual_seed(heads)
        whole = torch.randn(3, 1, side**2, heads * 32).unflatten(-1, (heads, 32))
        inputs = [t[:, :, 1:3].detach().requires_grad_() for t in whole]
        assert inputs[0].stride(1) == heads * 32
        grad = torch.randn(1, side**2, 2, 32)
        agrees(linear_attention, attention_naive.linear_attention, inputs, grad, F32)

    @pytest.mark.slow
    @pytest.mark.parametrize("side", [16, 32])
    @pytest.mark.parametrize("half", [2880, 5600])
    def test_sana_glumbconv(half, side, monkeypatch):
        for name, value in WIDE.items():
            monkeypatch.setattr(glumbconv_triton, name, value)
        glumbconv_case(half, side, side, F32, True, images=1)

else:
    from sanakit.core.attention import KernelLinearAttention, remove_kernel_attention, set_kernel_attention
    from sanakit.core.dit import new_core
    from sanakit.core.feed_forward import remove_kernel_feed_forward, set_kernel_feed_forward

    def python(*arguments, **environment):
        env = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"} | environment
        done = subprocess.run([sys.executable, *arguments], capture_output=True, text=True, env=env)
        assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-2000:]
        return done.stdout

    triton_installed = pytest.mark.skipif(
        subprocess.run([sys.executable, "-c", "import triton"], capture_output=True).returncode != 0,
        reason="Triton is for Linux on x86-64",
    )

    @triton_installed
    @pytest.mark.slow
    def test_shapes_of_sana_in_the_interpreter():
        out = python("-m", "pytest", "-q", "-p", "no:cacheprovider", "-m", "slow", __file__, TRITON_INTERPRET="1")
        assert "8 passed" in out, out

    @triton_installed
    def test_in_the_interpreter():
        options = ("-q", "-p", "no:cacheprovider", "-m", "not gpu and not slow", "--durations=3")
        out = python("-m", "pytest", *options, __file__, TRITON_INTERPRET="1")
        assert " passed" in out and "failed" not in out

    @triton_installed
    def test_compiles_for_every_target_without_a_gpu():
        """Registers are not spilled and shared memory fits, at the shapes of the family in bf16."""
        rows = json.loads(python("-m", "sanakit.kernels.check", "--json", "--family"))
        limits = {"sm_80": 163 * 1024, "sm_90": 227 * 1024, "gfx942": 64 * 1024}
        assert {row["target"] for row in rows} == set(limits)
        for row in rows:
            assert row["shared_bytes"] <= limits[row["target"]], row
            assert not row.get("spilled"), row
            if row["target"] != "gfx942":
                assert (row["tensor_core"] > 0) == ("glumbconv" not in row["kernel"]), row

    def core_inputs():
        torch.manual_seed(0)
        return {
            "hidden_states": torch.randn(2, 4, 5, 3), "encoder_hidden_states": torch.randn(2, 6, 16),
            "encoder_attention_mask": torch.ones(2, 6), "timestep": torch.tensor([10.0, 900.0]), "return_dict": False,
        }  # fmt: skip

    def with_head(core):
        return torch.nn.init.normal_(core.proj_out.weight, generator=torch.Generator().manual_seed(1))

    @pytest.mark.parametrize("qk_norm", [None, "rms_norm_across_heads"])
    @pytest.mark.parametrize("dtype", [F32, BF16])
    def test_the_core_is_served_by_one_call_and_given_back_by_one(qk_norm, dtype):
        core = new_core(CORE | {"qk_norm": qk_norm}, seed=0)
        with_head(core)
        core.to(dtype)
        inputs = {k: v.to(dtype) if torch.is_tensor(v) else v for k, v in core_inputs().items()}
        weights = {k: v.clone() for k, v in core.state_dict().items()}
        processors = [b.attn1.processor for b in core.transformer_blocks]

        def run():
            core.zero_grad()
            out = core(**inputs)[0]
            out.float().square().sum().backward()
            return [out, *(p.grad for p in core.parameters() if p.grad is not None)]

        expected = run()
        assert set_kernel_attention(core) == 2 and set_kernel_attention(core) == 0
        assert set_kernel_feed_forward(core) == 2 and set_kernel_feed_forward(core) == 0
        assert all(isinstance(b.attn1.processor, KernelLinearAttention) for b in core.transformer_blocks)
        for actual, wanted in zip(run(), expected, strict=True):
            close(actual, wanted, dtype)
        assert remove_kernel_attention(core) == 2 and remove_kernel_feed_forward(core) == 2
        assert [b.attn1.processor for b in core.transformer_blocks] == processors
        assert list(core.state_dict()) == list(weights)
        assert all(torch.equal(v, weights[k]) for k, v in core.state_dict().items())
        for actual, wanted in zip(run(), expected, strict=True):
            assert torch.equal(actual, wanted)

    def test_an_adapter_on_the_depthwise_convolution_is_not_passed_over():
        """LoRA wraps the layer; reading the weight alone would drop it."""
        from peft import LoraConfig

        core = new_core(CORE, seed=0)
        with_head(core)
        core.add_adapter(
            LoraConfig(r=2, target_modules=["conv_inverted", "conv_point", "to_q"], init_lora_weights=False)
        )
        block = core.transformer_blocks[0].ff
        block.conv_depth = torch.nn.Sequential(block.conv_depth, torch.nn.Tanh())
        expected = core(**core_inputs())[0]
        assert set_kernel_attention(core) == 2 and set_kernel_feed_forward(core) == 2
        torch.testing.assert_close(core(**core_inputs())[0], expected)

    def test_train_kernels_serves_the_core_that_is_trained_where_a_kernel_can_run(monkeypatch):
        from sanakit.core.attention import KernelLinearAttention
        from sanakit.core.feed_forward import KernelGLUMBConv
        from sanakit.training.loop import TrainOptions, new_state

        core, options = new_core(CORE, seed=0), TrainOptions(max_steps=1, kernels="triton")
        groups = [{"params": list(core.parameters())}]
        monkeypatch.setattr("sanakit.core.kernels.has_triton", lambda: True)
        if not torch.cuda.is_available():
            with pytest.raises(SanakitError, match=r"SK0104\]: train.kernels is triton, and the core is on cpu"):
                new_state(core, groups, options)
            monkeypatch.setenv("TRITON_INTERPRET", "1")
        for _ in range(2):  # a second state of the same core, as stage full makes after the race
            new_state(core, groups, options)
        assert all(type(b.attn1.processor) is KernelLinearAttention for b in core.transformer_blocks)
        assert all(type(b.ff) is KernelGLUMBConv for b in core.transformer_blocks)

    class Counted(TorchDispatchMode):
        """Names of the operators that run."""

        def __enter__(self):
            self.names = []
            return super().__enter__()

        def __torch_dispatch__(self, function, types, args=(), kwargs=None):
            self.names.append(function._schema.name.removeprefix("aten::"))
            return function(*args, **(kwargs or {}))

    WAITS = {"_local_scalar_dense", "nonzero", "is_nonzero", "equal", "masked_select"}

    def test_the_specification_runs_no_more_operators_than_diffusers():
        core = new_core(CORE, seed=0)
        with Counted() as diffusers:
            core(**core_inputs())
        set_kernel_attention(core)
        set_kernel_feed_forward(core)
        with Counted() as specification:
            core(**core_inputs())
        assert len(specification.names) <= len(diffusers.names)

    def test_a_training_step_reads_nothing_but_its_figures(tiny_system, tiny_data):
        """Loss and gradient norm are read together (SK0501), which a host tensor does without an operator; the fake
        device counts that one read (tests/test_device.py)."""
        from sanakit.core.dit import parameters_by_group
        from sanakit.training.loop import TrainOptions, fit, new_state

        options = TrainOptions(max_steps=4, batch_size=4)
        groups = [{"params": p} for p in parameters_by_group(tiny_system.core).values()]
        state = fit(tiny_system, tiny_data, options, new_state(tiny_system.core, groups, options), until=1)
        with Counted() as counted:
            fit(tiny_system, tiny_data, options, state, until=2)
        waits = [name for name in counted.names if name in WAITS]
        assert waits == []

    def test_observing_synchronises_with_nothing(tiny_system, tiny_data):
        """Monitors read the device when they report, not at every step; selecting by sigma is the one exception."""
        from sanakit.training.loop import TrainOptions, draw_batch
        from sanakit.training.monitors import LatentMonitor

        watch = LatentMonitor(reference=tiny_data.latents[:, 0], num_evaluations=2)
        batch = draw_batch(tiny_system, tiny_data, TrainOptions(max_steps=4, batch_size=4), 0)
        with Counted() as counted:
            watch.observe(batch, torch.zeros_like(batch.latents))
        assert [name for name in counted.names if name in WAITS] == []

    def test_help_imports_nothing_heavy():
        code = "import sys; from sanakit.cli.app import app; print(*sorted({m.split('.')[0] for m in sys.modules}))"
        heavy = {"torch", "triton", "diffusers", "transformers", "numpy", "pandas", "scipy", "sklearn"}
        assert not set(python("-c", code).split()) & heavy


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", [F32, BF16])
@pytest.mark.parametrize("dim", [32, 72, 112])
def test_attention_on_a_gpu(dim, dtype):
    attention_case(1025, 1025, 4, dim, dtype, "cuda")


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", [F32, BF16])
def test_glumbconv_on_a_gpu(dtype):
    glumbconv_case(100, 33, 31, dtype, True, "cuda")


@pytest.mark.gpu
def test_kernels_launched_on_a_gpu():
    """Two launches forward and two backward, and a sum over splits where a sequence is cut."""
    from torch.profiler import ProfilerActivity, profile

    inputs = [torch.randn(64, 1024, 70, 32, dtype=BF16, device="cuda").requires_grad_() for _ in range(3)]
    grad = torch.randn_like(inputs[0])
    linear_attention(*inputs).backward(grad)
    with profile(activities=[ProfilerActivity.CUDA]) as recorded:
        torch.autograd.grad(linear_attention(*inputs), inputs, grad)
    launched = [e.name for e in recorded.events() if "_kernel" in e.name and "at::" not in e.name]
    assert len(launched) == 4, launched
