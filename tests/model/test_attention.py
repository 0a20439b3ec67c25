"""Every attention backend against the formula, and what a mask costs."""

import shutil
import sys
from types import ModuleType

import pytest
import torch
from cwm_core.model import ModelConfig, Transformer, attention, preset
from cwm_core.model.attention import BACKENDS, choose_backend, flex, sdpa, varlen
from cwm_core.model.attention.documents import Documents
from cwm_core.model.attention.sdpa import QUERY_BLOCK, QUERY_SLICE, causal_attention
from cwm_core.model.rotary import rotary, rotate
from hypothesis import given, settings
from hypothesis import strategies as st
from random_models import random_model
from ranks import run_ranks
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.nn.attention.flex_attention import create_block_mask
from torch.utils.flop_counter import FlopCounterMode

CPU = torch.device("cpu")

windows = st.none() | st.integers(1, 50)


def offsets_of(lengths):
    return torch.tensor([0, *lengths]).cumsum(0)


def random_qkv(n, heads=4, kv_heads=2, head_dim=8, batch=1, dtype=torch.float64):
    return [torch.randn(batch, h, n, head_dim, dtype=dtype) for h in (heads, kv_heads, kv_heads)]


def outputs_and_gradients(inputs, upstream, *args, backend):
    inputs = [t.clone().requires_grad_() for t in inputs]
    out = attention(*inputs, *args, backend=backend)
    out.backward(upstream)
    return [out, *(t.grad for t in inputs)]


def assert_equals_reference(backend, inputs, *args, **tolerance):
    upstream = torch.randn_like(inputs[0])
    ours, expected = (outputs_and_gradients(inputs, upstream, *args, backend=name) for name in (backend, "reference"))
    for ours_one, expected_one in zip(ours, expected, strict=True):
        torch.testing.assert_close(ours_one, expected_one, **tolerance)


# --- the formula itself, and sdpa ---


