"""Decoders in GGUF's blocks beside llama.cpp: `python -m benches.peers.decoders --help`.

Comes in: sizes of a model, then a file and a command. Goes out: a GGUF file of random weights, or a table of times. No step of
either program depends on the values of the weights. llama.cpp is whatever Python package `llama_cpp` is installed; ours is the bench
`decoder_file`. Any other program that is told what to run by the same lines can be a peer, too: the bench `decoder_candle` is Candle's own
model. Each loads the file once and then they take turns, so that whatever else runs on the machine slows all of them.

  write   a file of random weights, in the mix of types that llama.cpp's Q4_K_M has, or all in one of blocks of 32; needs `gguf` and
          `numpy`. With a tokenizer, in which every byte is a token, llama.cpp's server and a worker can serve it
  answer  llama.cpp, told what to run by lines, as our bench is
  run     turns of all; times are from a line to its answer, and the CPU time of all threads in between

On a busy machine only the CPU times of one thread say something: threads that wait for each other in a loop use the CPU, too.
"""

import argparse
import shlex
import statistics
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

PROMPT_TOKENS = 512
CONTEXT_TOKENS = 256
WRITTEN_TOKENS = 16
# Tokens are any below this, which every model's vocabulary is larger than.
VOCABULARY = 40_000


@dataclass(frozen=True)
class Sizes:
    """What a decoder's products are as large as; its table of words is its output, too."""

    hidden: int
    inner: int
    heads: int
    kv_heads: int
    layers: int
    vocabulary: int

    @property
    def dim(self) -> int:
        return 64


SIZES = {
    "SmolLM2-135M": Sizes(576, 1536, 9, 3, 30, 49_152),
    "Qwen2.5-0.5B": Sizes(896, 4864, 14, 2, 24, 151_936),
    "Llama-3.2-1B": Sizes(2048, 8192, 32, 8, 16, 128_256),
}

# Elements and bytes of a block, where its f16 scales lie, and how large a weight is beside `d` where all other bits are random.
BLOCKS = {
    "Q4_0": (32, 18, 4.6),
    "Q4_1": (32, 20, 4.6),
    "Q5_0": (32, 22, 9.2),
    "Q5_1": (32, 24, 9.2),
    "Q8_0": (32, 34, 74.0),
    "IQ4_NL": (32, 18, 70.0),
    "Q4_K": (256, 144, 160.0),
    "Q6_K": (256, 210, 1330.0),
}
# Types that all products of a file may have. In Q4_K_M types are mixed.
MIXES = ["Q4_K_M", *(blocks for blocks, (elements, _, _) in BLOCKS.items() if elements == 32)]
# What is added to every weight, in elements: the half of those that are unsigned, so that sums are near zero.
MINIMUMS = {"Q4_1": -7.5, "Q5_1": -15.5, "Q4_K": 7.5}


def blocks_of(mix: str, name: str, layer: int, layers: int, inputs: int) -> str:
    """The type of a tensor in a mix.

    In Q4_K_M the output, and in some layers values and the way down, have 6 bits. Where rows are not whole blocks of 256, Q5_0 stands
    for Q4_K and Q8_0 for Q6_K, as llama.cpp has it.
    """
    if mix != "Q4_K_M":
        return mix
    eighth = layers // 8
    has_more_bits = layer < eighth or layer >= 7 * layers // 8 or (layer - eighth) % 3 == 2
    if name == "token_embd" or (name in ("attn_v", "ffn_down") and has_more_bits):
        return "Q6_K" if inputs % 256 == 0 else "Q8_0"
    return "Q4_K" if inputs % 256 == 0 else "Q5_0"


