"""Encoders in f16, tokens in and vectors out: ours beside PyTorch (SDPA, eager and compiled) and sentence-transformers, on the same
random weights in the same run.

Comes in: shapes. Goes out: seconds for a batch, sequences a second, and which share of the measured ceilings that is. The ceilings are a
large copy and a large product through PyTorch, both on random data.
"""

import json
import subprocess
import time
from dataclasses import dataclass
from pathlib import Path

from .stages import NotMeasured, Place, median

SECONDS = 2.0
# The least cosine between our vectors and PyTorch's in f32: both round to 11 bits at every step.
LEAST_COSINE = 0.999
WORDS = 30_000


@dataclass(frozen=True)
class Shape:
    """An encoder's sizes."""

    name: str
    hidden: int
    inner: int
    heads: int
    layers: int

    def flops(self, sequences: int, tokens: int) -> float:
        """Multiply-adds count as two; norms, activations and exponentials are left out."""
        per_token = 2 * (4 * self.hidden**2 + 2 * self.hidden * self.inner) + 4 * tokens * self.hidden
        return float(sequences * tokens * self.layers * per_token)


SHAPES = [Shape("MiniLM-L6", 384, 1536, 12, 6), Shape("BERT-base", 768, 3072, 12, 12)]
BATCHES = [(1, 128), (32, 128), (128, 128), (32, 512)]


def libraries():
    """torch and transformers."""
    try:
        import torch
        import transformers
    except ImportError as missing:
        raise NotMeasured(f"no {missing.name} in this Python") from missing
    return torch, transformers


def make(place: Place, shape: Shape) -> Path:
    """Writes a BertModel of random weights in f16, with a tokenizer of made-up words, as sentence-transformers reads it too."""
    folder = place.models / shape.name
    if (folder / "model.safetensors").is_file():
        return folder
    torch, transformers = libraries()
    folder.mkdir(parents=True, exist_ok=True)
    torch.manual_seed(1)
    config = transformers.BertConfig(
        vocab_size=WORDS + 4, hidden_size=shape.hidden, num_hidden_layers=shape.layers, num_attention_heads=shape.heads,
        intermediate_size=shape.inner,
    )
    transformers.BertModel(config, add_pooling_layer=False).half().save_pretrained(folder)
    write_tokenizer(folder)
    return folder


