"""Tests of the parts that need no server and no model: `python -m unittest discover -s benches/peers -t .`"""
