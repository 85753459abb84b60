//! Times the dense layer over GGUF's blocks and Candle's product with the same blocks in turns, call by call, so that whatever else runs on the machine slows
//! both. Nothing comes in but the machine; a table goes out, of CPU time on one thread. Never all shapes of models: those are
//! `linear_quantized`'s, whose times want a quiet machine.
//!
//! Rates are those of the fastest call, ratios medians over the turns. Ours includes putting the rows into 8 bits, as Candle's does. One row meets other weights
//! in each call, so that none are in a cache.
//!
//! `cargo bench -p benches --bench quantized_turns`, with `-- Q4` for the blocks of that name. Linux only, whose `/proc` has the CPU time.

#![forbid(unsafe_code)]
#![expect(clippy::print_stdout, reason = "the table is what a bench is run for")]

use std::borrow::Cow;

use benches::{candle, machine};
use candle_core::quantized::{QMatMul, QStorage, QTensor};
use candle_core::{Device, Module as _};
use kernels::linear_quantized::{Blocks, Epilogue, Quantized, Rows, linear_quantized, quantize};
use kernels::testing::normal;

/// Rows, inputs and outputs: a prompt, a part of one, a token.
const SHAPES: [(usize, usize, usize); 3] = [(512, 2048, 256), (64, 2048, 256), (1, 2048, 2048)];

/// Times the last cache that the weights of single rows take.
const LARGE: usize = 2;

/// Turns, and for a single row more of them.
const TURNS: usize = 25;

/// Turns that are taken at least, and CPU seconds after which no more are: Candle computes some types of blocks without vectors.
const TURNS_LEAST: usize = 3;
const ENOUGH_S: f64 = 2.0;

/// CPU seconds of all threads of this process.
fn cpu_s() -> f64 {
    // The system counts when a thread gives its core away.
    std::thread::yield_now();
    let tasks = std::fs::read_dir("/proc/self/task").expect("Linux has it");
    let of = |task: std::io::Result<std::fs::DirEntry>| {
        let text = std::fs::read_to_string(task.ok()?.path().join("schedstat")).ok()?;
        text.split(' ').next()?.parse::<u64>().ok()
    };
    tasks.filter_map(of).sum::<u64>() as f64 * 1e-9
}

fn timed(call: impl FnOnce()) -> f64 {
    let before = cpu_s();
    call();
    cpu_s() - before
}

fn main() {
    // Tests only try whether it starts.
    let is_timed = std::env::args().any(|argument| argument == "--bench");
    let filter = std::env::args().skip(1).find(|argument| !argument.starts_with('-')).unwrap_or_default();
    machine::on_one_thread();
    println!("{}, one thread, {}\n", machine::processor(), kernels::launch::isa());
    println!("| blocks | rows | ours GOP/s | Candle GOP/s | times as fast (median) | ours GB/s |");
    println!("|---|--:|--:|--:|--:|--:|");
    for &blocks in Blocks::ALL.iter().filter(|blocks| format!("{blocks:?}").contains(&filter)) {
        for shape in SHAPES {
            turns(blocks, shape, if is_timed { TURNS } else { 1 }, is_timed);
        }
    }
}

/// One line of the table.
fn turns(blocks: Blocks, (m, k, n): (usize, usize, usize), turns: usize, is_timed: bool) {
    let x = normal(1, m * k);
    let weights: Vec<f32> = normal(2, n * k).iter().map(|w| w / (k as f32).sqrt()).collect();
    let bytes = quantize(blocks, &weights).expect("whole blocks");
    let copies = if m == 1 && is_timed { LARGE * machine::last_cache_bytes() / bytes.len() + 1 } else { 1 };
    let turns = if m == 1 { turns * 20 } else { turns };
    let ours: Vec<Quantized> = (0..copies).map(|_| Quantized::new(blocks, &[&bytes], k).expect("they fit")).collect();
    let product = |dtype| {
        let storage = QStorage::from_data(Cow::Borrowed(&bytes), &Device::Cpu, dtype).expect("blocks of this type");
        QMatMul::from_qtensor(QTensor::new(storage, (n, k)).expect("the lengths fit")).expect("it is a matrix")
    };
    let rivals: Option<Vec<QMatMul>> = candle::dtype(blocks).map(|dtype| (0..copies).map(|_| product(dtype)).collect());
    let x_there = candle::tensor(&x, (m, k));
    let (mut rows, mut y) = (Rows::default(), vec![0.0; m * n]);
    let (mut best, mut best_there, mut ratios) = (f64::MAX, f64::MAX, vec![]);
    let mut spent = 0.0;
    for turn in 0..turns + 1 {
        if turn > TURNS_LEAST && spent > ENOUGH_S {
            break;
        }
        let mut it = || {
            timed(|| {
                let weights = &ours[turn % copies];
                rows.quantize(&x, weights).expect("the lengths fit");
                linear_quantized(&rows, weights, &Epilogue::default(), &mut y).expect("the lengths fit");
            })
        };
        let mut found = None;
        let mut there = || {
            let rivals = rivals.as_ref()?;
            Some(timed(|| found = Some(rivals[turn % copies].forward(&x_there).expect("the shapes fit"))))
        };
        // Each goes first in half of the turns.
        let (took, took_there) = if turn % 2 == 0 {
            let took = it();
            (took, there())
        } else {
            let took_there = there();
            (it(), took_there)
        };
        // The first is a rehearsal, which shows that both compute the same, but for their ways of putting rows into 8 bits.
        if turn == 0 {
            if let Some(found) = found {
                let found = found.flatten_all().and_then(|found| found.to_vec1::<f32>()).expect("it is in f32");
                let off = found.iter().zip(&y).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max);
                assert!(off < 0.1, "{blocks:?}: {off} off");
            }
            continue;
        }
        best = best.min(took);
        spent += took + took_there.unwrap_or_default();
        if let Some(took_there) = took_there {
            best_there = best_there.min(took_there);
            ratios.push(took_there / took);
        }
    }
    ratios.sort_by(f64::total_cmp);
    let rate = |seconds: f64| format!("{:.1}", (2 * m * k * n) as f64 / seconds / 1e9);
    let (there, ratio) = match ratios.get(ratios.len() / 2) {
        Some(ratio) => (rate(best_there), format!("{ratio:.2}")),
        None => ("has none".to_owned(), String::new()),
    };
    let bytes = if m == 1 { format!("{:.1}", bytes.len() as f64 / best / 1e9) } else { String::new() };
    println!("| {blocks:?} | {m} | {} | {there} | {ratio} | {bytes} |", rate(best));
}
