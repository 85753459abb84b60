"""Triton's HTTP client against a worker: lists, checks and infers the bundled digits, as JSON and as binary tensors.

    python triton_digits.py URL HELD_OUT_DIGITS
"""

import json
import sys

import numpy as np
import tritonclient.http as triton
from tritonclient.utils import InferenceServerException

MODEL = "digits"


def main() -> None:
    url, held_out = sys.argv[1], sys.argv[2]
    client = triton.InferenceServerClient(url.removeprefix("http://"))
    assert client.is_server_live() and client.is_server_ready()
    assert client.is_model_ready(MODEL)
    assert any(entry["name"] == MODEL for entry in client.get_model_repository_index())
    metadata = client.get_model_metadata(MODEL)
    assert metadata["inputs"][0]["name"] == "pixels" and metadata["inputs"][0]["datatype"] == "FP32", metadata
    version = metadata["versions"][0]
    assert client.is_model_ready(MODEL, version)

    with open(held_out, encoding="utf-8") as file:
        digits = json.load(file)
    pixels = np.array(digits["pixels"], dtype=np.float32)
    labels = np.array(digits["labels"])
    answers = [infer(client, pixels, version, binary) for binary in (True, False)]
    for logits in answers:
        right = (logits.argmax(axis=1) == labels).mean()
        print(f"{url}: {right:.2%} of {len(labels)} held-out digits read right")
        assert right >= 0.97
    assert np.allclose(answers[0], answers[1], atol=1e-4)
    golden = np.array(digits["golden_logits"])
    assert np.allclose(answers[0][: len(golden)], golden, atol=1e-3)

    try:
        infer(client, pixels[:, :63], version, True)
        raise AssertionError("a wrong shape was served")
    except InferenceServerException as error:
        print(f"{url}: a wrong shape is refused: {error}")


def infer(client: triton.InferenceServerClient, pixels: np.ndarray, version: str, binary: bool) -> np.ndarray:
    """Logits [n, 10]."""
    tensor = triton.InferInput("pixels", list(pixels.shape), "FP32")
    tensor.set_data_from_numpy(np.ascontiguousarray(pixels), binary_data=binary)
    wanted = [triton.InferRequestedOutput("logits", binary_data=binary)]
    return client.infer(MODEL, [tensor], model_version=version, outputs=wanted).as_numpy("logits")


if __name__ == "__main__":
    main()
