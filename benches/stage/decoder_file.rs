//! Runs a decoder from a GGUF file on the CPU when it is told to, for whoever times it beside another program:
//! `benches/peers/decoders.py` does. Lines come in, one for each line goes out. Never a clock: who asks has one.
//!
//! `cargo bench -p benches --bench decoder_file -- FILE [THREADS]`. A file of the Llama architecture; lines are
//!
//! ```text
//! prompt TOKENS      forgets everything and reads so many tokens
//! tokens COUNT       writes so many, one after the other
//! ```
//!
//! and the answer is `done` when the numbers behind the last token are there.

#![forbid(unsafe_code)]

use std::io::{BufRead as _, Write as _};
use std::path::Path;

use models::engine::Generator;
use models::generate::{Part, Plan};
use models::load::load_generator;
use models::manifest::{File, Task};
use models::{Manifest, Options};

/// Memory for keys and values: some thousand tokens of a model of a billion weights.
const CACHE_BYTES: u64 = 256 << 20;

/// Tokens are any below this, which every model's vocabulary is larger than.
const VOCABULARY: usize = 40_000;

fn main() -> Result<(), String> {
    let mut arguments = std::env::args().skip(1).filter(|argument| !argument.starts_with('-'));
    // When all benches are run, at most with a filter of names, there is nothing to load.
    let Some(file) = arguments.next().filter(|file| file.ends_with(".gguf")) else { return Ok(()) };
    let threads = arguments.next().map(|threads| threads.parse().map_err(|_| format!("{threads:?} is no number")));
    let mut text = Text { engine: load(Path::new(&file), threads.transpose()?.unwrap_or_default())?, length: 0 };
    for line in std::io::stdin().lock().lines() {
        let line = line.map_err(|e| e.to_string())?;
        let words: Vec<&str> = line.split_whitespace().collect();
        match words[..] {
            ["prompt", count] => {
                text.length = 0;
                text.run(number(count)?)?;
            }
            ["tokens", count] => (0..number(count)?).try_for_each(|_| text.run(1))?,
            _ => return Err(format!("{line:?} is neither `prompt TOKENS` nor `tokens COUNT`")),
        }
        let mut out = std::io::stdout();
        writeln!(out, "done").and_then(|()| out.flush()).map_err(|e| e.to_string())?;
    }
    Ok(())
}

fn number(word: &str) -> Result<usize, String> {
    word.parse().map_err(|_| format!("{word:?} is no number"))
}

/// One text, whose blocks are the first ones of the cache.
struct Text {
    engine: Box<dyn Generator>,
    length: usize,
}

impl Text {
    /// Reads so many more tokens.
    fn run(&mut self, count: usize) -> Result<(), String> {
        let ids: Vec<u32> = (self.length..self.length + count).map(|at| (at * 31 % VOCABULARY) as u32).collect();
        let blocks = (self.length + count).div_ceil(self.engine.info().block_tokens) as u32;
        let table: Vec<u32> = (0..blocks).collect();
        let mut plan = Plan::default();
        plan.push(Part { sequence: 0, tokens: &ids, position: self.length, blocks: &table, is_sampled: true });
        let mut is_finite = false;
        let step = self.engine.step(&plan, &mut |_, logits| is_finite = logits.iter().all(|logit| logit.is_finite()));
        step.map_err(|e| e.to_string())?;
        self.length += count;
        if is_finite { Ok(()) } else { Err("a logit is no number".into()) }
    }
}

/// With so many threads, or with all of them where that is 0.
fn load(path: &Path, threads: usize) -> Result<Box<dyn Generator>, String> {
    let wrong = |what: &str| format!("{}: {what}", path.display());
    let name = path.file_name().and_then(|name| name.to_str()).ok_or_else(|| wrong("has no name that is text"))?;
    let bytes = std::fs::metadata(path).map_err(|e| wrong(&e.to_string()))?.len();
    let file = File { path: name.into(), sha256: "0".repeat(64), bytes };
    let fake = models::backend::fake::manifest_for("bench", Task::Generate);
    let manifest = Manifest { architecture: "llama".into(), files: vec![file], ..fake };
    let options = Options { threads, ..Options::default() };
    let folder = path.parent().unwrap_or(Path::new("."));
    load_generator(&manifest, folder, &options, CACHE_BYTES).map_err(|e| e.to_string())
}
