"""The comparison of a worker with its peers. `python -m benches.peers --help` says how to run it; README.md teaches."""
