//! Runs Candle's own quantised model from a GGUF file on the CPU when it is told to, for whoever times it beside another program:
//! `benches/peers/decoders.py` does. Lines come in, one for each line goes out, as with the bench `decoder_file`. Never a clock: who
//! asks has one.
//!
//! `cargo bench --workspace --features benches/candle-transformers --bench decoder_candle -- FILE THREADS`

#![forbid(unsafe_code)]

use std::io::{BufRead as _, Write as _};

use candle_core::quantized::gguf_file::Content;
use candle_core::{Device, Result, Tensor, bail};
use candle_transformers::models::quantized_llama::ModelWeights;

/// Tokens are any below this, which every model's vocabulary is larger than.
const VOCABULARY: usize = 40_000;

fn main() -> Result<()> {
    let mut arguments = std::env::args().skip(1).filter(|argument| !argument.starts_with('-'));
    // When all benches are run, at most with a filter of names, there is nothing to load.
    let Some(path) = arguments.next().filter(|file| file.ends_with(".gguf")) else { return Ok(()) };
    if arguments.next() != std::env::var("RAYON_NUM_THREADS").ok() {
        bail!("Candle takes its threads from RAYON_NUM_THREADS: set it to the number of threads that is asked for");
    }
    let mut file = std::fs::File::open(path)?;
    let content = Content::read(&mut file)?;
    let mut model = ModelWeights::from_gguf(content, &mut file, &Device::Cpu)?;
    let mut length = 0;
    for line in std::io::stdin().lock().lines() {
        let line = line?;
        let words: Vec<&str> = line.split_whitespace().collect();
        match words[..] {
            ["prompt", count] => {
                length = 0;
                run(&mut model, &mut length, number(count)?)?;
            }
            ["tokens", count] => (0..number(count)?).try_for_each(|_| run(&mut model, &mut length, 1))?,
            _ => bail!("{line:?} is neither `prompt TOKENS` nor `tokens COUNT`"),
        }
        let mut out = std::io::stdout();
        writeln!(out, "done")?;
        out.flush()?;
    }
    Ok(())
}

fn number(word: &str) -> Result<usize> {
    word.parse().map_err(|_| candle_core::Error::Msg(format!("{word:?} is no number")))
}

/// Reads so many more tokens; at the start of a text, Candle forgets the one before it.
fn run(model: &mut ModelWeights, length: &mut usize, count: usize) -> Result<()> {
    let ids: Vec<u32> = (*length..*length + count).map(|at| (at * 31 % VOCABULARY) as u32).collect();
    let logits = model.forward(&Tensor::new(ids, &Device::Cpu)?.unsqueeze(0)?, *length)?;
    if logits.flatten_all()?.to_vec1::<f32>()?.iter().any(|logit| !logit.is_finite()) {
        bail!("a logit is no number");
    }
    *length += count;
    Ok(())
}
