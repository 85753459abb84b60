//! Devices without room, devices that are lost, and other programs on them: no task is lost, the worker goes on, and it says how things
//! stand. The engines are fakes that fail as CUDA devices do.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};

use ::models::backend::fake;
use ::models::engine::{self, Device, Engine, Info, Item, Output};
use serde_json::json;

use crate::api::{embed, embed_with};
use crate::bench::{Bench, start_with};

/// A device that the engines of a test share.
#[derive(Default)]
struct Card {
    /// Items that fit; 0 for as many as there are.
    room: AtomicUsize,
    /// Whether everything fails, as after an Xid.
    is_lost: AtomicBool,
    runs_without_room: AtomicUsize,
    loads: AtomicUsize,
}

struct OnCard {
    card: Arc<Card>,
    engine: Box<dyn Engine>,
}

impl Engine for OnCard {
    fn info(&self) -> &Info {
        self.engine.info()
    }

    fn run(&mut self, items: &[Item]) -> Result<Vec<Output>, engine::Error> {
        let device = Device::Cpu;
        if self.card.is_lost.load(Ordering::SeqCst) {
            let detail = "DriverError(CUDA_ERROR_LAUNCH_FAILED, \"unspecified launch failure\")".into();
            return Err(engine::Error::Device { device, detail });
        }
        let room = self.card.room.load(Ordering::SeqCst);
        if room != 0 && items.len() > room {
            self.card.runs_without_room.fetch_add(1, Ordering::SeqCst);
            let detail = "DriverError(CUDA_ERROR_OUT_OF_MEMORY, \"out of memory\")".into();
            return Err(engine::Error::OutOfMemory { device, detail });
        }
        self.engine.run(items)
    }
}

fn start_on(card: &Arc<Card>, set: impl FnOnce(&mut worker::Options)) -> Bench {
    let card = Arc::clone(card);
    start_with(|options| {
        options.compute.loader = Some(Arc::new(move |manifest, _, _| {
            card.loads.fetch_add(1, Ordering::SeqCst);
            let loaded = fake::loaded_as(manifest.clone());
            let engine = Box::new(OnCard { card: Arc::clone(&card), engine: loaded.engine });
            Ok(::models::Loaded { engine, ..loaded })
        }));
        set(options);
    })
}

#[tokio::test]
async fn of_a_hundred_times_without_room_no_task_is_lost_and_nothing_is_started_again() {
    let card = Arc::new(Card::default());
    let bench = start_on(&card, |_| {});
    let texts: Vec<String> = (0..16).map(|number| format!("text {number}")).collect();
    let task = || embed_with("", &json!({"input": {"inputs": texts}}));
    let expected = bench.api.execute(task()).await.ok()["output"]["embeddings"].clone();
    assert_eq!(expected.as_array().unwrap().len(), texts.len());
    let mut rounds = 0;
    while card.runs_without_room.load(Ordering::SeqCst) < 100 {
        // Alone, in pairs, in fours: whatever fits is answered, and each answer is the right one.
        card.room.store(1 << (rounds % 3), Ordering::SeqCst);
        let tasks: Vec<_> = (0..3).map(|_| bench.begin(task())).collect();
        for task in tasks {
            assert_eq!(task.await.unwrap().ok()["output"]["embeddings"], expected);
        }
        // A lane remembers what did not fit; a model that is loaded afresh does not.
        assert_eq!(bench.api.delete("/api/models/texts").await.status, 204);
        rounds += 1;
        assert!(rounds < 100, "{} in {rounds} rounds", card.runs_without_room.load(Ordering::SeqCst));
    }
    assert_eq!(bench.api.get("/health/ready").await.status, 200);
    let figures = bench.api.get("/api/metrics").await.ok();
    assert_eq!(figures["engine_panics"], 0, "{figures}");
    assert_eq!(card.loads.load(Ordering::SeqCst), rounds, "only what was unloaded was loaded again");
}

#[tokio::test]
async fn what_the_device_has_no_room_to_load_may_be_tried_again_and_is_not_the_models_fault() {
    let is_full = Arc::new(AtomicBool::new(true));
    let full = Arc::clone(&is_full);
    let bench = start_with(|options| {
        options.compute.loader = Some(Arc::new(move |manifest, _, options| match full.load(Ordering::SeqCst) {
            true => {
                let detail = "DriverError(CUDA_ERROR_OUT_OF_MEMORY, \"out of memory\")".into();
                Err(::models::Error::OutOfMemory { device: options.device, model: manifest.id(), detail })
            }
            false => Ok(fake::loaded_as(manifest.clone())),
        }));
    });
    let answer = bench.api.execute(embed("a b")).await;
    answer.problem(507, "out_of_memory");
    is_full.store(false, Ordering::SeqCst);
    bench.api.execute(embed("a b")).await.ok();
}

#[tokio::test]
async fn what_does_not_fit_alone_is_refused_and_the_next_task_is_not() {
    let card = Arc::new(Card::default());
    let bench = start_on(&card, |_| {});
    bench.api.execute(embed("a !oom b")).await.problem(507, "out_of_memory");
    bench.api.execute(embed("a b")).await.ok();
    assert_eq!(bench.api.get("/health/ready").await.status, 200);
}

