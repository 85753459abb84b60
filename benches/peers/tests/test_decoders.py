"""Files of random weights: the mix of types, and blocks whose scales are numbers."""

import unittest

from benches.peers.decoders import BLOCKS, SIZES, blocks_of, random_blocks, words


class Mixes(unittest.TestCase):
    def test_q4_k_m_gives_more_bits_where_llama_cpp_does(self) -> None:
        def types(name: str, layers: int) -> str:
            of = (blocks_of("Q4_K_M", name, layer, layers, 2048) for layer in range(layers))
            return "".join("6" if each == "Q6_K" else "4" for each in of)

        self.assertEqual(types("ffn_down", 16), "6644644644644666")
        self.assertEqual(types("ffn_down", 16), types("attn_v", 16))
        self.assertEqual(types("attn_q", 16), "4" * 16)
        self.assertEqual(blocks_of("Q4_K_M", "token_embd", 0, 16, 2048), "Q6_K")

    def test_rows_that_are_not_whole_blocks_are_in_blocks_of_32(self) -> None:
        self.assertEqual(blocks_of("Q4_K_M", "attn_q", 0, 30, 576), "Q5_0")
        self.assertEqual(blocks_of("Q4_K_M", "attn_v", 0, 30, 576), "Q8_0")
        self.assertEqual(blocks_of("Q4_K_M", "token_embd", 0, 30, 576), "Q8_0")
        self.assertEqual(blocks_of("Q8_0", "attn_q", 0, 16, 2048), "Q8_0")
        self.assertEqual(blocks_of("IQ4_NL", "token_embd", 0, 16, 2048), "IQ4_NL")
        for sizes in SIZES.values():
            self.assertEqual(sizes.hidden % BLOCKS["Q8_0"][0], 0)


class Blocks(unittest.TestCase):
    def test_scales_are_numbers_and_rows_are_whole(self) -> None:
        try:
            import numpy
        except ModuleNotFoundError:
            self.skipTest("numpy is not installed")
        for blocks, (elements, size, _) in BLOCKS.items():
            rows = random_blocks(blocks, 3, 512)
            self.assertEqual(rows.shape, (3, 512 // elements * size))
            at = slice(-2, None) if blocks == "Q6_K" else slice(0, 2)
            scale = rows.reshape(-1, size)[:, at].copy().view("<f2")
            self.assertTrue(bool(numpy.all((scale > 0) & numpy.isfinite(scale))), blocks)


class Tokenizers(unittest.TestCase):
    def test_every_byte_is_a_token_and_every_id_is_there(self) -> None:
        tokens = words(300)
        self.assertEqual((len(tokens), len(set(tokens))), (300, 300))
        self.assertEqual((tokens[ord("a")], tokens[ord(" ")], tokens[256]), ("a", "\u0120", "ee"))


if __name__ == "__main__":
    unittest.main()