def random_blocks(blocks: str, rows: int, inputs: int):
    """`[rows, bytes of a row]`: random bits with scales that make sums near 1. The same some blocks over and over."""
    import numpy

    elements, size, spread = BLOCKS[blocks]
    some = numpy.random.default_rng(1).integers(0, 256, (4096, size), dtype=numpy.uint8)
    scale = numpy.array([1.0 / spread / inputs**0.5], dtype="<f2").view(numpy.uint8)
    minimum = numpy.array([MINIMUMS.get(blocks, 0.0) / spread / inputs**0.5], dtype="<f2").view(numpy.uint8)
    if blocks == "Q6_K":
        some[:, -2:] = scale
    else:
        some[:, :2] = scale
    if blocks in MINIMUMS:
        some[:, 2:4] = minimum
    count = rows * inputs // elements
    return numpy.resize(some, (count, size)).reshape(rows, inputs // elements * size)


def write(sizes: Sizes, mix: str, to: Path, has_tokenizer: bool) -> None:
    """A GGUF file."""
    import gguf
    import numpy

    writer = gguf.GGUFWriter(to, "llama")
    writer.add_context_length(8192)
    writer.add_embedding_length(sizes.hidden)
    writer.add_block_count(sizes.layers)
    writer.add_feed_forward_length(sizes.inner)
    writer.add_head_count(sizes.heads)
    writer.add_head_count_kv(sizes.kv_heads)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_rope_dimension_count(sizes.dim)
    writer.add_rope_freq_base(10_000.0)
    writer.add_vocab_size(sizes.vocabulary)
    if has_tokenizer:
        add_tokenizer(writer, sizes.vocabulary)
    else:
        writer.add_tokenizer_model("none")

    def product(name: str, outputs: int, inputs: int, layer: int = 0) -> None:
        blocks = blocks_of(mix, name, layer, sizes.layers, inputs)
        full = f"blk.{layer}.{name}.weight" if name != "token_embd" else "token_embd.weight"
        data = random_blocks(blocks, outputs, inputs)
        writer.add_tensor(full, data, raw_dtype=gguf.GGMLQuantizationType[blocks])

    def norm(name: str) -> None:
        writer.add_tensor(name, numpy.ones(sizes.hidden, dtype=numpy.float32))

    product("token_embd", sizes.vocabulary, sizes.hidden)
    norm("output_norm.weight")
    queries, keys = sizes.heads * sizes.dim, sizes.kv_heads * sizes.dim
    for layer in range(sizes.layers):
        norm(f"blk.{layer}.attn_norm.weight")
        norm(f"blk.{layer}.ffn_norm.weight")
        product("attn_q", queries, sizes.hidden, layer)
        product("attn_k", keys, sizes.hidden, layer)
        product("attn_v", keys, sizes.hidden, layer)
        product("attn_output", sizes.hidden, queries, layer)
        product("ffn_gate", sizes.inner, sizes.hidden, layer)
        product("ffn_up", sizes.inner, sizes.hidden, layer)
        product("ffn_down", sizes.hidden, sizes.inner, layer)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


class LlamaCpp:
    """llama.cpp with a file loaded."""

    def __init__(self, model: Path, threads: int) -> None:
        import ctypes

        import llama_cpp

        self._api = llama_cpp
        self._silent = llama_cpp.llama_log_callback(lambda *_: None)
        llama_cpp.llama_log_set(self._silent, ctypes.c_void_p(0))
        llama_cpp.llama_backend_init()
        of_model = llama_cpp.llama_model_default_params()
        self._model = llama_cpp.llama_model_load_from_file(str(model).encode(), of_model)
        if not self._model:
            raise SystemExit(f"llama.cpp cannot load {model}")
        params = llama_cpp.llama_context_default_params()
        params.n_ctx, params.n_batch, params.n_ubatch = 1024, PROMPT_TOKENS, PROMPT_TOKENS
        params.n_threads = params.n_threads_batch = threads
        self._context = llama_cpp.llama_init_from_model(self._model, params)

    def clear(self) -> None:
        self._api.llama_memory_clear(self._api.llama_get_memory(self._context), False)

    def decode(self, tokens: list[int]) -> None:
        """Runs tokens behind those that are there; logits of the last one."""
        array = (self._api.llama_token * len(tokens))(*tokens)
        if self._api.llama_decode(self._context, self._api.llama_batch_get_one(array, len(tokens))) != 0:
            raise SystemExit("llama.cpp could not decode")
        self._api.llama_synchronize(self._context)

    def run(self, what: str, count: int) -> None:
        """`prompt`: forgets everything and reads so many tokens. `tokens`: writes so many, one after the other."""
        if what == "prompt":
            self.clear()
            self.decode([at * 31 % VOCABULARY for at in range(count)])
            return
        for token in range(count):
            self.decode([token])


def words(count: int) -> list[str]:
    """So many tokens as byte-level tokenizers write them: every byte, one pair that is merged, and tokens that no text has."""
    plain = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = [byte for byte in range(256) if byte not in plain]
    letters = {byte: chr(byte) for byte in plain} | {byte: chr(256 + at) for at, byte in enumerate(others)}
    return [letters[byte] for byte in range(256)] + ["ee"] + [f"token{at}" for at in range(257, count)]


def add_tokenizer(writer: "gguf.GGUFWriter", vocabulary: int) -> None:
    """A tokenizer of these words, and a template of the plainest kind."""
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("gpt-2")
    writer.add_token_list(words(vocabulary))
    writer.add_token_types([1] * vocabulary)
    writer.add_token_merges(["e e"])
    writer.add_add_bos_token(False)
    writer.add_eos_token_id(vocabulary - 1)
    writer.add_chat_template(
        "{% for message in messages %}{{ message.role }}: {{ message.content }}\n{% endfor %}assistant: "
    )


def answer(model: Path, threads: int) -> None:
    """`done` for each line of input, when what it says has been run."""
    peer = LlamaCpp(model, threads)
    for line in sys.stdin:
        what, count = line.split()
        peer.run(what, int(count))
        print("done", flush=True)


class Asked:
    """A program that answers lines."""

    def __init__(self, command: list[str]) -> None:
        self._command = command
        self._process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)

    def ask(self, line: str) -> tuple[float, float]:
        """Seconds until the answer, and of CPU time of all threads until then."""
        assert self._process.stdin and self._process.stdout
        before, start = self._cpu_s(), time.perf_counter()
        self._process.stdin.write(line + "\n")
        self._process.stdin.flush()
        if self._process.stdout.readline() != "done\n":
            raise SystemExit(f"no answer to {line!r} from {shlex.join(self._command)}")
        return time.perf_counter() - start, self._cpu_s() - before

    def end(self) -> None:
        assert self._process.stdin
        self._process.stdin.close()
        self._process.wait()

    def _cpu_s(self) -> float:
        tasks = Path(f"/proc/{self._process.pid}/task").glob("*/schedstat")
        return sum(int(task.read_text().split()[0]) for task in tasks) * 1e-9