#[tokio::test]
async fn a_lost_device_makes_the_worker_unready_and_is_never_replaced_by_another() {
    let card = Arc::new(Card::default());
    let bench = start_on(&card, |_| {});
    bench.api.execute(embed("a")).await.ok();
    assert!(bench.worker.status().is_fit);
    card.is_lost.store(true, Ordering::SeqCst);
    for failed in 1..=3 {
        let answer = bench.api.execute(embed("a")).await;
        answer.problem(500, "device_failed");
        assert!(answer.json()["detail"].to_string().contains("CUDA_ERROR_LAUNCH_FAILED"), "{answer:?}");
        let status = bench.worker.status();
        assert_eq!(status.is_fit, failed < 3, "{failed}");
        assert_eq!(status.loaded.len(), 1);
    }
    let ready = bench.api.get("/health/ready").await;
    assert_eq!(ready.status, 503);
    let because = ready.json()["because"].to_string();
    assert!(because.contains("cpu is lost") && because.contains("restart the worker"), "{because}");
    assert_eq!(card.loads.load(Ordering::SeqCst), 1, "nothing was loaded elsewhere");
    // It came back after all: one answer is proof.
    card.is_lost.store(false, Ordering::SeqCst);
    bench.api.execute(embed("a")).await.ok();
    assert_eq!(bench.api.get("/health/ready").await.status, 200);
}

#[tokio::test]
async fn what_other_programs_hold_of_a_device_is_not_given_to_a_model() {
    let free = Arc::new(AtomicU64::new(1 << 30));
    let (asked, card) = (Arc::clone(&free), Arc::new(Card::default()));
    let bench = start_on(&card, |options| {
        options.devices.devices = vec![worker::config::DeviceOptions { device: Device::Cpu, memory_bytes: 1 << 30 }];
        options.compute.free_memory = Some(Arc::new(move |_| Some(asked.load(Ordering::SeqCst))));
        // With the fake nothing is counted.
        options.compute.backend = ::models::load::Backend::Auto;
    });
    // There is room for one.
    bench.api.execute(embed("a")).await.ok();
    let digits = json!({"kind": "classify", "model": "digits",
        "input": {"tensors": [{"name": "pixels", "datatype": "FP32", "shape": [1, 64], "data": vec![1.0; 64]}]}});
    // Another program takes nearly all: a model with weights has no room, and the refusal says whose fault it is.
    free.store(10, Ordering::SeqCst);
    let refused = bench.api.execute(digits.clone()).await;
    refused.problem(507, "out_of_memory");
    let detail = refused.json()["detail"].to_string();
    assert!(detail.contains("taken by other programs"), "{detail}");
    bench.api.execute(embed("a")).await.ok();
}

#[tokio::test]
async fn what_a_model_takes_in_fact_is_what_is_reserved_for_it_until_it_goes() {
    let free = Arc::new(AtomicU64::new(1 << 30));
    let (asked, loading, card) = (Arc::clone(&free), Arc::clone(&free), Arc::new(Card::default()));
    let bench = start_on(&card, |options| {
        options.devices.devices = vec![worker::config::DeviceOptions { device: Device::Cpu, memory_bytes: 1 << 30 }];
        options.compute.free_memory = Some(Arc::new(move |_| Some(asked.load(Ordering::SeqCst))));
        options.compute.loader = Some(Arc::new(move |manifest, _, _| {
            loading.fetch_sub(300 << 20, Ordering::SeqCst);
            Ok(fake::loaded_as(manifest.clone()))
        }));
    });
    let models: BTreeSet<&str> = ["texts", "labels"].into();
    for (count, model) in models.iter().enumerate() {
        bench
            .api
            .execute(json!({"kind": if *model == "texts" { "embed" } else { "classify" }, "model": model,
            "input": {"inputs": ["a"]}}))
            .await
            .ok();
        let device = &bench.worker.status().devices[0];
        assert_eq!(device.reserved_bytes, (count as u64 + 1) * (300 << 20), "{model}");
    }
    // One gives its memory back and the other does not: what is missing is nobody's to give.
    free.fetch_add(300 << 20, Ordering::SeqCst);
    assert_eq!(bench.api.delete("/api/models/labels").await.status, 204);
    assert_eq!(bench.worker.status().devices[0].reserved_bytes, 300 << 20);
    assert_eq!(bench.api.delete("/api/models/texts").await.status, 204);
    let device = &bench.worker.status().devices[0];
    assert_eq!((device.reserved_bytes, device.foreign_bytes), (0, 300 << 20));
}

#[tokio::test]
async fn what_keeps_memory_for_itself_is_told_how_much_the_ledger_has_for_it() {
    let most = Arc::new(AtomicU64::new(0));
    let told = Arc::clone(&most);
    let (memory_bytes, weights_bytes) = (1 << 30, 300 << 20);
    let free = Arc::new(AtomicU64::new(memory_bytes));
    let asked = Arc::clone(&free);
    let bench = start_with(|options| {
        options.devices.devices = vec![worker::config::DeviceOptions { device: Device::Cuda(0), memory_bytes }];
        options.compute.free_memory = Some(Arc::new(move |_| Some(asked.load(Ordering::SeqCst))));
        options.compute.loader = Some(Arc::new(move |manifest, _, options| {
            told.store(options.device_bytes_max.unwrap_or(u64::MAX), Ordering::SeqCst);
            free.fetch_sub(weights_bytes, Ordering::SeqCst);
            Ok(fake::loaded_as(manifest.clone()))
        }));
    });
    bench.api.execute(embed("a")).await.ok();
    assert_eq!(most.load(Ordering::SeqCst), memory_bytes, "alone it may have all");
    let second = json!({"kind": "classify", "model": "labels", "input": {"inputs": ["a"]}});
    bench.api.execute(second).await.ok();
    assert_eq!(most.load(Ordering::SeqCst), memory_bytes - weights_bytes, "beside another, what that has not taken");
}
