"""The load generator against a server in this process that answers at once, answers wrongly, refuses, or hangs up."""

import asyncio
import json
import threading
import time
import unittest
from collections.abc import Callable

from benches.peers import load
from benches.peers.load import LoadError
from benches.peers.reference import Probe
from benches.peers.servers import Address, Server, connect
from benches.peers.texts import Stream
from benches.peers.wire import OPENAI
from benches.peers.workloads import Workload

VOCABULARY = (["river", "lamp", "stone"], [0.4, 0.3, 0.3])
WORKLOAD = Workload("small", 3, 9, clients=4, texts_per_request=2)
SECONDS = 0.2


def embedding(text: str) -> list[float]:
    """Depends on the text, so that a wrong order is seen."""
    return [float(len(text)), float(text.count("r")), 1.0]


PROBES = [Probe(text, tuple(embedding(text))) for text in ("a river", "a stone", "a lamp, and a river")]


def is_probe(texts: list[str]) -> bool:
    return texts[0] in {probe.text for probe in PROBES}


class Fake:
    """A server on a thread. `answer(number, texts)` gives status and rows; None hangs up."""

    def __init__(self, answer: Callable[[int, list[str]], tuple[int, list[list[float]]] | None]) -> None:
        self._answer, self._number = answer, 0
        self.texts: list[str] = []
        self._loop = asyncio.new_event_loop()
        started: threading.Event = threading.Event()
        self._thread = threading.Thread(target=self._run, args=(started,), daemon=True)
        self._thread.start()
        started.wait(5)

    def _run(self, started: threading.Event) -> None:
        asyncio.set_event_loop(self._loop)
        listener = self._loop.run_until_complete(asyncio.start_server(self._serve, "127.0.0.1", 0))
        self.port = listener.sockets[0].getsockname()[1]
        started.set()
        self._loop.run_forever()
        listener.close()
        left = asyncio.all_tasks(self._loop)
        for task in left:
            task.cancel()
        self._loop.run_until_complete(asyncio.gather(*left, return_exceptions=True))
        self._loop.run_until_complete(asyncio.sleep(0))
        self._loop.close()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while head := await self._head(reader):
            length = int(head.lower().partition(b"content-length: ")[2].partition(b"\r\n")[0] or 0)
            given = json.loads(await reader.readexactly(length) or b"{}").get("input", [])
            texts = [given] if isinstance(given, str) else given
            self._number += 1
            self.texts += texts
            answer = self._answer(self._number, texts)
            if answer is None:
                writer.close()
                return
            status, rows = answer
            content = {"data": [{"index": place, "embedding": row} for place, row in enumerate(rows)]}
            body = json.dumps(content).encode()
            # In chunks of odd sizes, so that the reader has something to put together.
            pieces = [body[place : place + 37] for place in range(0, len(body), 37)]
            chunks = b"".join(b"%x\r\n%b\r\n" % (len(piece), piece) for piece in pieces)
            if writer.is_closing():
                return
            writer.write(b"HTTP/1.1 %d X\r\ntransfer-encoding: chunked\r\n\r\n%b0\r\n\r\n" % (status, chunks))
        writer.close()

    @staticmethod
    async def _head(reader: asyncio.StreamReader) -> bytes:
        try:
            return await reader.readuntil(b"\r\n\r\n")
        except (asyncio.IncompleteReadError, ConnectionError, asyncio.CancelledError):
            return b""

    def __enter__(self) -> "Fake":
        return self

    def __exit__(self, *_: object) -> None:
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(5)

    def window(self) -> load.Window:
        server = Server("fake", "127.0.0.1", self.port, OPENAI, "m")
        return load.run(server, WORKLOAD, PROBES, Stream(WORKLOAD, "s", VOCABULARY), 20, SECONDS)


def right(_: int, texts: list[str]) -> tuple[int, list[list[float]]]:
    return 200, [embedding(text) for text in texts]


