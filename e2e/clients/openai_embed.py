"""The official OpenAI client against a worker or a coordinator: embeds 1,000 texts in lists and one by one, and compares
200 of them with reference embeddings.

    python openai_embed.py URL GOLDEN_FOLDER
"""

import json
import sys
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import openai
from safetensors.numpy import load_file

MODEL = "minilm"


def main() -> None:
    url, golden = sys.argv[1], sys.argv[2]
    client = openai.OpenAI(base_url=f"{url}/v1", api_key="none", timeout=300, max_retries=0)
    names = [model.id for model in client.models.list()]
    assert any(name.split("@")[0] == MODEL for name in names), names

    with open(f"{golden}/texts_200.json", encoding="utf-8") as file:
        texts = json.load(file)
    reference = load_file(f"{golden}/minilm_golden.safetensors")["embeddings"].astype(np.float64)

    # 200 reference texts of 1 to 400 tokens: each alone, in lists, and each in a request of its own beside seven others.
    with ThreadPoolExecutor(8) as pool:
        beside = np.concatenate(list(pool.map(lambda text: embed(client, [text], 1), texts)))
    alone = np.concatenate([embed(client, [text], 1) for text in texts])
    for how, got in [("alone", alone), ("beside others", beside), ("in lists", embed(client, texts, 40))]:
        cosine = (got * reference).sum(axis=1) / np.linalg.norm(got, axis=1) / np.linalg.norm(reference, axis=1)
        print(f"{url}: least cosine to the reference on {len(texts)} texts, {how}: {cosine.min():.9f}")
        assert cosine.min() >= 0.99999, cosine.min()

    # 800 more: 1,000 texts.
    short = [f"text number {number} about {'rain' if number % 2 else 'bread'}" for number in range(800)]
    vectors = embed(client, short, 100)
    assert vectors.shape == (800, 384) and np.isfinite(vectors).all()
    assert np.allclose(np.linalg.norm(vectors, axis=1), 1, atol=1e-5)
    for number in range(10):
        alone = embed(client, [short[number]], 1)[0]
        assert float(alone @ vectors[number]) >= 0.99999, number

    floats = client.embeddings.create(model=MODEL, input=short[0], encoding_format="float")
    assert len(floats.data[0].embedding) == 384 and floats.usage.prompt_tokens > 0, floats.usage

    try:
        client.embeddings.create(model="no-such-model", input="x")
        raise AssertionError("an unknown model was served")
    except openai.NotFoundError as error:
        assert error.code == "model_not_found", error.code
    print(f"{url}: 1,000 texts embedded")


def embed(client: openai.OpenAI, texts: list[str], size: int) -> np.ndarray:
    """Embeddings [len(texts), dimensions], asked for `size` at a time (the client asks for base64 and decodes it)."""
    rows = []
    for start in range(0, len(texts), size):
        answer = client.embeddings.create(model=MODEL, input=texts[start : start + size])
        assert [item.index for item in answer.data] == list(range(len(answer.data)))
        rows += [item.embedding for item in answer.data]
    return np.array(rows, dtype=np.float64)


if __name__ == "__main__":
    main()