def test_reference_is_the_formula_written_in_loops():
    torch.manual_seed(0)
    lengths, window = [3, 0, 5, 1], 3
    q, k, v = random_qkv(9)
    expected = torch.empty_like(q)
    for start, length in zip(offsets_of(lengths).tolist(), lengths, strict=False):
        for head in range(4):
            for i in range(start, start + length):
                keys = range(max(start, i - window + 1), i + 1)
                scores = torch.stack([q[0, head, i] @ k[0, head // 2, j] / 8**0.5 for j in keys])
                expected[0, head, i] = scores.softmax(0) @ v[0, head // 2, keys[0] : i + 1]
    torch.testing.assert_close(attention(q, k, v, offsets_of(lengths), window, backend="reference"), expected)


@pytest.fixture(scope="module")
def small_blocks():
    """Blocks of a few tokens, so that small examples take every path of the sdpa backend."""
    with pytest.MonkeyPatch.context() as patch:
        for name, value in {"SHORT": 6, "QUERY_BLOCK": 4, "QUERY_SLICE": 12, "CACHED_BLOCK": 5}.items():
            patch.setattr(sdpa, name, value)
        for masks in (sdpa.sliding_mask, sdpa.short_mask):
            masks.cache_clear()
        yield
    for masks in (sdpa.sliding_mask, sdpa.short_mask):
        masks.cache_clear()


packings = st.lists(st.integers(0, 60), min_size=1, max_size=5).filter(sum)


@settings(max_examples=150)
@given(packings, windows, st.integers(1, 3), st.integers(1, 3), st.integers(0, 2**31))
def test_sdpa_equals_reference(small_blocks, lengths, window, kv_heads, groups, seed):
    torch.manual_seed(seed)
    inputs = random_qkv(sum(lengths), kv_heads * groups, kv_heads)
    assert_equals_reference("sdpa", inputs, offsets_of(lengths), window)


@settings(max_examples=50)
@given(st.integers(1, 60), st.integers(1, 60), windows, st.integers(0, 2**31))
def test_queries_after_a_cache_equal_the_last_of_all(small_blocks, cached, new, window, seed):
    torch.manual_seed(seed)
    q, k, v = random_qkv(cached + new)
    expected = attention(q, k, v, None, window, backend="reference")[:, :, cached:]
    torch.testing.assert_close(causal_attention(q[:, :, cached:], k, v, window), expected)


@pytest.mark.parametrize("window", [1, 100, 700, None])
def test_sdpa_equals_reference_at_its_own_sizes(window):
    torch.manual_seed(0)
    inputs = random_qkv(QUERY_SLICE + 700, dtype=torch.float32)
    offsets = offsets_of([QUERY_SLICE + 500, 200])
    assert_equals_reference("sdpa", inputs, offsets, window, atol=2e-5, rtol=1e-4)


@pytest.mark.filterwarnings("ignore:flex_attention called without torch.compile")
@pytest.mark.parametrize("backend", ["sdpa", "flex"])
@pytest.mark.parametrize("n", [7, 600])
def test_rows_of_a_batch_are_documents(backend, n):
    torch.manual_seed(0)
    q, k, v = random_qkv(n, batch=3)
    expected = torch.cat([attention(*(t[i : i + 1] for t in (q, k, v)), None, 5) for i in range(3)])
    for name in (backend, "reference"):
        torch.testing.assert_close(attention(q, k, v, None, 5, backend=name), expected)


# --- flex ---

long_packings = st.lists(
    st.sampled_from([0, 1, 127, 128, 129, 256, 384]) | st.integers(0, 700), min_size=1, max_size=6
).filter(sum)
long_windows = st.none() | st.sampled_from([1, 2, 127, 128, 129, 256, 257]) | st.integers(1, 900)


@settings(max_examples=150)
@given(long_packings, long_windows)
def test_block_mask_equals_that_of_every_pair(lengths, window):
    """Same blocks in the same order as PyTorch finds by evaluating the mask everywhere, for both passes."""
    n = sum(lengths)
    documents = torch.arange(len(lengths)).repeat_interleave(torch.tensor(lengths))

    def mask_mod(_batch, _head, query, key):
        near = True if window is None else query - key < window
        return (documents[query] == documents[key]) & (key <= query) & near

    expected = create_block_mask(mask_mod, 1, 1, n, n, device="cpu")
    ours = flex.block_mask(Documents.from_offsets(offsets_of(lengths), n, CPU).first_keys(window))
    assert ours.shape == expected.shape and ours.BLOCK_SIZE == expected.BLOCK_SIZE
    for kind in ("kv", "full_kv", "q", "full_q"):
        counts, indices = getattr(ours, f"{kind}_num_blocks"), getattr(ours, f"{kind}_indices")
        assert counts.dtype == indices.dtype == torch.int32
        assert torch.equal(counts, getattr(expected, f"{kind}_num_blocks"))
        used = torch.arange(indices.shape[-1]) < counts[..., None]
        assert torch.equal(indices[used], getattr(expected, f"{kind}_indices")[used])
        assert ((indices >= 0) & (indices < indices.shape[-1])).all()
    pairs = torch.arange(n)
    assert torch.equal(
        ours.mask_mod(0, 0, pairs[:, None], pairs) & torch.ones(1, dtype=torch.bool),
        mask_mod(0, 0, pairs[:, None], pairs),
    )


def test_block_mask_is_made_without_reading_the_device():
    """Fake tensors have shapes and no values: asking them for one is an error."""
    with FakeTensorMode():
        offsets = torch.empty(5, dtype=torch.int32, device="cuda")
        mask = flex.Flex(Documents(offsets, [131_072], packed=True), 8192).block_mask
    assert mask.kv_indices.shape == (1, 1, 1024, 1024) and mask.kv_indices.device.type == "cuda"


@pytest.fixture
def flex_gradients(monkeypatch):
    """PyTorch refuses gradients on a CPU, for which it has no kernel; its formula, which runs there, has them."""
    monkeypatch.setattr("torch.nn.attention.flex_attention._validate_device", lambda *_: None)
    torch._dynamo.reset()


@pytest.mark.filterwarnings("ignore:flex_attention called without torch.compile")
@pytest.mark.parametrize(("lengths", "window"), [([100, 60], 30), ([100, 0, 60], None), ([37], 5), ([300, 1], 200)])
def test_flex_equals_reference(flex_gradients, lengths, window):
    torch.manual_seed(0)
    assert_equals_reference("flex", random_qkv(sum(lengths)), offsets_of(lengths), window)


@pytest.mark.skipif(shutil.which("c++") is None, reason="PyTorch compiles its kernel for CPUs with a C++ compiler")
def test_flex_in_its_compiled_kernel(monkeypatch):
    """The formula that runs on a CPU reads no blocks; the kernel, forward, does: without one of them it is wrong."""
    torch._dynamo.reset()
    monkeypatch.setattr(flex, "flex_attention", flex.compiled_flex_attention())
    torch.manual_seed(0)
    q, k, v = random_qkv(1000, dtype=torch.float32)
    for lengths, window in (([300, 0, 500, 200], None), ([300, 500, 200], 130), ([700, 300], 300), ([513, 487], 127)):
        mask = flex.Flex(Documents.from_offsets(offsets_of(lengths), 1000, CPU), window)
        expected = attention(q, k, v, offsets_of(lengths), window, backend="reference")
        torch.testing.assert_close(mask.attend(q, k, v), expected, atol=1e-5, rtol=1e-4)
    for counts in (mask.block_mask.kv_num_blocks, mask.block_mask.full_kv_num_blocks):
        row = int(counts.argmax())
        if counts[0, 0, row]:
            counts[0, 0, row] -= 1
            assert not torch.allclose(mask.attend(q, k, v), expected, atol=1e-2)


@pytest.mark.filterwarnings("ignore:flex_attention called without torch.compile")
def test_flex_on_a_cpu_says_that_it_cannot_train():
    inputs = [t.requires_grad_() for t in random_qkv(10)]
    with pytest.raises(NotImplementedError, match="does not support backward on CPU"):
        attention(*inputs, backend="flex")


# --- varlen ---


def documented_varlen_attn(
    query, key, value, cu_seq_q, cu_seq_k, max_q, max_k, *, window_size=(-1, -1), enable_gqa=False
):
    """Compute what PyTorch documents for `torch.nn.attention.varlen.varlen_attn`, with dense masks, in float64."""
    assert enable_gqa and query.dtype == key.dtype == value.dtype == torch.bfloat16
    assert cu_seq_q.dtype == torch.int32 and cu_seq_q.diff().max() <= max_q == max_k
    left, right = window_size
    outputs = []
    for start, end in zip(cu_seq_q[:-1], cu_seq_k[1:], strict=True):
        q, k, v = (t[start:end].double().transpose(0, 1) for t in (query, key, value))
        distance = torch.arange(end - start)[:, None] - torch.arange(end - start)
        mask = (distance >= -right) & ((distance <= left) | torch.tensor(left == -1))
        outputs.append(torch.nn.functional.scaled_dot_product_attention(q, k, v, attn_mask=mask, enable_gqa=True))
    return torch.cat(outputs, 1).transpose(0, 1).to(query.dtype)


@torch.library.custom_op("cwm_tests::varlen", mutates_args=())
def varlen_operator(q: Tensor, k: Tensor, v: Tensor, offsets: Tensor, longest: int, window: list[int]) -> Tensor:
    """The stand-in as an operator that compilers do not look into, as the kernel is."""
    out = documented_varlen_attn(q, k, v, offsets, offsets, longest, longest, window_size=window, enable_gqa=True)
    return out.contiguous()


@varlen_operator.register_fake
def _(q, k, v, offsets, longest, window):
    return torch.empty_like(q).contiguous()


def call_varlen_operator(q, k, v, offsets, _, longest, longest_k, *, window_size, enable_gqa):
    return varlen_operator(q, k, v, offsets, longest, list(window_size))


@pytest.fixture
def varlen_on_cpu(monkeypatch):
    monkeypatch.setattr("torch.nn.attention.varlen.varlen_attn", documented_varlen_attn)
    monkeypatch.setattr(varlen.Varlen, "unavailable", staticmethod(lambda _: None))
    varlen.find_kernel.cache_clear()
    yield
    varlen.find_kernel.cache_clear()


@pytest.mark.parametrize(("lengths", "window"), [([100, 60], 30), ([100, 0, 60], None), ([37, 3], 1), ([300, 1], 299)])
def test_varlen_hands_its_kernel_what_the_reference_computes(varlen_on_cpu, lengths, window):
    torch.manual_seed(0)
    inputs = random_qkv(sum(lengths), dtype=torch.bfloat16)
    upstream = torch.randn_like(inputs[0])
    ours = outputs_and_gradients(inputs, upstream, offsets_of(lengths), window, backend="varlen")
    exact = outputs_and_gradients(
        [t.double() for t in inputs], upstream.double(), offsets_of(lengths), window, backend="reference"
    )
    for a, b in zip(ours, exact, strict=True):
        torch.testing.assert_close(a, b.bfloat16())


def test_varlen_takes_rows_of_a_batch(varlen_on_cpu):
    torch.manual_seed(0)
    inputs = random_qkv(20, batch=3, dtype=torch.bfloat16)
    exact = attention(*(t.double() for t in inputs), None, 5, backend="reference")
    torch.testing.assert_close(attention(*inputs, None, 5, backend="varlen"), exact.bfloat16())


def test_varlen_fits_the_operator_that_pytorch_ships():
    """Its shapes, types and arguments by PyTorch's own fake implementation of the kernel; values need a GPU."""
    with FakeTensorMode():
        q, k, v = (torch.empty(1, heads, 300, 64, dtype=torch.bfloat16, device="cuda") for heads in (6, 2, 2))
        offsets = torch.empty(4, dtype=torch.int32, device="cuda")
        out = varlen.Varlen(Documents(offsets, [100, 150, 50], packed=True), 10).attend(q, k, v)
    assert out.shape == q.shape and out.dtype == q.dtype and out.device == q.device


def test_varlen_rounds_the_longest_document_up():
    longest = [varlen.Varlen(Documents.from_offsets(offsets_of([n]), n, CPU), None).longest for n in (1, 2, 3, 64, 65)]
    assert longest == [1, 2, 4, 64, 128]


def test_flash_attn_stands_in_for_a_varlen_attn_without_windows(monkeypatch):
    calls = []

    def flash_attn_varlen_func(q, k, v, offsets_q, offsets_k, longest_q, longest_k, *, causal, window_size):
        assert causal
        calls.append(window_size)
        return documented_varlen_attn(
            q, k, v, offsets_q, offsets_k, longest_q, longest_k, window_size=window_size, enable_gqa=True
        )

    monkeypatch.setattr("torch.nn.attention.varlen.varlen_attn", lambda q, k, v, a, b, c, d, is_causal=False: None)
    monkeypatch.setattr(varlen.Varlen, "unavailable", staticmethod(lambda _: None))
    package = ModuleType("flash_attn")
    package.flash_attn_varlen_func = flash_attn_varlen_func
    monkeypatch.setitem(sys.modules, "flash_attn", package)
    varlen.find_kernel.cache_clear()
    inputs = random_qkv(20, dtype=torch.bfloat16)
    out = attention(*inputs, None, 5, backend="varlen")
    varlen.find_kernel.cache_clear()
    torch.testing.assert_close(out, attention(*(t.double() for t in inputs), None, 5).bfloat16())
    assert calls == [(4, 0)]


# --- which backend ---


def test_backends_that_cannot_run_say_why(monkeypatch):
    with pytest.raises(ValueError, match="no attention backend 'flash'; there are reference, sdpa, flex, varlen"):
        choose_backend("flash", CPU)
    with pytest.raises(RuntimeError, match="'varlen' cannot run: its kernel is CUDA's, and the model is on cpu"):
        choose_backend("varlen", CPU)
    cuda = torch.device("cuda")
    monkeypatch.setattr("torch.cuda.get_device_capability", lambda _: (7, 5))
    with pytest.raises(RuntimeError, match=r"compute capability 8\.0"):
        choose_backend("varlen", cuda)
    monkeypatch.setattr("torch.cuda.get_device_capability", lambda _: (9, 0))
    assert choose_backend("varlen", cuda) is varlen.Varlen
    monkeypatch.setattr("torch.nn.attention.varlen.varlen_attn", lambda q, k, v, a, b, c, d, is_causal=False: None)
    monkeypatch.setitem(sys.modules, "flash_attn", None)
    varlen.find_kernel.cache_clear()
    with pytest.raises(RuntimeError, match="no varlen_attn with windows, and flash-attn is not installed"):
        choose_backend("varlen", cuda)
    varlen.find_kernel.cache_clear()
    with pytest.raises(TypeError, match=r"bfloat16 or float16, got torch\.float32"):
        varlen.Varlen(Documents.from_rows(1, 4, CPU), None).attend(*random_qkv(4, dtype=torch.float32))


def test_default_backends():
    assert choose_backend(None, CPU) is sdpa.Sdpa
    assert choose_backend(None, torch.device("meta")) is sdpa.Sdpa
    assert choose_backend(None, torch.device("cuda")) is flex.Flex


# --- within the model ---

MODEL = preset(
    "tiny", vocab_size=50, sliding_window=40, num_hidden_layers=3, full_attention_interval=2, layer_windows=()
)


@pytest.mark.filterwarnings("ignore:flex_attention called without torch.compile")
@pytest.mark.parametrize("offsets", [None, offsets_of([150, 0, 47, 3])], ids=["rows", "packed"])
def test_a_model_gives_equal_gradients_with_every_backend(flex_gradients, varlen_on_cpu, offsets):
    tokens = torch.randint(50, (2, 100), generator=torch.Generator().manual_seed(0))
    gradients = {}
    for backend in BACKENDS:
        model = random_model(MODEL, dtype=torch.bfloat16 if backend == "varlen" else torch.float64)
        model.attention_backend = backend
        loss = model.loss(tokens, tokens, cu_seqlens=offsets, global_window=120)
        loss.total.backward()
        gradients[backend] = [loss.tokens, *(p.grad for p in model.parameters())]
    for backend in ("sdpa", "flex"):
        torch.testing.assert_close(gradients[backend], gradients["reference"])
    # Of this backend's own arithmetic nothing runs here: that its gradients are close says that they arrive.
    for ours, exact in zip(gradients["varlen"], gradients["reference"], strict=True):
        assert torch.nn.functional.cosine_similarity(ours.flatten().double(), exact.flatten().double(), 0) > 0.99


def test_a_model_makes_one_mask_for_each_window(monkeypatch):
    made = []

    class Spy(sdpa.Sdpa):
        def __init__(self, documents, window):
            made.append(window)
            super().__init__(documents, window)

    monkeypatch.setitem(BACKENDS, "sdpa", Spy)
    Transformer(MODEL).hidden(torch.zeros(1, 4, dtype=torch.long), global_window=30)
    assert made == [30, 40]


@pytest.mark.filterwarnings("ignore:flex_attention called without torch.compile")
@pytest.mark.parametrize("backend", ["flex", "varlen"])
def test_a_layer_compiles_whole_and_once(monkeypatch, varlen_on_cpu, backend):
    """No graph break, and no new graph for another packing: nothing of it is known to the compiled layer."""
    torch._dynamo.reset()
    graphs = []

    def compiler(graph, _inputs):
        graphs.append(graph)
        return graph

    model = random_model(MODEL, dtype=torch.bfloat16)
    packings = [[100, 60, 40], [90, 90, 20], [198, 1, 1], [70, 65, 65]]
    tokens = torch.randint(50, (200,))
    with torch.no_grad():
        model.attention_backend = "reference"
        expected = [model(tokens, offsets_of(lengths)) for lengths in packings]
        model.attention_backend = backend
        monkeypatch.setattr("torch.nn.attention.varlen.varlen_attn", call_varlen_operator)
        varlen.find_kernel.cache_clear()
        for layer in model.layers:
            layer.compile(backend=compiler, fullgraph=True)
        counts = []
        for lengths, logits in zip(packings, expected, strict=True):
            ours = model(tokens, offsets_of(lengths))
            assert torch.nn.functional.cosine_similarity(ours.float(), logits.float(), -1).min() > 0.99
            counts.append(len(graphs))
    # varlen: a graph for each window, and one more when the number of documents first changes.
    assert counts[-1] <= {"flex": 1, "varlen": 3}[backend] and counts[-1] == counts[-2]


def test_sdpa_breaks_the_graph_of_a_compiled_layer_and_stays_right():
    torch._dynamo.reset()
    model = random_model(MODEL)
    tokens = torch.randint(50, (200,))
    packings = [[100, 60, 40], [200], [50, 150]]
    with torch.no_grad():
        expected = [model(tokens, offsets_of(lengths)) for lengths in packings]
        for layer in model.layers:
            layer.compile(backend="eager")
        for lengths, logits in zip(packings, expected, strict=True):
            torch.testing.assert_close(model(tokens, offsets_of(lengths)), logits)


def test_under_autocast_attention_gets_one_type_rotated_in_float32(monkeypatch):
    """Rotated as at float32 precision, far out too; then cast once."""
    model = random_model(MODEL)
    layer = model.layers[0].self_attn
    positions = torch.arange(131_000, 131_020)[None]
    seen = {}
    layer.register_forward_pre_hook(lambda _, args: seen.update(x=args[0]))
    layer.inner.register_forward_pre_hook(lambda _, args: seen.update(zip("qkv", args[:3], strict=True)))
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        model.hidden(torch.randint(50, (1, 20)), position_ids=positions)
        rotation = rotary(positions, MODEL, torch.float32)
        projected = layer.q_proj(seen["x"]).unflatten(-1, (-1, MODEL.head_dim))
    assert {seen[name].dtype for name in "qkv"} == {torch.bfloat16} == {projected.dtype}
    assert torch.equal(seen["q"], rotate(projected.float(), rotation).bfloat16().transpose(1, 2))


def rank_of_context(config, tokens, offsets):
    """Logits of this rank's tokens, where the inner attention gathers all tokens and keeps its own."""
    import torch.distributed as dist

    rank, ranks = dist.get_rank(), dist.get_world_size()
    model = random_model(config)
    model.context_ranks = ranks
    ours = slice(rank * len(tokens) // ranks, (rank + 1) * len(tokens) // ranks)

    def gathered(x):
        parts = [torch.empty_like(x) for _ in range(ranks)]
        dist.all_gather(parts, x.contiguous())
        return torch.cat(parts, 2)

    for layer in model.layers:
        whole = layer.self_attn.inner.forward
        layer.self_attn.inner.forward = lambda q, k, v, mask, whole=whole: whole(
            gathered(q), gathered(k), gathered(v), mask
        )[:, :, ours]
    positions = torch.arange(len(tokens)) - Documents.from_offsets(offsets, len(tokens), CPU).starts()
    with torch.no_grad():
        return model(tokens[ours], offsets, positions[ours])


def test_ranks_that_share_a_row_need_the_offsets_of_all_its_tokens():
    tokens, offsets = torch.randint(50, (120,)), offsets_of([70, 50])
    parts = run_ranks(rank_of_context, 2, MODEL, tokens, offsets)
    with torch.no_grad():
        torch.testing.assert_close(torch.cat(parts), random_model(MODEL)(tokens, offsets), atol=1e-5, rtol=1e-5)
    model = Transformer(MODEL)
    model.context_ranks = 2
    with pytest.raises(ValueError, match="position_ids are required"):
        model(tokens[:60], offsets)
    with pytest.raises(ValueError, match="must rise from 0 to the 240 tokens"):
        model(tokens, offsets, torch.arange(120))


# --- cost ---


def pairs(length, window):
    return sum(min(i + 1, window or length) for i in range(length))


@pytest.mark.parametrize("window", [512, 2048])
def test_local_attention_costs_what_its_window_does(window):
    """Products beyond the mask's are at most those of half a window, at a document's beginning, and of a block."""
    q, k, v = random_qkv(6 * window, dtype=torch.float32)
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        attention(q, k, v, None, window)
    first = 4 * 4 * 8 * (window * window - pairs(window, window))
    per_block = 1 + QUERY_BLOCK / window
    assert counter.get_total_flops() - first <= 4 * 4 * 8 * pairs(6 * window, window) * per_block


def test_local_attention_keeps_one_mask():
    """Check that saved memory doubles with the document, except for the mask that all blocks share."""
    saved = []
    for n in (4096, 8192):
        storages = {}

        def pack(tensor, storages=storages):
            storages[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage()
            return tensor

        inputs = [t.requires_grad_() for t in random_qkv(n, dtype=torch.float32)]
        with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
            out = attention(*inputs, None, 1024)
        saved.append(sum(storage.nbytes() for storage in storages.values()))
        del out
    tokens = 4 * 8 * 2 * (4 + 2)  # bytes of q, k, v and the output; then copies of q by groups, the softmax's sums
    mask = 2 * QUERY_BLOCK * (QUERY_BLOCK + 1024 + 15) * 4
    assert saved[0] <= 4096 * 2 * tokens + mask
    assert saved[1] - saved[0] <= 4096 * 2 * tokens


def test_offsets_may_repeat():
    config = ModelConfig(
        vocab_size=9,
        hidden_size=8,
        intermediate_size=8,
        num_hidden_layers=1,
        num_attention_heads=2,
        num_key_value_heads=1,
        head_dim=4,
        sliding_window=3,
    )
    model, tokens = random_model(config), torch.randint(9, (10,))
    with torch.no_grad():
        expected = model(tokens, torch.tensor([0, 4, 10]))
        for backend in ("sdpa", "reference"):
            model.attention_backend = backend
            torch.testing.assert_close(model(tokens, torch.tensor([0, 0, 4, 4, 4, 10, 10])), expected)
