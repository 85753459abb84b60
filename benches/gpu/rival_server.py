"""`POST /v1/embeddings` around sentence-transformers: what waits is encoded as one batch while others come in. Arguments: a folder, a
device, a port. Goes out: a server on loopback until it is ended.
"""

import asyncio
import sys

# As large as ours takes them; more texts than that wait for the next batch.
BATCH = 128


def main() -> None:
    """Serves."""
    from aiohttp import web
    from sentence_transformers import SentenceTransformer

    folder, device, port = sys.argv[1], sys.argv[2], int(sys.argv[3])
    net = SentenceTransformer(folder, device=device)
    if device.startswith("cuda"):
        net = net.half()
    waiting: asyncio.Queue = asyncio.Queue()

    def encode(texts: list[str]):
        return net.encode(texts, batch_size=BATCH, show_progress_bar=False), [len(net.tokenizer(text)["input_ids"]) for text in texts]

    async def work() -> None:
        while True:
            batch = [await waiting.get()]
            while len(batch) < BATCH and not waiting.empty():
                batch.append(waiting.get_nowait())
            try:
                vectors, counts = await asyncio.to_thread(encode, [text for text, _ in batch])
                for (_, answer), vector, count in zip(batch, vectors, counts, strict=True):
                    if not answer.done():
                        answer.set_result((vector.tolist(), count))
            except Exception as error:  # every caller is told
                for _, answer in batch:
                    if not answer.done():
                        answer.set_exception(error)

    async def embeddings(request: web.Request) -> web.Response:
        asked = await request.json()
        texts = asked["input"] if isinstance(asked["input"], list) else [asked["input"]]
        answers = []
        for text in texts:
            answer = asyncio.get_running_loop().create_future()
            await waiting.put((text, answer))
            answers.append(answer)
        done = await asyncio.gather(*answers)
        tokens = sum(count for _, count in done)
        data = [{"object": "embedding", "index": i, "embedding": vector} for i, (vector, _) in enumerate(done)]
        usage = {"prompt_tokens": tokens, "total_tokens": tokens}
        return web.json_response({"object": "list", "data": data, "model": "rival", "usage": usage})

    async def listed(_: web.Request) -> web.Response:
        return web.json_response({"object": "list", "data": [{"id": "rival", "object": "model"}]})

    async def start(app: web.Application) -> None:
        app["work"] = asyncio.create_task(work())

    app = web.Application(client_max_size=64 << 20)
    app.add_routes([web.post("/v1/embeddings", embeddings), web.get("/v1/models", listed)])
    app.on_startup.append(start)
    web.run_app(app, host="127.0.0.1", port=port, print=None)


if __name__ == "__main__":
    main()