def write_tokenizer(folder: Path) -> None:
    """Words are `w0`, `w1`, … : a text has as many tokens as it has words, and two more."""
    vocabulary = {"[PAD]": 0, "[UNK]": 1, "[CLS]": 2, "[SEP]": 3} | {f"w{i}": i + 4 for i in range(WORDS)}
    special = [{"id": i, "content": c, "single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": True}
               for c, i in list(vocabulary.items())[:4]]
    template = {"type": "TemplateProcessing", "pair": [{"Sequence": {"id": "A", "type_id": 0}}, {"Sequence": {"id": "B", "type_id": 1}}],
                "single": [{"SpecialToken": {"id": "[CLS]", "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}},
                           {"SpecialToken": {"id": "[SEP]", "type_id": 0}}],
                "special_tokens": {c: {"id": c, "ids": [vocabulary[c]], "tokens": [c]} for c in ("[CLS]", "[SEP]")}}
    tokenizer = {"version": "1.0", "truncation": None, "padding": None, "added_tokens": special, "normalizer": None,
                 "pre_tokenizer": {"type": "WhitespaceSplit"}, "post_processor": template, "decoder": None,
                 "model": {"type": "WordLevel", "vocab": vocabulary, "unk_token": "[UNK]"}}
    (folder / "tokenizer.json").write_text(json.dumps(tokenizer))
    names = {f"{name}_token": f"[{name.upper()}]" for name in ("pad", "unk", "cls", "sep")}
    (folder / "tokenizer_config.json").write_text(
        json.dumps({"tokenizer_class": "PreTrainedTokenizerFast", "model_max_length": 512, **names})
    )


def timed(run, wait) -> dict:
    """Median and least time of a call, from its start to the end of the device's work."""
    for _ in range(5):
        run()
    wait()
    times: list[float] = []
    begun = time.perf_counter()
    while not times or time.perf_counter() - begun < SECONDS:
        start = time.perf_counter()
        run()
        wait()
        times.append(time.perf_counter() - start)
    return {"median_s": median(times), "least_s": min(times), "runs": len(times)}


def ceilings(place: Place) -> dict:
    """Bytes a second of a large copy (read and written), and operations a second of a large product in each type."""
    torch, _ = libraries()
    device = place.device
    wait = torch.cuda.synchronize if device.startswith("cuda") else (lambda: None)
    count = 1 << (30 if device.startswith("cuda") else 24)
    source = torch.rand(count // 4, device=device)
    target = torch.empty_like(source)
    figures = {"copy_bytes_per_s": 2 * count / timed(lambda: target.copy_(source), wait)["least_s"]}
    del source, target
    size = 8192 if device.startswith("cuda") else 512
    for name, dtype in [("f16", torch.float16), ("bf16", torch.bfloat16), ("f32", torch.float32)]:
        a, b = (torch.randn(size, size, device=device).to(dtype) for _ in range(2))
        figures[f"{name}_flops_per_s"] = 2 * size**3 / timed(lambda: a @ b, wait)["median_s"]
    return figures


class Ours:
    """Our encoder in a process of its own."""

    def __init__(self, place: Place, folder: Path) -> None:
        command = [str(place.program("encoder-device")), str(folder), place.device]
        self._log = (place.out / "encoder-device.log").open("a")
        self._process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self._log, text=True, env=place.environment()
        )
        self.info = self._read()

    def _read(self) -> dict:
        line = self._process.stdout.readline()
        if not line:
            raise RuntimeError(f"encoder-device ended with {self._process.wait()}; see encoder-device.log")
        return json.loads(line)

    def ask(self, order: dict) -> dict:
        """One order, one answer."""
        print(json.dumps(order), file=self._process.stdin, flush=True)
        return self._read()

    def __enter__(self) -> "Ours":
        return self

    def __exit__(self, *_: object) -> None:
        self._process.stdin.close()
        self._process.wait(60)
        self._process.stdout.close()
        self._log.close()


def agree(torch, model, ours: Ours, device: str) -> float:
    """The least cosine of our vectors to PyTorch's mean of the last layer in f32."""
    generator = torch.Generator().manual_seed(3)
    worst = 1.0
    exact = model.float()
    for tokens in (1, 7, 64, 300):
        ids = torch.randint(4, WORDS, (1, tokens), generator=generator)
        with torch.inference_mode():
            expected = exact(ids.to(device)).last_hidden_state.mean(1)[0].cpu()
        found = torch.tensor(ours.ask({"embed": [ids[0].tolist()]})["vectors"][0])
        worst = min(worst, torch.nn.functional.cosine_similarity(expected, found, dim=0).item())
    return worst


def peers(place: Place, folder: Path) -> dict:
    """What PyTorch and sentence-transformers take for a call with these ids, by name."""
    torch, transformers = libraries()
    wait = torch.cuda.synchronize if place.device.startswith("cuda") else (lambda: None)
    # On a CPU, where this is only tried out, products in f16 take for ever.
    dtype = torch.float16 if place.device.startswith("cuda") else torch.float32
    model = transformers.BertModel.from_pretrained(
        folder, add_pooling_layer=False, attn_implementation="sdpa", dtype=dtype
    ).to(place.device).eval()

    def pooled(net):
        def run(ids):
            with torch.inference_mode():
                hidden = net(input_ids=ids, attention_mask=torch.ones_like(ids)).last_hidden_state
                return hidden.mean(1).float().cpu()
        return run

    calls = {"torch-sdpa": pooled(model), "torch-compiled": pooled(torch.compile(model, mode="max-autotune-no-cudagraphs"))}
    return {"torch": torch, "model": model, "wait": wait, "calls": calls}


def sentence_transformer(place: Place, folder: Path):
    """The same weights behind sentence-transformers, in f16."""
    try:
        from sentence_transformers import SentenceTransformer
    except ImportError as missing:
        raise NotMeasured("no sentence-transformers in this Python") from missing
    # Of a folder without modules it makes the mean of the last layer, which is what ours is too.
    net = SentenceTransformer(str(folder), device=place.device)
    return net.half() if place.device.startswith("cuda") else net


def encoders(place: Place, results: dict) -> None:
    """Every shape and batch."""
    torch, _ = libraries()
    results["versions"] = {"torch": torch.__version__}
    results["ceilings"] = found = ceilings(place)
    rate = found["f16_flops_per_s" if place.device.startswith("cuda") else "f32_flops_per_s"]
    results["batches"] = []
    for shape in SHAPES:
        folder = make(place, shape)
        rivals = peers(place, folder)
        sentences = sentence_transformer(place, folder)
        with Ours(place, folder) as ours:
            results.setdefault("ours", {})[shape.name] = ours.info
            for count, tokens in BATCHES:
                row = {"model": shape.name, "sequences": count, "tokens": tokens}
                ids = torch.randint(4, WORDS, (count, tokens), device=place.device)
                texts = [" ".join(f"w{int(i)}" for i in line[2:] - 4) for line in ids.cpu()]
                times = {"ours": ours.ask({"time": {"sequences": count, "tokens": tokens, "seconds": SECONDS}})}
                for name, call in rivals["calls"].items():
                    try:
                        times[name] = timed(lambda: call(ids), rivals["wait"])
                    except Exception as error:  # a compiler that is missing costs its own row
                        row.setdefault("not_measured", {})[name] = str(error).splitlines()[0][:200]
                times["sentence-transformers"] = timed(
                    lambda: sentences.encode(texts, batch_size=count, show_progress_bar=False), rivals["wait"]
                )
                row["seconds"] = times
                row["share_of_matrix_rate"] = shape.flops(count, tokens) / times["ours"]["median_s"] / rate
                results["batches"].append(row)
                print(json.dumps(row), flush=True)
            cosine = agree(torch, rivals["model"], ours, place.device)
        results.setdefault("least_cosine", {})[shape.name] = cosine
        if not cosine >= LEAST_COSINE:
            raise RuntimeError(f"{shape.name}: cosine {cosine} to PyTorch in f32, at least {LEAST_COSINE} is asked")