class Loads(unittest.TestCase):
    def test_a_good_server_is_measured_without_errors(self) -> None:
        with Fake(right) as fake:
            window = fake.window()
        self.assertFalse(window.errors)
        self.assertAlmostEqual(window.least_cosine, 1)
        self.assertEqual(len(window.latencies), len(window.completed))
        self.assertGreater(len(window.completed), WORKLOAD.clients)
        self.assertEqual(len(set(window.completed)), len(window.completed))
        self.assertGreaterEqual(window.seconds, SECONDS)
        self.assertIsNone(window.cpu_seconds)
        self.assertGreater(window.built_late, 0)
        asked = [text for text in fake.texts if not is_probe([text])]
        self.assertEqual(len(fake.texts) - len(asked), WORKLOAD.clients * WORKLOAD.texts_per_request)
        self.assertEqual(set(asked), set(Stream(WORKLOAD, "s", VOCABULARY).texts(0, len(asked))))

    def test_a_slow_server_gets_a_window_in_which_something_is_completed(self) -> None:
        def slowly(number: int, texts: list[str]) -> tuple[int, list[list[float]]]:
            time.sleep(0.05)  # stops the server's only thread: 20 answers a second
            return right(number, texts)

        with Fake(slowly) as fake:
            window = fake.window()
        self.assertGreaterEqual(len(window.completed), load.COMPLETED_MIN)
        self.assertGreater(window.seconds, SECONDS)
        self.assertFalse(window.errors)

    def test_refusals_are_counted_and_are_no_completions(self) -> None:
        def often_full(number: int, texts: list[str]) -> tuple[int, list[list[float]]]:
            return (429, []) if number % 5 == 0 and not is_probe(texts) else right(number, texts)

        with Fake(often_full) as fake:
            window = fake.window()
        self.assertTrue(all(reason.startswith("status 429") for reason in window.errors), window.errors)
        self.assertGreater(window.errors.total(), 0)
        self.assertGreater(len(window.completed), 0)

    def test_a_lost_connection_is_counted_and_opened_again(self) -> None:
        hung_up: list[int] = []

        def hangs_up_twice(number: int, texts: list[str]) -> tuple[int, list[list[float]]] | None:
            if len(hung_up) < 2 and not is_probe(texts):
                hung_up.append(number)
                return None
            return right(number, texts)

        with Fake(hangs_up_twice) as fake:
            window = fake.window()
        self.assertEqual(window.errors.total(), 2, window.errors)
        self.assertGreater(len(window.completed), 0)

    def test_a_wrong_probe_gives_no_figure(self) -> None:
        wrongs = {
            "other weights": lambda _, texts: (200, [[0.0, 1.0, 0.0] for _ in texts]),
            "too few": lambda _, texts: (200, [embedding(texts[0])]),
            "another dimension": lambda _, texts: (200, [[1.0] for _ in texts]),
            "turned around": lambda _, texts: (200, [embedding(text) for text in reversed(texts)]),
            "refused": lambda _, texts: (503, []),
            "hung up": lambda _, texts: None,
        }
        for name, answer in wrongs.items():
            with Fake(answer) as fake, self.assertRaises(LoadError, msg=name):
                fake.window()

    def test_a_wrong_last_answer_is_an_error(self) -> None:
        with Fake(lambda number, texts: right(number, texts if is_probe(texts) else texts[:1])) as fake:
            window = fake.window()
        self.assertEqual(window.errors.total(), WORKLOAD.clients, window.errors)

    def test_a_server_that_embeds_wrongly_is_not_connected_to(self) -> None:
        with Fake(lambda _, texts: (200, [[0.0, 1.0, 0.0] for _ in texts])) as fake:
            with self.assertRaisesRegex(SystemExit, "cosine"):
                connect(Address("fake", "127.0.0.1", fake.port, api=OPENAI), PROBES[0])
        with Fake(right) as fake:
            server = connect(Address("fake", "127.0.0.1", fake.port, model="m"), PROBES[0])
            self.assertEqual((server.api, server.model), (OPENAI, "m"))


if __name__ == "__main__":
    unittest.main()