def turns(commands: dict[str, list[str]], rounds: int, bytes_read: int) -> None:
    """Lets programs take turns and prints a table; ratios are medians over the rounds of the first one's time to another's."""
    programs = {name: Asked(command) for name, command in commands.items()}
    times: dict[tuple[str, str], list[tuple[float, float]]] = {}
    for turn in range(rounds + 1):
        for name in list(programs)[:: 1 if turn % 2 == 0 else -1]:
            of_prompt = programs[name].ask(f"prompt {PROMPT_TOKENS}")
            programs[name].ask(f"prompt {CONTEXT_TOKENS}")
            wall, cpu = programs[name].ask(f"tokens {WRITTEN_TOKENS}")
            if turn > 0:  # the first is a rehearsal
                times.setdefault((name, "prompt"), []).append(of_prompt)
                times.setdefault((name, "token"), []).append((wall / WRITTEN_TOKENS, cpu / WRITTEN_TOKENS))
    for program in programs.values():
        program.end()
    print("| step | program | fastest ms | median ms | CPU ms, fastest | CPU ms, median | GB/s, fastest | as fast, wall | CPU |")
    print("|---|---|--:|--:|--:|--:|--:|--:|--:|")
    for step in ("prompt", "token"):
        reference = times[next(iter(commands)), step]
        for name in commands:
            of = times[name, step]
            best = [1e3 * min(each) for each in zip(*of, strict=True)]
            usual = [1e3 * statistics.median(each) for each in zip(*of, strict=True)]
            ratios = [
                statistics.median(b[clock] / a[clock] for a, b in zip(of, reference, strict=True)) for clock in (0, 1)
            ]
            rate = f"{bytes_read / best[0] / 1e6:.1f}" if step == "token" else ""
            print(
                f"| {step} | {name} | {best[0]:.2f} | {usual[0]:.2f} | {best[1]:.2f} | {usual[1]:.2f} | {rate} "
                f"| {ratios[0]:.2f} | {ratios[1]:.2f} |"
            )


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benches.peers.decoders", description=__doc__.split("\n")[0])
    commands = parser.add_subparsers(dest="command", required=True)
    one = commands.add_parser("write", help="write a file of random weights")
    one.add_argument("sizes", choices=SIZES)
    one.add_argument("mix", choices=MIXES)
    one.add_argument("to", type=Path)
    one.add_argument("--tokenizer", action="store_true", help="with a tokenizer, so that servers take it")
    one = commands.add_parser("answer", help="llama.cpp, told what to run by lines")
    one.add_argument("model", type=Path)
    one.add_argument("--threads", type=int, default=2)
    one = commands.add_parser("run", help="llama.cpp, ours and others in turns")
    one.add_argument("model", type=Path)
    one.add_argument("--ours", required=True, help="the command of our bench `decoder_file`, without file and threads")
    one.add_argument(
        "--peer",
        action="append",
        default=[],
        metavar="NAME=COMMAND",
        help="another program that answers the same lines, without file and threads; may be repeated",
    )
    one.add_argument("--threads", type=int, default=2)
    one.add_argument("--rounds", type=int, default=9)
    options = parser.parse_args()
    if options.command == "write":
        write(SIZES[options.sizes], options.mix, options.to, options.tokenizer)
    elif options.command == "answer":
        answer(options.model, options.threads)
    else:
        model, threads = str(options.model.resolve()), str(options.threads)
        peer = [sys.executable, "-m", "benches.peers.decoders", "answer", model, "--threads", threads]
        programs = [f"ours={options.ours}", *options.peer]
        others = {name: [*shlex.split(words), model, threads] for name, _, words in (p.partition("=") for p in programs)}
        turns({"llama.cpp": peer, **others}, options.rounds, options.model.stat().st_size)


if __name__ == "__main__":
    main()
