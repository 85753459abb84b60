"""The bundled language model's network: the library's Llama, how it learns, and what it makes of text.

Comes in: encoded documents. Goes out: trained weights in a folder, log-probabilities, and how many answers it knows by heart.
"""

import copy
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
import transformers

from language_tokenizer import BEGIN, END, PAD, Encoded

WARM_UP = 0.02  # of the run
DECAY = 0.05
GRADIENT_MAX = 1.0
LOOKS = 10  # at held-out text, over a run
LOOKS_FROM = 0.6  # what comes earlier is never the best
SAMPLING = {"do_sample": True, "temperature": 0.3, "top_p": 0.9}  # facts leave little to chance


@dataclass
class Progress:
    """How far a run is, from 0 to 1: by batches where `steps` says how many, else by time."""

    seconds: float
    steps: int | None
    step: int = 0
    started: float = field(default_factory=time.monotonic)

    def share(self) -> float:
        done = self.step / self.steps if self.steps else (time.monotonic() - self.started) / self.seconds
        return min(done, 1.0)


def padded(documents: list[Encoded], device: str) -> tuple[torch.Tensor, torch.Tensor]:
    """Token ids [n, s] with padding on the right, and [n, s] whether a token is learnt."""
    width = max(len(document.ids) for document in documents)
    ids = np.zeros((len(documents), width), np.int64)
    learnt = np.zeros((len(documents), width), bool)
    for row, document in enumerate(documents):
        ids[row, : len(document.ids)] = document.ids
        learnt[row, : len(document.ids)] = document.learnt
    return torch.from_numpy(ids).to(device), torch.from_numpy(learnt).to(device)


class Network:
    """A Llama with its head."""

    def __init__(self, model: transformers.LlamaForCausalLM, device: str):
        self.model = model.to(device)
        self.device = device
        self.parameters = sum(parameter.numel() for parameter in model.parameters())

    @classmethod
    def new(cls, device: str, *, special: Callable[[str], int], rope_theta: float, **sizes: int) -> "Network":
        """With random weights; `special` gives the id of a special token."""
        config = transformers.LlamaConfig(
            **sizes,
            rope_parameters={"rope_theta": rope_theta, "rope_type": "default"},
            tie_word_embeddings=True,
            bos_token_id=special(BEGIN),
            eos_token_id=special(END),
            pad_token_id=special(PAD),
        )
        model = transformers.LlamaForCausalLM(config)
        for name, parameter in model.named_parameters():
            if name.endswith(("o_proj.weight", "down_proj.weight")):
                torch.nn.init.zeros_(parameter)  # each layer begins by passing on what it was given
        return cls(model, device)

    @classmethod
    def read(cls, folder: Path) -> "Network":
        """From its files, in f32 on the CPU, as the tests compute it."""
        return cls(transformers.LlamaForCausalLM.from_pretrained(folder, dtype=torch.float32), "cpu")

    def save(self, folder: Path) -> None:
        """config.json, generation_config.json and model.safetensors in f16."""
        special = {key: getattr(self.model.config, key) for key in ("bos_token_id", "eos_token_id", "pad_token_id")}
        self.model.generation_config = transformers.GenerationConfig(**special, **SAMPLING)
        copy.deepcopy(self.model).to("cpu", torch.float16).save_pretrained(folder)

    def logits(self, ids: torch.Tensor, wanted: torch.Tensor) -> torch.Tensor:
        """Logits [m, v] in f32 at the m places of [n, s] that are wanted."""
        with torch.autocast(self.device, torch.bfloat16, enabled=self.device == "cuda"):
            hidden = self.model.model(input_ids=ids, use_cache=False).last_hidden_state
            return self.model.lm_head(hidden[wanted]).float()

    def loss(self, documents: list[Encoded]) -> tuple[torch.Tensor, int]:
        """The mean of -log P over the learnt tokens of some documents, and how many these are."""
        ids, learnt = padded(documents, self.device)
        wanted = torch.zeros_like(learnt)
        wanted[:, :-1] = learnt[:, 1:]
        targets = ids[:, 1:][learnt[:, 1:]]
        return torch.nn.functional.cross_entropy(self.logits(ids, wanted), targets), len(targets)

    @torch.inference_mode()
    def log_probabilities(self, document: Encoded) -> np.ndarray:
        """Natural logarithms for each token but the first."""
        ids = torch.from_numpy(document.ids)[None].to(self.device)
        wanted = torch.ones_like(ids, dtype=torch.bool)
        wanted[:, -1] = False
        chosen = torch.log_softmax(self.logits(ids, wanted).double(), dim=-1).gather(1, ids[0, 1:, None])
        return chosen[:, 0].cpu().numpy()

    @torch.inference_mode()
    def share_recalled(self, documents: list[Encoded]) -> float:
        """The share of documents whose learnt tokens are all the likeliest: what greedy decoding would write."""
        right = 0
        for document in documents:
            ids, learnt = padded([document], self.device)
            wanted = torch.zeros_like(learnt)
            wanted[:, :-1] = learnt[:, 1:]
            right += bool((self.logits(ids, wanted).argmax(-1) == ids[:, 1:][learnt[:, 1:]]).all())
        return right / len(documents)

    @torch.inference_mode()
    def mean_loss(self, sets: dict[str, list[Encoded]]) -> float:
        """The loss on held-out documents, each set counting alike."""
        losses = []
        for documents in sets.values():
            parts = [self.loss(documents[start : start + 8]) for start in range(0, len(documents), 8)]
            losses.append(sum(float(loss) * size for loss, size in parts) / sum(size for _, size in parts))
        return sum(losses) / len(losses)


