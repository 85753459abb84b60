"""The official OpenAI client and the bundled model that writes text, on a worker and through a coordinator: whole and streamed, seeded,
stopped, with log-probabilities, to a schema, with tools, many at once, called off, refused. All servers write the same.

    python openai_chat.py WORKER_URL [COORDINATOR_URL]

The model `caller` is the bundled one with a chat template that knows tools.
"""

import json
import sys
import time
import urllib.request
from concurrent.futures import ThreadPoolExecutor

import openai

MODEL = "debian-tiny-chat"
QUESTION = [{"role": "user", "content": "What is the package tar for?"}]
SCHEMA = {
    "type": "object",
    "properties": {"name": {"type": "string", "maxLength": 12}, "size": {"type": "integer", "minimum": 0, "maximum": 999}},
    "required": ["name", "size"],
    "additionalProperties": False,
}
TOOL = {
    "type": "function",
    "function": {
        "name": "install",
        "description": "Installs a package.",
        "parameters": {
            "type": "object",
            "properties": {"package": {"type": "string", "maxLength": 16}},
            "required": ["package"],
            "additionalProperties": False,
        },
    },
}


def main() -> None:
    seen = [check(url) for url in sys.argv[1:]]
    for other in seen[1:]:
        assert other == seen[0], (seen[0], other)
    print(f"{len(seen)} servers write the same: {seen[0][0]!r}")
    hangs_up(sys.argv[1])


def check(url: str) -> list[str]:
    client = openai.OpenAI(base_url=f"{url}/v1", api_key="none", timeout=300, max_retries=0)
    chat = lambda **more: client.chat.completions.create(**{"model": MODEL, "messages": QUESTION, "temperature": 0, "max_tokens": 40} | more)

    whole = chat()
    answer, usage = whole.choices[0].message.content, whole.usage
    assert whole.object == "chat.completion" and whole.choices[0].message.role == "assistant" and answer, whole
    assert usage.total_tokens == usage.prompt_tokens + usage.completion_tokens and 0 < usage.completion_tokens <= 40, usage
    assert whole.model == f"{MODEL}@1", whole.model

    # Streamed it is the same, with its usage where that is asked for.
    told, last = "", None
    for chunk in chat(stream=True, stream_options={"include_usage": True}):
        told += (chunk.choices[0].delta.content or "") if chunk.choices else ""
        last = chunk
    assert told == answer, (told, answer)
    assert (last.usage.prompt_tokens, last.usage.completion_tokens) == (usage.prompt_tokens, usage.completion_tokens), last

    # The same seed writes the same, another one something else.
    drawn = lambda seed: chat(seed=seed, temperature=1.5, max_tokens=24, extra_body={"ignore_eos": True}).choices[0].message.content
    assert drawn(7) == drawn(7) != drawn(8)

    # A stop string is no part of the text.
    stop = answer[len(answer) // 2 :][:3]
    cut = chat(stop=[stop]).choices[0]
    assert cut.finish_reason == "stop" and cut.message.content == answer[: answer.index(stop)], (cut, stop)
    short = chat(max_tokens=3, extra_body={"ignore_eos": True})
    assert short.choices[0].finish_reason == "length" and short.usage.completion_tokens == 3, short

    # Log-probabilities, of chats and of completions.
    content = chat(logprobs=True, top_logprobs=3, max_tokens=4).choices[0].logprobs.content
    assert all(token.logprob <= 0 and len(token.top_logprobs) == 3 for token in content), content
    assert all(token.token == token.top_logprobs[0].token for token in content), "greedy takes the likeliest"
    completion = client.completions.create(model=MODEL, prompt="The package", max_tokens=6, temperature=0, logprobs=1)
    assert completion.object == "text_completion" and len(completion.choices[0].logprobs.tokens) == completion.usage.completion_tokens

    # Many at once: each gets what it gets alone.
    asked = [[{"role": "user", "content": f"What is the package {name} for?"}] for name in ("git", "vim", "tar", "gcc", "curl", "bash")] * 3
    alone = [chat(messages=messages, max_tokens=16).choices[0].message.content for messages in asked[:6]]
    with ThreadPoolExecutor(len(asked)) as pool:
        together = list(pool.map(lambda messages: chat(messages=messages, max_tokens=16).choices[0].message.content, asked))
    assert together == alone * 3, list(zip(together, alone * 3))

    # To a schema, whatever the model would rather say.
    for seed in range(4):
        formed = chat(
            seed=seed, temperature=1.0, max_tokens=400,
            response_format={"type": "json_schema", "json_schema": {"name": "package", "strict": True, "schema": SCHEMA}},
        ).choices[0]
        value = json.loads(formed.message.content)
        assert formed.finish_reason == "stop" and set(value) == {"name", "size"} and 0 <= value["size"] <= 999, value

    # A tool that must be called is called, whole and streamed.
    tools = {"model": "caller", "tools": [TOOL], "tool_choice": "required", "max_tokens": 200, "seed": 1, "temperature": 1.0}
    called = chat(**tools).choices[0]
    assert called.finish_reason == "tool_calls", called
    call = called.message.tool_calls[0]
    assert call.function.name == "install" and list(json.loads(call.function.arguments)) == ["package"], call
    streamed = [chunk.choices[0].delta.tool_calls for chunk in chat(stream=True, **tools) if chunk.choices]
    arguments = "".join(part.function.arguments or "" for parts in streamed for part in parts or [])
    assert arguments == call.function.arguments, (arguments, call)

    refused(lambda: chat(max_tokens=100_000), openai.BadRequestError, "too_long")
    refused(lambda: chat(temperature=9), openai.BadRequestError, "invalid_input")
    refused(lambda: chat(messages=[]), openai.BadRequestError, "invalid_input")
    refused(lambda: chat(response_format={"type": "json_schema", "json_schema": {"name": "x", "schema": {"type": "nothing"}}}), openai.BadRequestError, "invalid_input")
    refused(lambda: chat(tools=[TOOL]), openai.BadRequestError, "wrong_task")
    refused(lambda: chat(model="nobody"), openai.NotFoundError, "model_not_found")
    print(f"{url}: {usage.completion_tokens} tokens, the same in every way of asking")
    return [answer, completion.choices[0].text, call.function.arguments]


def hangs_up(worker: str) -> None:
    """Whoever closes a stream calls the text off: nothing is inside the worker soon after."""
    client = openai.OpenAI(base_url=f"{worker}/v1", api_key="none", timeout=300, max_retries=0)
    for _ in range(5):
        stream = client.chat.completions.create(model=MODEL, messages=QUESTION, stream=True, extra_body={"ignore_eos": True})
        next(iter(stream))
        stream.close()
    inside = lambda: json.load(urllib.request.urlopen(f"{worker}/status"))["tasks_inside"]
    until = time.monotonic() + 60
    while inside() and time.monotonic() < until:
        time.sleep(0.01)
    assert inside() == 0


def refused(ask, kind: type[Exception], code: str) -> None:
    try:
        ask()
    except kind as error:
        assert error.code == code, error
        return
    raise AssertionError(f"not refused: {code}")


if __name__ == "__main__":
    main()
