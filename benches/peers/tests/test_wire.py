"""Requests are what a server expects, and responses are read rightly however their bytes are cut."""

import json
import unittest

from benches.peers.wire import EMBED, OPENAI, BadResponse, ResponseReader, embeddings, request_bytes

PLAIN = b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: 11\r\n\r\nhello world"
CHUNKED = (
    b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n"
    b"6\r\nhello \r\nB;x=y\r\n\r\n\r\nworld!!\r\n0\r\ntrailer: t\r\n\r\n"
)
CHUNKED_BODY = b"hello \r\n\r\nworld!!"


class Responses(unittest.TestCase):
    def test_a_response_is_whole_wherever_it_is_cut(self) -> None:
        for whole, body in ((PLAIN, b"hello world"), (CHUNKED, CHUNKED_BODY)):
            for cut in range(len(whole)):
                reader = ResponseReader()
                self.assertIsNone(reader.feed(whole[:cut]) if cut else None, cut)
                response = reader.feed(whole[cut:])
                assert response is not None
                self.assertEqual((response.status, response.body, response.keeps_open), (200, body, True), cut)

    def test_a_response_is_whole_byte_by_byte_and_the_next_one_too(self) -> None:
        reader = ResponseReader()
        for whole, body in ((CHUNKED, CHUNKED_BODY), (PLAIN, b"hello world"), (CHUNKED, CHUNKED_BODY)):
            given = [reader.feed(whole[place : place + 1]) for place in range(len(whole))]
            self.assertEqual(given[:-1], [None] * (len(whole) - 1))
            assert given[-1] is not None
            self.assertEqual(given[-1].body, body)

    def test_whether_a_connection_stays_open_is_read(self) -> None:
        for head, keeps_open in (
            (b"HTTP/1.1 429 Too Many Requests\r\ncontent-length: 0\r\nConnection: close", False),
            (b"HTTP/1.0 200 OK\r\ncontent-length: 0", False),
            (b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\nconnection: keep-alive", True),
        ):
            response = ResponseReader().feed(head + b"\r\n\r\n")
            assert response is not None
            self.assertEqual(response.keeps_open, keeps_open, head)

    def test_what_is_not_http_is_refused(self) -> None:
        for wrong in (
            b"SSH-2.0-x\r\n\r\n",
            b"HTTP/1.1 abc\r\ncontent-length: 1\r\n\r\n",
            b"HTTP/1.1 200 OK\r\n\r\n",
            b"HTTP/1.1 200 OK\r\ncontent-length: -1\r\n\r\n",
            b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\nzz\r\n\r\n",
            PLAIN + b"more",
        ):
            with self.assertRaises(BadResponse, msg=wrong):
                ResponseReader().feed(wrong)


class Requests(unittest.TestCase):
    def test_the_length_is_that_of_the_bytes_and_not_of_the_letters(self) -> None:
        for api in (OPENAI, EMBED):
            for texts in (["Größe 🚀"], ["a", "b\r\n\r\n"]):
                head, _, body = request_bytes(api, "host:1", "m", texts).partition(b"\r\n\r\n")
                self.assertIn(f"content-length: {len(body)}".encode(), head)
                content = json.loads(body)
                given = content["input"] if api == OPENAI else content["inputs"]
                self.assertEqual(given, texts[0] if len(texts) == 1 else texts)


class Embeddings(unittest.TestCase):
    def test_both_shapes_give_rows_in_the_order_of_the_texts(self) -> None:
        openai = {"data": [{"index": 1, "embedding": [3, 4]}, {"index": 0, "embedding": [1, 2]}]}
        self.assertEqual(embeddings(OPENAI, json.dumps(openai).encode()), [[1, 2], [3, 4]])
        self.assertEqual(embeddings(EMBED, b"[[1, 2], [3, 4]]"), [[1, 2], [3, 4]])

    def test_another_json_is_an_error_that_shows_it(self) -> None:
        for api, body in ((OPENAI, b"[]"), (OPENAI, b'{"error": 1}'), (EMBED, b'{"error": 1}'), (EMBED, b"<html>")):
            with self.assertRaises(BadResponse) as caught:
                embeddings(api, body)
            self.assertIn(repr(body), str(caught.exception))


if __name__ == "__main__":
    unittest.main()
