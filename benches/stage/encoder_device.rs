//! Runs an encoder from a folder on a device when it is told to, for whoever times it beside another library on the same weights:
//! `benches/gpu` does. Lines of JSON come in, one for each line goes out. Never a choice of shapes.
//!
//! `cargo bench -p benches --features models/cuda --bench encoder_device -- FOLDER DEVICE`, DEVICE being `cpu` or `cuda:N`; lines are
//!
//! ```text
//! {"embed": [[ID, …], …]}                                      {"vectors": [[…], …]}
//! {"time": {"sequences": N, "tokens": N, "seconds": S}}        {"median_s": …, "least_s": …, "runs": N}
//! ```
//!
//! The first line that comes out says what was loaded. A run is timed from tokens to vectors on the host, so its end is the device's.

#![forbid(unsafe_code)]

use std::io::{BufRead as _, Write as _};
use std::path::Path;
use std::time::{Duration, Instant};

use models::engine::{Device, Item, Output, Tokens};
use models::load::{Backend, inspect};
use models::{Engine, Options};
use serde_json::{Value, json};

/// Runs before the timed ones: kernels are loaded, clocks come up.
const WARM_UP: usize = 5;

/// Token ids are any below this, which every tokenizer's vocabulary is larger than.
const VOCABULARY: usize = 1000;

fn main() -> Result<(), String> {
    let mut arguments = std::env::args().skip(1).filter(|argument| !argument.starts_with('-'));
    // When all benches are run, at most with a filter of names, there is nothing to load.
    let (Some(folder), Some(device)) = (arguments.next(), arguments.next()) else { return Ok(()) };
    let mut engine = load(Path::new(&folder), &device)?;
    let info = engine.info();
    say(&json!({
        "provider": info.provider,
        "execution_class": info.execution_class,
        "device": info.device.to_string(),
        "weights_bytes": info.weights_bytes,
    }))?;
    for line in std::io::stdin().lock().lines() {
        let line = line.map_err(|e| e.to_string())?;
        let asked: Value = serde_json::from_str(&line).map_err(|e| format!("{line:?}: {e}"))?;
        say(&answer(&mut *engine, &asked)?)?;
    }
    Ok(())
}

fn say(answer: &Value) -> Result<(), String> {
    let mut out = std::io::stdout();
    writeln!(out, "{answer}").and_then(|()| out.flush()).map_err(|e| e.to_string())
}

fn load(folder: &Path, device: &str) -> Result<Box<dyn Engine>, String> {
    let device = match device.strip_prefix("cuda:").map(str::parse) {
        Some(Ok(ordinal)) => Device::Cuda(ordinal),
        None if device == "cpu" => Device::Cpu,
        _ => return Err(format!("{device:?} is no device; give cpu or cuda:N")),
    };
    let manifest = inspect(folder, Some("bench"), None, None).map_err(|e| e.to_string())?;
    let options = Options { backend: Backend::Candle, device, ..Options::default() };
    models::load(&manifest, folder, &options).map(|loaded| loaded.engine).map_err(|e| e.to_string())
}

fn answer(engine: &mut dyn Engine, asked: &Value) -> Result<Value, String> {
    if let Some(sequences) = asked["embed"].as_array() {
        let item = |ids: &Value| -> Result<Item, String> {
            let ids = ids.as_array().ok_or("a sequence is a list of token ids")?;
            let id =
                |id: &Value| id.as_u64().and_then(|id| u32::try_from(id).ok()).ok_or(format!("{id} is no token id"));
            Ok(Item::Tokens(Tokens { ids: ids.iter().map(id).collect::<Result<_, _>>()?, type_ids: vec![] }))
        };
        let items = sequences.iter().map(item).collect::<Result<Vec<_>, _>>()?;
        let outputs = engine.run(&items).map_err(|e| e.to_string())?;
        let vector = |output| if let Output::Vector(values) = output { json!(values) } else { Value::Null };
        return Ok(json!({"vectors": outputs.into_iter().map(vector).collect::<Vec<_>>()}));
    }
    let (time, number) = (&asked["time"], |value: &Value| value.as_u64().and_then(|n| usize::try_from(n).ok()));
    let (Some(sequences), Some(tokens), Some(seconds)) =
        (number(&time["sequences"]), number(&time["tokens"]), time["seconds"].as_f64())
    else {
        return Err(format!("{asked} is neither `embed` nor `time` with sequences, tokens and seconds"));
    };
    let id = |at: usize| (at * 31 % VOCABULARY) as u32;
    let item = |number: usize| {
        let ids = (0..tokens).map(|at| id(number * tokens + at)).collect();
        Item::Tokens(Tokens { ids, type_ids: vec![] })
    };
    let items: Vec<Item> = (0..sequences).map(item).collect();
    let mut run = || engine.run(&items).map_err(|e| e.to_string()).map(|outputs| drop(std::hint::black_box(outputs)));
    (0..WARM_UP).try_for_each(|_| run())?;
    let (started, limit) = (Instant::now(), Duration::from_secs_f64(seconds.clamp(0.0, 600.0)));
    let mut times = Vec::new();
    while times.is_empty() || started.elapsed() < limit {
        let begun = Instant::now();
        run()?;
        times.push(begun.elapsed().as_secs_f64());
    }
    times.sort_by(f64::total_cmp);
    Ok(json!({"median_s": times[times.len() / 2], "least_s": times[0], "runs": times.len()}))
}