class Muon(torch.optim.Optimizer):
    """Momentum made orthogonal, for matrices (Jordan et al. 2024), its steps scaled to the size of AdamW's (Liu et al. 2025), so that
    one rate does for both. torch has one too, but it computes in bf16, at which a processor without such instructions takes ten
    times as long as for all the rest."""

    MOMENTUM = 0.95
    NEWTON_SCHULZ = (3.4445, -4.7750, 2.0315)  # of Jordan et al.: five rounds bring singular values near 1
    ROUNDS = 5

    def __init__(self, matrices: list[torch.nn.Parameter], rate: float):
        super().__init__(matrices, {"lr": rate})

    @torch.no_grad()
    def step(self) -> None:
        for group in self.param_groups:
            for matrix in group["params"]:
                momentum = self.state[matrix].setdefault("momentum", torch.zeros_like(matrix))
                momentum.lerp_(matrix.grad, 1 - self.MOMENTUM)
                update = self.orthogonal(matrix.grad.lerp(momentum, self.MOMENTUM))
                matrix.mul_(1 - group["lr"] * DECAY)
                matrix.add_(update, alpha=-group["lr"] * 0.2 * max(matrix.shape) ** 0.5)

    def orthogonal(self, matrix: torch.Tensor) -> torch.Tensor:
        """The matrix with its singular values near 1."""
        a, b, c = self.NEWTON_SCHULZ
        wide = matrix if matrix.shape[0] <= matrix.shape[1] else matrix.T
        wide = wide / (wide.norm() + 1e-7)
        for _ in range(self.ROUNDS):
            square = wide @ wide.T
            wide = a * wide + (b * square + c * square @ square) @ wide
        return wide if matrix.shape[0] <= matrix.shape[1] else wide.T


def optimizers(network: Network, rate: float) -> list[torch.optim.Optimizer]:
    """Muon for the layers' matrices, AdamW for embeddings and norms."""
    layers = [parameter for name, parameter in network.model.named_parameters() if ".layers." in name]
    matrices = [parameter for parameter in layers if parameter.ndim == 2]
    chosen = {id(parameter) for parameter in matrices}
    others = [parameter for parameter in network.model.parameters() if id(parameter) not in chosen]
    return [Muon(matrices, rate), torch.optim.AdamW(others, lr=rate, betas=(0.9, 0.95), weight_decay=0.0)]


def kept_best(
    network: Network,
    batches: Iterator[list[Encoded]],
    held_out: dict[str, list[Encoded]],
    progress: Progress,
    rate: float,
) -> dict:
    """Trains, leaves the network in the state that was best on held-out text, and returns how it went."""
    learning = optimizers(network, rate)
    read = looks = 0
    best, best_state = float("inf"), None
    while True:
        share = progress.share()
        if share >= LOOKS_FROM and share >= (looks + 1) / LOOKS or share >= 1:
            looks = max(looks + 1, int(share * LOOKS))
            loss = network.mean_loss(held_out)
            print(f"{share:4.0%}: batch {progress.step}, {read} tokens, held-out loss {loss:.3f}", flush=True)
            if loss < best:
                best, best_state = loss, copy.deepcopy(network.model.state_dict())
        if share >= 1:
            break
        factor = min(share / WARM_UP, (1 - share) / (1 - WARM_UP)) if progress.step else 0.1
        for one in learning:
            for group in one.param_groups:
                group["lr"] = rate * max(factor, 1e-3)
        documents = next(batches)
        loss, _ = network.loss(documents)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(network.model.parameters(), GRADIENT_MAX)
        for one in learning:
            one.step()
            one.zero_grad(set_to_none=True)
        progress.step += 1
        read += sum(len(document.ids) for document in documents)
        if progress.step % 100 == 0:
            print(f"{progress.share():4.0%}: batch {progress.step}, loss {loss.item():.3f}", flush=True)
    network.model.load_state_dict(best_state)
    minutes = (time.monotonic() - progress.started) / 60
    return {"steps": progress.step, "tokens": read, "minutes": minutes, "held_out_loss": best}
