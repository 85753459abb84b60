"""What a machine with an NVIDIA GPU shows: all GPU tests, and our speed beside PyTorch's and sentence-transformers' on the same weights
in the same run. `cargo xtask gpu` packs and starts it; README.md says what each stage does."""
